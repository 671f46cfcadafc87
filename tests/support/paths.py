"""Where the repository is, and beside it the excerpts of official releases, if they are there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
OFFICIAL = ROOT.parent / "shared" / "data"
