"""Reads the kernels of a program that XLA compiled for a GPU, and the bytes that each moves, from its text."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.collectives import BYTES, COMPUTATION, SHAPE, TRIPS

NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "opt-barrier"}
CALLED = re.compile(r'(?:custom_call_target=|\bname = )"([^"]+)"')  # the name is that of a Triton program
_INSTRUCTION = re.compile(
    r"^\s+(ROOT )?%?([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([a-z][\w\-]*)\((.*)"
)  # "ROOT " if it is the root, name, shape, operation, operands and attributes
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)?)")  # with a number: an element of a tuple


class Kernel(NamedTuple):
    """A kernel of a program.

    Attributes:
      loop: the loops around it and how often each runs, if the compiler knows that; "" for none.
      name: without its number.
      bytes: that it reads and writes, each array once. If it only cuts slices from an array, or writes one into it,
        only the slices count.
    """

    loop: str
    name: str
    bytes: int


class _Instruction(NamedTuple):
    root: bool
    name: str
    shape: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names the operands."""
        return _OPERAND.findall(self.rest.partition("), ")[0])

    def calls(self, what: str = "calls") -> str | None:
        """Names the computation that is called, or the body of a loop."""
        found = re.search(rf"\b{what}=%?([\w.\-]+)", self.rest)
        return found and found[1]


def kernels(text: str) -> list[Kernel]:
    """Lists the kernels of a compiled program, whose text is `lowered.compile().as_text()`."""
    computations: dict[str, list[_Instruction]] = collections.defaultdict(list)
    computation = entry = ""
    for line in text.splitlines():
        if heading := COMPUTATION.match(line):
            computation = heading[1]
            entry = computation if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            computations[computation].append(_Instruction(bool(found[1]), *found.groups()[1:]))

    def walk(computation: str, loop: str) -> Iterator[Kernel]:
        shapes = {x.name: x.shape for x in computations[computation]}
        shapes |= {f"{name}#{i}": one for name, shape in shapes.items() for i, one in enumerate(_elements(shape))}
        for x in computations[computation]:
            called = x.calls()
            if x.operation == "while":
                trips = TRIPS.search(x.rest)
                yield from walk(x.calls("body"), f"{loop} > {trips[1] if trips else '?'} ×".removeprefix(" > "))
            elif x.operation.endswith("-start") and called:  # its kernels are in the computation that it starts
                yield from walk(called, loop)
            elif x.operation not in NO_KERNEL and not x.operation.endswith("-done"):
                names = CALLED.findall(x.rest) if x.operation == "custom-call" else []
                moved = sum(_size(shapes.get(operand, "")) for operand in x.operands) + _size(x.shape)
                if x.operation == "fusion" and called in computations:
                    moved = _moved(computations[called])
                elif x.operation == "dynamic-slice":
                    moved = 2 * _size(x.shape)
                elif x.operation == "dynamic-update-slice":
                    moved = 2 * _size(shapes.get(x.operands[1], ""))
                yield Kernel(loop, names[-1] if names else re.sub(r"[.\d]+$", "", x.name), moved)

    return list(walk(entry, ""))


def _elements(shape: str) -> list[str]:
    """Lists the arrays of a tuple; [] for an array."""
    return [f"{dtype}[{sizes}]" for dtype, sizes in SHAPE.findall(shape)] if shape.startswith("(") else []


def _size(shape: str) -> int:
    """Counts the bytes of an array, or of all in a tuple."""
    return sum(
        BYTES.get(dtype, 0) * math.prod(map(int, filter(None, sizes.split(","))))
        for dtype, sizes in SHAPE.findall(shape)
    )


def _moved(fused: list[_Instruction]) -> int:
    """Counts the bytes that a fusion reads and writes."""
    named = {x.name: x for x in fused}
    users: dict[str, list[_Instruction]] = collections.defaultdict(list)
    for x in fused:
        for operand in x.operands:
            users[operand].append(x)

    def read(name: str) -> int:
        """Counts the bytes that are read of an array: all, or the slices that are cut from it."""
        total = 0
        for x in users[name]:
            first = x.operands[0] == name
            if x.operation == "bitcast":
                total += read(x.name)
            elif x.operation in ("dynamic-slice", "slice", "gather") and first:
                total += _size(x.shape)
            elif x.operation != "dynamic-update-slice" or not first:  # that array is updated in place
                return _size(named[name].shape)
        return min(total, _size(named[name].shape))

    def written(name: str) -> int:
        """Counts the bytes that are written of a result: all, or the slice that is put into it."""
        x = named[name]
        if x.operation == "tuple":
            return sum(written(operand) for operand in x.operands)
        if x.operation == "bitcast":
            return written(x.operands[0])
        return _size(named[x.operands[1]].shape if x.operation == "dynamic-update-slice" else x.shape)

    return sum(read(x.name) for x in fused if x.operation == "parameter") + sum(
        written(x.name) for x in fused if x.root
    )
