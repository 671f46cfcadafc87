"""Programs of this package called in the tests' own process: starting Python and jax anew takes seconds."""

from collections.abc import Callable

import pytest


def call(program: Callable, *arguments: str) -> int | str | None:
    """The exit status of an entry point; None where it returns."""
    try:
        program(list(arguments))
    except SystemExit as stop:
        return stop.code
    return None


def refused(capfd: pytest.CaptureFixture, program: Callable, *arguments: str) -> str:
    """The sentence by which a program refuses its arguments: all that it prints on stderr, with status 2."""
    capfd.readouterr()
    assert call(program, *arguments) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told.removeprefix("error: ").strip()
