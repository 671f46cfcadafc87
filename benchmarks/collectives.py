"""Reads the collectives of a compiled program (what devices send to each other) from its text."""

import math
import re
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2, "f16": 2, "s64": 8, "u64": 8}
_OPERATION = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply)=%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One result of a collective operation.

    Attributes:
      operation: all-gather, all-reduce, reduce-scatter, collective-permute or all-to-all.
      shape: of the result on one device.
      bytes: of the result.
      times: how often it runs per run of the program, or per iteration of `loop`.
      loop: the loop around it whose length the compiler does not know (a loop over sampled tokens), or "" if none.
    """

    operation: str
    shape: tuple[int, ...]
    bytes: int
    times: int
    loop: str


def collectives(text: str) -> list[Collective]:
    """Lists every collective of a compiled program, whose text is `lowered.compile().as_text()`."""
    found: list[tuple[str, str, str]] = []  # computation, operation, result
    called: dict[str, tuple[str, int | None]] = {}  # computation -> its caller, and how often; None if unknown
    whiles: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        if heading := COMPUTATION.match(line):
            computation = heading[1]
        elif operation := _OPERATION.search(line):
            found.append((computation, operation[2], operation[1]))
        else:
            trips = TRIPS.search(line)
            times = 1 if " while(" not in line else int(trips[1]) if trips else None
            names = _CALLED.findall(line)
            called |= {name: (computation, times) for name in names}
            whiles |= {name: " ".join(names) for name in names}  # condition and body belong to one loop

    def runs(computation: str) -> tuple[int, str]:
        if computation not in called:
            return 1, ""
        caller, times = called[computation]
        outer, loop = runs(caller)
        return outer * (times or 1), loop or ("" if times else whiles[computation])

    return [
        Collective(operation, shape, BYTES[dtype] * math.prod(shape), *runs(computation))
        for computation, operation, result in found
        for dtype, shape in ((d, tuple(map(int, filter(None, s.split(","))))) for d, s in SHAPE.findall(result))
    ]
