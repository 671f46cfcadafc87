"""Runs notebooks of this folder and keeps their outputs: python notebooks/execute.py continuum estimators

Without names it runs all. What is kept says nothing of the machine: no times, no state of widgets.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tsallis_rl.runs.cache import fingerprint

FOLDER = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: nbformat.NotebookNode) -> str:
    """Of the code, by which outputs are known to be its own."""
    return fingerprint([cell.source for cell in code(notebook)])


def execute(
    file: Path, where: Path, parameters: Mapping[str, Any] | None = None, last: str = ""
) -> nbformat.NotebookNode:
    """Runs a notebook from top to bottom in a fresh kernel.

    Args:
      file: the notebook; it is not changed.
      where: the kernel's working directory.
      parameters: name → value, set behind the cell that is tagged `parameters`.
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
    """Runs the named notebooks, or all, in an empty folder each."""
    for name in sys.argv[1:] or sorted(file.stem for file in FOLDER.glob("*.ipynb")):
        file = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as where:
            keep(execute(file, Path(where)), file)
        print(f"{file.name}: executed, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
