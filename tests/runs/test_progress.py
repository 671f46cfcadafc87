"""Progress: bars on terminals of several widths, and the lines of a log."""

import io
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.terminal import opened, screen, written
from tsallis_rl.runs import compiling, progress
from tsallis_rl.runs.compiling import Program
from tsallis_rl.runs.progress import Bar, Reporter, doing, on_terminal, open_bars, reporting, say, span, standing, width


@pytest.fixture
def now(monkeypatch):
    """A clock that stands where a test puts it."""
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    return clock


@pytest.mark.parametrize(("text", "columns"), [("log P̂ -1.0", 10), ("log P", 5), ("东", 2), ("", 0)])
def test_a_terminal_gives_a_text_as_many_columns(text, columns):
    assert width(text) == columns


@pytest.mark.parametrize("columns", [30, 48, 80, 200])
def test_bars_keep_to_one_line_each_and_leave_nothing_behind(columns, monkeypatch):
    with opened(columns) as (stream, master):
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar(desc="train", total=20_000, called="steps") as bar:
            for note in ("", "log P̂ -1234.5", "", "log P̂ -1.5"):
                bar.note = note
                bar.update()
                bar.refresh()
                with Bar(range(3), "evaluate", called="batches", leave=False) as inner:
                    inner.refresh()
                say("step 0")
            bar.refresh()
            monkeypatch.setattr(compiling._clock(), "under_way", Program("update", time.time() - 2))
            with doing("reading") as inner:
                inner.start_t -= 2
                inner.tick(time.time())
                shown = screen(text := written(master), columns)
                assert shown[-1].startswith("reading: 00:0") and (columns < 40 or "compiling update" in shown[-1])
            monkeypatch.undo()
        text += written(master)
    shown = screen(text, columns)
    assert [line for line in shown if line][:4] == ["step 0"] * 4
    assert len([line for line in shown if line]) == 5, shown
    assert max(map(width, shown)) <= columns and shown[4].count("]") == (columns >= 80)
    assert ("log P̂ -1.5" in shown[4]) == (columns >= 80) and "\x1b" not in shown[4]


@pytest.mark.parametrize("columns", [0, 80])
def test_a_terminal_that_tells_no_size_has_the_lines_of_a_log(columns, monkeypatch):
    with opened(columns) as (stream, _):
        monkeypatch.setattr(sys, "stderr", stream)
        assert on_terminal() == (columns > 0)
        monkeypatch.undo()


def test_a_clock_that_is_set_back_silences_no_line():
    reporter = Reporter(5000.0)
    bar = Bar(desc="train", total=2)
    assert [bool(reporter.lines(now, [bar], None, log=True)) for now in (1000.0, 1030.0, 1040.0)] == [
        False,
        True,
        False,
    ]
    bar.close()


def test_a_log_has_a_line_every_30_seconds_and_a_word_on_what_takes_long(now, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    reporter, began, found = Reporter(now[0]), now[0], {}
    first, second = Program("update", began + 1), Program("decode_segment", began + 70)
    with Bar(desc="train", total=300, initial=40, called="steps") as bar:
        for i in range(1, 121):
            now[0] = began + i
            if i in (20, 24):
                bar.note, bar.more = f"log P̂ -{i}.0", "812 tokens/s"
                bar.update()
            compiled = first if i < 18 else second if i >= 70 else None
            for line in reporter.lines(now[0], open_bars(), compiled, log=True):
                found[i] = line
    standing = "train: 42 of 300 steps, {} left, log P̂ -24.0, 812 tokens/s"
    assert found == {
        6: "compiling update …",
        18: "compiled update in 17 s",
        48: standing.format("2:00:24"),  # 28 s for the second step, as far as is known
        75: "compiling decode_segment …",
        105: standing.format("6:05:30") + ", the next is under way for 0:57; compiling decode_segment for 0:35",
    }


def test_a_line_names_all_that_is_under_way(now, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Bar(desc="train", total=300, called="steps"), Bar(total=8, desc="evaluate", called="batches") as inner:
        now[0] += 20
        inner.update(3)
        assert standing(now[0], open_bars(), None) == "train: 0 of 300 steps; evaluate: 3 of 8 batches, 0:33 left"
        now[0] += 70
        told = standing(now[0], open_bars(), Program("update", now[0] - 61))
    assert told.startswith("train: 0 of 300 steps, the next is under way for 1:10; evaluate: 3 of 8 batches, ")
    assert told.endswith("; compiling update for 1:01")
    with doing("reading the checkpoint of step 5"):
        now[0] += 45
        assert standing(now[0], open_bars(), None) == "reading the checkpoint of step 5 for 0:45"
    with Bar(total=3_000_000, desc="copy", unit="B", unit_scale=True) as bar:
        bar.update(1_500_000)
        assert standing(now[0], open_bars(), None).startswith("copy: 1.50M of 3.00M B")
    assert standing(now[0], open_bars(), None) == ""


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (725, "12:05"), (7265, "2:01:05"), (360_000, "100:00:00")])
def test_a_time_is_written_with_its_units(seconds, text):
    assert span(seconds) == text


def test_the_thread_that_reports_ends_with_what_it_reports_on(monkeypatch, capfd):
    monkeypatch.setattr(progress, "TICK", 0.01)
    monkeypatch.setattr(progress, "EVERY", 0.02)
    before = threading.active_count()
    with pytest.raises(KeyError), reporting(), reporting(), Bar(desc="train", total=2, called="steps"):
        assert threading.active_count() == before + 1
        time.sleep(0.1)
        raise KeyError
    assert threading.active_count() == before
    assert "train: 0 of 2 steps" in capfd.readouterr().err


def test_a_process_that_is_not_the_first_says_nothing(monkeypatch, capfd):
    monkeypatch.setattr(progress, "_speaks", False)
    say("WARNING: once")
    with Bar(desc="train", total=2) as bar:
        bar.update()
        assert bar.seconds_left() is not None
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # jax's, of any fork
def test_a_child_that_is_forked_waits_for_no_lock_of_its_parents_threads(capfd):
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with Bar.get_lock():
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    if not (child := os.fork()):
        say("from the child")
        os._exit(0)
    ended = 0
    for _ in range(500):
        ended = ended or os.waitpid(child, os.WNOHANG)[0]
        time.sleep(0 if ended else 0.01)
    done.set()
    thread.join()
    if not ended:
        os.kill(child, signal.SIGKILL)
    assert ended == child and "from the child" in capfd.readouterr().err


def test_lines_of_several_threads_are_whole(capfd):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(say, [f"{i}" * 50 for i in range(8)] * 20))
    assert {len(line) for line in capfd.readouterr().err.splitlines()} == {50}
