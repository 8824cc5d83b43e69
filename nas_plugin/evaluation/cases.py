"""What a stream holds: facts to write, and everything that is asked about each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nas_plugin.errors import EmptyTargetError, RequestError
from nas_plugin.request import EditRequest

FAMILIES = ("counterfact", "zsre", "knowedit", "wikibigedit", "mquake", "demo")
"""Benchmarks whose metrics differ; see `Case.family`."""
NEIGHBORHOOD = "neighborhood"
"""EasyEdit's name for the locality group that CounterFact's neighbours make."""


@dataclass(frozen=True)
class Ask:
    """One prompt with the answers that count as right.

    Attributes:
        prompt: Text before the answer, as it is tokenised: never stripped.
        answers: The answer and its aliases, without a leading space. The first is the one teacher-forced.

    Raises:
        RequestError: The prompt or an answer is not a string, or there is no answer.
        EmptyTargetError: The prompt or an answer is blank.
    """

    prompt: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        """Validate."""
        _text(self.prompt, "prompt")
        if not isinstance(self.answers, tuple) or not self.answers:
            raise RequestError(
                f"answers of {self.prompt!r:.60}: {self.answers!r}; give a tuple with at least one string."
            )
        for answer in self.answers:
            _text(answer, f"an answer to {self.prompt!r:.60}")


@dataclass(frozen=True)
class Case:
    """One step's worth of a benchmark record: what is written, and what is asked before and after.

    Attributes:
        id: Name, unique in its stream.
        family: One of `FAMILIES`; decides which metrics apply.
        requests: What is written. More than one for MQuAKE alone.
        true_target: The answer before the edit, where the data gives one. None for a case of several requests.
        rephrases: Prompts whose answer must be the new target of the (only) request.
        neighbours: Prompts about other subjects that must keep their true answer (CounterFact's neighbourhood).
        locality: Named groups of prompts whose answer must stay as it was; the answers are those of the data.
        portability: Named groups of prompts whose answer follows from the edit.
        questions: Multi-hop questions with the answers that follow from all requests (MQuAKE).
        generation_prompts: Prompts to write freely from (CounterFact).
        reference_texts: Texts that consistency is measured against, where the data brings them.

    Raises:
        RequestError: A field has the wrong type, there are no requests, or the family is unknown.
        EmptyTargetError: A text is blank.
    """

    id: str
    family: str
    requests: tuple[EditRequest, ...]
    true_target: str | None = None
    rephrases: tuple[str, ...] = ()
    neighbours: tuple[Ask, ...] = ()
    locality: Mapping[str, tuple[Ask, ...]] = field(default_factory=dict)
    portability: Mapping[str, tuple[Ask, ...]] = field(default_factory=dict)
    questions: tuple[Ask, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    reference_texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate."""
        _text(self.id, "a case's id")
        name = f"case {self.id}"
        if self.family not in FAMILIES:
            raise RequestError(f"{name}: family {self.family!r} is none of {', '.join(FAMILIES)}.")
        _items(self.requests, EditRequest, f"{name}, requests")
        if not self.requests:
            raise RequestError(f"{name} has no requests; a case writes at least one fact.")
        if self.true_target is not None:
            _text(self.true_target, f"{name}, true_target")
        for part in ("rephrases", "generation_prompts", "reference_texts"):
            for text in _items(getattr(self, part), str, f"{name}, {part}"):
                _text(text, f"{name}, {part}")
        for part in ("neighbours", "questions"):
            _items(getattr(self, part), Ask, f"{name}, {part}")
        for part in ("locality", "portability"):
            for group, asks in getattr(self, part).items():
                _items(asks, Ask, f"{name}, {part}.{group}")

    def to_easyedit(self) -> dict[str, Any]:
        """Give the flat request as EasyEdit prepares it, which `evaluate_requests` and editors take.

        EasyEdit takes one rephrase: the first is given. Of each ask it takes one answer: the first. Neighbours become its
        locality group "neighborhood". Questions and generation prompts have no place in it.

        Returns:
            `case_id`, `prompt`, `subject`, `target_new`, `ground_truth` (the true target or None), `locality` and
            `portability` (`{group: {"prompt": [...], "ground_truth": [...]}}`), and `rephrase_prompt` if there is one.

        Raises:
            RequestError: The case writes several facts, for which EasyEdit's flat request has no room.
        """
        if len(self.requests) > 1:
            raise RequestError(
                f"case {self.id} writes {len(self.requests)} facts and EasyEdit's flat request holds one; pass its "
                "`requests` to the editor."
            )
        request = self.requests[0]
        locality = {NEIGHBORHOOD: self.neighbours, **self.locality} if self.neighbours else self.locality
        flat: dict[str, Any] = {
            "case_id": self.id,
            "prompt": request.prompt,
            "subject": request.subject,
            "target_new": request.target,
            "ground_truth": self.true_target,
            "locality": {group: _columns(asks) for group, asks in locality.items()},
            "portability": {group: _columns(asks) for group, asks in self.portability.items()},
        }
        if self.rephrases:
            flat["rephrase_prompt"] = self.rephrases[0]
        return flat


def _columns(asks: Iterable[Ask]) -> dict[str, list[str]]:
    asks = tuple(asks)
    return {"prompt": [ask.prompt for ask in asks], "ground_truth": [ask.answers[0] for ask in asks]}


def _items(values: Any, kind: type, name: str) -> tuple[Any, ...]:
    if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
        raise RequestError(f"{name}: {values!r:.80}; give a tuple of {kind.__name__}.")
    return values


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name} is a {type(value).__name__} ({value!r:.60}); give one string.")
    if not value.strip():
        raise EmptyTargetError(f"{name} is empty; give text.")
