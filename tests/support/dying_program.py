"""Runs tsallis_rl.main, and dies by a signal while the base model is trained, or once a save has begun.

python -m tests.support.dying_program SIGNUM "base model" | save [flags of main]
"""

import os
import runpy
import sys
import threading
import time
from pathlib import Path

SIGNUM, WHEN = int(sys.argv[1]), sys.argv[2]
sys.argv = [sys.argv[0], *sys.argv[3:]]
WORKDIR = Path(next(flag for flag in sys.argv if flag.startswith("--workdir=")).removeprefix("--workdir="))


def has_come() -> bool:
    if WHEN == "save":
        return any((WORKDIR / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
    return (Path(os.environ["TSALLIS_RL_CACHE"]) / "base").exists()  # made before the base model is trained


def wait_and_die() -> None:
    while not has_come():
        time.sleep(0.002)
    os.kill(os.getpid(), SIGNUM)


threading.Thread(target=wait_and_die, daemon=True).start()
runpy.run_module("tsallis_rl.main", run_name="__main__")
