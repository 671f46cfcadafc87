"""Programs of this package called in the tests' own process: starting Python and jax anew takes seconds."""

from collections.abc import Callable

import pytest
from absl.testing import flagsaver

from tsallis_rl.config import command_line as settings


def call(program: Callable, *arguments: str) -> int | str | None:
    """The exit status of an entry point that reads flags, which are as before afterwards."""
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        settings.run(program, [program.__module__, *arguments])
    return stop.value.code


def refused(capfd: pytest.CaptureFixture, program: Callable, *arguments: str) -> str:
    """The sentence by which a program refuses its arguments: all that it prints on stderr, with status 2."""
    capfd.readouterr()
    assert call(program, *arguments) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told.removeprefix("error: ").strip()
