"""One stream of demo edits through one editor, and several streams side by side."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nas_plugin import hparams as hyperparameters
from nas_plugin.demo import load_demo
from nas_plugin.demo.score import score
from nas_plugin.demo.world import World
from nas_plugin.session import EditSession

COLLAPSED = 60.0
"""Score at or below which a model counts as collapsed (the paper's CP@60)."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        method: One of the six editors.
        use_nas: With or without norm anchoring; nothing else differs between two plans of one method.
        edits: Length of the stream.
        every: Edits between checkpoints.
        seed: Decides people, targets and order.
    """

    method: str
    use_nas: bool
    edits: int
    every: int
    seed: int = 0

    @property
    def label(self) -> str:
        """Name for tables and pictures."""
        return f"NAS-{self.method}" if self.use_nas else self.method


@dataclass(frozen=True)
class Checkpoint:
    """State of the model after some edits; percentages as in `Scores`, norm ratio |W| / |W0|."""

    edits: int
    score: float
    efficacy: float
    generalization: float
    specificity: float
    held_out: float
    norm_ratio: float


@dataclass(frozen=True)
class Stream:
    """Result of a plan.

    Attributes:
        plan: What was run.
        checkpoints: Measurements, the unedited model's norm ratio being 1 by definition.
        anchor: tau, None without NAS.
    """

    plan: Plan
    checkpoints: tuple[Checkpoint, ...]
    anchor: float | None

    @property
    def collapse_point(self) -> int | None:
        """First checkpoint with a score of 60 or less, None if there is none."""
        return next((c.edits for c in self.checkpoints if c.score <= COLLAPSED), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the stream as plain values."""
        return {
            "plan": asdict(self.plan),
            "anchor": self.anchor,
            "collapse_point": self.collapse_point,
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
        }


def run(plan: Plan, advance: Callable[[int], None] = lambda _: None) -> Stream:
    """Edit the embedded model one fact after another, asking at each checkpoint about all edits so far.

    Args:
        plan: What to run.
        advance: Called with 1 after each edit.

    Returns:
        The measurements.
    """
    # A collapsing model amplifies rounding: in float32 the order of a sum moves the collapse point by a checkpoint or two.
    model, tok = load_demo(torch.float64)
    world = World()
    edits = world.edits(plan.edits, plan.seed)
    hparams = getattr(hyperparameters, f"NAS{plan.method}Hparams")(use_nas=plan.use_nas)
    session = EditSession(model, tok, hparams, progress=False)
    checkpoints = []
    for number, edit in enumerate(edits, start=1):
        report = session.edit(edit.to_request())
        advance(1)
        if number % plan.every == 0 or number == len(edits):
            s = score(model, tok, edits[:number], world.held_out_facts)
            measured = (s.score, s.efficacy, s.generalization, s.specificity, s.held_out)
            checkpoints.append(Checkpoint(number, *measured, report.norm_ratio))
    return Stream(plan, tuple(checkpoints), session.anchor_value)


def run_all(plans: Sequence[Plan], advance: Callable[[int], None]) -> list[Stream]:
    """Run several plans in as many processes as there are cores; results do not depend on how many.

    Args:
        plans: What to run.
        advance: Called with the number of edits done since the last call.

    Returns:
        One stream per plan, in order.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(len(plans), os.cpu_count() or 1)
    with context.Manager() as manager, ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        done = manager.Queue()
        futures = [pool.submit(_run_reporting, plan, done) for plan in plans]
        pending: set[Future[Stream]] = set(futures)
        while pending:
            _, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            advance(_drained(done))
        return [future.result() for future in futures]


def _drained(done: Any) -> int:
    total = 0
    while True:
        try:
            total += done.get_nowait()
        except queue.Empty:
            return total


def _one_thread() -> None:
    # One process a core: threads would only get in each other's way, and the order of sums would depend on them.
    torch.set_num_threads(1)


def _run_reporting(plan: Plan, done: Any) -> Stream:
    return run(plan, done.put)
