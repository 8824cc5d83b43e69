"""`nas-edit demo`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


class Method(str, enum.Enum):
    """The six editors."""

    MEMIT = "MEMIT"
    PRUNE = "PRUNE"
    RECT = "RECT"
    AlphaEdit = "AlphaEdit"
    ENCORE = "ENCORE"
    LyapLock = "LyapLock"


def demo(
    method: Annotated[
        list[Method], typer.Option(help="Editor to run, without and with NAS; may be given several times.")
    ] = [  # noqa: B006
        Method.MEMIT,
        Method.AlphaEdit,
    ],
    edits: Annotated[int, typer.Option(min=1, help="Length of the edit stream.")] = 440,
    every: Annotated[int, typer.Option(min=1, help="Edits between checkpoints.")] = 20,
    seed: Annotated[int, typer.Option(help="Decides which facts are edited, and in which order.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the picture and the numbers.")] = Path("nas-demo"),
) -> None:
    """Edit the embedded model one fact after another and see how long it lasts, without and with NAS.

    Example: nas-edit demo --method RECT --edits 20
    """
    # Here, so that `nas-edit --help` does not wait for torch.
    from nas_plugin.demo.report import draw, table, verdicts
    from nas_plugin.demo.stream import Plan, run_all
    from nas_plugin.files import write_json
    from nas_plugin.progress import progress_bar

    console = Console()
    plans = [Plan(m.value, use_nas, edits, every, seed) for m in dict.fromkeys(method) for use_nas in (False, True)]
    console.print(
        f"{len(plans)} streams of {edits} edits on the embedded model: {', '.join(plan.label for plan in plans)}"
    )
    with progress_bar("editing", edits * len(plans)) as bar:
        streams = run_all(plans, lambda units: bar.advance(bar.task_ids[0], units))
    console.print(table(streams, every * max(1, edits // every // 10)))
    for line in verdicts(streams):
        console.print(line)
    write_json(out / "demo.json", {"streams": [stream.to_dict() for stream in streams]})
    try:
        draw(streams, out / "demo.png")
    except ImportError:
        console.print(f"Numbers: {out / 'demo.json'}. For the picture: pip install 'nas-plugin[eval]'")
    else:
        console.print(f"Picture: {out / 'demo.png'}. Numbers: {out / 'demo.json'}")
