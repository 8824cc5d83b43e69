"""Undoing some edits of a stream: do they leave, and do the others stay? (no study of the paper)."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from nas_plugin.demo.score import next_word_logits
from nas_plugin.errors import RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.report.content import Row, Table, number
from nas_plugin.evaluation.studies.shared import Advance, Setting, Study, Trial, moments_of, parts
from nas_plugin.evaluation.studies.written import plus_minus
from nas_plugin.session import EditSession

_STATES = ("edited", "undone", "never")
"""With all edits; after undo; after a stream that never had those edits."""


@dataclass(frozen=True)
class Undo(Study):
    """Streams with norm anchoring of which some edits are undone.

    Attributes:
        edits: Length of the stream.
        undone: How many are undone, drawn at random, all at once.
        seeds: Number of streams: orders of the edits and draws with seeds 1, 2, ...
    """

    name: ClassVar[str] = "undo"
    title: ClassVar[str] = "Undo"
    edits: int = 300
    undone: int = 50
    seeds: int = 3

    @property
    def units(self) -> int:
        """Edits written for one editor."""
        return self.seeds * (2 * self.edits - self.undone)

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Go through the streams, undo, and go through them again without the undone edits.

        Args:
            setting: On what.
            method: The editor.
            advance: Told of edits done.

        Returns:
            "streams": what `_stream` returned for each, and "metrics", which stand for the parts of the score.

        Raises:
            RunError: There is nothing left to keep.
        """
        if not 0 < self.undone < self.edits:
            raise RunError(f"{self.undone} of {self.edits} edits are to be undone; some have to go and some to stay.")
        trial = Trial(setting, method, self.edits)
        with tempfile.TemporaryDirectory() as folder:
            session = trial.anchored_at(None, keep=Path(folder))
            streams = [self._stream(trial, session, seed, advance) for seed in range(1, self.seeds + 1)]
        return {"streams": streams, "metrics": streams[0]["undone"]["metrics"]}

    def _stream(self, trial: Trial, session: EditSession, seed: int, advance: Advance) -> dict[str, Any]:
        """Write one stream and undo a part of it.

        Returns:
            For each of "edited", "undone" and "never": "before" (undone edits whose answer is the unedited model's, %), "new"
            (... is still the edit's, %), the means of the parts of the score over the other edits, "metrics", and "norm"; and
            "seconds", of the undo.
        """
        rng = random.Random(seed)
        cases = rng.sample(trial.cases, len(trial.cases))
        chosen = set(rng.sample(range(len(cases)), self.undone))
        gone = [case for place, case in enumerate(cases) if place in chosen]
        stay = [case for place, case in enumerate(cases) if place not in chosen]
        before = _answers(trial, gone)
        told = [session.edit(case.requests) for case in _counted(cases, advance)]
        found = {"edited": _state(trial, session, gone, stay, before)}
        _, clock = trial.clock
        started = clock()
        session.undo(*(edit.id for place in sorted(chosen) for edit in told[place].edits))
        seconds = clock() - started
        found["undone"] = _state(trial, session, gone, stay, before)
        session.revert()
        for case in _counted(stay, advance):
            session.edit(case.requests)
        found["never"] = _state(trial, session, gone, stay, before)
        session.revert()
        return {**found, "seconds": seconds}

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out what became of the undone edits and of the others; see `Study.tables`."""
        text = (
            f"{self.undone} of {self.edits} edits undone at once, one edit a step, with norm anchoring; mean ± standard "
            f"deviation over {self.seeds} streams. As before: undone edits to whose prompt the model answers with the same first "
            "token as before all edits. Still new: with the edit's target. Score: of the edits that stay. Never: after a stream "
            "that never had the undone edits, the best that any undo can do. Norm: |W| / |W0|."
        )
        columns = ("editor", "as before", "still new", "score of the others", "difference", "norm", "seconds")
        return [
            Table(self.title, columns, tuple(_rows(name, result["streams"]) for name, result in results.items()), text)
        ]


def _counted(cases: Sequence[Case], advance: Advance) -> Any:
    for case in cases:
        yield case
        advance(1)


def _answers(trial: Trial, cases: Sequence[Case]) -> list[int]:
    """Return the first token that the model answers to each case's own prompts with."""
    prompts = [request.prompt for case in cases for request in case.requests]
    return [int(token) for token in next_word_logits(trial.model, trial.tok, prompts).argmax(1)]


def _state(
    trial: Trial, session: EditSession, gone: Sequence[Case], stay: Sequence[Case], before: Sequence[int]
) -> dict[str, Any]:
    targets = [session.locator.target_ids(request)[0] for case in gone for request in case.requests]
    answers = _answers(trial, gone)
    measured = parts(trial.measure(stay))
    return {
        "before": 100 * fmean(ours == theirs for ours, theirs in zip(answers, before, strict=True)),
        "new": 100 * fmean(ours == target for ours, target in zip(answers, targets, strict=True)),
        **{part: found["mean"] for part, found in measured.items()},
        "metrics": {part: found["metric"] for part, found in measured.items()},
        "norm": session.weights.total_ratio(),
    }


def _rows(method: str, streams: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    rows = []
    for state in _STATES:
        over = [stream[state] for stream in streams]
        differences = [stream[state]["score"] - stream["edited"]["score"] for stream in streams]
        rows.append(
            Row(
                f"NAS-{method}, {state}",
                (
                    *(plus_minus(moments_of([one[name] for one in over])) for name in ("before", "new", "score")),
                    "" if state == "edited" else plus_minus(moments_of(differences)),
                    plus_minus(moments_of([one["norm"] for one in over]), 2),
                    number(fmean(stream["seconds"] for stream in streams), 1) if state == "undone" else "",
                ),
            )
        )
    return tuple(rows)
