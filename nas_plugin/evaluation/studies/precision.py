"""What half precision loses: the same stream on the model in several number types, with float32 masters and without."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from nas_plugin.errors import NonFiniteError
from nas_plugin.evaluation.report.content import ABSENT, Row, Table, number
from nas_plugin.evaluation.runner.load import load_model
from nas_plugin.evaluation.studies.shared import PARTS, Advance, Setting, Study, Trial, parts
from nas_plugin.keep.digests import weights_digest
from nas_plugin.keep.edits import load_edits
from nas_plugin.session import EditSession

WITHOUT = "without masters"


@dataclass(frozen=True)
class Precision(Study):
    """One stream in several number types.

    Attributes:
        edits: Cases, written one after another with norm anchoring.
        dtypes: Number types of the model, as `torch_dtype` names them; of those of two bytes each is also run without masters.
    """

    name: ClassVar[str] = "precision"
    title: ClassVar[str] = "Number types"
    edits: int = 200
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")

    @property
    def runs(self) -> tuple[tuple[str, bool], ...]:
        """Number types, each with masters and, where they matter, without."""
        return tuple(
            (dtype, masters)
            for dtype in self.dtypes
            for masters in ((True, False) if dtype in ("bfloat16", "float16") else (True,))
        )

    @property
    def units(self) -> int:
        """Units of work for one editor: edits."""
        return len(self.runs) * self.edits

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Go through the stream in every number type.

        Args:
            setting: On what; its `torch_dtype` is not used.
            method: The editor.
            advance: Told of edits done.

        Returns:
            By number type ("bfloat16 without masters"): the means of `PARTS`, "norm" (|W| / |W0|), "anchor", "value_norm" (mean
            of the norms as solved, in anchors), "rounding" (of the served matrices, relative to the masters), "of_change" (the
            same error relative to all that the edits have changed), "failed" (steps that came out non-finite) and "reloaded"
            (whether edits saved and loaded again give the same weights bit for bit).
        """
        found = {}
        for dtype, masters in self.runs:
            typed = replace(setting, settings={**setting.settings, "torch_dtype": dtype})
            trial = Trial(typed, method, self.edits)
            found[dtype if masters else f"{dtype} {WITHOUT}"] = self._stream(trial, masters, advance)
        return found

    def _stream(self, trial: Trial, masters: bool, advance: Advance) -> dict[str, Any]:
        session, norms, failed = trial.nas, [], 0
        anchor = session.anchor_value or 1.0
        for case in trial.cases:
            try:
                norms += [edit.value_norm / anchor for edit in session.edit(case.requests).edits]
            except NonFiniteError:
                failed += 1
            if not masters:
                # What a half-precision model gets whose own weights are added to.
                held = session.weights.current()
                session.weights.put(held, held)
            advance(1)
        measured = parts(trial.measure(trial.cases))
        return {
            **{part: measured[part]["mean"] for part in PARTS if part in measured},
            "norm": session.weights.total_ratio(),
            "anchor": anchor,
            "value_norm": fmean(norms) if norms else None,
            **(_rounding(session) if masters else {"rounding": None, "of_change": None}),
            "failed": failed,
            "reloaded": _reloaded(session),
        }

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out the number types; see `Study.tables`."""
        columns = (
            "editor, number type", *PARTS, "norm", "anchor", "value, anchors", "rounding", "of the change", "failed", "reloaded",
        )  # fmt: skip
        text = (
            f"After {self.edits} edits, one after another, with norm anchoring; the anchor is measured in each type. Value: mean "
            "norm of the values as solved, in anchors; what is written has the anchor's norm. Rounding: |served - master| / "
            "|master|; of the change: |served - master| / |master - W0|. Without masters: each update is added to the model's "
            "own numbers. Failed: steps whose numbers the type cannot hold; they are refused and nothing is written. Reloaded: "
            "edits saved and loaded into a fresh model give the same weights bit for bit."
        )
        return [Table(self.title, columns, tuple(_rows(method, result) for method, result in results.items()), text)]


def _rounding(session: EditSession) -> dict[str, float]:
    """Return how far the model's own numbers are from the masters."""
    lost = moved = size = 0.0
    served = session.weights.current()
    for layer, master in session.weights.master.items():
        lost += float((served[layer] - master).double().norm()) ** 2
        moved += float((master - session.weights.base[layer]).double().norm()) ** 2
        size += float(master.double().norm()) ** 2
    return {"rounding": (lost / size) ** 0.5, "of_change": (lost / moved) ** 0.5 if moved else 0.0}


def _reloaded(session: EditSession) -> bool:
    model, _ = load_model(session.hparams)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edits.safetensors"
        session.save_edits(path)
        load_edits(model, path)
    loaded = {name: model.get_parameter(name) for name in session.parameter_names}
    return weights_digest(loaded) == session.weights_digest()


def _rows(method: str, result: Mapping[str, Any]) -> tuple[Row, ...]:
    return tuple(
        Row(
            f"{method}, {name}",
            (
                *(number(at.get(part), 1) for part in PARTS),
                number(at["norm"], 3),
                number(at["anchor"], 2),
                number(at["value_norm"], 2),
                ABSENT if at["rounding"] is None else f"{at['rounding']:.1e}",
                ABSENT if at["of_change"] is None else f"{at['of_change']:.1e}",
                str(at["failed"]),
                "yes" if at["reloaded"] else "no",
            ),
        )
        for name, at in result.items()
    )
