"""Grids: which cells blocks have, what their commands set, what is refused, and how long the remaining cells take."""

import functools
from pathlib import Path

import pytest

from tests.support.checkpoints import saved
from tests.support.command_line import call, refused
from tests.support.paths import ROOT
from tsallis_rl.config.files import load_config
from tsallis_rl.config.listing import listing
from tsallis_rl.main import main as train
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sweep import main
from tsallis_rl.sweeps.cells import estimate
from tsallis_rl.sweeps.commands import make_cells, preparations
from tsallis_rl.sweeps.grid import Block, expand, load_blocks

HOPS = str(ROOT / "configs" / "hops.py")
GRIDS = sorted((ROOT / "configs" / "grids").glob("*.py"))


def cells(*blocks: Block, quick: bool = False, **overrides):
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return expand({f"block {i}": block for i, block in enumerate(blocks, 1)}, changed, quick=quick)


@functools.cache
def of_file(file: Path):
    return expand(load_blocks(str(file)), {})


def flat(q, estimators, seeds, **overrides):
    """What --q, --estimators and --seeds make."""
    named = {name: q if name in ("garl", "paft") else () for name in estimators}
    return cells(Block(HOPS, named, seeds=seeds, name=""), **overrides)


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)  # where grids find their configs


def test_estimators_without_a_commitment_have_one_cell_a_seed():
    each = ["paft-q0-seed{}", "paft-q0.75-seed{}", "iwae-seed{}", "grpo-seed{}"]
    names = list(flat([0.0, 0.75], ["paft", "iwae", "grpo"], 2))
    assert names == [name.format(seed) for seed in (0, 1) for name in each]
    with pytest.raises(UserError, match=r"q=1.5 is outside \[0, 1\]"):
        flat([1.5], ["garl"], 1)


@pytest.mark.parametrize(("seeds", "count"), [(3334, 10_002), (10**30, 3 * 10**30)])
def test_a_sweep_is_bounded_before_its_cells_are_made(seeds, count):
    with pytest.raises(UserError, match=rf"^{count} cells, and a sweep has at most 10000: name fewer seeds"):
        flat([0.5, 1.0], ["garl", "grpo"], seeds)
    assert len(flat([0.5, 1.0], ["garl", "grpo"], 3)) == 9


def test_zero_has_one_sign():
    with pytest.raises(UserError, match="the cell garl-q0-seed0 comes twice"):
        flat([-0.0, 0.0], ["garl"], 1)


def test_an_option_is_given_to_the_cells_that_read_it():
    found = flat([0.5], ["garl", "paft"], 1, estimator__num_draws=4)
    assert found["paft-q0.5-seed0"].config.estimator.num_draws == 4
    assert found["garl-q0.5-seed0"].fields["estimator.num_draws"] == 0
    told = "config.estimator.num_draws=4: no estimator of the sweep reads it; leave it out"
    with pytest.raises(UserError, match=told):
        flat([0.5], ["garl", "grpo"], 1, estimator__num_draws=4)
    with pytest.raises(UserError, match=told):
        cells(Block(HOPS, {"garl": (0.5,)}), Block(HOPS, {"grpo": ()}), estimator__num_draws=4)
    both = cells(Block(HOPS, {"paft": (0.5,)}), Block(HOPS, {"grpo": ()}), estimator__num_draws=4)
    assert {name: cell.config.estimator.num_draws for name, cell in both.items() if cell.config.seed == 0} == {
        "hops-cold-paft-q0.5-seed0": 4, "hops-cold-grpo-seed0": 0,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"block 1: config\.estimator\.num_draws: none of grpo reads it"):
        cells(Block(HOPS, {"grpo": ()}, fields={"estimator.num_draws": 4}), Block(HOPS, {"paft": (0.5,)}))


def test_beside_a_floor_an_estimator_that_reads_no_commitment_keeps_its_values_of_q(capfd):
    flags = ["--config=configs/hops.py:tau=0.05", "--q=.25,.5", "--seeds=1", "--dry-run"]
    assert not call(main, "--estimators=garl,hard_continuum,grpo", *flags)
    lines = [line for line in capfd.readouterr().out.splitlines() if "--workdir" in line]
    assert [line.rpartition("/")[2] for line in lines] == [
        "garl-seed0", "hard_continuum-q0.25-seed0", "hard_continuum-q0.5-seed0", "grpo-seed0",
    ]  # fmt: skip
    assert ["--config.estimator.commitment=power" in line for line in lines] == [False, True, True, True]
    told = refused(capfd, main, "--estimators=garl,grpo", *flags)
    assert "--q=.25,.5: none of garl, grpo takes q with config.estimator.commitment=floor; leave --q out" in told


@pytest.fixture(scope="module")
def mixed():
    """Cells of two starts and two tasks, with variants; train.prompts is given for all."""
    short = {"rollouts.max_rationale": 2, "model.lora_targets": ("q_proj", "v_proj")}
    return cells(
        Block(HOPS, {"garl": (0, 0.75), "grpo": ()}, seeds=2, fields={"train.steps": 10, "train.prompts": 4}),
        Block(f"{HOPS}:start=warm", {"paft": (1,)}, seeds=1, variants={"": {}, "short": short}),
        Block(str(ROOT / "configs" / "finq.py"), {"garl": (0.2,)}, seeds=1, name="table"),
        train__prompts=8,
    )


def test_a_grid_spans_starts_tasks_and_settings_seed_by_seed(mixed):
    assert list(mixed) == [
        "hops-cold-garl-q0-seed0", "hops-cold-garl-q0.75-seed0", "hops-cold-grpo-seed0",
        "hops-warm-paft-q1-seed0", "hops-warm-paft-q1-short-seed0", "table-garl-q0.2-seed0",
        "hops-cold-garl-q0-seed1", "hops-cold-garl-q0.75-seed1", "hops-cold-grpo-seed1",
    ]  # fmt: skip
    expected = load_config(f"{HOPS}:start=warm")
    changed = {"estimator.name": "paft", "estimator.q": 1.0, "rollouts.max_rationale": 2, "train.prompts": 8}
    expected.update_from_flattened_dict(changed | {"model.lora_targets": ("q_proj", "v_proj")})
    assert mixed["hops-warm-paft-q1-short-seed0"].config.to_dict() == expected.to_dict()
    assert mixed["hops-cold-garl-q0-seed1"].config.train.to_dict() == {
        **load_config(HOPS).train.to_dict(), "steps": 10, "prompts": 8,
    }  # fmt: skip


def test_a_cells_command_reads_its_config(mixed, tmp_path, capfd):
    for cell in make_cells(mixed, tmp_path):
        assert cell.command[-1] == f"--workdir={tmp_path / cell.folder.name}"
        assert not call(train, *cell.command[3:], "--show_config")
        assert capfd.readouterr().out.strip() == listing(cell.config).strip()


def test_what_cells_share_is_made_once(mixed, tmp_path):
    """Two starts and two tasks are three data sets; adapters are another model."""
    made = preparations(make_cells(mixed, tmp_path))
    assert [line[-1] for line in made] == ["--prepare"] * 4
    firsts = [
        "hops-cold-garl-q0-seed0",
        "hops-warm-paft-q1-seed0",
        "hops-warm-paft-q1-short-seed0",
        "table-garl-q0.2-seed0",
    ]
    assert [line[3:-1] for line in made] == [
        cell.command[3:-1] for cell in make_cells(mixed, tmp_path) if cell.folder.name in firsts
    ]


def test_quick_is_one_seed_and_a_third_of_each_blocks_steps():
    block = Block(HOPS, {"garl": (0, 1)}, fields={"train.steps": 31}, variants={"": {}, "two": {"train.steps": 2}})
    found = {name: cell.config.train.steps for name, cell in cells(block, quick=True).items()}
    assert found == {
        "hops-cold-garl-q0-seed0": 10, "hops-cold-garl-q1-seed0": 10,
        "hops-cold-garl-q0-two-seed0": 1, "hops-cold-garl-q1-two-seed0": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "count"),
    list(zip(GRIDS, (15, 18, 257, 54, 81, 21, 108, 30, 72, 27), strict=True)),
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_the_grids_of_this_package_list_cells_that_runs_accept(file, count):
    found = of_file(file)
    assert len(found) == count and f"{count} runs" in file.read_text()
    for cell in found.values():  # `expand` has checked them as a run does
        assert cell.config.task.name == "hops" or cell.config.rollouts.unclosed == "close"


def test_the_papers_grids_share_cells_and_are_evaluated_as_it_evaluates():
    """With one folder, what Table 3 and the figures need of the tables is there: names and settings are the same."""
    names = ("table1", "table2", "table3", "figure3", "figure4")
    found = {name: of_file(ROOT / "configs" / "grids" / f"{name}.py") for name in names}
    tables = found["table1"] | found["table2"]
    for name in names:
        alone = {cell for cell in found[name] if "garl-q0.2-" in cell}
        assert all(cell.config == tables[key].config for key, cell in found[name].items() if key not in alone)
        assert len(alone) == (3 if name == "figure4" else 0)
    for cell in tables.values():
        assert (cell.config.evaluate.every, cell.config.evaluate.samples) == (50, 16)
        assert cell.config.evaluate.examples and cell.config.model.size == "Qwen/Qwen3-0.6B"


BLOCK = "from tsallis_rl.sweeps.grid import Block\n\n\ndef get_grid():\n    return "
COLD = "Block('configs/hops.py', {'garl': (0.5,)})"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{BLOCK}[{COLD}, {COLD}]", "block 2, configs/hops.py: the cell hops-cold-garl-q0.5-seed0 comes twice"),
        (
            f"{BLOCK}[{COLD}, {COLD[:-1]}, name='again')]",
            "cells hops-cold-garl-q0.5-seed0 and again-garl-q0.5-seed0 have the same settings; leave one of them out",
        ),
        (f"{BLOCK}{COLD}", "does not return a list of Block, of tsallis_rl.sweeps.grid"),
        (f"{BLOCK}[]", "does not return a list of Block"),
        ("x = 1", "has no function get_grid()"),
        ("import nothing_here", "line 1: ModuleNotFoundError"),
        ("import sys\n\n\ndef get_grid():\n    sys.exit()", "line 5: SystemExit"),
        (f"{BLOCK}[Block('configs/hops.py', ('garl',))]", "line 5: ValueError: estimators=('garl',): give a dict"),
        (f"{BLOCK}[Block('configs/hops.py', {{'garl': 0.5}})]", "'garl' has 0.5: give values of q, as (0.25, 0.75)"),
        (f"{BLOCK}[Block('configs/hops.py', {{len: ()}})]", "len> is no text: give its name, or MODULE.NAME of your"),
        (f"{BLOCK}[{COLD[:-1]}, fields={{'log.run': 'a\\0b'}})]", "config.log.run='a\\x00b' holds a NUL character"),
        (f"{BLOCK}[{COLD[:-1]}, seeds=(1, 2))]", "seeds=(1, 2): give how many, at least 1"),
        (f"{BLOCK}[{COLD[:-1]}, first_seed=-1)]", "first_seed=-1: give a number from 0 on"),
        (f"{BLOCK}[{COLD[:-1]}, variants={{'a b': {{}}}})]", "'a b' is to be part of a folder's name"),
        (f"{BLOCK}[{COLD[:-1]}, fields={{'seed': 2}})]", "config.seed=2: a sweep sets it by the estimators and seeds"),
        (f"{BLOCK}[{COLD[:-1]}, fields={{'train.step': 2}})]", "config.train.step=2: the config has no such field"),
        (f"{BLOCK}[{COLD[:-1]}, fields={{'train.steps': 'x'}})]", "config.train.steps='x' is of another type"),
        (f"{BLOCK}[{COLD[:-1]}, fields={{'train.steps': None}})]", "config.train.steps=None is of another type"),
        (f"{BLOCK}[{COLD[:-1]}, fields={{'model.size': None}})]", "config.model.size=None is of another type"),
        (f"{BLOCK}[{COLD[:-1]}, fields={{'train.steps': True}})]", "config.train.steps=True is of another type"),
        (f"{BLOCK}[{COLD[:-1]}, name=3)]", "3 is to be part of a folder's name"),
        (f"{BLOCK}[{COLD[:-1]}, variants={{0.5: {{}}}})]", "0.5 is to be part of a folder's name"),
        (f"{BLOCK}[{COLD[:-1]}, fields={{'train.steps': 0}})]", "config.train.steps=0: choose a number from 1"),
        (
            f"{BLOCK}[{COLD}, {COLD[:-1]}, variants={{'long': {{'rollouts.min_rationale': 99}}}})]",
            "block 2, configs/hops.py: config.rollouts.min_rationale=99 is above config.rollouts.max_rationale=4",
        ),
        (f"{BLOCK}[Block('configs/none.py', {{'grpo': ()}})]", "no file 'configs/none.py' (looked from"),
        (f"{BLOCK}[Block('configs/hops.py:q=1', {{'grpo': ()}})]", "a sweep sets q by the estimators and seeds of its"),
        (f"{BLOCK}[Block('configs/hops.py', {{'grpo': (0.5,)}})]", "estimator grpo takes no q, and (0.5,) is given"),
        (f"{BLOCK}[Block('configs/hops.py', {{'garl': ()}})]", "estimator garl needs at least one value of q"),
        (f"{BLOCK}[Block('configs/hops.py', {{'garlic': ()}})]", "estimator 'garlic' is not known"),
    ],
)
def test_a_grid_file_that_cannot_be_meant_is_refused(tmp_path, capfd, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    told = refused(capfd, main, f"--grid={tmp_path / 'mine.py'}", "--dry-run")
    assert sentence in told and told.startswith("--grid")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--q=0.5"], "--q: the blocks of --grid=configs/grids/hops.py set it; leave one of the two out"),
        (["--seeds=1"], "--seeds: the blocks of --grid"),
        (["--estimators=garl"], "--estimators: the blocks of --grid"),
        (["--config=configs/hops.py"], "--config: the blocks of --grid"),
        (["--config.seed=3"], "config.seed=3: a sweep sets it by the estimators and seeds of its blocks; use that"),
        (["--config.task.path=x"], "--config.task.path: the config has no such field"),
        (["--grid=nowhere.py"], "--grid: no file 'nowhere.py'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_grid_and_flags_that_say_the_same_are_refused(arguments, sentence, capfd):
    assert sentence in refused(capfd, main, "--grid=configs/grids/hops.py", "--dry-run", *arguments)


def test_fields_of_a_grids_config_are_set_in_all_cells(capfd, tmp_path):
    """task.gold is a field of finq.py's config, which is the first block's, and not of the embedded one."""
    block = 'Block("configs/finq.py", {"garl": (1,), "grpo": ()}, seeds=1)'
    (tmp_path / "mine.py").write_text(f"{BLOCK}[{block}]")
    flags = [f"--grid={tmp_path / 'mine.py'}", "--config.task.gold=answer", "--config.model.size=my model"]
    assert not call(main, *flags, "--dry-run")
    told = capfd.readouterr()
    lines = told.out.splitlines()
    assert len(lines) == 3 and all("--config.task.gold=answer '--config.model.size=my model'" in line for line in lines)
    assert lines[2].partition("--workdir=runs/sweep-mine-")[2].endswith("/finqa-cold-grpo-seed0")
    assert told.err.startswith("2 cells, 0 done; 20 steps to go, 1 at a time: how long that takes is known when")


COLD_CELL, WARM_CELL = "hops-cold-garl-q0-seed0", "hops-warm-paft-q1-seed0"


@pytest.mark.parametrize(
    ("seconds", "jobs", "price", "told"),
    [
        ({}, 2, None, "0 done; 670 steps to go, 2 at a time: how long that takes is known when a cell that this "
         "command began has ended"),
        (
            {COLD_CELL: 60.0}, 2, None,  # 660 steps of 6 seconds
            "1 done; 660 steps to go, 2 at a time: about 33 minutes, at 6 seconds a step as in cells that ended (1)"
            "; cells left with another task, start or model: 3",
        ),
        (
            {COLD_CELL: 60.0, WARM_CELL: 300.0}, 3, 6.0,  # 5 × 10 steps of 6 seconds, and 310 of 3.5
            "2 done; 360 steps to go, 3 at a time: about 8 minutes, 0.77 at 6 an hour, at 3.5 seconds a step as in "
            "cells that ended (2); cells left with another task, start or model: 2",
        ),
        (
            {COLD_CELL: 6000.0}, 1, 2.0,
            "1 done; 660 steps to go, 1 at a time: about 110.0 hours, 220.00 at 2 an hour, at 600 seconds a step as in "
            "cells that ended (1); cells left with another task, start or model: 3",
        ),
    ],
)  # fmt: skip
def test_the_estimate_is_of_what_ended(mixed, tmp_path, seconds, jobs, price, told):
    states = {name: {"state": "done", "seconds": x} for name, x in seconds.items()}
    assert estimate(make_cells(mixed, tmp_path), states, jobs, price) == f"9 cells, {told}"


def test_steps_that_a_stopped_cell_has_made_are_not_estimated_again(mixed, tmp_path):
    folder, states = tmp_path / WARM_CELL, {COLD_CELL: {"state": "done", "seconds": 60.0}}
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 6, "train/loss": 1.0}\n')
    assert "; 660 steps to go" in estimate(make_cells(mixed, tmp_path), states, 1, None)  # none of the seven is saved
    saved(folder / "checkpoints", 0.5, 0.6, 0.5)
    told = estimate(make_cells(mixed, tmp_path), states, 1, None)
    assert told.startswith("9 cells, 1 done; 657 steps to go, 1 at a time: about 66 minutes, at 6 seconds a step")


def test_nothing_is_estimated_of_a_sweep_that_is_done(mixed, tmp_path):
    states = {name: {"state": "done"} for name in mixed}
    assert estimate(make_cells(mixed, tmp_path), states, 2, None) == "9 cells, 9 done"
