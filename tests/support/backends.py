"""Another row of the table of backends."""

import pytest

from tsallis_rl.models.backends import BACKENDS


def on_cpu(monkeypatch: pytest.MonkeyPatch, **choices) -> None:
    """Changes choices of the CPU for one test; what is compiled already keeps the old ones."""
    monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(**choices))
