"""Importing the package is light and leaves no trace; its public names and settings files hang together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nas_plugin

ROOT = Path(nas_plugin.__file__).resolve().parent.parent

LIGHT_IMPORT = """
import logging, os, random, sys
random.seed(5)
before = dict(os.environ), random.getstate(), list(logging.getLogger().handlers), list(sys.meta_path)
import nas_plugin
dir(nas_plugin), nas_plugin.__version__
{use}
after = dict(os.environ), random.getstate(), list(logging.getLogger().handlers)
assert before[:3] == after, "importing changed the process"
{hook}
heavy = [name for name in ("torch", "transformers", "numpy", "easyeditor") if name in sys.modules]
assert not heavy, heavy
"""


def run(code: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and list(folder.iterdir()) == []


def test_import_is_light_and_changes_nothing(tmp_path: Path) -> None:
    run(LIGHT_IMPORT.format(use="", hook="assert sys.meta_path == before[3]"), tmp_path)


def test_hyperparameters_need_no_torch_and_no_host(tmp_path: Path) -> None:
    use = "from nas_plugin import NASAlphaEditHparams as H; H(); H.from_hparams('NAS-AlphaEdit/llama3-8b')"
    run(LIGHT_IMPORT.format(use=use, hook=""), tmp_path)


def test_every_public_name_loads_and_unknown_ones_do_not() -> None:
    for name in nas_plugin.__all__:
        assert getattr(nas_plugin, name).__name__ == name
    assert set(nas_plugin.__all__) <= set(dir(nas_plugin))
    with pytest.raises(AttributeError, match="no attribute 'EditSesion'"):
        nas_plugin.EditSesion  # noqa: B018


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not a source checkout")
def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"(?m)^version: (.*)$", citation).group(1) == nas_plugin.__version__
    assert f"## [{nas_plugin.__version__}]" in changelog
