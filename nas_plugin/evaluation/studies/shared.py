"""What the studies share: one editor, without and with norm anchoring, on an unedited model and a stream of cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

import numpy as np

from nas_plugin.errors import NonFiniteError, RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.measures import TEACHER_FORCED, base_outputs, measure, summarise_cases
from nas_plugin.evaluation.measures.protocols import SCORES
from nas_plugin.evaluation.report.content import Table
from nas_plugin.evaluation.runner.entrants import OURS, entrant
from nas_plugin.evaluation.runner.load import DEMO, load_model
from nas_plugin.evaluation.stability import Trajectory, collapse_point
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.hparams import DEMO_MODEL, NASHparams
from nas_plugin.report import StepReport
from nas_plugin.session import EditSession

Advance = Callable[[int], object]
"""Told of units of work done since it was last called."""
PARTS = ("efficacy", "generalization", "specificity", "score")
SIDES = ("plain", "nas")
"""Without and with norm anchoring; nothing else differs."""


@dataclass(frozen=True)
class Study:
    """A study; its fields are its numbers.

    Attributes:
        name: Name of its command.
        title: Title.
        alone: It takes times: nothing runs beside it, and it runs at one thread.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    alone: ClassVar[bool] = False

    @property
    def units(self) -> int:
        """Units of work for one editor."""
        raise NotImplementedError

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Study one editor.

        Args:
            setting: On what.
            method: The editor.
            advance: Told of units done.

        Returns:
            Values that JSON can hold. "metrics", where anything was measured, names those that stand for the parts of a score.
        """
        raise NotImplementedError

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out the results.

        Args:
            results: What `run` returned, by editor.

        Returns:
            The tables.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Setting:
    """On what a study is made.

    Attributes:
        model: "demo", or a path or name that replaces the hyperparameters' model; None keeps it.
        stream: What `load_stream` takes.
        hparams: Which of the shipped files the editors use: "nas-demo", "llama3-8b".
        settings: Fields that replace those of the files.
        skip_bad: Leave malformed records out.
    """

    model: str | None = None
    stream: str = DEMO
    hparams: str = DEMO_MODEL
    settings: Mapping[str, Any] = field(default_factory=dict)
    skip_bad: bool = False

    def hparams_for(self, method: str, *, use_nas: bool = True) -> NASHparams:
        """Load an editor's hyperparameters.

        Args:
            method: One of the six editors, or "MEMIT=my.yaml" for an own file.
            use_nas: With norm anchoring.

        Returns:
            The hyperparameters, for this setting's model.

        Raises:
            RunError: It is none of the six.
        """
        if (label := method.partition("=")[0]) not in OURS:
            raise RunError(
                f"a study knows no editor {label!r}; it takes {', '.join(OURS)}, and runs each without and with norm anchoring."
            )
        return entrant(f"NAS-{method}" if use_nas else method, self.hparams, self.model, self.settings).hparams

    def cases(self, count: int, seed: int | None = None) -> tuple[Case, ...]:
        """Load the first cases of the stream.

        Args:
            count: How many.
            seed: Shuffles their order; the stream's own when None.

        Returns:
            The cases.

        Raises:
            RunError: The stream has fewer.
        """
        cases = load_stream(self.stream, limit=count, skip_bad=self.skip_bad, seed=seed).cases
        if len(cases) < count:
            raise RunError(f"the stream {self.stream} has {len(cases)} usable cases; ask for so many edits or fewer.")
        return cases


class Trial:
    """One editor on a freshly loaded model, and what is asked of it.

    Attributes:
        hparams: The editor's hyperparameters, norm anchoring on.
        model: The model; unedited between two uses.
        tok: Its tokenizer.
        cases: Cases to write.
    """

    def __init__(self, setting: Setting, method: str, edits: int = 0) -> None:
        """Load model and cases, and ask the original model.

        Args:
            setting: On what.
            method: The editor.
            edits: Number of cases; none for a study that writes nothing.
        """
        self.hparams = setting.hparams_for(method)
        self.model, self.tok = load_model(self.hparams)
        self.cases = setting.cases(edits) if edits else ()
        self._base = base_outputs(self.model, self.tok, self.cases)
        # Without norm anchoring nothing but contexts and statistics is measured, and every other session takes those.
        self.plain = EditSession(self.model, self.tok, setting.hparams_for(method, use_nas=False), progress=False)

    @cached_property
    def nas(self) -> EditSession:
        """The same editor with norm anchoring, its anchor measured as its hyperparameters say."""
        return self.anchored_at(None)

    def anchored_at(self, anchor: float | None, keep: Path | None = None) -> EditSession:
        """Make a session with norm anchoring and the contexts and statistics of `plain`.

        Args:
            anchor: tau; None measures it.
            keep: Where the session keeps itself, if it does.

        Returns:
            The session, prepared.
        """
        laid = self.plain.prepare()
        session = EditSession(
            self.model,
            self.tok,
            self.hparams,
            contexts=laid.contexts,
            moments=laid.moments,
            anchor=anchor,
            progress=False,
            keep=keep,
        )
        session.prepare()
        return session

    @property
    def clock(self) -> tuple[str, Callable[[], float]]:
        """What times are taken with, in seconds, and its name."""
        # On an accelerator the processor waits; editing and solving end with a transfer, so that wall-clock time has all of it.
        if next(self.model.parameters()).device.type == "cpu":
            return "CPU time", time.process_time
        return "wall-clock time", time.perf_counter

    def session(self, side: str) -> EditSession:
        """Return `plain` or `nas`."""
        return self.nas if side == "nas" else self.plain

    def measure(self, cases: Sequence[Case]) -> list[dict[str, float]]:
        """Measure cases on the model as it is, with teacher forcing."""
        return measure(self.model, self.tok, cases, base=self._base, protocols=TEACHER_FORCED)

    def write_alone(self, session: EditSession, case: Case) -> tuple[StepReport, dict[str, float]]:
        """Write a case into the unedited model, measure it, and take it back bit for bit.

        Args:
            session: A session without edits.
            case: The case.

        Returns:
            What the step did, and the case's metrics.
        """
        report = session.edit(case.requests)
        (metrics,) = self.measure([case])
        session.rollback()
        return report, metrics

    def go_through(
        self, session: EditSession, cases: Sequence[Case], every: int, advance: Advance = lambda _: None
    ) -> dict[str, Any]:
        """Write cases one after another, measuring all so far at checkpoints, and go back to the unedited model.

        Args:
            session: A session without edits.
            cases: Cases in order; each is a step.
            every: Cases between two checkpoints; the last case is one.
            advance: Told of cases done.

        Returns:
            "checkpoints" (edits, norm and the means of `PARTS` at each), "collapse_point" (None if there is none), "score" at
            the end, "failed", the number of steps that came out non-finite and were not written, and "metrics", which stand
            for the parts.
        """
        checkpoints: list[dict[str, Any]] = []
        metrics: dict[str, str] = {}
        failed = 0
        for edits, case in enumerate(cases, start=1):
            try:
                session.edit(case.requests)
            except NonFiniteError:
                # A model that has collapsed is a result, not an end.
                failed += 1
            advance(1)
            if edits % every == 0 or edits == len(cases):
                measured = parts(self.measure(cases[:edits]))
                metrics = {part: found["metric"] for part, found in measured.items()}
                means = {part: found["mean"] for part, found in measured.items()}
                checkpoints.append({"edits": edits, "norm": session.weights.total_ratio(), **means})
        session.revert()
        scores = Trajectory(
            np.array([point["edits"] for point in checkpoints]),
            np.array([point["score"] for point in checkpoints], float),
        )
        return {
            "checkpoints": checkpoints,
            "collapse_point": collapse_point(scores),
            "score": checkpoints[-1]["score"],
            "failed": failed,
            "metrics": metrics,
        }


def parts(results: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Average the metrics of cases, as far as a score is made of them.

    Args:
        results: Metrics of each case.

    Returns:
        For each of `PARTS` "metric" (which one stands for it), "mean", "std" (of the population) and "count" over the cases. All
        are of the first kind of which there is a score: by probability (CounterFact's), else by tokens.
    """
    summary = summarise_cases(results)
    for score, (required, others) in SCORES.items():
        if score in summary:
            names = zip(PARTS, (*required, *others, score), strict=True)
            return {part: {"metric": name, **summary[name]} for part, name in names if name in summary}
    return {}


def moments_of(values: Collection[float]) -> dict[str, float | int | None]:
    """Describe a sample.

    Args:
        values: The sample.

    Returns:
        "mean", "std" (of the sample, n − 1; None for one value) and "count".
    """
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None, "count": len(values)}
