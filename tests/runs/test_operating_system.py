"""Refusals of the operating system: every command reports them in one sentence, whatever and wherever they are."""

import errno
import functools
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.support.checkpoints import largest
from tests.support.command_line import refused
from tests.support.paths import ROOT
from tests.support.runs import small
from tsallis_rl import evaluate, export, main, regenerate, replay, sweep
from tsallis_rl.config.files import load_config
from tsallis_rl.config.saved import run_config
from tsallis_rl.laboratory import __main__ as laboratory
from tsallis_rl.report import __main__ as report
from tsallis_rl.report.runs import read
from tsallis_rl.runs.cache import cache_folder, check_writable, keep_compiled_programs, write_whole
from tsallis_rl.runs.checkpoints import Checkpoints, newest_control
from tsallis_rl.runs.errors import InUseError, UserError, one_sentence, sentence
from tsallis_rl.runs.hub import model_folder
from tsallis_rl.runs.json_files import json_lines, read_object
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.runs.paths import is_plain_name, local_path, plain_number, plain_step
from tsallis_rl.runs.run_lock import LOCK, check_run_lock, hold_run_lock, is_held
from tsallis_rl.sweeps.cells import Cell, run_cells
from tsallis_rl.tasks import __main__ as tasks
from tsallis_rl.tasks.checked_files import read_checked, sha256
from tsallis_rl.training.earlier_run import find_origin

LONG = "x" * 300
STATE = {"w": jnp.arange(4.0)}
UNREADABLE = "/proc/self/mem"  # opens, and answers every read with an input/output error, root's too


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "make it readable and writable for this user"),
        (errno.EPERM, "make it readable and writable for this user"),
        (errno.EROFS, "name a place that can be written"),
        (errno.ENOSPC, "make room there"),
        (errno.EDQUOT, "make room there"),
        (errno.EIO, "does not answer: check it, then the same command again"),
        (errno.ESTALE, "does not answer: check it, then the same command again"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.ELOOP, "remove the link that leads back to itself"),
        (errno.EMFILE, "raise the limit on open files (ulimit -n)"),
        (errno.EISDIR, "name another place, or remove what is there"),
        (errno.ECONNRESET, "check that place, the disk and the network"),
    ],
)
def test_every_answer_of_the_system_says_where_what_and_what_to_do(capsys, number, remedy):
    with pytest.raises(SystemExit, match="2"), one_sentence():
        raise OSError(number, os.strerror(number), "some/file")
    told = capsys.readouterr().err
    assert told.startswith(f"error: some/file: {os.strerror(number)}; ") and remedy in told and told.count("\n") == 1


def test_an_answer_without_a_file_or_with_two_is_a_sentence_too():
    assert sentence(OSError("a library's own words\nover lines")).startswith("a library's own words; check that place")
    assert sentence(OSError("no checkpoint found.")).startswith("no checkpoint found; check that place")
    assert sentence(OSError(errno.EXDEV, "Invalid cross-device link", "a", None, b"b")).startswith("a and b: Invalid")
    assert len(sentence(OSError(errno.ENAMETOOLONG, "File name too long", "y" * 9000))) < 300


def test_a_link_to_nothing_is_the_reason_where_something_is_made_in_its_place(tmp_path):
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(FileExistsError) as error:
        (tmp_path / "link").mkdir(exist_ok=True)
    assert sentence(error.value) == f"{tmp_path / 'link'} is a link to nothing, which is not there; remove or mend it"


def test_programs_are_compiled_though_none_can_be_kept(monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("TSALLIS_RL_CACHE", "/dev/null/cache")
        keep_compiled_programs()  # with the variable of jax, which names the folder of this session
        assert jax.config.jax_compilation_cache_dir == before == os.environ["JAX_COMPILATION_CACHE_DIR"]
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    told = "NOTE: /dev/null/cache/compiled cannot be made (Not a directory): what is compiled is not kept\n"
    assert capsys.readouterr().err == told


def test_compiled_programs_are_read_from_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, capsys):
    """What the system says of the folder is set here: it lets an administrator write anywhere."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    try:
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
        assert jax.config.jax_persistent_cache_min_compile_time_secs == math.inf  # jax writes none
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    told = f"NOTE: {tmp_path / 'compiled'} cannot be written to: what is compiled is not kept\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt, 130), (BrokenPipeError, 141), (UserError("x"), 2), (OSError("x"), 2), (InUseError("x"), 75)],
)
def test_each_end_has_its_status(error, code, capsys):
    with pytest.raises(SystemExit) as stop, one_sentence():
        raise error
    assert stop.value.code == code and capsys.readouterr().err.count("\n") == (code != 141)


def test_in_a_log_of_both_streams_what_was_printed_stands_before_the_sentence(tmp_path):
    told = (
        "from tsallis_rl.runs.errors import InUseError, UserError, one_sentence\n"
        "with one_sentence():\n    print('begun')\n    raise UserError('no')"
    )
    with (tmp_path / "log.txt").open("w") as log:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        subprocess.run([sys.executable, "-c", told], cwd=ROOT, stdout=log, stderr=log, env=buffered, check=False)
    assert (tmp_path / "log.txt").read_text() == "begun\nerror: no\n"


def test_too_little_memory_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"), one_sentence():
        raise MemoryError
    assert capsys.readouterr().err.startswith("error: this machine has not enough free memory")


NOWHERE = {  # what a person writes -> what is said of it
    "http://host/run": "http:// is neither read nor written here; copy it and name the local path",
    "file:///run": "file:// is neither read nor written here",
    "s3:/bucket/run": "s3:/ is neither read nor written here",
    "~nobody-of-this-name/run": "there is no user nobody-of-this-name here",
    LONG: "ame too long; choose a shorter name",
    "link/run": "link is a link to nothing, which is not there",
    b"run\xff".decode(errors="surrogateescape"): "bytes that are not UTF-8; rename that file or folder",
}
FINQ = f"--config={ROOT / 'configs' / 'finq.py'}"
ENTRIES = {
    "main": lambda place: (main.main, f"--workdir={place}"),
    "a config": lambda place: (main.main, f"--config={place}"),
    "a model": lambda place: (main.main, f"--config.model.size={place}"),
    "another run": lambda place: (main.main, f"--config.train.init={place}"),
    "sweep": lambda place: (sweep.main, f"--out={place}"),
    "evaluate": lambda place: (evaluate.main, f"--run={place}"),
    "export": lambda place: (export.main, f"--checkpoint={place}", "--out=out"),
    "replay": lambda place: (replay.main, f"--run={place}", "--step=3"),
    "regenerate": lambda place: (regenerate.main, f"--run={place}", "--step=3", "--example=0", "--rollout=0"),
    "report": lambda place: (report.main, place),
    "tasks": lambda place: (tasks.main, FINQ, f"--config.task.folder={place}"),
    "laboratory": lambda place: (laboratory.main, f"--out={place}"),
}
READS_RUNS = {"another run", "evaluate", "export", "replay", "regenerate", "report"}
SILENT = {  # entries at which a place is refused later, or by what is said of any file that is not there
    "http://host/run": {"a config"},
    "file:///run": {"a config"},
    "s3:/bucket/run": {"a config"},
    "~nobody-of-this-name/run": {"a config"},
    LONG: {"tasks", "laboratory", "sweep"},
    "link/run": ENTRIES.keys() - READS_RUNS - {"a config"},
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_place_that_cannot_be_is_one_sentence_of_every_command(tmp_path, monkeypatch, capfd, entry):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nothing")
    for place, told in NOWHERE.items():
        if entry not in SILENT.get(place, ()):
            assert told in refused(capfd, *ENTRIES[entry](place)), place
    assert [path.name for path in tmp_path.iterdir()] == ["link"]  # no folder http: either


def test_the_cache_has_a_path_of_this_machine(monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", "http://host/cache")
    with pytest.raises(UserError, match="TSALLIS_RL_CACHE=http://host/cache: http:// is neither"):
        cache_folder("base")
    monkeypatch.setenv("TSALLIS_RL_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UserError, match="TSALLIS_RL_CACHE=~nobody-of-this-name/cache: there is no user"):
        cache_folder("base")


def test_a_link_to_nothing_is_called_that_wherever_a_path_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nothing")
    told = "link is a link to nothing, which is not there"
    for read_it in (
        *(functools.partial(model_folder, name) for name in ("link", "./link", "link/model")),
        functools.partial(read_object, Path("link")),
        functools.partial(find_origin, "link", Path("x")),
        functools.partial(run_config, Path("link"), "--run"),
        functools.partial(load_config, "link"),
        functools.partial(read, Path("link")),
        functools.partial(write_whole, Path("link/file"), b""),
    ):
        with pytest.raises(UserError, match=told):
            read_it()


@pytest.mark.parametrize("read_it", [read_object, json_lines])
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_not_waited_for(tmp_path, read_it):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{file} is a pipe or a device, no file; "):
            read_it(file)


@pytest.mark.parametrize("path", ["a/b", "C:/x", "a b", "a:b", "disk:/x", "é/ü", "a@b"])
def test_a_plain_path_is_left_as_it_is(path):
    assert local_path(path) == fetched(path) == Path(path)


@pytest.mark.parametrize(
    ("name", "number", "step", "is_name"),
    [
        ("0", 0, 0, True), ("7", 7, 7, True), ("4294967295", 4294967295, 4294967295, True), ("007", 7, None, True),
        ("٣", None, None, True), ("³", None, None, True), ("1e3", None, None, True), ("+1", None, None, True),
        (" 1", None, None, True), ("1_0", None, None, True), ("-1", None, None, True), ("9" * 5000, None, None, False),
        ("", None, None, False), ("..", None, None, False), ("../x", None, None, False), ("a\\b", None, None, False),
        ("a\0b", None, None, False), ("a\nb", None, None, False), ("\ud800", None, None, False),
        ("é" * 200, None, None, False),
    ],
)  # fmt: skip
def test_names_are_read_as_this_program_writes_them(name, number, step, is_name):
    assert (plain_number(name), plain_step(name), is_plain_name(name)) == (number, step, is_name)


STREAMS = """
import sys
from tsallis_rl.runs.errors import one_sentence
with one_sentence():
    print("figures –")
    print("progress", file=sys.stderr)
    with open(sys.argv[1], "w") as file:
        file.write("its own")
"""


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        ("", 0, ""),
        (">/dev/full", 2, "error: standard output: No space left on device; make room there"),
        ("2>/dev/full", 2, "error: standard error: No space left on device; make room there"),
        (">/dev/full 2>/dev/full", 2, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_standard_streams_that_are_closed_or_full(tmp_path, redirection, code, told):
    (tmp_path / "program.py").write_text(STREAMS)
    command = f"{sys.executable} {tmp_path / 'program.py'} {tmp_path / 'file'} {redirection}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code and told in said and "Traceback" not in said and "Exception ignored" not in said
    if code == 0:
        assert (tmp_path / "file").read_text() == "its own"  # nothing that was printed went into it


def unreadable(file: Path) -> None:
    """Puts what cannot be read where a file is."""
    file.unlink()
    file.symlink_to(UNREADABLE)


def saved(folder: Path) -> Checkpoints:
    """Checkpoints of steps 1, the best, and 2."""
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, STATE, (0.9 - step,), {"step": step})
    checkpoints.wait()
    return checkpoints


def test_an_unreadable_checkpoint_is_a_flaw_and_the_older_one_is_used(tmp_path, capsys):
    saved(tmp_path).close()
    file = largest(tmp_path / "2")
    unreadable(file)
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.latest, checkpoints.best) == (1, 1)
    name = file.relative_to(tmp_path / "2")
    assert f"{tmp_path / '2'} is damaged: {name} cannot be read (Input/output error)" in capsys.readouterr().err
    unreadable(tmp_path / "2.manifest")
    assert Checkpoints(tmp_path).latest == 1
    told = f"WARNING: checkpoint {tmp_path / '2'} was not saved whole, or is not yet, or its manifest cannot be read"
    assert told in capsys.readouterr().err
    assert newest_control(tmp_path) is None  # a sweep runs that cell again, which finds the older one


def test_a_folder_of_checkpoints_that_cannot_be_listed_is_not_taken_for_empty(tmp_path):
    (tmp_path / "checkpoints").symlink_to("checkpoints")
    with pytest.raises(UserError, match=r"checkpoints cannot be read \(Too many levels of symbolic links\); make it"):
        newest_control(tmp_path / "checkpoints")


@pytest.mark.parametrize("name", ["007", "٣", "1e3", "9" * 200, "notes"])
def test_names_that_only_look_like_steps_are_ignored_and_kept(tmp_path, capsys, name):
    checkpoints = saved(tmp_path)
    shutil.copy(tmp_path / "1.manifest", tmp_path / f"{name}.manifest")
    (tmp_path / name).mkdir()
    assert checkpoints.steps == [1, 2] and checkpoints.latest == 2 and newest_control(tmp_path) == {"step": 2}
    checkpoints.save(3, STATE, (2.0,), {})
    checkpoints.close()
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"3", "3.manifest", name, f"{name}.manifest"} and not capsys.readouterr().err


def test_a_full_disk_under_a_sweep_is_one_sentence(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(UserError, match=r"sweep.json cannot be written \(File too large\); make room there"):
            run_cells([Cell(tmp_path / "cell", small(), ["false"])], tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_under_the_lock_and_under_whole_files_is_one_sentence_and_leaves_no_part(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(UserError, match=r"owner\.lock cannot be written \(.*\); make room"):
            hold_run_lock(tmp_path).__enter__()
        for name in ("x", "folder/x"):
            with pytest.raises(UserError, match=r"x cannot be written \(File too large\); make room there"):
                write_whole(tmp_path / name, b"x" * 100)
        with pytest.raises(UserError, match=r"out cannot be written \(File too large\); make room there"):
            check_writable(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK] and not is_held(tmp_path)


def read_lock(folder: Path) -> None:
    assert not is_held(folder)
    with hold_run_lock(folder):
        pass


def begin_cell(folder: Path) -> None:
    raise UserError(run_cells([Cell(folder, small(), ["false"])], folder, 1)[folder.name]["error"])


@pytest.mark.parametrize("device", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    ("name", "ask", "told"),
    [
        (LOCK, read_lock, r"owner\.lock cannot be written \(it is a pipe or a device, no file: remove it"),
        (
            "log.txt",
            begin_cell,
            "log.txt cannot be written",
        ),
        ("1.manifest", lambda folder: Checkpoints(folder).latest, ""),
        ("x.json", lambda folder: read_checked(folder / "x.json") or sha256(folder / "x.json"), ""),
    ],
)
def test_a_pipe_or_a_device_is_not_waited_for_wherever_a_run_or_the_cache_has_a_file(tmp_path, device, name, ask, told):
    if device == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(device)
    if told:
        with pytest.raises(UserError, match=told):
            ask(tmp_path)
    else:
        assert not ask(tmp_path)


def test_a_lock_that_becomes_a_device_is_lost_and_not_read(tmp_path):
    with hold_run_lock(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).symlink_to("/dev/zero")
        with pytest.raises(UserError, match=r"owner\.lock cannot be read \(it is a pipe or a device"):
            check_run_lock(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "config.json", "model.safetensors", "notes"])
def test_a_pipe_or_a_device_in_a_models_folder_is_named_before_anything_of_it_is_read(tmp_path, name):
    os.mkfifo(tmp_path / name)
    told = rf"{name} cannot be read \(it is a pipe or a device, no file: remove it\); copy the model's folder again"
    with pytest.raises(UserError, match=told):
        model_folder(str(tmp_path))
