"""Command line of the benchmarks: `python -m benchmarks [--quick] [--only SECTION ...]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.measure import Section

SECTIONS = ("target", "gain", "edit", "eval", "history", "anchor", "accuracy", "demo", "keep")
_MODULE = {"eval": "evaluation"}


def main() -> None:
    """Run the sections asked for and write their results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to run; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="smaller and shorter; says in the results what it leaves out"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    for name in arguments.only:
        started = time.process_time()
        module = importlib.import_module(f"benchmarks.sections.{_MODULE.get(name, name)}")

        def save(section: Section, started: float = started) -> None:
            _write(section, arguments.out, arguments.quick, time.process_time() - started)

        section: Section = module.measure(arguments.quick, save)
        save(section)
        console.print(Markdown(section.markdown()))


def _write(section: Section, folder: Path, quick: bool, seconds: float) -> None:
    environment = _environment() | {"quick": quick, "cpu_seconds": round(seconds)}
    line = (
        f"Measured {'in the quick form ' if quick else ''}with torch {environment['torch']}, transformers "
        f"{environment['transformers']}, {environment['processor']}, {environment['threads']} thread; the section took "
        f"{environment['cpu_seconds']} CPU seconds, the process at most {environment['peak_gib']} GiB."
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{section.name}.md").write_text(f"{section.markdown()}\n{line}\n", encoding="utf-8")
    content = {"environment": environment, **asdict(section)}
    (folder / f"{section.name}.json").write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _environment() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
