"""Runs notebooks of this folder and keeps their outputs: python notebooks/execute.py continuum estimators

Without names it runs all. What is kept says nothing of the machine: no times, no state of widgets. With --address it
runs none, and writes the repository's address, `repository-code` of CITATION.cff, into all: for the first cell's
`git clone`, and as the link that opens them in Colab.
"""

import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tsallis_rl.runs.cache import fingerprint

FOLDER = Path(__file__).parent
ADDRESS = re.compile(r'^REPOSITORY = ".*?"', re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget-view+json"


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: nbformat.NotebookNode) -> str:
    """Of the code, by which outputs are known to be its own; the repository's address has no part in them."""
    return fingerprint([ADDRESS.sub('REPOSITORY = ""', cell.source) for cell in code(notebook)])


def address() -> str:
    """Returns the repository's address, of CITATION.cff; "" where it has none."""
    found = re.search(r'^repository-code: *"?([^"\s]+)', (FOLDER.parent / "CITATION.cff").read_text(), re.MULTILINE)
    return found[1] if found else ""


def opening(name: str, address: str) -> str:
    """Writes a notebook's first lines: how to open it in Colab."""
    if on_github := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address):
        link = f"https://colab.research.google.com/github/{on_github[1]}/blob/main/notebooks/{name}.ipynb"
        return f"[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
    return (
        "In Colab: `File > Upload notebook`, then write the address of the project's repository, as you would give it "
        "to `git clone`, into the first cell."
    )


def set_address(notebook: nbformat.NotebookNode, name: str, address: str) -> None:
    """Writes the repository's address into a notebook: its first lines, and its first cell of code."""
    notebook.cells[0].source = opening(name, address)
    first = code(notebook)[0]
    first.source = ADDRESS.sub(f'REPOSITORY = "{address}"', first.source)


def execute(
    file: Path, where: Path, parameters: Mapping[str, Any] | None = None, last: str = ""
) -> nbformat.NotebookNode:
    """Runs a notebook from top to bottom in a fresh kernel.

    Args:
      file: the notebook; it is not changed.
      where: the kernel's working directory.
      parameters: name → value, set after the cell that is tagged `parameters`.
      last: code of a cell to add at the end.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(file, as_version=4)
    if parameters:
        (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
        lines = [f"{name} = {value!r}" for name, value in parameters.items()]
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    if last:
        notebook.cells.append(nbformat.v4.new_code_cell(last))
    resources = {"metadata": {"path": str(where)}}
    client = NotebookClient(notebook, timeout=3600, resources=resources, record_timing=False, store_widget_state=False)
    # Else it plays a browser's Output widgets, and what it tells them can make it miss the kernel's reply for ever.
    client.widget_registry.clear()
    return client.execute()


def keep(notebook: nbformat.NotebookNode, file: Path) -> None:
    """Writes the outputs; those of a cell with sliders, which do nothing without a kernel, are left out."""
    for cell in code(notebook):
        if any(WIDGET in output.get("data", {}) for output in cell.outputs):
            cell.outputs = []
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "executed": digest(notebook)}
    nbformat.write(notebook, file)


def main() -> None:
    """Runs the named notebooks, or all, in an empty folder each; or writes the address."""
    names = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
    if sys.argv[1:] == ["--address"]:
        for name in names:
            notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
            set_address(notebook, name, address())
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        return
    for name in sys.argv[1:] or names:
        file = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as where:
            keep(execute(file, Path(where)), file)
        print(f"{file.name}: executed, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
