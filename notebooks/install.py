"""Installs the project where a notebook runs, with the JAX of its processor: %run CHECKOUT/notebooks/install.py

It needs the standard library alone. Hosted notebooks, as Colab, bring a JAX with the libraries of their GPU or TPU. One
that is recent enough stays; pip would replace an older one by a build for the CPU, beside a plugin of another version.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TESTED = ">=0.10,<0.11"  # the JAX that is installed where there is none: with the next one nothing has been tried
OLDEST = (0, 10)
COLAB = "in Colab choose Runtime > Change runtime type > T4 GPU, then run from the top"


class Gpu(NamedTuple):
    """One NVIDIA GPU, as nvidia-smi describes it.

    Attributes:
      name: as in "Tesla T4".
      driver: first number of the driver's version.
      capability: compute capability.
    """

    name: str
    driver: int
    capability: float


class Cuda(NamedTuple):
    """One of JAX's builds for CUDA.

    Attributes:
      version: of CUDA, first number.
      driver: the oldest driver that it runs with.
      capability: the lowest compute capability that it has kernels for.
    """

    version: int
    driver: int
    capability: float


CUDAS = (Cuda(13, 580, 7.5), Cuda(12, 525, 5.2))  # the newest first


class Build(NamedTuple):
    """What pip is asked for.

    Attributes:
      requirement: of JAX.
      removed: packages that go first, as two CUDA plugins cannot be loaded beside each other.
      told: what is said about it.
    """

    requirement: str
    removed: list[str]
    told: str


def read_gpus(table: str) -> list[Gpu]:
    """Reads the lines of `nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader`.

    Other lines, such as that no device was found, are left out.
    """
    rows = [[part.strip() for part in line.rsplit(",", 2)] for line in table.splitlines()]
    return [
        Gpu(row[0], int(row[1].split(".")[0]), float(row[2]))
        for row in rows
        if len(row) == 3 and re.fullmatch(r"\d+(\.\d+)*", row[1]) and re.fullmatch(r"\d+(\.\d+)?", row[2])
    ]


def choose_build(gpus: Sequence[Gpu], tpu: bool, versions: Mapping[str, str]) -> Build:
    """Chooses the JAX to install.

    Args:
      gpus: of this machine.
      tpu: it has one.
      versions: package → version, of what is installed.
    """
    jax = versions.get("jax", "")
    recent = tuple(int(part) for part in re.findall(r"\d+", jax)[:2]) >= OLDEST
    if gpus:
        runs = [
            cuda
            for cuda in CUDAS
            if all(gpu.driver >= cuda.driver and gpu.capability >= cuda.capability for gpu in gpus)
        ]
        if not runs:
            oldest = CUDAS[-1]
            return Build(
                f"jax=={jax}" if recent else f"jax{TESTED}",
                [],
                f"{gpus[0].name}, driver {gpus[0].driver}, compute capability {gpus[0].capability}: JAX needs driver "
                f"{oldest.driver} and compute capability {oldest.capability} or higher, so the CPU is used; {COLAB}",
            )
        matching = [cuda for cuda in runs if versions.get(f"jax-cuda{cuda.version}-plugin") == jax]
        extra, device = f"cuda{(matching if recent and matching else runs)[0].version}", gpus[0].name
        recent = recent and bool(matching)
    elif tpu:
        extra, device, recent = "tpu", "TPU", recent and "libtpu" in versions
    else:
        extra, device = "", "no GPU or TPU"
    name = f"jax[{extra}]" if extra else "jax"
    others = sorted(x for x in versions if re.fullmatch(r"jax-cuda\d+-(plugin|pjrt)", x) and extra not in x)
    removed = others if extra.startswith("cuda") else []
    if recent:
        told = f"{device}: JAX {jax} stays"
    else:
        told = f"{device}: {name}{TESTED} is installed" + (f" in place of JAX {jax}" if jax else "")
    return Build(
        f"{name}=={jax}" if recent else f"{name}{TESTED}",
        removed,
        told if extra else f"{told}; for a GPU {COLAB}",
    )


def outdated(loaded: Mapping[str, str], installed: Mapping[str, str]) -> str:
    """Says that the kernel has to restart, where it has loaded other versions than are installed now; else "".

    Args:
      loaded: module → version, of this kernel.
      installed: package → version.
    """
    changed = [f"{name} {version}" for name, version in loaded.items() if installed.get(name, version) != version]
    if not changed:
        return ""
    return f"this session has loaded {', '.join(changed)}: restart it (Runtime > Restart session) and run from the top"


def _installed() -> dict[str, str]:
    """Lists what is installed: package → version."""
    importlib.invalidate_caches()
    found = {}
    for package in importlib.metadata.distributions():
        if package.metadata["Name"]:  # broken remains of a package have none
            found.setdefault(package.metadata["Name"].lower().replace("_", "-"), package.version)
    return found


def _nvidia_smi() -> str:
    """Returns the table that `read_gpus` reads; "" where there is no nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, errors="replace", check=False).stdout


def _has_tpu() -> bool:
    """Returns whether this machine has a TPU, which shows as a device file."""
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def install(checkout: Path) -> None:
    """Installs the checkout and the JAX that it needs here, and lets this kernel import it.

    Raises:
      SystemExit: pip failed, with what it said.
    """
    build = choose_build(read_gpus(_nvidia_smi()), _has_tpu(), _installed())
    print(build.told)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    commands = [[*pip, "install", build.requirement, "-e", str(checkout), "ipywidgets>=7.7"]]
    if build.removed:
        commands.insert(0, [*pip, "uninstall", "--yes", *build.removed])
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"pip could not install the project:\n{done.stdout[-3000:]}")
    sys.path.insert(0, str(checkout))  # an editable install is seen by new processes alone
    loaded = {name: sys.modules[name].__version__ for name in ("numpy", "jax", "jaxlib") if name in sys.modules}
    if again := outdated(loaded, _installed()):
        print(again)


if __name__ == "__main__":
    install(Path(__file__).resolve().parents[1])
