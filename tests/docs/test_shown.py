"""Examples, notebooks and pictures of the documentation are made again, and do what they say."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import struct
import subprocess
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from nas_plugin.evaluation.report import write_report
from nas_plugin.hparams.base import NASHparams
from tests.docs.pages import ROOT
from tests.evaluation.fake_runs import write_comparison

EXAMPLES = {
    "edit_in_easyedit": r"10 of 10 edits succeed",
    "resume_a_stream": r"in the ledger: 8 edits\n(?s:.*)as if it had not been killed: True",
    "compare_with_and_without": r"NAS-MEMIT +80 edits",
    "save_and_load_edits": r"10 edits by MEMIT in 66,\d+ bytes(?s:.*)same logits: True",
    "undo_an_edit": r"second undone:",
}
NOTEBOOKS = ("demo", "easyedit")


def python(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", 'exec python "$@"', "bash", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "docs" / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_hyperparameter_is_explained() -> None:
    page = (ROOT / "docs" / "api" / "hparams.md").read_text(encoding="utf-8")
    explained = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in page.splitlines() if row.startswith("| `")))
    assert sorted(explained) == sorted(field.name for field in fields(NASHparams))


def test_every_example_is_here_and_in_the_list() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    listed = re.findall(r"^\| `(\w+)\.py`", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == list(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    path = str(ROOT / "examples" / f"{name}.py")
    call = ["-m", "tests.docs.run_example", path] if name == "edit_in_easyedit" else [path]
    said = python(call, tmp_path, environment)
    assert re.search(EXAMPLES[name], said), said
    if name == "undo_an_edit":
        answers = [json.loads(line.split(":", 1)[1].replace("'", '"')) for line in said.splitlines()[-3:]]
        before, edited, undone = answers
        assert all(old != new for old, new in zip(before, edited, strict=True))
        assert undone == [edited[0], before[1], edited[2]]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_executed_again(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """By the script that wrote it; it refuses errors, warnings, paths and empty outputs."""
    python([str(ROOT / "docs" / "notebooks" / "execute.py"), name, "--out", str(tmp_path)], tmp_path, environment)
    made, kept = (
        json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))
        for folder in (tmp_path, ROOT / "docs" / "notebooks")
    )
    assert [cell["source"] for cell in made["cells"]] == [cell["source"] for cell in kept["cells"]]
    shapes = [
        [[output["output_type"] for output in cell.get("outputs", [])] for cell in n["cells"]] for n in (made, kept)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_that_is_shown_has_no_fault(name: str) -> None:
    import nbformat

    module = script("notebooks/execute.py")
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    assert module.faults(notebook) == []
    cell = next(cell for cell in notebook.cells if cell.get("outputs"))
    cell.outputs = [nbformat.v4.new_output("stream", name="stderr", text="UserWarning: in /tmp/x")]
    assert len(module.faults(notebook)) == 2


def test_pictures_are_drawn_again(tmp_path: Path, environment: dict[str, str]) -> None:
    few = ["--edits", "4", "--pilots", "4", "--out", str(tmp_path)]
    python([str(ROOT / "docs" / "pictures" / "draw.py"), *few], tmp_path, environment)
    pictures = {path.name for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures - {"report.png"}


def test_a_report_is_photographed(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if shutil.which("chromium") is None:
        pytest.skip("no chromium on the PATH")
    folders = write_comparison(tmp_path)
    script("pictures/report.py").photograph(write_report(folders, tmp_path / "report.html"), tmp_path / "report.png")
    width, height = struct.unpack(">II", (tmp_path / "report.png").read_bytes()[16:24])
    shown = (ROOT / "docs" / "pictures" / "report.png").read_bytes()
    assert (width, height) == struct.unpack(">II", shown[16:24])


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.png")), ids=lambda path: path.stem)
def test_a_picture_is_shown_somewhere(path: Path) -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    assert any(path.name in page.read_text(encoding="utf-8") for page in pages)
