"""Path of the real models that `python -m tests.real_models` makes."""

import os
from pathlib import Path

REAL = Path(os.environ.get("TSALLIS_RL_REAL_MODELS") or Path.home() / ".cache" / "tsallis_rl-real-models").expanduser()
