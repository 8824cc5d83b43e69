"""Execute the notebooks again: `python docs/notebooks/execute.py` writes them with new outputs, about a minute for both.

The released EasyEdit runs on an accelerator only; where there is none, its notebook is executed with the device redirected, as in
the tests.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SETUP = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "easyedit")!r}]
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tqdm asks for ipywidgets
    import tqdm.auto
import torch
torch.set_num_threads(1)
if {{easyedit}}:
    from cpu_redirect import accelerators_are_cpu
    from nas_plugin.easyedit.host import load_host
    redirected = accelerators_are_cpu(load_host().is_wheel and not torch.accelerator.is_available())
    redirected.__enter__()
"""
SECONDS = 300


def execute(path: Path) -> Any:
    """Execute a notebook in an empty folder.

    Args:
        path: The notebook; its old outputs are not looked at.

    Returns:
        The notebook with its outputs, and without what says where and when it ran.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP.format(easyedit=path.stem == "easyedit")))
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    del notebook.cells[0]
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def faults(notebook: Any) -> list[str]:
    """List what does not belong into a page: missing outputs, errors, warnings, and paths of this machine.

    Args:
        notebook: An executed one.

    Returns:
        A sentence for each.
    """
    found = []
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(cell.outputs for cell in codes):
        found.append("it has no outputs")
    for number, cell in enumerate(codes, start=1):
        for output in cell.outputs:
            text = str({key: value for key, value in output.get("data", {}).items() if key != "image/png"})
            text += output.get("text", "")
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {number} writes to stderr: {text[:300]}")
            if re.search(r"[Ww]arning|/home/|/root/|/tmp/|site-packages", text) or str(ROOT) in text:
                found.append(f"cell {number} shows a warning or a path: {text[:300]}")
    return found


def main() -> None:
    """Execute all notebooks, or those that are named.

    Raises:
        SystemExit: One of them shows what does not belong there; it is not written.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="as demo; all by default")
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    for path in sorted(HERE.glob("*.ipynb")):
        if chosen.names and path.stem not in chosen.names:
            continue
        notebook = execute(path)
        if found := faults(notebook):
            raise SystemExit(f"{path.name}: " + "; ".join(found))
        nbformat.write(notebook, chosen.out / path.name)
        sys.stdout.write(f"{path.name}: executed\n")


if __name__ == "__main__":
    main()
