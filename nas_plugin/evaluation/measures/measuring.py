"""Measuring a model on cases: every metric of the protocols that a case has the data for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_plugin.errors import MeasureError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.measures.asking import LOCALITY, PORTABILITY, Asked, Plan, plan_of
from nas_plugin.evaluation.measures.protocols import PROTOCOLS, needed_for
from nas_plugin.evaluation.measures.scoring import Advance, Scored, score, share_equal
from nas_plugin.evaluation.measures.texts import TermStatistics, contains, ngram_entropy, starts_with
from nas_plugin.evaluation.measures.writing import Opening, ends_of, write_greedily, write_sampled
from nas_plugin.parallel import ALONE, Group
from nas_plugin.progress import progress_bar

_FORMAT = 1
_UNCHANGED, _ANY = "unchanged_tokens", "generated_any"
_FORCED = ("probability", "exact", "token_accuracy", _UNCHANGED)
_GREEDY = ("generated", _ANY)


@dataclass(frozen=True)
class _Answer:
    """What a model made of one prompt, as far as it was needed.

    Attributes:
        asked: The prompt.
        own: Score of the right answer.
        rival: Score of the answer that it is compared with.
        before: Most probable tokens of the original model.
        text: What the model wrote by itself.
    """

    asked: Asked
    own: Scored | None
    rival: Scored | None
    before: Sequence[int] | None
    text: str | None

    def values(self) -> dict[str, float]:
        """Return percentages by the last component of the metric's name."""
        found: dict[str, float] = {}
        if self.own is not None:
            if self.rival is not None:
                found["probability"] = self.own.loss < self.rival.loss
            found |= {"exact": self.own.exact, "token_accuracy": self.own.token_accuracy}
            if self.before is not None:
                found[_UNCHANGED] = share_equal(self.own.predicted, self.before)
        if self.text is not None:
            found["generated"] = starts_with(self.text, self.asked.answers[0])
            found[_ANY] = any(contains(self.text, answer) for answer in self.asked.answers)
        return {kind: 100.0 * value for kind, value in found.items()}


def measure(
    model: Any,
    tok: Any,
    cases: Iterable[Case],
    *,
    base: Mapping[str, Any] | None = None,
    protocols: Collection[str] | None = None,
    progress: bool = False,
    group: Group = ALONE,
) -> list[dict[str, float]]:
    """Measure a model on cases; nothing depends on which cases are measured together.

    Args:
        model: Causal language model; left as it is found.
        tok: Its tokenizer; never changed.
        cases: Cases.
        base: What `base_outputs` returned for the original model and these cases, possibly among others. Without it
            `unchanged_tokens` is not measured, and consistency takes document frequencies from the cases at hand.
        protocols: Metrics wanted, keys of `PROTOCOLS`; by default all. What one is made of is measured with it.
            `TEACHER_FORCED` leaves out those that make the model write, which take most of the time.
        progress: Show a progress bar.
        group: Processes that share the cases; every one gets all metrics.

    Returns:
        For each case its metrics, by name; those that it has no data for are absent.

    Raises:
        ModelError: The model has no output head to hook into.
        MeasureError: A metric is unknown, or `base` is of other cases.
        RequestError: A prompt or an answer has no tokens or is too long. The model has not been run.
    """
    if base is not None and base.get("format") != _FORMAT:
        raise MeasureError(
            f"base has format {base.get('format')!r}, not {_FORMAT}; give what base_outputs of this version returned."
        )
    every = list(cases)
    terms = _terms(every, base)
    needed = needed_for(PROTOCOLS if protocols is None else protocols)
    plan = plan_of(model, tok, every)
    cases = group.mine(every)
    if group.size > 1:
        # What cannot be asked has been refused in all processes alike.
        plan = plan_of(model, tok, cases)
    before = [None] * len(plan.asked) if base is None else _before(plan, cases, base)
    rows = [_rows_needed(asked, earlier, needed) for asked, earlier in zip(plan.asked, before, strict=True)]
    greedy = [any(f"{asked.template}/{kind}" in needed for kind in _GREEDY) for asked in plan.asked]
    sampled = [
        openings if "fluency" in needed or ("consistency" in needed and case.reference_texts) else []
        for case, openings in zip(cases, plan.sampled, strict=True)
    ]
    total = sum(sum(pair) for pair in rows) + sum(greedy) + sum(map(len, sampled))
    with progress_bar("measuring", total, enabled=progress and group.main) as bar:

        def advance(units: int) -> None:
            bar.advance(bar.task_ids[0], units)

        scored = _score(model, plan, rows, advance)
        texts = _write(model, tok, plan, greedy, advance)
        samples = _sample(model, tok, sampled, advance)
    answers: list[list[_Answer]] = [[] for _ in cases]
    for asked, (own, rival), earlier, text in zip(plan.asked, scored, before, texts, strict=True):
        answers[asked.case].append(_Answer(asked, own, rival, earlier, text))
    measured = [
        _of_answers(given, needed) | _of_samples(written, case, terms, needed)
        for given, written, case in zip(answers, samples, cases, strict=True)
    ]
    return group.gathered(measured, len(every))


def base_outputs(model: Any, tok: Any, cases: Iterable[Case], *, group: Group = ALONE) -> dict[str, Any]:
    """Ask the original model what the metrics later compare with; to be called once, for a whole stream.

    All prompts of the cases are checked, so that what cannot be measured is found before the first edit.

    Args:
        model: The original model; left as it is found.
        tok: Its tokenizer; never changed.
        cases: Cases, each id once.
        group: Processes that share the prompts; every one gets all outputs.

    Returns:
        Values that JSON can hold: the most probable tokens at the answers of each locality group, and the document
        frequencies of the reference texts.

    Raises:
        MeasureError: Two cases have the same id.
        RequestError: A prompt or an answer has no tokens or is too long. The model has not been run.
    """
    cases = list(cases)
    locality: dict[str, dict[str, list[list[int]]]] = {case.id: {} for case in cases}
    if len(locality) < len(cases):
        ids = [case.id for case in cases]
        twice = next(name for name in ids if ids.count(name) > 1)
        raise MeasureError(f"case {twice!r} is there more than once; every case of a stream needs an id of its own.")
    plan = plan_of(model, tok, cases)
    chosen = [(asked, row) for asked, row in zip(plan.asked, plan.own, strict=True) if asked.part == LOCALITY]
    mine = score(model, group.mine([row for _, row in chosen]))
    predicted = group.gathered([list(scored.predicted) for scored in mine], len(chosen))
    for (asked, _), ids in zip(chosen, predicted, strict=True):
        locality[cases[asked.case].id].setdefault(asked.group, []).append(ids)
    terms = _terms(cases, None)
    return {
        "format": _FORMAT,
        "locality": locality,
        "documents": terms.documents,
        "document_frequencies": dict(sorted(terms.frequencies.items())),
    }


def _before(plan: Plan, cases: Sequence[Case], base: Mapping[str, Any]) -> list[Sequence[int] | None]:
    """Give each prompt of a locality group what the original model made of it."""
    places: dict[tuple[int, str], int] = {}
    earlier: list[Sequence[int] | None] = []
    for asked, row in zip(plan.asked, plan.own, strict=True):
        if asked.part != LOCALITY:
            earlier.append(None)
            continue
        place = places.get((asked.case, asked.group), 0)
        places[asked.case, asked.group] = place + 1
        outputs = base["locality"].get(cases[asked.case].id, {}).get(asked.group, [])
        if place >= len(outputs) or len(outputs[place]) != len(row.labels):
            raise MeasureError(
                f"{asked.name}: base holds no output of the original model of {len(row.labels)} tokens for it; give what "
                "base_outputs returned for the same cases and tokenizer."
            )
        earlier.append(outputs[place])
    return earlier


def _rows_needed(asked: Asked, before: Sequence[int] | None, needed: Collection[str]) -> tuple[bool, bool]:
    """Say whether the right answer has to be scored, and whether the one that it is compared with."""
    kinds = {kind for kind in _FORCED if f"{asked.template}/{kind}" in needed}
    compared = asked.rival is not None and "probability" in kinds
    alone = kinds - {"probability"} - ({_UNCHANGED} if before is None else set())
    return bool(alone) or compared, compared


def _score(
    model: Any, plan: Plan, rows: Sequence[tuple[bool, bool]], advance: Advance
) -> list[tuple[Scored | None, Scored | None]]:
    pairs = [
        (own if wants_own else None, rival if wants_rival else None)
        for own, rival, (wants_own, wants_rival) in zip(plan.own, plan.rival, rows, strict=True)
    ]
    flat = [row for pair in pairs for row in pair if row is not None]
    found = iter(score(model, flat, advance=advance))
    scored = [[None if row is None else next(found) for row in pair] for pair in pairs]
    return [(own, rival) for own, rival in scored]


def _write(model: Any, tok: Any, plan: Plan, greedy: Sequence[bool], advance: Advance) -> list[str | None]:
    openings = [opening for opening, wanted in zip(plan.greedy, greedy, strict=True) if wanted]
    written = iter(write_greedily(model, openings, ends_of(model, tok), advance=advance))
    return [_decode(tok, next(written)) if wanted else None for wanted in greedy]


def _sample(model: Any, tok: Any, sampled: Sequence[Sequence[Opening]], advance: Advance) -> list[list[str]]:
    """Return each case's texts, the prompts being part of them."""
    written = iter(write_sampled(model, [o for openings in sampled for o in openings], advance=advance))
    return [[_decode(tok, [*opening.ids, *next(written)]) for opening in openings] for openings in sampled]


def _decode(tok: Any, ids: Sequence[int]) -> str:
    return str(tok.decode(list(ids), skip_special_tokens=True))


def _terms(cases: Sequence[Case], base: Mapping[str, Any] | None) -> TermStatistics:
    if base is not None:
        return TermStatistics(base["documents"], base["document_frequencies"])
    return TermStatistics.of(text for case in cases for text in case.reference_texts)


def _of_answers(answers: Sequence[_Answer], needed: Collection[str]) -> dict[str, float]:
    """Return a case's metrics: means over its prompts, and over its groups of those."""
    values: dict[str, list[float]] = {}
    for answer in answers:
        for kind, value in answer.values().items():
            if f"{answer.asked.template}/{kind}" in needed:
                values.setdefault(f"{answer.asked.stem}/{kind}", []).append(value)
    result = {
        name: max(given) if name.endswith(f"/{_ANY}") else sum(given) / len(given) for name, given in values.items()
    }
    for part, kind in ((LOCALITY, _UNCHANGED), (PORTABILITY, "token_accuracy")):
        stems = dict.fromkeys(answer.asked.stem for answer in answers if answer.asked.part == part)
        groups = [result[f"{stem}/{kind}"] for stem in stems if f"{stem}/{kind}" in result]
        if groups and f"{part}/{kind}" in needed:
            result[f"{part}/{kind}"] = sum(groups) / len(groups)
    return result


def _of_samples(texts: Sequence[str], case: Case, terms: TermStatistics, needed: Collection[str]) -> dict[str, float]:
    result = {}
    if texts and "fluency" in needed:
        result["fluency"] = 100 * sum(map(ngram_entropy, texts)) / len(texts)
    if texts and case.reference_texts and "consistency" in needed:
        result["consistency"] = 100 * terms.similarity(" ".join(texts), " ".join(case.reference_texts))
    return result
