"""The tests' own layout."""

import ast

from tests.support.paths import ROOT


def imported(tree: ast.Module) -> set[str]:
    """Modules that a module imports, and what it imports from them, as dotted names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names} | {str(node.module)}
    return found


def test_no_test_module_imports_another():
    for file in (ROOT / "tests").rglob("*.py"):
        for name in imported(ast.parse(file.read_text())):
            parts = name.split(".")
            assert parts[0] != "tests" or not any(part.startswith("test_") for part in parts), f"{file}: {name}"
