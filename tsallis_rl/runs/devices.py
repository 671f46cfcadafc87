"""The jax that a command runs on: devices that are there, and settings of it that would change draws.

Such settings come from the environment (JAX_ENABLE_X64, JAX_DEFAULT_PRNG_IMPL, …). A command sets them itself, so that
a run has the same draws wherever it is continued; a run that is made by one's own Python program keeps what that
program set, and is continued with the same alone (`draw_settings`).
"""

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
# Settings under which no run works: −∞ is a value here, numbers are moved to devices as they are, and devices are those
# of config.mesh; op by op a step takes hours.
_ALSO = {
    "jax_debug_infs": False,
    "jax_disable_jit": False,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_default_device": None,
}


def draw_settings() -> dict[str, bool | int | str | None]:
    """Returns jax's settings that change draws, as they are now: name → value."""
    return {name: getattr(jax.config, name) for name in PINNED}


def start_jax() -> None:
    """Sets what changes draws, lets jax keep what it compiles, and asks for the devices. Before it, `join` alone.

    Raises:
      UserError: the platform that is asked for has no device here.
    """
    for name, value in (PINNED | _ALSO).items():
        if (found := getattr(jax.config, name)) != value:
            say(f"NOTE: {name.upper()}={found} is not read: it is {value} here")
            jax.config.update(name, value)
    keep_compiled_programs()
    find_devices()


def peak_memory() -> dict[str, float]:
    """Measures the most memory that one of this process's devices has held so far: peak_memory_gib; {} of CPUs."""
    found = [stats["peak_bytes_in_use"] for d in jax.local_devices() if (stats := d.memory_stats())]
    return {"peak_memory_gib": max(found) / 2**30} if found else {}


def find_devices() -> list[jax.Device]:
    """Lists the devices of all processes.

    Raises:
      UserError: the platform that is asked for has no device here.
    """
    try:
        return jax.devices()
    except RuntimeError as error:  # every platform's library has reasons of its own
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(" (set JAX_PLATFORMS")[0]
        settings = {name: jax.config.values[name.lower()] for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")}
        given = [f"{name}={value}" for name, value in settings.items() if value not in (None, "", -1)]
        asked = f"{', '.join(given)}: " if given else ""
        raise UserError(
            f"{asked}{reason}; set JAX_PLATFORMS to a platform that is here, as cpu, or leave such variables out to "
            "take what is here; the extras gpu and tpu of tsallis_rl bring theirs"
        ) from None
