"""R33: importing the package is light: no torch, no transformers, no host, no file written, well under a second of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nas_plugin

ROOT = Path(nas_plugin.__file__).resolve().parent.parent

IMPORT = """
import sys, time
sys.path.insert(0, sys.argv[1])
started = time.process_time()
import nas_plugin, sys
nas_plugin.__version__, dir(nas_plugin)
assert time.process_time() - started < 1.0, "slow"
heavy = {"torch", "transformers", "easyeditor", "numpy", "datasets", "accelerate", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
CONTROL = "import nas_plugin.session, sys; sys.exit(0 if 'torch' in sys.modules else 1)"


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-B", "-I", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_nothing_heavy_is_imported_and_nothing_written(tmp_path: Path) -> None:
    before = files(Path(nas_plugin.__file__).parent)
    done = python(tmp_path, "-c", IMPORT, str(ROOT))
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == [] and files(Path(nas_plugin.__file__).parent) == before


def test_the_session_does_import_torch(tmp_path: Path) -> None:
    """The check above has teeth only if it would see torch."""
    done = python(tmp_path, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {CONTROL}")
    assert done.returncode == 0, done.stderr
