"""Loggers: each step is logged once, however a run ended, and their failures do not affect the run."""

import importlib.util
import json
import struct
import sys
import time

import pytest

from tests.support.runs import small
from tsallis_rl.config.naming import default_workdir
from tsallis_rl.runs import loggers
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.log_sinks import Wandb
from tsallis_rl.runs.loggers import RunNames
from tsallis_rl.runs.run_directory import ROLLOUTS, RunDirectory, read_records
from tsallis_rl.runs.run_lock import hold_run_lock
from tsallis_rl.sweeps.commands import default_grid_out, default_out

OWN = "tests.support.own_logger"
STEPS = 4
ROWS = [{"example": "a", "rollout": m, "rationale": "<b>|\n</think>", "answer": None, "log_w": -1.5} for m in (0, 1)]


def train_record(step):
    return {"train/loss": 1 / (step + 1), "train/nan": float("nan"), "skipped_examples": ["a"]}


def write_run(folder, to, *, until=STEPS, start=0, **fields):
    """What a run from a checkpoint of step `start` does with its folder, to step `until`; every 2 it evaluates."""
    directory = RunDirectory(folder, small(log__to=to, **fields))
    with hold_run_lock(folder):
        directory.claim()
        directory.rewind(start if start else -1)
        with directory.logged():
            for step in range(start, until + 1):
                if step % 2 == 0 and not (start and step == start):
                    directory.log(step, {"eval/validation/pass@1": step / 8})
                if step < until:
                    directory.log(step, train_record(step))
                    if step % 2 == 0:
                        directory.write_rows(ROLLOUTS, step, ROWS)
    return directory


def stopped_and_continued(folder, to):
    """A run that was killed behind step 3, goes on from the checkpoint of step 2, and then to more steps."""
    write_run(folder, to, until=STEPS - 1)
    assert [r["step"] for r in read_records(folder)] == [0, 0, 1, 2, 2]
    write_run(folder, to, start=2)
    write_run(folder, to, start=STEPS, until=STEPS + 1, train__steps=STEPS + 1)


def expected(folder):
    """(step, name, value) of every number of metrics.jsonl."""
    numbers = [
        (r["step"], name, x) for r in read_records(folder) for name, x in r.items() if isinstance(x, float | int)
    ]
    found = sorted(x for x in numbers if x[1] != "step")
    assert len(found) == len(set(found)) == STEPS + 1 + 3  # of steps 0 to 4; evaluations at 0, 2 and 4
    return found


def lines_of(folder):
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_a_logger_has_every_number_and_table_once_however_the_run_ended(tmp_path):
    stopped_and_continued(tmp_path, (f"{OWN}.Lines",))
    lines = lines_of(tmp_path)
    assert lines[0] == ["begin", 0] and lines[-1] == ["close"]
    found = [(step, *item) for kind, step, values in lines[1:-1] if kind == "scalars" for item in values.items()]
    assert sorted(found) == expected(tmp_path)
    tables = [(step, rows) for kind, step, rows in lines[1:-1] if kind == "table"]
    assert tables == [(0, ROWS), (2, ROWS), (4, ROWS)]
    assert [step for _, step, _ in lines[1:-1]] == sorted(step for _, step, _ in lines[1:-1])


def test_loggers_may_change_when_a_run_goes_on_and_name_no_folder(tmp_path):
    write_run(tmp_path, (), until=2)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["log"]  # as a run from before there were loggers
    (tmp_path / "config.json").write_text(json.dumps(settings))
    identity = None
    for to in (("tests.support.own_logger.Lines",), ()):
        write_run(tmp_path, to, start=2, log__tags=("a",))
        assert json.loads((tmp_path / "config.json").read_text())["log"]["to"] == list(to)
        kept = (tmp_path / "log.json").read_text()
        assert identity in (None, kept)
        identity = kept
    other = small(log__to=("wandb",), log__run="x")
    assert default_workdir(small()) == default_workdir(other) and default_out(small()) == default_out(other)
    assert default_grid_out("a.py", {"log.to": ("wandb",)}) == default_grid_out("a.py", {})
    (tmp_path / "metrics.jsonl").write_text("")  # what a server has belongs to lines that are lost
    write_run(tmp_path, (f"{OWN}.Lines",), start=2)
    assert (tmp_path / "log.json").read_text() != identity


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NeverBegins", "SystemExit: no network"),
        ("FailsAtTheSecondLine", "No space left on device"),
        ("Hangs", "it does not end within 0 seconds"),
    ],
)
def test_a_logger_that_fails_is_told_once_and_changes_nothing(tmp_path, name, told, capfd, monkeypatch):
    monkeypatch.setattr(loggers, "PATIENCE", 0.2)
    to = (f"{OWN}.{name}", f"{OWN}.Lines")
    began = time.monotonic()
    write_run(tmp_path / "failing", to)
    assert time.monotonic() - began < 5
    write_run(tmp_path / "none", ())
    assert read_records(tmp_path / "failing") == read_records(tmp_path / "none")
    assert len(lines_of(tmp_path / "failing")) == 1 + STEPS + 3 + 2 + 1
    error = capfd.readouterr().err
    assert error.count("WARNING") == 1 and f"nothing more is logged to {OWN}.{name} (" in error and told in error


def test_a_logger_that_lags_is_left_behind(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(loggers, "PATIENCE", 0.1)
    monkeypatch.setattr(loggers, "MOST_WAITING", 2)
    write_run(tmp_path, (f"{OWN}.Hangs",))
    assert "it is 2 calls behind" in capfd.readouterr().err
    assert len(read_records(tmp_path)) == STEPS + 3


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        (("tensorbord",), "'tensorbord' is no logger; choose from tensorboard, trackio, wandb, or name a class as"),
        (("no_such_module.Sink",), "no module 'no_such_module', looked from the working directory"),
        ((f"{OWN}.Missing",), "has no class 'Missing'; a logger has begin, scalars, table, close"),
        ((f"{OWN}.HasNoTable",), "HasNoTable has no method begin; a logger has"),
        ((1,), r"config.log.to=\[1\]: write names, as in \('a', 'b'\)"),
        ((f"{OWN}.Lines,other",), "'other' is no logger"),
        (("wandb",), r"config.log.to names 'wandb', which needs the package wandb: pip install 'tsallis_rl\[wandb\]'"),
    ],
)
def test_a_logger_that_cannot_be_had_is_refused_in_a_sentence(tmp_path, to, sentence, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(UserError, match=sentence):
        RunDirectory(tmp_path, small(log__to=to)).check_loggers()


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def events_of(folder):
    """The events of the only event file, read as records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (file for file in (folder / "tensorboard").iterdir() if file.stat().st_size)
    data, found = file.read_bytes(), []
    while data:
        size = 12 + struct.unpack("<Q", data[:8])[0]
        found.append(Event.FromString(data[12:size]))
        data = data[size + 4 :]
    return found


@needs("tensorboardX")
def test_tensorboard_has_every_number_once_with_tables_and_the_config(tmp_path):
    stopped_and_continued(tmp_path, ("tensorboard",))
    found, texts = [], {}
    for event in events_of(tmp_path):
        for value in event.summary.value:
            if value.HasField("tensor"):
                texts[value.tag, event.step] = value.tensor.string_val[0].decode()
            else:
                found.append((event.step, value.tag, value.simple_value))
    wanted = expected(tmp_path)
    assert [x[:2] for x in sorted(found)] == [x[:2] for x in wanted]
    assert [x[2] for x in sorted(found)] == pytest.approx([x[2] for x in wanted])
    assert texts.keys() == {("config/text_summary", 0)} | {("rollouts/text_summary", step) for step in (0, 2, 4)}
    assert '"learning_rate"' in texts["config/text_summary", 0]
    table = texts["rollouts/text_summary", 2].splitlines()
    assert len(table) == 2 + len(ROWS) and table[0] == "| example | rollout | rationale | answer | log_w |"
    assert "<b>" not in table[2] and "&lt;b&gt;" in table[2]  # a model's text is no markup
    assert all(line.count("|") == 6 for line in table)


@needs("tensorboard")
@needs("tensorboardX")
def test_tensorboards_own_reader_forgets_what_a_run_took_back(tmp_path):
    """A reader that was open while the run was killed, and reads on when it goes on."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_run(tmp_path, ("tensorboard",), until=STEPS - 1)
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [x.step for x in reader.Scalars("train/loss")] == [0, 1, 2]
    write_run(tmp_path, ("tensorboard",), start=2)
    for reading in (reader, EventAccumulator(str(tmp_path / "tensorboard"))):
        reading.Reload()
        assert [x.step for x in reading.Scalars("train/loss")] == [0, 1, 2, 3]
        assert [x.step for x in reading.Scalars("eval/validation/pass@1")] == [0, 2, 4]


@needs("wandb")
def test_wandb_offline_has_one_folder_with_every_line_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    stopped_and_continued(tmp_path, ("wandb",))
    rows, runs = wandb_records(tmp_path)
    assert [number for number, _ in rows] == list(range(STEPS + 1 + 3))
    found = [(r["step"], name, x) for _, r in rows for name, x in r.items() if name.startswith(("train/", "eval/"))]
    assert sorted(found) == expected(tmp_path)
    assert [r["step"] for _, r in rows if any("rollouts" in name for name in r)] == [0, 2, 4]
    assert runs[0].run_id == json.loads((tmp_path / "log.json").read_text())["id"]
    assert (runs[0].project, runs[0].display_name) == ("tsallis_rl", tmp_path.name)


@needs("wandb")
def test_wandb_sends_a_server_the_lines_that_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = Wandb(RunNames(tmp_path, "a1", "p", "r", ("x",)))
    sink.begin({"seed": 0})
    sink._first = 3  # as where a server has the first three
    for step in (0, 0, 1, 2, 2):
        sink.scalars(step, {"train/loss": 1.0})
        sink.table(step, ROWS)
    sink.close()
    rows, _ = wandb_records(tmp_path)
    assert [(number, row["step"]) for number, row in rows] == [(3, 2), (4, 2)]


def wandb_records(folder):
    """The rows (number, values) and runs of the only offline run."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at the end of a program: its own process has written the file then
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    rows, runs = [], []
    for data in leveldb_records(file.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            names = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append((record.history.step.num, names))
        elif record.HasField("run"):
            runs.append(record.run)
    return rows, runs


def leveldb_records(data):
    """The records of a .wandb file: blocks of 32 KiB of pieces (checksum, length, kind), behind a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield whole
            whole = b""


@needs("wandb")
def test_wandb_without_a_key_is_refused_in_a_sentence(tmp_path, monkeypatch):
    for name, value in {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    import wandb

    wandb.teardown()  # it reads the environment once
    with pytest.raises(UserError, match="there is no key of an account: run `wandb login`, or set WANDB_MODE=offline"):
        RunDirectory(tmp_path, small(log__to=("wandb",))).check_loggers()


@needs("trackio")
def test_trackio_has_one_run_with_every_number_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "all"))
    RunDirectory(tmp_path, small(log__to=("trackio",))).check_loggers()
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    stopped_and_continued(tmp_path / "a", ("trackio",))
    write_run(tmp_path / "b" / "a", ("trackio",))  # another run of the same name
    runs = list(trackio.Api().runs("tsallis_rl"))
    assert [run.name for run in runs] == ["a", "a"]
    (run,) = (r for r in runs if r.config["run_id"] == json.loads((tmp_path / "a" / "log.json").read_text())["id"])
    logs = SQLiteStorage.get_logs("tsallis_rl", run.name, run_id=run.id)
    found = [(r["step"], name, x) for r in logs for name, x in r.items() if name.startswith(("train/", "eval/"))]
    assert sorted(found) == expected(tmp_path / "a")
    assert [r["step"] for r in logs if "rollouts" in r] == [0, 2, 4]
    assert run.config["optimizer"]["learning_rate"] == small().optimizer.learning_rate
