"""Sets up jax for a command: finds its devices, and fixes the settings that would change random draws.

Such settings come from the environment (JAX_ENABLE_X64, JAX_DEFAULT_PRNG_IMPL, …). A command sets them itself, so that
a run has the same draws wherever it is continued. A run started from a user's own Python program keeps that program's
settings, and continues only with the same ones (`draw_settings`).
"""

import gc
import json
import os
import subprocess
import sys
from typing import NamedTuple

import jax

from tsallis_rl.runs.cache import keep_compiled_programs
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.progress import say

PINNED = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_matmul_precision": None,
}
# Pinned because their other values break runs: −∞ is a valid value here, numbers are moved to devices implicitly,
# config.mesh chooses the devices, and without jit a step takes hours.
_ALSO = {
    "jax_debug_infs": False,
    "jax_disable_jit": False,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_default_device": None,
}


# New objects between two garbage collections, in place of Python's 700. Tracing in jax makes many small objects that
# stay, and scanning them again and again took a seventh of the processor time of a small run's start.
_OBJECTS_BETWEEN_COLLECTIONS = 50_000


def draw_settings() -> dict[str, bool | int | str | None]:
    """Returns jax's settings that change draws, as they are now: name → value."""
    return {name: getattr(jax.config, name) for name in PINNED}


def start_jax() -> None:
    """Sets what changes draws, lets jax cache compiled programs, and finds the devices. Only `join` may come before.

    Raises:
      UserError: the requested platform has no device here.
    """
    for name, value in (PINNED | _ALSO).items():
        if (found := getattr(jax.config, name)) != value:
            say(f"NOTE: {name.upper()}={found} is ignored: it is {value} here")
            jax.config.update(name, value)
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    keep_compiled_programs()
    find_devices()


def peak_memory() -> dict[str, float]:
    """Measures the most memory that one of this process's devices has held: {"peak_memory_gib": …}; {} on CPUs."""
    found = [stats["peak_bytes_in_use"] for d in jax.local_devices() if (stats := d.memory_stats())]
    return {"peak_memory_gib": max(found) / 2**30} if found else {}


def host_cores() -> int:
    """Counts the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_devices() -> list[jax.Device]:
    """Lists the devices of all processes.

    Raises:
      UserError: the requested platform has no device here.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # each platform's library words this its own way, or not at all
        reason = (str(error) or "no such device is found").splitlines()[0].partition(" (set JAX_PLATFORMS")[0]
        settings = {name: jax.config.values[name.lower()] for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")}
        given = [f"{name}={value}" for name, value in settings.items() if value not in (None, "", -1)]
        asked = f"{', '.join(given)}: " if given else ""
        raise UserError(
            f"{asked}{reason}; set JAX_PLATFORMS to an available platform, such as cpu, or unset such variables to "
            "use what is available; the extras gpu and tpu of tsallis_rl install the others"
        ) from None


class Device(NamedTuple):
    """The device that a run started here would compute on.

    Attributes:
      platform: cpu, gpu or tpu.
      kind: its name.
      number: how many there are.
      gib: GiB of memory that JAX takes of one; 0 if unknown (CPUs).
      capability: CUDA's compute capability; 0 for other devices.
    """

    platform: str
    kind: str
    number: int
    gib: float
    capability: float

    @property
    def dtype(self) -> str:
        """The dtype to compute in: bfloat16 where its products are faster, on TPUs and NVIDIA GPUs from Ampere on."""
        return "bfloat16" if self.platform == "tpu" or self.capability >= 8 else "float32"

    def __str__(self) -> str:
        memory = f", {self.gib:.1f} GiB of memory for JAX" if self.gib else ""
        why = " (it has no products of bfloat16)" if 0 < self.capability < 8 else ""
        return f"{self.kind}{f' × {self.number}' if self.number > 1 else ''}{memory}, computing in {self.dtype}{why}"


_ASK = """
import json, re, jax
device = jax.devices()[0]
capability = str(getattr(device, "compute_capability", ""))
gib = (device.memory_stats() or {}).get("bytes_limit", 0) / 2**30
capability = float(capability) if re.fullmatch(r"[0-9]+([.][0-9]+)?", capability) else 0.0
print(json.dumps([device.platform, device.device_kind, jax.device_count(), gib, capability]))
"""


def ask_device(whose: str = "", remedy: str = "install the JAX of this processor") -> Device:
    """Finds the device in another process, so that the accelerator and its memory stay free for the runs.

    Args:
      whose: what the device is for, for the message.
      remedy: what to do other than correct JAX_PLATFORMS, for the message.

    Raises:
      UserError: jax finds no device.
    """
    answer = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        raise UserError(f"jax finds no device{whose} ({reason}); correct JAX_PLATFORMS, or {remedy}")
    return Device(*json.loads(answer.stdout.splitlines()[-1]))
