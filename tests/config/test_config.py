"""Configs and command lines: every field is read, and every mistake is answered by a sentence."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.command_line import call, refused
from tests.support.paths import ROOT
from tests.support.runs import small
from tsallis_rl.config import Choice, base_config, parse_argument
from tsallis_rl.config.files import load_config, named, resolved
from tsallis_rl.config.readers import estimators_reading, unread
from tsallis_rl.config.saved import run_config
from tsallis_rl.config.schema import FIELDS, TASK_FIELDS
from tsallis_rl.main import main
from tsallis_rl.models.decoder import KEPT
from tsallis_rl.objectives import ESTIMATORS, RESAMPLING, SCHEDULES
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory, flatten
from tsallis_rl.training.setup import prepare

CONFIGS = sorted(file for file in (ROOT / "configs").glob("*.py") if "def get_config" in file.read_text())
SOURCE = "\n".join(path.read_text() for path in (ROOT / "tsallis_rl").rglob("*.py") if path.name != "schema.py")
OPTIONS = (
    "estimator",
    "regularizer",
)  # sections that are handed on whole to functions with keyword-only options


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.name)
def test_every_field_is_read_somewhere(file):
    floor_0 = "\n".join(path.read_text() for path in (ROOT / "tsallis_rl" / "objectives").rglob("*.py"))
    for field in flatten(load_config(str(file)).to_dict()):
        section, _, name = field.rpartition(".")
        if section in OPTIONS and re.search(rf"\b{name}\b", floor_0):
            continue
        assert re.search(rf"\b{re.escape(field)}\b", SOURCE), f"{file.name}: nothing reads config.{field}"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.name)
def test_docstrings_give_the_command_and_arguments_reach_their_fields(file):
    spec = importlib.util.spec_from_file_location("config_under_test", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "python -m tsallis_rl.main" in module.__doc__
    config = module.get_config("q=0.25,estimator=paft,start=warm")
    assert (config.estimator.q, config.estimator.name, config.task.start) == (0.25, "paft", "warm")
    assert set(flatten(base_config().to_dict())) <= set(flatten(config.to_dict()))


def test_arguments_are_refused_with_what_is_accepted():
    accepted = {"q": 0.75, "start": Choice(("cold", "warm"))}
    assert parse_argument(None, accepted, where="c.py") == {"q": 0.75, "start": "cold"}
    assert parse_argument("start=warm,q=1", accepted, where="c.py") == {"q": 1.0, "start": "warm"}
    for argument, sentence in {
        "qq=1": r"c.py: unknown argument 'qq=1'; accepted: q=…, start=…",
        "q": r"unknown argument 'q'",
        "q=x": r"q='x' is not a float",
        "q=1,q=0": r"c.py: q is given twice in 'q=1,q=0'; give it once",
        "start=tepid": r"start='tepid' is not accepted; choose from cold, warm",
    }.items():
        with pytest.raises(UserError, match=sentence):
            parse_argument(argument, accepted, where="c.py")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config=nofile.py"], "--config: no file 'nofile.py'"),
        (
            ["--config=configs/hops.py:z=1"],
            "unknown argument 'z=1'; accepted: q=…, tau=…, commitment=…, estimator=…",
        ),
        (["--config=hopz"], "did you mean --config=hops?"),
        (["--config=configs/nofile.py"], "give a path, or one of the names finq, hops, hotpotqa, jsonl, musique"),
        (["--config.trian.steps=1"], "--config.trian.steps: the config has no such field; did you mean train.steps?"),
        (["--config.lr=1"], "no such field; did you mean optimizer.learning_rate or base.learning_rate?"),
        (["--config.optimiser.lr=1"], "no such field; did you mean optimizer.learning_rate?"),
        (["--config.mesh.nothing=1"], "no such field; config.mesh has data, fsdp, tensor"),
        (["--config.nothing=1"], "no such field; --show_config of tsallis_rl.main lists the fields"),
        (["--learning_rate=1"], "--learning_rate=1 is not a flag; did you mean --config.optimizer.learning_rate or"),
        (["--q=0.5"], "--q=0.5 is not a flag: q goes after the config's colon, as in --config=hops:q=0.5"),
        (["--config=hops:start=warm", "--q", "1"], "after the config's colon, as in --config=hops:start=warm,q=1"),
        (["--config=configs/finq.py", "--model=tiny"], "as in --config=configs/finq.py:model=tiny"),
        (["--config.train.steps=many"], "flag --config.train.steps=many: 'many' is no whole number"),
        (["--config.optimizer.eps=1,5"], "flag --config.optimizer.eps=1,5: '1,5' is no number"),
        (["--config.estimator=paft"], "--config.estimator: the config has no such field; did you mean estimator.name?"),
        (["--config.train=3"], "--config.train: the config has no such field"),
        (["--wrokdir=x"], "--wrokdir=x is not a flag; did you mean --workdir?"),
        (["--config=configs/hops.py:q=1.5"], "q=1.5 is outside [0, 1]"),
        (["--config=configs/hops.py:estimator=garlic"], "choose from garl, paft"),
        (["--config.rollouts.num_rollouts=1"], "needs at least 2 rollouts a prompt, found 1"),
        (["--config.rollouts.unclosed=maybe"], "config.rollouts.unclosed='maybe': choose from drop, close"),
        (["--config.rollouts.at_once=6"], "config.rollouts.at_once=6 does not divide config.train.prompts=16"),
        (["--config.train.micro_batch=5"], "config.train.micro_batch=5 does not divide config.train.prompts=16"),
        (["configs/finq.py"], "'configs/finq.py' is not a flag; a config is given by --config=configs/finq.py"),
        (["config=configs/finq.py"], "is not a flag; a config is given by --config=configs/finq.py"),
        (["config.train.steps=3"], "'config.train.steps=3' is not a flag; flags are --NAME=VALUE"),
        (["--devices=4"], "--devices=4: it belongs to --plan; give both or neither"),
        (["--show_config", "--memory=80"], "--memory=80.0: it belongs to --plan; give both or neither"),
        (["--plan", "--memory=0"], "--memory=0: choose GiB above 0 and below 1,000,000"),
        (["--plan", "--memory=1e308"], "--memory=1e+308: choose GiB above 0 and below 1,000,000"),
        (["--plan", "--memory=nan"], "--memory=nan: choose GiB above 0"),
        (["--noprepare=1"], "--noprepare=1 does not take an argument; see --help"),
        (["--noconfig.rollouts.answer_needs_end=1"], "answer_needs_end=1 does not take an argument; see --help"),
        (["--plan", "--config.train.micro_batch=5"], "config.train.micro_batch=5 does not divide"),
        (["--plan", "--config.rollouts.at_once=6"], "config.rollouts.at_once=6 does not divide"),
        (["--plan", "--devices=4", "--config.train.micro_batch=2"], "train.micro_batch=2 is not a multiple of the 4"),
        (["--plan", "--devices=3"], "config.train.prompts=16 is not a multiple of the 3 devices"),
        (["--plan", "--config.optimizer.name=lion"], "config.optimizer.name='lion': choose from adamw, sgd"),
        (["--plan", "--config.rollouts.unclosed=maybe"], "config.rollouts.unclosed='maybe': choose from drop, close"),
        (["--plan", "--config.model.size=huge"], "config.model.size='huge'"),
        (
            ["--config.estimator.num_draws=4"],
            "config.estimator.num_draws=4: estimator garl does not read it, but commit",
        ),
        (["--config.estimator.q_end=1"], "estimator garl at schedule='constant' does not read it; leave it at 0.0"),
        (["--config=configs/hops.py:estimator=iwae,q=0.5"], "config.estimator.q=0.5: iwae has q = 1; leave it at 0.75"),
        (["--config=configs/hops.py:tau=.1,q=.5"], "hops.py: q=0.5 is for commitment=power, not floor; leave it out"),
        (["--config=configs/hops.py:tau=.1,commitment=power"], "tau=0.1 is for commitment=floor or mixture, not power"),
        (
            ["--config=configs/hops.py:commitment=x"],
            "commitment='x' is not accepted; choose from power, floor",
        ),
        (["--config=configs/hops.py:tau=0"], "config.estimator.tau=0.0: choose a number from 1e-30 to 1"),
        (["--config=configs/hops.py:tau=2"], "config.estimator.tau=2.0: choose a number from 1e-30 to 1"),
        (["--config.estimator.tau=.1"], "estimator garl at commitment='power' does not read it; leave it at 0.05"),
        (["--config=configs/hops.py:tau=.1", "--config.estimator.q=.5"], "garl at commitment='floor' does not read it"),
        (["--config=configs/hops.py:tau=.1,estimator=iwae"], "commitment='floor': estimator iwae does not read it"),
        (["--config=configs/hops.py:tau=.1", "--config.guards.on_collapse=lower_q"], "lower_q': a floor has no q"),
        (["--config.optimizer.name=sgd", "--config.optimizer.eps=1"], "config.optimizer.eps=1.0: sgd does not read it"),
        (["--config=configs/hops.py:estimator=grpo", "--config.guards.on_collapse=lower_q"], "grpo takes no q"),
        (["--config.model.size=huge"], "config.model.size='huge'"),
        (["--config.model.attention=paged"], "config.model.attention='paged': choose from auto, library, xla"),
        (["--config.task.max_answer=4090"], "the model's context is 4096; lower config.task.max_prompt"),
        (["--config.optimizer.schedule=square"], "config.optimizer.schedule='square': choose from constant, cosine"),
        (["--config.shadow.every=9", "--config.shadow.reference_rollouts=9"], "not a multiple of"),
        (["--config.shadow.every=9", "--config.shadow.estimators=garl@1,paft@1"], "name at least one, as in"),
        (
            ["--config.optimizer.warmup_steps=300"],
            "config.optimizer.warmup_steps=300 is not below config.train.steps=300",
        ),
        (["--config.optimizer.name=lion"], "config.optimizer.name='lion': choose from adamw, sgd"),
        (["--config.estimator.schedule=linear", "--config.estimator.q_end=-0.1"], "q_end=-0.1 is outside [0, 1]"),
        (["--config.estimator.schedule=linear", "--config.estimator.schedule_steps=0"], "schedule_steps=0"),
        (["--config.task.label_noise=2"], "label_noise=2.0: choose a share of the training labels"),
        (
            ["--config=configs/hops.py:estimator=sft", "--config.regularizer.kl=0.1"],
            "config.regularizer.kl=0.1: estimator sft has no rationale",
        ),
        (
            ["--config.regularizer.reference=average"],
            "config.regularizer.reference=average: only config.regularizer.kl, which is off, and "
            "estimator latro read it; set one of them as well",
        ),
        (["--config.regularizer.kl=0.1", "--config.regularizer.decay=0.9"], "decay=0.9: start does not read it"),
        (["--config.regularizer.length=2"], "config.regularizer.length=2.0 and .min_length=0: the penalty has"),
        (
            ["--config.regularizer.length=2", "--config.regularizer.min_length=900"],
            "config.regularizer.min_length=900 is above config.rollouts.max_rationale=",
        ),
        (
            ["--config.estimator.baseline=none", "--config.rollouts.num_rollouts=1", "--config.regularizer.entropy=1"],
            "config.regularizer.entropy=1.0 compares a rollout with others of its group: it needs at least 2 rollouts",
        ),
        (
            ["--config.evaluate.top_k=3", "--config.evaluate.kl=True"],
            "config.evaluate.kl=True: a KL is estimated from draws of the model itself, which those at "
            "config.evaluate.top_k=3 are not",
        ),
        (["--config.evaluate.rationale=none", "--config.evaluate.kl=True"], "config.evaluate.kl=True: evaluations"),
        (
            [
                "--config=configs/hops.py:estimator=grpo",
                "--config.estimator.scale_rewards=none",
                "--config.estimator.epsilon=1",
            ],
            "config.estimator.epsilon=1.0: estimator grpo at scale_rewards='none' does not read it",
        ),
        (["--config.mesh.tensor=3"], "does not make the 1 device(s)"),
        (["--config=configs/finq.py", "--config.task.folder=nowhere"], "nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_sentence_and_status_2(arguments, sentence, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert sentence in refused(capfd, main, *arguments, f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_program_ends_with_the_sentence_alone():
    command = [sys.executable, "-m", "tsallis_rl.main", "configs/finq.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: 'configs/finq.py' is not a flag; a config is given by --config=configs/finq.py\n")


def test_a_config_is_named_from_anywhere_a_path_wins_and_fields_may_stand_before_it(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not call(main, "--config.train.steps=7", "--config=hops:q=0.5", "--show_config")
    told = capfd.readouterr().out
    assert re.search(r"\* train.steps +7 ", told) and re.search(r"\* estimator.q +0.5 ", told)
    (tmp_path / "hops").write_text("")
    assert refused(capfd, main, "--config=hops:q=0.5") == "--config: hops is not a Python file"
    assert named(resolved("--config", "finq:q=1")) == "finq:q=1" and named("configs/finq.py") == "configs/finq.py"


def test_flags_of_one_call_are_forgotten_by_the_next(capfd):
    assert not call(main, "--show_config", "--config.train.steps=7")
    assert "* train.steps                  7 " in capfd.readouterr().out
    assert not call(main, "--show_config")
    assert "* train.steps                  300 " in capfd.readouterr().out


BROKEN_CONFIGS = {
    "def get_config(": "line 1: SyntaxError: '(' was never closed",
    "import nowhere_at_all": "line 1: ModuleNotFoundError: No module named 'nowhere_at_all'",
    "from tsallis_rl.config import base_config\n\ndef get_config(argument):\n    return base_config().task.nme": (
        "line 4: AttributeError: "
    ),
    "x = 1": "has no function get_config(argument)",
    "def get_config(argument):\n    return {}": "returns a dict, not a ConfigDict",
    "from ml_collections import ConfigDict\n\ndef get_config(argument):\n    return ConfigDict({'seed': 0})": (
        "has no field base.batch; begin it with base_config()"
    ),
}


def test_a_config_that_imports_a_broken_module_is_told_by_its_own_line_and_the_modules(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_module.py").write_text("\n\n\n\ndef get(:\n")
    (tmp_path / "mine.py").write_text("x = 1\nimport broken_module\n")
    with pytest.raises(UserError, match=r"mine.py, line 2: SyntaxError: .*\(broken_module.py, line 5\)"):
        load_config(str(tmp_path / "mine.py"))


def test_the_line_is_told_of_a_relative_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def get_config(argument):\n    x = 1\n    return x / 0\n")
    for path in ("mine.py", "./mine.py", str(tmp_path / "mine.py")):
        with pytest.raises(UserError, match=r"mine.py, line 3: ZeroDivisionError"):
            load_config(path)


@pytest.mark.parametrize("text", BROKEN_CONFIGS)
def test_a_config_file_that_is_broken_is_told_by_its_line(text, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=rf"--config: .*mine.py.*{re.escape(BROKEN_CONFIGS[text])}"):
        load_config(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train.steps", 0), ("train.prompts", -4), ("train.micro_batch", -2), ("evaluate.every", 0), ("seed", -1),
        ("evaluate.samples", 0), ("mesh.fsdp", 0), ("mesh.data", -1), ("task.max_prompt", -1),
        ("guards.max_skipped", 0), ("rollouts.temperature", float("nan")), ("rollouts.temperature", -1.0),
        ("optimizer.learning_rate", float("inf")), ("optimizer.b2", 1.0), ("optimizer.b1", 1.0),
        ("optimizer.eps", 0.0), ("optimizer.clip", 0.0), ("guards.collapse_share", float("nan")),
        ("task.train_examples", 0), ("evaluate.top_p", 0.0), ("evaluate.temperature", -1.0),
    ],
)  # fmt: skip
def test_a_number_that_means_nothing_is_refused_by_its_field(field, value):
    with pytest.raises(UserError, match=rf"config\.{field}={value}: "):
        prepare(small(**{field.replace(".", "__"): value}))


def test_a_text_that_is_none_is_refused_by_its_field():
    with pytest.raises(UserError, match=r"config\.task\.end_of_think='\\ud800' holds half of a surrogate pair"):
        prepare(small(task__end_of_think="\ud800"))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("train.steps", None, "choose a number from 1 to 2147483647"),
        ("train.prompts", 0, "choose a number from 1 to 2147483647"),
        ("seed", 2**31, "choose a number from 0 to 2147483647"),
        ("optimizer.learning_rate", math.inf, r"choose a number from 0 to 1e\+300"),
        ("optimizer.eps", 0.0, r"choose a number above 0, at most 1e\+300"),
        ("optimizer.b1", 1.0, "choose a number from 0, below 1"),
        ("rollouts.min_p", 1.5, "choose a number from 0 to 1"),
        ("rollouts.top_p", 0.0, "choose a number above 0, at most 1"),
        ("seed", 10**400 - 1, r"config.seed=9{100}…9{50}: choose a number from 0 to 2147483647"),
    ],
)
def test_limits_are_told_in_full(field, value, told):
    with pytest.raises(UserError, match=rf"{told}$"):
        FIELDS[field].check(field, value)
    with pytest.raises(UserError, match=r"config.seed=\(thousands of digits\): choose a number from 0 to 2147483647"):
        FIELDS["seed"].check("seed", 10**5000)  # Python refuses to write it


def test_every_number_of_the_config_has_limits():
    numbers = {name for name, value in flatten(base_config().to_dict()).items() if type(value) in (int, float)}
    assert numbers == {name for name, field in FIELDS.items() if field.limit}
    with pytest.raises(UserError, match=r"config\.model\.dtype='int8': choose from float32"):
        prepare(small(model__dtype="int8"))


def test_the_base_config_is_as_it_was():
    """Changing a default on purpose? A run directory made before is then another experiment; change this as well."""
    assert base_config().to_dict() == {
        "seed": 0,
        "task": {
            "name": "", "start": "cold", "max_prompt": 1024, "max_answer": 128, "train_examples": 0,
            "validation_examples": 0, "test_examples": 0, "label_noise": 0.0,
            "end_of_think": "auto", "joint": "auto", "think_prefix": "", "end_of_answer": "auto", "metric": "auto",
            "reward": "auto",
        },
        "model": {
            "size": "tiny", "dtype": "float32", "remat": "auto", "attention": "auto", "lora_rank": 0,
            "lora_alpha": 32.0, "lora_targets": (), "adapter": "",
        },
        "base": {"seed": 0, "steps": 0, "batch": 128, "learning_rate": 0.003},
        "rollouts": {
            "num_rollouts": 32, "max_rationale": 512, "min_rationale": 0, "prompt_widths": 8, "at_once": 0,
            "temperature": 1.0,
            "top_k": 0, "top_p": 1.0, "min_p": 0.0, "unclosed": "drop", "answer_needs_end": True,
            "aliases": False,
        },
        "proposal": {"name": "prior", "template": "auto"},
        "estimator": {
            "name": "garl", "q": 0.75, "normalize": True, "baseline": "loo", "correction": "none", "path_weight": 1.0,
            "commitment": "power", "tau": 0.05, "num_draws": 0, "resampling": "categorical", "epsilon": 0.0001,
            "scale_rewards": "std", "length_norm": "none",
            "kl": 0.05, "std_share": 0.5, "k": 4, "schedule": "constant", "q_end": 0.0, "schedule_steps": 100,
        },
        "regularizer": {
            "kl": 0.0, "reference": "start", "decay": 0.99, "entropy": 0.0, "length": 0.0, "min_length": 0,
        },
        "shadow": {
            "every": 0, "reference_rollouts": 512,
            "estimators": ("garl@0", "garl@0.25", "garl@0.5", "garl@0.75", "garl@1", "paft@0.75", "paft@1"),
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 0.001, "schedule": "constant", "warmup_steps": 0, "b1": 0.9,
            "b2": 0.999, "eps": 1e-08, "weight_decay": 0.0, "clip": 1.0,
        },
        "mesh": {"data": 0, "fsdp": 1, "tensor": 1},
        "train": {
            "steps": 150, "prompts": 16, "refill": 0, "length_window": 64, "micro_batch": 0, "micro_rollouts": 0,
            "save_rollouts_every": 50, "save_rollouts_prompts": 4, "init": "", "keep_checkpoints": 1,
        },
        "guards": {"max_skipped": 10, "collapse_share": 0.5, "vanished_share": 0.25, "on_collapse": "say"},
        "evaluate": {
            "every": 25, "samples": 16, "prompts": 64, "examples": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
            "greedy": False, "kl": False, "rationale": "auto", "save_prompts": 8,
        },
        "log": {"to": (), "project": "tsallis_rl", "run": "", "tags": ()},
    }  # fmt: skip


def test_a_run_from_before_a_setting_is_read_with_what_it_did(tmp_path):
    settings = small().to_dict()
    del settings["regularizer"], settings["estimator"]["length_norm"]
    del settings["task"]["metric"], settings["task"]["reward"], settings["rollouts"]["answer_needs_end"]
    del settings["evaluate"]["rationale"], settings["guards"]["vanished_share"], settings["log"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    read = run_config(tmp_path, "--run")
    assert read.regularizer == base_config().regularizer and read.estimator.length_norm == "none"
    assert (read.task.metric, read.task.reward, read.rollouts.answer_needs_end) == ("auto", "auto", False)
    assert read.guards.vanished_share == 0 and read.log == base_config().log
    assert read.evaluate.rationale == "sampled"  # so that sft's own numbers can be seen again


def test_a_run_of_what_there_is_no_more_is_told_so(tmp_path):
    settings = small().to_dict()
    (tmp_path / "config.json").write_text(json.dumps(settings | {"controller": {"nats": 5.0}}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    assert run_config(tmp_path, "--run").estimator.q == settings["estimator"]["q"]
    with pytest.raises(UserError, match=r"config.controller.nats, which no longer exists: finish it with the version"):
        RunDirectory(tmp_path, small())
    settings["estimator"]["schedule"] = "per_example"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    told = r"config.json: estimator.schedule is 'per_example', which this version .* does not have \(it has constant,"
    with pytest.raises(UserError, match=told):
        run_config(tmp_path, "--run")


def test_choices_are_those_of_the_code_that_reads_them():
    assert FIELDS["estimator.schedule"].choices == tuple(SCHEDULES)
    assert FIELDS["estimator.resampling"].choices == tuple(RESAMPLING)
    assert FIELDS["model.remat"].choices == ("auto", "none", *KEPT)
    options = {option for row in ESTIMATORS.values() for option in row.options}
    assert options <= {name.removeprefix("estimator.") for name in FIELDS}
    for name, field in (FIELDS | TASK_FIELDS).items():
        assert field.meaning and not (field.choices and field.default not in field.choices), name
        assert not field.limit or field.limit.accepts(field.default), name


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_option_is_refused_where_the_listing_names_another_reader(name):
    config = base_config()
    config.estimator.update(name=name, schedule="linear", q=0.5, q_end=1.0, num_draws=4, epsilon=1.0, path_weight=0.5)
    for option in ("schedule", "q", "q_end", "num_draws", "epsilon", "path_weight"):
        assert (option in unread(config)) == (name not in estimators_reading(option)), option


def test_every_setting_is_listed_with_value_default_and_meaning(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    for file in CONFIGS:
        assert not call(main, f"--config={file}:q=0.5", "--show_config", f"--workdir={tmp_path / 'run'}")
        told = capfd.readouterr().out.splitlines()
        rows = {line[2:].split()[0]: line for line in told if line[2:].strip()}
        for name in flatten(load_config(str(file)).to_dict()):
            assert name in rows, f"{file.name}: {name}"
    assert not (tmp_path / "run").exists()
    assert re.match(
        r"\* estimator\.q +0\.5 +0\.75 +q of .*read by garl, paft, .*curverl at estimator\.commitment power\)$",
        rows["estimator.q"],
    )
    assert re.match(r"  optimizer\.eps +1e-08 +1e-08 +decides.*read by optimizer\.name adamw\)$", rows["optimizer.eps"])
    columns = {line.index(FIELDS[name].meaning) for name, line in rows.items() if name in FIELDS}
    assert len(columns) == 2  # shadow.estimators is longer than a column


def test_a_copy_of_a_config_file_loads_from_another_folder(tmp_path, capfd, monkeypatch):
    """The one that needs configs/question_answers.py, which is not beside the copy; see test_wheel.py as well."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "configs" / "finq.py", "mine.py")
    assert call(main, "--config=mine.py:q=0.5", "--show_config") is None
    assert "* estimator.q" in capfd.readouterr().out
