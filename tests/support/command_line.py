"""Calls programs of this package in the tests' own process, since starting Python and jax anew takes seconds."""

from collections.abc import Callable

import pytest


def call(program: Callable, *arguments: str) -> int | str | None:
    """Calls an entry point; returns its exit status, or None if it returns."""
    try:
        program(list(arguments))
    except SystemExit as stop:
        return stop.code
    return None


def refused(capfd: pytest.CaptureFixture, program: Callable, *arguments: str) -> str:
    """Returns the sentence with which a program refuses its arguments: all of its stderr, with status 2."""
    capfd.readouterr()
    assert call(program, *arguments) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told.removeprefix("error: ").strip()
