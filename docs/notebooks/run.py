"""Executes the notebooks anew and keeps their outputs: `python docs/notebooks/run.py [NAME ...]`.

Each runs in a new kernel and an empty folder, so that its outputs name no path of this machine. With
`DIA_FAST=1` the fits are shorter, as in the tests; outputs of such runs are not kept.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(path: Path, *, last: str = "") -> nbformat.NotebookNode:
    """The notebook with the outputs of a new run.

    Args:
        path: of the notebook.
        last: code run after it, whose output is that of one more cell at the end.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    if last:
        notebook.cells.append(nbformat.v4.new_code_cell(last))
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=3600, kernel_name="python3", resources=resources, record_timing=False
        )
        return client.execute()


def main(names: list[str]) -> None:
    """Runs the named notebooks, or all."""
    for path in [HERE / f"{name}.ipynb" for name in names] or sorted(HERE.glob("*.ipynb")):
        made = execute(path)
        made.metadata = {k: made.metadata[k] for k in ("kernelspec", "language_info")}
        if os.environ.get("DIA_FAST") != "1":
            nbformat.write(made, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
