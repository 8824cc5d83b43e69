"""Choosing edited layers, learning rate and clamp on a small sample: what is tried, how it is scored, what is best.

One number is changed at a time: layers first, at the file's learning rate; then learning rates on the best layers; then clamps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nas_plugin.admission import CONTINUE
from nas_plugin.errors import GuardError, HparamsError, RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.measures import TEACHER_FORCED, base_outputs, measure, summarise_cases
from nas_plugin.evaluation.stability import headline
from nas_plugin.files import write_bytes
from nas_plugin.foundation import contexts_for
from nas_plugin.hparams import NASHparams
from nas_plugin.hparams.limits import check_values
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.stored import moments_for
from nas_plugin.session import EditSession

# Where published bands begin, as a share of the depth (Llama 3 8B 4 of 32, Qwen2.5 7B 7 of 28, GPT-2 XL 13 of 48), and one later.
_STARTS = (1 / 8, 1 / 4, 3 / 8)
_FACTORS = (0.5, 1.0, 2.0)
_PILOTS = 20
_PARTS = ("efficacy", "generalization", "specificity", "score")


@dataclass(frozen=True)
class Trial:
    """One set of numbers and what a short stream came to with it.

    Attributes:
        layers: Edited layers.
        v_lr: Learning rate of the target solver.
        clamp_norm_factor: Largest norm of its change, in norms of the hidden state.
        parts: "efficacy", "generalization", "specificity" and "score", their harmonic mean, in percent, after the whole stream;
            those that the stream has data for.
        norm: |W| / |W0| at the end.
        rejected: Edits that came out not finite or were refused.
        seconds: Time that its edits took.
        failed: Why nothing could be written; None if it could.
    """

    layers: tuple[int, ...]
    v_lr: float
    clamp_norm_factor: float
    parts: Mapping[str, float]
    norm: float
    rejected: int
    seconds: float
    failed: str | None = None

    @property
    def rank(self) -> tuple[float, float, float]:
        """Larger is better: the score, without one the efficacy; of equal ones, where the weights have grown less."""
        score = self.parts.get("score", self.parts.get("efficacy", 0.0))
        return (-1.0 if self.failed is not None else score, -self.rejected, -self.norm)


def bands(layers: Sequence[int], blocks: int) -> list[tuple[int, ...]]:
    """List bands of layers to try.

    Args:
        layers: Those of the file; all bands have as many, one after another.
        blocks: Decoder blocks of the model.

    Returns:
        The file's own first, then bands that begin where published ones do.
    """
    width = min(len(layers), blocks)
    found = [tuple(layers)]
    for share in _STARTS:
        start = min(round(share * blocks), blocks - width)
        found.append(tuple(range(start, start + width)))
    return list(dict.fromkeys(found))


def learning_rates(v_lr: float) -> list[float]:
    """List learning rates to try: the file's, half and twice of it."""
    return [v_lr * factor for factor in _FACTORS]


def tune(
    model: Any,
    tok: Any,
    hparams: NASHparams,
    cases: Sequence[Case],
    *,
    layers: Sequence[Sequence[int]] | None = None,
    v_lrs: Sequence[float] | None = None,
    clamps: Sequence[float] = (),
    per_step: int = 1,
    tell: Callable[[Trial], object] = lambda _: None,
    progress: bool = True,
) -> list[Trial]:
    """Try numbers out, each on the unedited model with the same short stream; the model is left unedited.

    Second moments are measured once for each band of layers, and kept in `stats_dir` if there is one, where a session with these
    layers finds them; in memory are those of two bands at most. The anchor is measured for each set of numbers, because it
    depends on them, with at most 20 pilots, and kept nowhere.

    Args:
        model: The model, unedited.
        tok: Its tokenizer.
        hparams: Where to begin; what is not tuned stays.
        cases: The stream.
        layers: Bands of layers to try; those of `bands` by default.
        v_lrs: Learning rates to try; those of `learning_rates` by default.
        clamps: Clamps to try; by default the file's stays.
        per_step: Cases written at once.
        tell: Told of every trial as soon as it is done.
        progress: Show progress bars.

    Returns:
        The trials, best first.

    Raises:
        RunError: There are no cases.
        HparamsError: A number is out of range.
        RequestError: A case cannot be written or measured.
    """
    if not cases:
        raise RunError("there is no case to try anything out on; give a longer stream.")
    tried = _Trials(model, tok, hparams, cases, per_step, tell, progress)
    blocks, loss = tried.blocks, hparams.v_loss_layer
    wanted = layers if layers is not None else bands(hparams.layers, blocks)
    usable = [tuple(band) for band in wanted if loss is None or band[-1] <= loss]
    for band in usable:
        tried.add(replace(hparams, layers=band))
    best = tried.best()
    for rate in v_lrs if v_lrs is not None else learning_rates(hparams.v_lr):
        tried.add(replace(best, v_lr=rate))
    best = tried.best()
    for clamp in clamps:
        tried.add(replace(best, clamp_norm_factor=clamp))
    return sorted(tried.trials.values(), key=lambda trial: trial.rank, reverse=True)


def write_tuned(path: str | Path, hparams: NASHparams, best: Trial, *, source: str, overwrite: bool = False) -> None:
    """Write the best numbers as a hyperparameter file.

    Args:
        path: File to write.
        hparams: What `tune` began with.
        best: Its best trial.
        source: Where the numbers are from, for the head of the file.
        overwrite: Replace a file that is there.

    Raises:
        HparamsError: There is one.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise HparamsError(f"{path} exists; give another name, or say that it is to be overwritten.")
    chosen = replace(hparams, layers=best.layers, v_lr=best.v_lr, clamp_norm_factor=best.clamp_norm_factor)
    values = chosen.to_dict()
    # One line: a head is lines, and what a stream is called is not ours.
    said = " ".join(source.split())
    head = f"# {chosen.alg_name} on {' '.join(str(values['model_name']).split())}.\n# Derived: {said}\n"
    text = head + yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    write_bytes(path, text.encode())


class _Trials:
    """Trials on one model with one stream; no set of numbers is tried twice."""

    def __init__(
        self,
        model: Any,
        tok: Any,
        hparams: NASHparams,
        cases: Sequence[Case],
        per_step: int,
        tell: Callable[[Trial], object],
        progress: bool,
    ) -> None:
        self._model, self._tok, self._cases, self._per_step = model, tok, cases, per_step
        self._tell, self._progress = tell, progress
        self._base = base_outputs(model, tok, cases)
        first = EditSession(model, tok, self._quiet(hparams), progress=False)
        self.blocks = first.em.n_layers
        self._hparams = hparams
        self._contexts = contexts_for(first.em, first.locator, hparams, first.given)
        self._moments: dict[tuple[int, ...], SecondMoments] = {}
        self.trials: dict[tuple[Any, ...], Trial] = {}
        self._numbers: dict[tuple[Any, ...], NASHparams] = {}

    def best(self) -> NASHparams:
        """Return the numbers of the best trial so far."""
        if not self.trials:
            return self._hparams
        return self._numbers[max(self.trials, key=lambda key: self.trials[key].rank)]

    def add(self, hparams: NASHparams) -> None:
        """Try numbers out, unless they were."""
        check_values(hparams)
        key = (tuple(hparams.layers), hparams.v_lr, hparams.clamp_norm_factor)
        if key in self.trials:
            return
        session = EditSession(
            self._model,
            self._tok,
            self._quiet(hparams),
            contexts=self._contexts,
            moments=self._moments_of(hparams.layers),
            progress=self._progress,
        )
        session.on_reject = CONTINUE
        try:
            trial = self._write(session, hparams)
        except GuardError as error:
            trial = Trial(*key, {}, 1.0, len(self._cases), 0.0, error.message)
        finally:
            session.revert()
        self.trials[key], self._numbers[key] = trial, hparams
        self._tell(trial)

    def _moments_of(self, layers: tuple[int, ...]) -> SecondMoments:
        """Return the second moments of a band; of bands before only the best one's stay, for they take gigabytes."""
        if layers not in self._moments:
            best = self.best().layers
            self._moments = {band: moments for band, moments in self._moments.items() if band == best}
            # Plain, so that no anchor is measured.
            plain = replace(self._hparams, layers=layers, v_loss_layer=None, keep_dir=None, use_nas=False)
            session = EditSession(self._model, self._tok, plain, progress=self._progress)
            session.check_unedited()
            self._moments[layers] = moments_for(
                session.em, session.locator, plain, session.fingerprint, progress=self._progress
            )
        return self._moments[layers]

    def _write(self, session: EditSession, hparams: NASHparams) -> Trial:
        session.prepare()
        started, rejected = time.perf_counter(), 0
        for start in range(0, len(self._cases), self._per_step):
            step = self._cases[start : start + self._per_step]
            rejected += session.edit([request for case in step for request in case.requests]).rejected
        seconds = time.perf_counter() - started
        metrics = measure(self._model, self._tok, self._cases, base=self._base, protocols=TEACHER_FORCED)
        summary: Any = summarise_cases(metrics)
        found = {part: headline(summary, part) for part in _PARTS}
        parts = {part: float(named[1]["mean"]) for part, named in found.items() if named is not None}  # type: ignore[index]
        norm = float(session.weights.total_ratio())
        return Trial(tuple(hparams.layers), hparams.v_lr, hparams.clamp_norm_factor, parts, norm, rejected, seconds)

    @staticmethod
    def _quiet(hparams: NASHparams) -> NASHparams:
        """Keep nothing, measure the anchor with few pilots, and let weights grow without a word: that is what is compared."""
        pilots = min(hparams.nas_n_pilots, _PILOTS)
        return replace(
            hparams, keep_dir=None, stats_dir=None, nas_anchor_file=None, nas_n_pilots=pilots, norm_alarm=None
        )
