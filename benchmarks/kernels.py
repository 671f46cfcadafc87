"""Adds up the kernels of a profile by name: jax.profiler's own file, read by jax alone."""

import collections
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SHOWN = 25
SUMMARIES = {"Steps", "XLA Modules", "Framework Ops", "Framework Name Scope", "Source code", "XLA TraceMe"}
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
      busy_ms: their sum.
      span_ms: from the first one's start to the last one's end.
      calls: how many ran.
      kernels: by group, those that took longest first.
    """

    busy_ms: float
    span_ms: float
    calls: int
    kernels: list[Kernel]


def group_of(name: str) -> str:
    """Names the group of a kernel: its name without template arguments and without the parts that have digits.

    `input_reduce_fusion_12` and `input_reduce_fusion.3` are one group, so are a library's kernels for several tiles.
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
    """Reads what `jax.profiler.trace(folder)` wrote, of the first device; of a CPU what its threads ran."""
    import jax

    file = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = sorted((plane for plane in planes if plane.name.startswith("/device:")), key=lambda plane: plane.name)
    lines = [line for plane in devices[:1] for line in plane.lines if line.name not in SUMMARIES]
    of_streams = [line for line in lines if line.name.startswith("Stream")]
    of_operations = [line for line in lines if line.name == "XLA Ops"]
    chosen = of_streams or of_operations or lines
    if devices:
        return add_up(Event(e.name, e.start_ns, e.duration_ns) for line in chosen for e in line.events)
    threads = [
        line for plane in planes if plane.name == "/host:CPU" for line in plane.lines if line.name.startswith("tf_XLA")
    ]
    return add_up(
        Event(e.name, e.start_ns, e.duration_ns)
        for line in threads
        for e in line.events
        if not re.search(r"::|: | \(", e.name)  # the threads' own bookkeeping
    )


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
