"""How many tokens second moments need: the update and the score against the size of the sample.

FastMEMIT (Gupta et al., arXiv 2506.04226): a moment over fewer tokens than the matrix is wide cannot be inverted, and 2 to 10
times the width served as well as 44 million tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nas_plugin.errors import RunError, StatisticsError
from nas_plugin.evaluation.report.content import Row, Table, number
from nas_plugin.evaluation.studies.shared import Advance, Setting, Study, Trial, moments_of
from nas_plugin.evaluation.studies.written import plus_minus
from nas_plugin.locate.collecting import collect_moments
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.texts import texts_of
from nas_plugin.session import EditSession


@dataclass(frozen=True)
class Tokens(Study):
    """Edits with second moments over samples of the text, against those over all of it.

    Attributes:
        per_dim: Sizes of the samples, in units of the matrix's width, ascending.
        seeds: Number of samples of each size, with seeds 0, 1, ...
        edits: Cases; written at once for the update, one after another for the score.
    """

    name: ClassVar[str] = "tokens"
    title: ClassVar[str] = "Tokens of the second moments"
    per_dim: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16, 32)
    seeds: int = 3
    edits: int = 50

    @property
    def units(self) -> int:
        """Units of work for one editor: streams gone through."""
        return len(self.per_dim) * self.seeds + 1

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Write the cases with every sample.

        Args:
            setting: On what.
            method: The editor.
            advance: Told of streams gone through.

        Returns:
            "width", "tokens" (of all text), "score" (with all text), and "sizes": by size "tokens", "update" (relative change of
            the update, over the samples), "score" (likewise) and "failed" (samples that gave no prior).

        Raises:
            RunError: There is no text for a sample of the largest size.
        """
        trial = Trial(setting, method, self.edits)
        texts = list(texts_of(trial.hparams.mom2_dataset))
        whole = _moments(trial.plain, texts, None)
        width = trial.plain.em.matrix(trial.plain.em.value_layer).shape[1]
        if self.per_dim[-1] * width > whole.tokens:
            raise RunError(
                f"mom2_dataset has {whole.tokens} tokens, {whole.tokens / width:.1f} for each of {width} dimensions, and "
                f"{self.per_dim[-1]} were asked for; ask for fewer (--per-dim), or name more text."
            )
        anchor = trial.nas.anchor_value
        reference, best = self._outcome(trial, whole, anchor)
        advance(1)
        sizes = {}
        for per_dim in self.per_dim:
            tokens, changes, scores = round(per_dim * width), [], []
            for seed in range(self.seeds):
                shuffled = random.Random(seed).sample(texts, len(texts))
                try:
                    update, score = self._outcome(trial, _moments(trial.plain, shuffled, tokens), anchor)
                except StatisticsError:
                    # Too few to make a prior of.
                    continue
                finally:
                    advance(1)
                changes.append(_change(update, reference))
                scores.append(score)
            sizes[f"{per_dim:g}"] = {
                "tokens": tokens,
                "update": moments_of(changes) if changes else None,
                "score": moments_of(scores) if scores else None,
                "failed": self.seeds - len(changes),
            }
        return {"width": width, "tokens": whole.tokens, "score": best, "sizes": sizes}

    def _outcome(self, trial: Trial, moments: SecondMoments, anchor: float | None) -> tuple[list[Tensor], float]:
        """Return the update of all cases at once, by layer, and the score after writing them one by one."""
        session = EditSession(
            trial.model,
            trial.tok,
            trial.hparams,
            contexts=trial.plain.foundation.contexts,
            moments=moments,
            anchor=anchor,
            progress=False,
        )
        session.edit([request for case in trial.cases for request in case.requests])
        weights = session.weights
        update = [weights.master[layer] - weights.base[layer] for layer in session.em.layers]
        session.revert()
        after = trial.go_through(session, trial.cases, len(trial.cases))
        return update, float(after["score"])

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out the sizes; see `Study.tables`."""
        columns = ("editor, tokens a dimension", "tokens", "change of the update, %", "score")
        text = (
            f"Mean ± standard deviation over {self.seeds} samples. Change of the update: |update - reference| / |reference| "
            f"(Frobenius, all edited layers), where all {self.edits} cases are written at once and the reference has second "
            "moments over all text; samples are drawn from the same text, so that it vanishes as they come to all of it. Score: "
            "after writing the cases one after another."
        )
        return [Table(self.title, columns, tuple(_rows(method, result) for method, result in results.items()), text)]


def _moments(session: EditSession, texts: Sequence[str], tokens: int | None) -> SecondMoments:
    hparams = session.hparams
    return collect_moments(
        session.em,
        session.locator,
        texts,
        max_documents=hparams.mom2_n_samples,
        max_tokens=tokens,
        dtype=torch.float64,
        fingerprint=session.fingerprint,
        progress=False,
    )


def _change(update: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    def norm(parts: Sequence[Tensor]) -> float:
        return float(sum(float(part.double().norm()) ** 2 for part in parts) ** 0.5)

    return norm([mine - theirs for mine, theirs in zip(update, reference, strict=True)]) / norm(reference)


def _rows(method: str, result: Mapping[str, Any]) -> tuple[Row, ...]:
    rows = [
        Row(
            f"{method}, {size}",
            (
                str(at["tokens"]),
                "no prior" if at["update"] is None else plus_minus(_percent(at["update"]), 1),
                number(None, 1) if at["score"] is None else plus_minus(at["score"], 1),
            ),
        )
        for size, at in result["sizes"].items()
    ]
    every = Row(
        f"{method}, all ({result['tokens'] / result['width']:.0f})",
        (str(result["tokens"]), "0", number(result["score"], 1)),
    )
    return (*rows, every)


def _percent(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {**sample, "mean": 100 * sample["mean"], "std": None if sample["std"] is None else 100 * sample["std"]}
