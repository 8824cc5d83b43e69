"""What cases ask a model: prompts with the answers they are scored on, and prompts to write from, all tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_plugin.errors import EmptyTargetError
from nas_plugin.evaluation.cases import NEIGHBORHOOD, Ask, Case
from nas_plugin.evaluation.measures.protocols import FLUENCY_TOKENS, QUESTION_TOKENS, SPARE_TOKENS
from nas_plugin.evaluation.measures.writing import Opening
from nas_plugin.evaluation.probes import Bounds, Probe, ProbeTokens, encode, tokenise

EFFICACY, GENERALIZATION, SPECIFICITY = "efficacy", "generalization", "specificity"
LOCALITY, PORTABILITY, QUESTIONS = "locality", "portability", "questions"


@dataclass(frozen=True)
class Asked:
    """One prompt of a case.

    Attributes:
        case: Number of the case.
        part: First component of the names of the metrics that it counts for.
        group: Name of the group within locality or portability, else empty.
        prompt: Text before the answer.
        answers: What is right; the first is scored.
        rival: The answer that it is compared with, where there is one.
        name: Where it stands, for messages.
    """

    case: int
    part: str
    group: str
    prompt: str
    answers: tuple[str, ...]
    rival: str | None
    name: str

    @property
    def stem(self) -> str:
        """Name of its metrics up to the last component, with the group."""
        return f"{self.part}/{self.group}" if self.group else self.part

    @property
    def template(self) -> str:
        """Name of its metrics up to the last component, as in `PROTOCOLS`."""
        return f"{self.part}/<group>" if self.group else self.part

    def probe(self, answer: str) -> Probe:
        """Return the prompt with an answer."""
        return Probe(self.case, self.part, self.group, self.prompt, answer, self.name)


@dataclass(frozen=True)
class Plan:
    """All that cases ask, tokenised: what a model or tokenizer cannot take has been refused.

    Attributes:
        asked: Prompts with answers.
        own: For each of them the prompt with its right answer.
        rival: For each of them the prompt with the answer that it is compared with, where there is one.
        greedy: For each of them where greedy writing starts.
        sampled: For each case where sampled writing starts: its generation prompts.
    """

    asked: list[Asked]
    own: list[ProbeTokens]
    rival: list[ProbeTokens | None]
    greedy: list[Opening]
    sampled: list[list[Opening]]


def plan_of(model: Any, tok: Any, cases: Sequence[Case]) -> Plan:
    """Tokenise all that cases ask, before the model is run on any of it.

    Args:
        model: Causal language model.
        tok: Its tokenizer; never changed.
        cases: Cases.

    Returns:
        The plan.

    Raises:
        RequestError: A prompt or an answer has no tokens or is too long; the message names it.
        TokenizerError: The tokenizer belongs to another model.
    """
    bounds = Bounds.of(model)
    asked = asked_of(cases)
    own = tokenise([a.probe(a.answers[0]) for a in asked], tok, bounds)
    compared = tokenise([a.probe(a.rival) for a in asked if a.rival is not None], tok, bounds)
    rivals = iter(compared)
    prompts = encode(tok, [a.prompt for a in asked])
    lengths = [
        QUESTION_TOKENS if a.part == QUESTIONS else len(row.labels) + SPARE_TOKENS
        for a, row in zip(asked, own, strict=True)
    ]
    return Plan(
        asked,
        own,
        [None if a.rival is None else next(rivals) for a in asked],
        [Opening(ids, _room(bounds, ids, new)) for ids, new in zip(prompts, lengths, strict=True)],
        [_sampled(case, tok, bounds) for case in cases],
    )


def _sampled(case: Case, tok: Any, bounds: Bounds) -> list[Opening]:
    openings = []
    for number, ids in enumerate(encode(tok, case.generation_prompts)):
        name = f"case {case.id}, generation_prompts[{number}]"
        if not ids:
            raise EmptyTargetError(f"{name} has no tokens in this tokenizer; give text it can write.")
        bounds.check(ids, len(ids), name)
        # The paper's length counts the prompt.
        new = _room(bounds, ids, max(0, FLUENCY_TOKENS - len(ids)))
        openings.append(Opening(ids, new, f"{case.id}:{number}"))
    return openings


def _room(bounds: Bounds, ids: Sequence[int], new: int) -> int:
    return new if bounds.max_positions is None else min(new, bounds.max_positions - len(ids))


def asked_of(cases: Sequence[Case]) -> list[Asked]:
    """List all that cases ask, in order.

    Args:
        cases: Cases.

    Returns:
        Their prompts. CounterFact's neighbours are there twice: for specificity, and as a locality group.
    """
    return [asked for number, case in enumerate(cases) for asked in _of_case(number, case)]


def _of_case(number: int, case: Case) -> Iterator[Asked]:
    name, first = f"case {case.id}", case.requests[0]
    # The true target belongs to a single request: a case of several says nothing about each one's.
    rival = case.true_target if len(case.requests) == 1 else None
    for i, request in enumerate(case.requests):
        yield Asked(number, EFFICACY, "", request.prompt, (request.target,), rival, f"{name}, requests[{i}]")
    for i, prompt in enumerate(case.rephrases):
        yield Asked(number, GENERALIZATION, "", prompt, (first.target,), rival, f"{name}, rephrases[{i}]")
    for i, ask in enumerate(case.neighbours):
        yield Asked(number, SPECIFICITY, "", ask.prompt, ask.answers, first.target, f"{name}, neighbours[{i}]")
    groups: Mapping[str, tuple[Ask, ...]] = case.locality
    if case.neighbours:
        groups = {NEIGHBORHOOD: case.neighbours, **groups}
    for part, named in ((LOCALITY, groups), (PORTABILITY, case.portability)):
        for group, asks in named.items():
            for i, ask in enumerate(asks):
                yield Asked(number, part, group, ask.prompt, ask.answers, None, f"{name}, {part}.{group}[{i}]")
    for i, ask in enumerate(case.questions):
        yield Asked(number, QUESTIONS, "", ask.prompt, ask.answers, None, f"{name}, questions[{i}]")
