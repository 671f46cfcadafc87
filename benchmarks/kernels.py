"""Adds up the kernels of a profile by name; jax alone reads the file, which is jax.profiler's."""

import collections
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jax.profiler import ProfilePlane

SHOWN = 25
SUMMARIES = {"Steps", "XLA Modules", "Framework Ops", "Framework Name Scope", "Source code", "XLA TraceMe"}
BOOKKEEPING = re.compile(r"::|: | \(")  # events of a CPU's threads that are no kernels
_HAS_DIGIT = re.compile(r"\d")


class Event(NamedTuple):
    """A kernel that ran: its name, and when, in nanoseconds."""

    name: str
    start: float
    duration: float


class Kernel(NamedTuple):
    """The kernels of one group: total milliseconds, and how many ran."""

    name: str
    ms: float
    calls: int


class Profile(NamedTuple):
    """The kernels of a device.

    Attributes:
      busy_ms: the sum of their times.
      span_ms: from the first one's start to the last one's end.
      calls: how many ran.
      kernels: by group, the longest total first.
    """

    busy_ms: float
    span_ms: float
    calls: int
    kernels: list[Kernel]


def group_of(name: str) -> str:
    """Names the group of a kernel: its name without template arguments and without the parts that have digits.

    `input_reduce_fusion_12` and `input_reduce_fusion.3` are one group, as are a library's kernels for several tiles.
    """
    name = re.split(r"[<(\[]", name.removeprefix("void "))[0].strip()
    parts = [part for part in re.split(r"[_.\s]", name) if part and not _HAS_DIGIT.search(part)]
    return "_".join(parts)[:60] or name[:60]


def add_up(events: Iterable[Event]) -> Profile:
    """Adds up events by group."""
    total, calls = collections.Counter(), collections.Counter()
    first, last = float("inf"), 0.0
    for event in events:
        group = group_of(event.name)
        total[group] += event.duration
        calls[group] += 1
        first, last = min(first, event.start), max(last, event.start + event.duration)
    kernels = [Kernel(name, nanoseconds / 1e6, calls[name]) for name, nanoseconds in total.most_common()]
    return Profile(
        busy_ms=sum(total.values()) / 1e6, span_ms=max(0.0, last - first) / 1e6, calls=calls.total(), kernels=kernels
    )


def read_profile(folder: Path) -> Profile:
    """Reads the first device's kernels, or on a CPU its threads', from what `jax.profiler.trace(folder)` wrote."""
    import jax

    file = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    return add_up(device_events(list(jax.profiler.ProfileData.from_file(str(file)).planes)))


def device_events(planes: "Sequence[ProfilePlane]") -> Iterator[Event]:
    """Yields the kernels of the first device: those of a GPU's streams, a TPU's operations, else a CPU's threads."""
    devices = sorted((plane for plane in planes if plane.name.startswith("/device:")), key=lambda plane: plane.name)
    if devices:
        lines = [line for line in devices[0].lines if line.name not in SUMMARIES]
        streams = [line for line in lines if line.name.startswith("Stream")]
        operations = [line for line in lines if line.name == "XLA Ops"]
        chosen = streams or operations or lines
    else:
        host = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
        chosen = [line for line in host if line.name.startswith("tf_XLA")]
    for line in chosen:
        for event in line.events:
            if devices or not BOOKKEEPING.search(event.name):
                yield Event(event.name, event.start_ns, event.duration_ns)


def table(profile: Profile) -> str:
    """Writes the groups that took longest."""
    lines = [
        f"{profile.busy_ms:.0f} ms busy of {profile.span_ms:.0f}, {profile.calls} kernels",
        f"{'ms':>10}{'share':>8}{'calls':>9}  kernels",
    ]
    for kernel in profile.kernels[:SHOWN]:
        share = kernel.ms / max(profile.busy_ms, 1e-9)
        lines.append(f"{kernel.ms:>10.2f}{share:>8.1%}{kernel.calls:>9}  {kernel.name}")
    return "\n".join(lines)
