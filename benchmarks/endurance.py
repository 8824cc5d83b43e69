"""A long stream on the demo's model, killed several times and resumed, against the same stream uninterrupted.

`make endurance`, or `python -m benchmarks.endurance [--edits 2000] [--kills 5] [--method AlphaEdit]`. Exit code 1 if weights,
state or ledger differ in a single bit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nas_plugin import hparams as hyperparameters
from nas_plugin.demo import load_demo
from nas_plugin.demo.world import World
from nas_plugin.files import read_tensors, write_json, write_tensors
from nas_plugin.keep.ledger import Ledger
from nas_plugin.keep.state import packed
from nas_plugin.reading import parse_json
from nas_plugin.session import EditSession
from nas_plugin.write import METHODS

_POLL_SECONDS = 0.005
_STATE, _RESULT = "state.safetensors", "result.json"


def requests(count: int) -> list[dict[str, str]]:
    """Make a stream of any length: every person once, then everybody again with other facts, or other targets of the same ones.

    Args:
        count: Number of edits.

    Returns:
        Requests, each with a case id of its own.
    """
    world, found = World(), list[dict[str, str]]()
    people = len(world.people) - world.n_pilots - world.n_held_out
    for lap in range(-(-count // people)):
        edits = world.edits(min(people, count - len(found)), seed=lap)
        found += [{**edit.to_request(), "case_id": f"{lap}-{place}"} for place, edit in enumerate(edits)]
    return found


def go_on(folder: Path, method: str, count: int) -> None:
    """Begin the stream in a folder, or resume it there, and go on to its end.

    Args:
        folder: Where the session keeps itself; what is compared is written beside it.
        method: One of the six.
        count: Number of edits.
    """
    torch.set_num_threads(1)
    model, tok = load_demo()
    hparams = getattr(hyperparameters, f"NAS{method}Hparams").from_hparams("nas-demo")
    session = EditSession(model, tok, hparams, keep=folder / "kept", progress=False)
    started = time.perf_counter()
    session.resume()
    seconds = time.perf_counter() - started
    for request in requests(count)[len(session.history.entries) :]:
        session.edit(request)
    tensors, values = packed(session)
    tensors |= {f"{layer}.keys": editor.gain.keys for layer, editor in session.editors.items()}
    write_tensors(folder / _STATE, tensors, {"format": "endurance"})
    write_json(
        folder / _RESULT,
        {
            "values": values,
            "weights": session.weights_digest(),
            "norm": session.weights.total_ratio(),
            "resume": seconds,
        },
    )


def killed_after(command: list[str], ledger: Path, lines: int, rng: random.Random) -> int:
    """Run a command and kill it at no special moment after its ledger has so many lines.

    Args:
        command: The command.
        ledger: The file.
        lines: When it may be killed.
        rng: Draws how much later, up to 50 ms.

    Returns:
        Lines of the ledger as the kill left it, half ones too.

    Raises:
        SystemExit: The stream ended first.
    """
    with subprocess.Popen(command) as child:
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < lines:
            if child.poll() is not None:
                raise SystemExit(f"the stream ended before line {lines}, with exit code {child.returncode}")
            time.sleep(_POLL_SECONDS)
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
    return ledger.read_bytes().count(b"\n")


def outcome(folder: Path) -> dict[str, Any]:
    """Read all that must be the same.

    Args:
        folder: A finished stream's.

    Returns:
        Tensors, plain values, the weights' digest, and the ledger's digest and ids.
    """
    content = parse_json((folder / _RESULT).read_bytes())
    ledger = Ledger(folder / "kept" / "ledger.jsonl")
    return {
        "tensors": read_tensors(folder / _STATE)[1],
        "values": content["values"],
        "weights": content["weights"],
        "ledger": (ledger.chain, [line.get("id") for line in ledger.lines]),
        "norm": content["norm"],
    }


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Name what differs between two outcomes.

    Args:
        left: One.
        right: The other.

    Returns:
        Names; none if all is the same, bit for bit.
    """
    ours, theirs = left["tensors"], right["tensors"]
    found = [name for name in ours.keys() | theirs.keys() if name not in ours or name not in theirs]
    found += [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
    return sorted(found) + [name for name in ("values", "weights", "ledger", "norm") if left[name] != right[name]]


def main() -> None:
    """Run both streams and compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("--edits", type=int, default=2000, help="length of the stream")
    parser.add_argument("--kills", type=int, default=5, help="how often it is killed")
    parser.add_argument("--method", choices=sorted(METHODS), default="AlphaEdit", help="editor, with norm anchoring")
    parser.add_argument("--seed", type=int, default=0, help="decides when it is killed")
    parser.add_argument("--folder", type=Path, help="keep everything here; by default a temporary folder")
    parser.add_argument("--go-on", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.go_on:
        go_on(arguments.folder, arguments.method, arguments.edits)
        return
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(_compare(arguments, arguments.folder or Path(temporary)))


def _compare(arguments: argparse.Namespace, folder: Path) -> int:
    """Run both streams, say how they went, and return the exit code."""
    rng = random.Random(arguments.seed)
    whole, broken = folder / "uninterrupted", folder / "killed"
    steps = sorted(rng.sample(range(2, arguments.edits), arguments.kills))
    table = Table(title=f"NAS-{arguments.method}, {arguments.edits} edits, killed {arguments.kills} times")
    table.add_column("run")
    table.add_column("ledger lines", justify="right")
    table.add_column("seconds", justify="right")

    def run(name: str, where: Path, until: int | None) -> None:
        command = [sys.executable, "-m", "benchmarks.endurance", "--go-on", "--folder", str(where)]
        command += ["--method", arguments.method, "--edits", str(arguments.edits)]
        where.mkdir(parents=True, exist_ok=True)
        ledger, started = where / "kept" / "ledger.jsonl", time.perf_counter()
        if until is None:
            subprocess.run(command, check=True)
            lines = ledger.read_bytes().count(b"\n")
        else:
            lines = killed_after(command, ledger, until, rng)
        table.add_row(name, str(lines), f"{time.perf_counter() - started:.0f}")

    run("uninterrupted", whole, None)
    for number, step in enumerate(steps, start=1):
        run(f"until kill {number}", broken, step)
    run("to the end", broken, None)
    left, right = outcome(whole), outcome(broken)
    found = differences(left, right)
    console = Console()
    console.print(table)
    statuses = [entry["status"] for entry in right["values"]["history"]]
    console.print(
        f"|W| / |W0| {right['norm']:.3f}; " + json.dumps({name: statuses.count(name) for name in set(statuses)})
    )
    console.print(f"differ: {', '.join(found)}" if found else "weights, state and ledger are the same, bit for bit")
    return 1 if found else 0


if __name__ == "__main__":
    main()
