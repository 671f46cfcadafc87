"""Paths of the repository, and of the excerpts of official releases beside it, if they are there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
OFFICIAL = ROOT.parent / "shared" / "data"
