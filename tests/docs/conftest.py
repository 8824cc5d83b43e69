"""Where commands of the documentation and the examples run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.docs.pages import ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The documentation is of the newest environment; see SKIPS.md."""
    if metadata.version("transformers").startswith("4."):
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="the documentation runs in the newest environment"))


@pytest.fixture(scope="session")
def environment() -> Iterator[dict[str, str]]:
    """An environment in which `python` and `nas-edit` are this checkout's, and nothing can be downloaded."""
    with tempfile.TemporaryDirectory() as name:
        # Short: the path of a socket must not be long.
        folder = Path(name)
        made = {
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        module, sock = ROOT / "tests" / "docs" / "preloaded.py", folder / "socket"
        for command in ("python", "nas-edit"):
            path = folder / command
            path.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -I -S "{module}" call "{sock}" {command} "$@"\n', encoding="utf-8"
            )
            path.chmod(0o755)
        serving = [sys.executable, "-m", "tests.docs.preloaded", "serve", str(sock)]
        with subprocess.Popen(serving, env=made, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder) as server:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield made
            assert server.stdin is not None
            server.stdin.close()
