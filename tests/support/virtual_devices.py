"""Runs programs of the tests that need more devices than this process has."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.support.paths import ROOT


def printed(module: str, devices: int, flags: str, **environment: str) -> Any:
    """Returns the JSON that `python -m module` prints with this many virtual devices and XLA's other `flags`."""
    flags = f"{flags} --xla_force_host_platform_device_count={devices}"  # XLA takes the last of two counts
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
