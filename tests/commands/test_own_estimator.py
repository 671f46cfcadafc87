"""A user's own estimator by its dotted name: its options, sweeps and reports over it, and what is refused.

It is trained, replayed and regenerated in test_replay.
"""

import hashlib
import importlib
import json
import math
import re
import sys

import jax.numpy as jnp
import pytest

from tests.support.command_line import call, refused
from tests.support.paths import ROOT
from tests.support.runs import small
from tsallis_rl import main, sweep
from tsallis_rl.config.files import load_config
from tsallis_rl.objectives import ESTIMATORS, Coefficients, Estimator, check
from tsallis_rl.report.figures import draw
from tsallis_rl.report.panels import by_estimator, style_of_run
from tsallis_rl.report.runs import read
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.loop import train

OWN = "examples.estimator.tempered"


@pytest.fixture(autouse=True)
def of_this_test(monkeypatch):
    """Takes what a test adds to the table out of it."""
    before = dict(ESTIMATORS)
    monkeypatch.chdir(ROOT)
    yield
    for name in ESTIMATORS.keys() - before.keys():
        del ESTIMATORS[name]


def test_a_sweep_gives_an_option_to_the_estimator_that_has_it(capsys):
    arguments = (f"--estimators={OWN},em", "--seeds=1", "--dry-run")
    assert call(sweep.main, *arguments, "--config.estimator.temperature=3") is None
    own, em = (line for line in capsys.readouterr().out.splitlines() if "--workdir" in line)
    assert f"--config.estimator.name={OWN} " in own and "--config.estimator.temperature=3.0 " in own
    assert f"/{OWN}-seed0" in own and "temperature" not in em
    assert "the config has no such field" in refused(capsys, sweep.main, "--config.estimator.temperature=3")


def test_a_grid_varies_an_option_of_ones_own(tmp_path, capsys):
    grid = tmp_path / "grid.py"
    grid.write_text(
        "from tsallis_rl.sweeps.grid import Block\n"
        "def get_grid():\n"
        "    variants = {'': {}, 'hot': {'estimator.temperature': 4.0}}\n"
        f"    return [Block('hops', {{'{OWN}': ()}}, 1, variants=variants), Block('hops', {{'em': ()}}, 1)]\n"
    )
    assert call(sweep.main, f"--grid={grid}", "--dry-run") is None
    assert len(re.findall(r"temperature=4.0 .*tempered-hot-seed0", capsys.readouterr().out)) == 1
    told = refused(capsys, sweep.main, f"--grid={grid}", "--config.estimator.temperature=2", "--dry-run")
    assert "variants of the block set it" in told
    grid.write_text(grid.read_text().replace("'estimator.temperature'", "'estimator.heat'"))
    assert "config.estimator.heat=4.0: the config has no such field" in refused(
        capsys, sweep.main, f"--grid={grid}", "--dry-run"
    )


def test_a_report_tells_runs_by_the_options_of_ones_own_without_importing_it(tmp_path):
    for name, temperature, logged in (("a", 1.0, ""), ("b", 2.0, ""), ("c", 2.0, ', "train/q": 1.0')):
        (tmp_path / name).mkdir()
        config = load_config("hops")
        config.estimator.update(name="not_there.own", temperature=temperature)
        (tmp_path / name / "config.json").write_text(config.to_json())
        measured = f'"train/log_p_hat_mean": -1.0, "train/max_advantage": 0.5{logged}'
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 1, {measured}}}\n')
    runs = read(tmp_path)
    assert [run.method for run in runs] == [
        "not_there.own(temperature=1.0)", "not_there.own(temperature=2.0)", "not_there.own(temperature=2.0) q = 1"
    ]  # fmt: skip
    panels = {title: [line.label for line in lines] for title, lines in by_estimator(runs).items()}
    assert panels == {
        "without q": ["not_there.own(temperature=1.0)", "not_there.own(temperature=2.0)"],
        "not_there.own(temperature=2.0)": ["q = 1"],
    }
    assert style_of_run(runs[0]) != style_of_run(runs[1])
    (drawn,) = draw(runs, tmp_path, ["advantage"])
    assert "Methods without q have none." in drawn.caption


def weights(log_w, *, temperature=1.0):
    return Coefficients(log_w, log_w)


def branching(log_w, *, temperature=1.0):
    return Coefficients(log_w, log_w) if temperature > 1 else Coefficients(-log_w, log_w)


class Raises(Estimator):
    @property
    def needs(self):
        raise RuntimeError("no needs")


class Numbered(Estimator):
    @property
    def needs(self):
        return 5


class Measured(Estimator):
    @property
    def quantities(self):
        return ("nothing",)


class Leaves(Estimator):
    @property
    def options(self):
        sys.exit(7)


class Made(Estimator):
    def __init__(self):
        super().__init__("made", weights, "gold", "here", q=0.5)


ROWS = {
    "plain": Estimator("plain", weights, "gold", "here"),
    "of_silver": Estimator("x", weights, "silver", "here"),
    "at_two": Estimator("x", weights, "gold", "here", q=2.0),
    "no_function": Estimator("x", 3, "gold", "here"),
    "unknown": Estimator("x", lambda log_w, rewrads: None, "gold", "here"),
    "rewarded": Estimator("x", lambda log_w, rewards: None, "gold", "here"),
    "untold": Estimator("x", lambda log_w, *, share: None, "gold", "here"),
    "listed": Estimator("x", lambda log_w, *, share=(): None, "gold", "here"),
    "other_default": Estimator("x", lambda log_w, *, baseline="none": None, "gold", "here"),
    "failing": Estimator("x", lambda log_w: 1 // 0, "gold", "here"),
    "summed": Estimator("x", lambda log_w: Coefficients(log_w.sum(-1), log_w), "gold", "here"),
    "bare": Estimator("x", lambda log_w: jnp.exp(log_w), "gold", "here"),
    "counted": Estimator("x", lambda log_w: Coefficients(log_w > -1, log_w), "gold", "here"),
    "no_number": Estimator("x", lambda log_w, *, share=math.nan: None, "gold", "here"),
    "updating": Estimator("x", lambda log_w, *, update=1.0: None, "gold", "here"),
    "at_text": Estimator("x", weights, "gold", "here", q="1"),
    "leaving": Estimator("x", lambda log_w: sys.exit(3), "gold", "here"),
    "branches": Estimator("x", branching, "gold", "here"),
    "raises": Raises("x", weights, "gold", "here"),
    "numbered": Numbered("x", weights, "gold", "here"),
    "measured": Measured("x", weights, "gold", "here"),
    "leaves": Leaves("x", weights, "gold", "here"),
    "made": Made(),
    "flattened": Estimator("x", lambda log_w: weights(log_w.reshape(1, -1)), "gold", "here"),
    "at_true": Estimator("x", weights, "gold", "here", q=True),
    "without": Estimator("x", weights, "gold", "here", rationale="no"),
    "undecided": Estimator("x", weights, "gold", "here", rationale=None),
    "anywhere": Estimator("x", weights, "gold", "here", any_proposal="no"),
}


def own(name: str) -> str:
    return f"{__name__}.{name}"


def __getattr__(name: str) -> Estimator:
    if name not in ROWS:
        raise AttributeError(name)
    return ROWS[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.own", "estimator 'nowhere.own': no module 'nowhere', looked from the working directory"),
        (own("nothing"), "has no 'nothing', where an Estimator is expected; write nothing = Estimator("),
        (own("weights"), "has 'weights', a function, where an Estimator is expected"),
        (own("of_silver"), "its answer is 'silver'; choose gold or sampled"),
        (own("at_two"), "its q is 2.0; choose a number from 0 to 1, or None"),
        (own("no_function"), "its function is 3; give a function of Python"),
        (own("unknown"), "takes 'rewrads', which is not measured for rollouts; choose its positional arguments from"),
        (own("rewarded"), "takes 'rewards', which rollouts with gold answers lack"),
        (own("untold"), "its option share has no default; give it one that is a bool, int, float or str"),
        (own("listed"), "its option share has the default (); give it one"),
        (own("failing"), "fails on groups of log_w [2, 4]: ZeroDivisionError"),
        (own("summed"), "of float32 (2,), float32 (2, 4): expected Coefficients of two arrays of floats (2, 4)"),
        (own("bare"), "expected Coefficients of two arrays of floats (2, 4)"),
        (own("counted"), "returns a Coefficients of bool (2, 4), float32 (2, 4): expected"),
        (own("no_number"), "its option share has the default nan; give it one that is a bool, int, float or str, and"),
        (own("updating"), "its option update has the name of a method of settings; give it another"),
        (own("at_text"), "its q is '1'; choose a number from 0 to 1, or None"),
        (own("leaving"), "fails on groups of log_w [2, 4]: SystemExit: 3"),
        (own("branches"), "fails on groups of log_w [2, 4]: TracerBoolConversionError"),
        (own("raises"), ": RuntimeError: no needs"),
        (own("numbered"), "its needs is 5; give a tuple of names, or leave it out"),
        (own("measured"), "its function takes 'nothing', which is not measured for rollouts"),
        (own("leaves"), "SystemExit: 7"),
        (own("flattened"), "returns a Coefficients of float32 (1, 8), float32 (1, 8): expected"),
        (own("at_true"), "its q is True; choose a number from 0 to 1, or None"),
        (own("without"), "its rationale is 'no'; choose True or False"),
        (own("undecided"), "its rationale is None; choose True or False"),
        (own("anywhere"), "its any_proposal is 'no'; choose True or False"),
    ],
)  # fmt: skip
def test_an_estimator_that_no_run_could_use_is_refused_by_a_sentence(name, said):
    with pytest.raises(UserError) as refusal:
        check({"name": name, "q": 0.5, "temperature": 2.0}, 4)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_estimator_of_a_subclass_with_its_own_init_can_be_used():
    check({"name": own("made"), "q": 0.75, "temperature": 1.0}, 4)
    row = ESTIMATORS[own("made")]
    assert (type(row), row.name, row.q, ROWS["made"].name) == (Made, own("made"), 0.5, "made")


@pytest.mark.parametrize(
    ("argument", "fields", "said"),
    [
        (own("plain"), ["temperature=warm"], "--config.estimator.temperature=warm: 'warm' is no number"),
        (own("plain"), ["temperature=nan"], "config.estimator.temperature=nan: choose a number"),
        (own("plain"), ["temprature=2"], "did you mean estimator.temperature?"),
        (own("other_default"), [], "option baseline has the default 'none', and config.estimator.baseline has 'loo'"),
        ("garl", ["temperature=2"], "--config.estimator.temperature: the config has no such field"),
        (own("plain"), ["name=garl", "temperature=2"], "--config.estimator.temperature: the config has no such field"),
        (own("plain"), ["k=3"], f"config.estimator.k=3: estimator {own('plain')} does not read it, but temperature"),
    ],
)
def test_a_wrong_option_is_refused_by_a_sentence(argument, fields, said, capsys):
    given = [f"--config=hops:estimator={argument}", "--plan", *(f"--config.estimator.{field}" for field in fields)]
    assert said in refused(capsys, main.main, *given)


def test_a_config_file_sets_options_and_its_mistakes_are_told(tmp_path, capsys):
    file = tmp_path / "mine.py"
    text = (
        "from tsallis_rl.config import base_config\n"
        "def get_config(argument=None):\n"
        "    config = base_config()\n"
        f"    config.estimator.name = {OWN!r}\n"
        "    config.estimator.temperature = {}\n"
        "    return config\n"
    )
    file.write_text(text.format(3))
    assert call(main.main, f"--config={file}", "--show_config") is None
    assert re.search(rf"\* estimator.temperature +3\.0 +1\.0 +an option of {OWN}", capsys.readouterr().out)
    file.write_text(text.format("'hot'"))
    assert "temperature='hot' is of another type" in refused(capsys, main.main, f"--config={file}", "--show_config")
    file.write_text(text.format(3).replace("temperature", "heat"))
    assert f"estimator {OWN} has no such option, but temperature" in refused(
        capsys, main.main, f"--config={file}", "--plan"
    )


MINE = """
import jax
from tsallis_rl.objectives import Coefficients, Estimator
SCALE = 1.0


def weighed(log_w):
    part = {body} * jax.nn.softmax(log_w, axis=-1)
    return Coefficients(part, part)


mine = Estimator("mine", weighed, answer="gold", source="here", q={q})
"""


def test_runs_of_one_process_use_an_own_module_as_it_is_now_and_record_the_code_that_they_use(tmp_path, monkeypatch):
    """As in a notebook: a name of the module is set, and its file is edited, before and after it is loaded again."""
    file, module = tmp_path / "changing.py", "changing"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(body: str, q: float) -> str:
        file.write_text(MINE.format(body=body, q=q))
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]

    def trained(name: str) -> tuple[float, float, str]:
        records = train(small(estimator__name=f"{module}.mine", train__steps=1), tmp_path / name)
        (row,) = [r for r in records if "train/loss" in r]
        code = json.loads((tmp_path / name / "inputs.json").read_text())["code"][module]
        return row["train/grad_norm"], row["train/q"], code

    before = write("SCALE", 0.5)
    first = trained("first")
    assert first[1:] == (0.5, before)
    sys.modules[module].SCALE = 3.0
    second = trained("second")
    assert second == (pytest.approx(3 * first[0], rel=1e-5), 0.5, before)
    after = write("5", 0.75)
    assert trained("edited") == second
    importlib.reload(sys.modules[module])
    assert trained("reloaded") == (pytest.approx(5 * first[0], rel=1e-5), 0.75, after)
