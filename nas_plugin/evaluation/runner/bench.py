"""All that is measured on the model of a run, before its first edit and at every checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_plugin.errors import RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.measures import DriftProbe, base_outputs, measure, perplexity, summarise_cases
from nas_plugin.evaluation.probes import Bounds
from nas_plugin.evaluation.runner.plan import Plan
from nas_plugin.evaluation.runner.rows import RowByRow
from nas_plugin.evaluation.runner.writers import Writer
from nas_plugin.locate.texts import texts_of

_WINDOW = 1024
_FEWEST_STATES = 3


class Bench:
    """Measures a writer's model.

    Attributes:
        cases: Cases of the stream with what is asked of them.
        base: Outputs of the original model, as `base.json` holds them.
    """

    def __init__(
        self,
        writer: Writer,
        plan: Plan,
        cases: Sequence[Case],
        held_out: Sequence[Case],
        base: Mapping[str, Any] | None,
    ) -> None:
        """Ask the original model, or take what it answered.

        Args:
            writer: The writer, on a model that is still unedited.
            plan: What is measured.
            cases: Cases of the stream.
            held_out: Cases that are never written, for the drift of hidden states.
            base: `base` of the run that is gone on with.

        Raises:
            RunError: The held-out text does not exist.
        """
        self._writer, self._plan = writer, plan
        self.cases = plan.measures.asked(cases)
        self._texts: list[str] = []
        if (text := plan.measures.text) is not None:
            if not Path(text).is_file():
                raise RunError(f"held-out text {text}: there is no such file; give a .txt, .json or .jsonl file.")
            self._texts = list(texts_of(text))
        requests = [case.requests[0] for case in held_out[: plan.measures.drift]]
        self._drift: DriftProbe | None = None
        if len(requests) >= _FEWEST_STATES and writer.hparams is not None:
            known = base.get("drift") if base is not None else None
            self._drift = DriftProbe(writer.model, writer.tok, writer.hparams, requests, base=known, group=writer.group)
        if base is None:
            base = {
                **base_outputs(writer.model, writer.tok, self.cases, group=writer.group),
                "drift": self._drift.base if self._drift is not None else None,
            }
        self.base = base

    def measure(self, cases: Sequence[Case]) -> list[dict[str, float]]:
        """Measure cases on the model as it is.

        Args:
            cases: Some of `cases`.

        Returns:
            Their metrics.
        """
        writer = self._writer
        wanted = self._plan.measures.protocols
        return measure(writer.model, writer.tok, cases, base=self.base, protocols=wanted, group=writer.group)

    def checkpoint(self, edits: int, step: int, edit_seconds: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure everything that is due after so many edits.

        Args:
            edits: Cases written so far; 0 for the unedited model, on which the cohort is measured.
            step: Steps so far.
            edit_seconds: Time that writing has taken so far.

        Returns:
            The checkpoint's log entry, and the metrics of each case so far.
        """
        started = time.perf_counter()
        writer, plan = self._writer, self._plan
        cases = self.cases[: edits or plan.cohort]
        metrics = self.measure(cases)
        line: dict[str, Any] = {
            "edits": edits,
            "step": step,
            "edit_seconds": edit_seconds,
            "eval_seconds": 0.0,
            "norm": writer.norms(),
            "final": summarise_cases(metrics) if edits else {},
            "cohort": summarise_cases(metrics[: plan.cohort]),
            "perplexity": self._perplexity() if self._texts else None,
            "drift": self._drift.measure(writer.model) if self._drift is not None else None,
            "capability": self._capability() if edits in plan.tasks_at else None,
        }
        line["eval_seconds"] = time.perf_counter() - started
        results = [{"case_id": case.id, **values} for case, values in zip(cases, metrics, strict=True)]
        return line, results if edits else []

    def _perplexity(self) -> float:
        longest = Bounds.of(self._writer.model).max_positions
        window = _WINDOW if longest is None else min(_WINDOW, longest)
        writer = self._writer
        return perplexity(writer.model, writer.tok, self._texts, window=window, group=writer.group)

    def _capability(self) -> dict[str, dict[str, float]] | None:
        if isinstance(self._writer.model, RowByRow):
            # lm-eval takes models of transformers only.
            return None
        # Imported only where it is wanted: lm-eval is large.
        from nas_plugin.evaluation.capability import capabilities

        wanted = self._plan.measures
        return capabilities(
            self._writer.model,
            self._writer.tok,
            wanted.tasks,
            data_dir=wanted.tasks_data,
            limit=wanted.tasks_limit,
            protocol=wanted.tasks_protocol,
            group=self._writer.group,
        )
