"""House rules that a program can check: sizes, docstrings, and which module imports which."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

CODE = sorted(file for folder in ("tsallis_rl", "benchmarks", "configs") for file in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_ARGUMENTS, MOST_LINES = 8, 450
# A first line says what is done to what: "Gathers rows per shard: x [C, B, …], index [C, r] → [C, r, …]."
OPENINGS = re.compile(r"(Of|What|Those|So many|The same|As|Which)\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def nodes(file: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(file.read_text()))


def where(file: Path, line: int, name: str) -> str:
    return f"{file.relative_to(ROOT)}:{line} {name}"


def arguments(function: Function) -> int:
    """Arguments that a caller gives: all but self or cls; *args and **kwargs are one each."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def signature(function: Function, lines: list[str]) -> str:
    """The lines from `def` to the one before the body."""
    return "\n".join(lines[function.lineno - 1 : max(function.lineno, function.body[0].lineno - 1)])


def imported(file: Path) -> set[str]:
    """Modules that a module imports, and what it imports from them, as dotted names."""
    found = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_no_function_takes_more_than_eight_arguments():
    assert not [
        where(file, node.lineno, f"{node.name} takes {arguments(node)}")
        for file in CODE
        for node in nodes(file)
        if isinstance(node, Function) and arguments(node) > MOST_ARGUMENTS
    ]


def test_no_file_is_longer_than_450_lines():
    lengths = {file: len(file.read_text().splitlines()) for file in CODE + TESTS}
    assert not [where(file, length, "lines") for file, length in lengths.items() if length > MOST_LINES]


def test_no_signature_is_kept_from_the_formatter():
    found = []
    for file in CODE + TESTS:
        lines = file.read_text().splitlines()
        functions = (node for node in nodes(file) if isinstance(node, Function))
        found += [where(file, f.lineno, f.name) for f in functions if "fmt: skip" in signature(f, lines)]
    assert not found


def test_docstrings_open_with_what_is_done():
    found = []
    for file in CODE:
        for node in nodes(file):
            if isinstance(node, Function | ast.ClassDef | ast.Module):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                if OPENINGS.match(first):
                    found.append(where(file, getattr(node, "lineno", 1), first))
    assert not found, "\n".join(found)


def methods(body: list[ast.stmt]) -> Iterator[Function]:
    """Functions and methods of a module's body, without those inside of functions, dunder methods and properties."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from methods(node.body)
        elif isinstance(node, Function):
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not is_property and not re.fullmatch(r"__\w+__", node.name):
                yield node


def test_docstrings_of_functions_open_with_a_verb():
    found = []
    for file in sorted((ROOT / "tsallis_rl").rglob("*.py")):
        for function in methods(ast.parse(file.read_text()).body):
            first = (ast.get_docstring(function) or "s").split()[0].rstrip(",.;:")
            if not first.endswith("s"):
                found.append(where(file, function.lineno, f"{function.name}: {first}"))
    assert not found, "\n".join(found)


def test_no_test_module_imports_another():
    for file in TESTS:
        for name in imported(file):
            parts = name.split(".")
            assert parts[0] != "tests" or not any(part.startswith("test_") for part in parts), f"{file}: {name}"


def test_tests_mirror_the_packages():
    packages = {folder.name for folder in (ROOT / "tsallis_rl").iterdir() if (folder / "__init__.py").exists()}
    tested = {folder.name for folder in (ROOT / "tests").iterdir() if (folder / "__init__.py").exists()}
    assert packages <= tested
    assert tested - packages == {"benchmarks", "commands", "launch", "notebooks", "support"}
