"""Small runs on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nas_plugin import hparams as hyperparameters
from nas_plugin.demo import load_demo
from nas_plugin.evaluation.runner import Measures, Plan, SessionWriter, plan_run, run_stream
from nas_plugin.evaluation.runner import compare as comparing
from nas_plugin.evaluation.streams import Stream, load_stream

EDITS = 12
TIMES = {"seconds", "edit_seconds", "eval_seconds"}


def small_hparams(method: str, use_nas: bool, **values: Any) -> Any:
    small = {"mom2_n_samples": 40, "nas_n_pilots": 3, "v_num_grad_steps": 5}
    return getattr(hyperparameters, f"NAS{method}Hparams")(use_nas=use_nas, **{**small, **values})


def small_plan(edits: int = EDITS, **settings: Any) -> Plan:
    settings = {"every": 4, "cohort": 3, "measures": Measures(drift=0), **settings}
    return plan_run(edits, **settings)


@cache
def stream_of(edits: int = EDITS) -> Stream:
    return load_stream("demo", limit=edits)


def alike(count: int) -> Stream:
    """Cases whose prompts have the same number of words, hence of tokens."""
    stream = stream_of(40)
    cases = [case for case in stream.cases if len(case.requests[0].prompt.split()) == 7]
    assert len(cases) >= count
    return replace(stream, cases=tuple(cases[:count]))


def count_down(steps: int) -> Callable[[], bool]:
    """Ask a run to stop after so many steps."""
    left = [steps]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return stop


def run_small(
    folder: Path,
    method: str = "MEMIT",
    use_nas: bool = True,
    *,
    plan: Plan | None = None,
    stream: Stream | None = None,
    values: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[bool, Any]:
    """Run on a fresh model; return whether it came to its end, and the model."""
    model, tok = load_demo()
    writer = SessionWriter(model, tok, small_hparams(method, use_nas, **(values or {})), progress=False)
    plan = plan if plan is not None else small_plan()
    stream = stream if stream is not None else stream_of(plan.edits)
    settings = {"stop": lambda: False, "advance": lambda _: None, **settings}
    return run_stream(writer, stream, folder, plan, **settings), model


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def log_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All lines of a run but for times."""
    names = [
        "edits.jsonl",
        "checkpoints.jsonl",
        *(f"cases/{file.name}" for file in sorted((folder / "cases").iterdir())),
    ]
    return {name: without_times(lines_of(folder / name)) for name in names}


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_weights(left: Any, right: Any) -> bool:
    ours, theirs = weights_of(left), weights_of(right)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


class Here:
    """Stands in for a pool of processes: runs in this one, which needs no second or two to start."""

    def __init__(self, _count: int, _context: Any, initializer: Any, initargs: tuple[Any, Any]) -> None:
        comparing._shared.update(stopping=initargs[0], done=initargs[1])

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        comparing._shared.clear()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future
