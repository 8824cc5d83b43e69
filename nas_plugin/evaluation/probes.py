"""What requests ask of an edited model: prompts with the answers they are scored on, checked and tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_plugin.errors import EmptyTargetError, PromptTooLongError, RequestError, TokenizerError

REWRITE, REPHRASE, LOCALITY, PORTABILITY = "rewrite", "rephrase", "locality", "portability"


@dataclass(frozen=True)
class Probe:
    """One prompt with the answer it is scored on.

    Attributes:
        request: Number of its request.
        part: `REWRITE`, `REPHRASE`, `LOCALITY` or `PORTABILITY`.
        key: Name of the group within locality or portability, else empty.
        prompt: Text before the answer.
        answer: Text after it, without the space between them.
        name: Where it stands, for messages.
    """

    request: int
    part: str
    key: str
    prompt: str
    answer: str
    name: str


@dataclass(frozen=True)
class ProbeTokens:
    """Tokens of a probe.

    Attributes:
        ids: Prompt and answer without the last token, which is only predicted.
        labels: The answer; the last `len(labels)` positions of `ids` predict it.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def first(self) -> int:
        """Position that predicts the answer's first token: the prompt's last one."""
        return len(self.ids) - len(self.labels)


@dataclass(frozen=True)
class Bounds:
    """What a model can be asked.

    Attributes:
        vocab_size: Rows of its embedding.
        max_positions: Longest sequence it attends to, in tokens; None without a limit.
    """

    vocab_size: int
    max_positions: int | None

    @classmethod
    def of(cls, model: Any) -> Bounds:
        """Read them off a causal language model."""
        config = model.config
        longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return cls(model.get_input_embeddings().weight.shape[0], longest)

    def check(self, ids: Sequence[int], length: int, name: str) -> None:
        """Refuse what the model cannot read.

        Args:
            ids: Token ids.
            length: How many positions of the model they take.
            name: Where they come from, for messages.

        Raises:
            TokenizerError: An id is outside the vocabulary.
            PromptTooLongError: They are more than the model attends to.
        """
        if max(ids) >= self.vocab_size:
            raise TokenizerError(
                f"{name}: token id {max(ids)} is outside the model's vocabulary of {self.vocab_size}; load the tokenizer "
                "that belongs to the model."
            )
        if self.max_positions is not None and length > self.max_positions:
            raise PromptTooLongError(
                f"{name}: {length} tokens with its answer; the model attends to {self.max_positions}. Shorten it."
            )


def probes_of(requests: Iterable[Mapping[str, Any]]) -> list[Probe]:
    """List all that requests ask, in order.

    Args:
        requests: Requests as EasyEdit prepares them.

    Returns:
        The probes.

    Raises:
        RequestError: A request is malformed; the message names it and the field.
    """
    probes: list[Probe] = []
    for number, record in enumerate(requests):
        if not isinstance(record, Mapping):
            raise RequestError(
                f"request {number} is a {type(record).__name__}; give a mapping with prompt and target_new."
            )
        case = record.get("case_id")
        name = f"request {number}" if case is None else f"request {number} (case {case})"
        target = _text(record.get("target_new"), f"{name}, target_new")
        for part, field in ((REWRITE, "prompt"), (REPHRASE, "rephrase_prompt")):
            if part == REWRITE or record.get(field) is not None:
                where = f"{name}, {field}"
                probes.append(Probe(number, part, "", _text(record.get(field), where), target, where))
        for part in (LOCALITY, PORTABILITY):
            probes.extend(_grouped(number, part, record.get(part), f"{name}, {part}"))
    return probes


def tokenise(probes: Sequence[Probe], tok: Any, bounds: Bounds) -> list[ProbeTokens]:
    """Tokenise probes the way EasyEdit scores them: the answer is what follows the prompt's number of tokens.

    Args:
        probes: Probes.
        tok: A Hugging Face tokenizer; its settings are neither used nor changed.
        bounds: What the model can be asked.

    Returns:
        Their tokens, in order.

    Raises:
        EmptyTargetError: A prompt or an answer has no tokens of its own.
        PromptTooLongError: A probe is longer than the model attends to.
        TokenizerError: The tokenizer belongs to another model.
    """
    prompts = encode(tok, [probe.prompt for probe in probes])
    wholes = encode(tok, [f"{probe.prompt} {probe.answer}" for probe in probes])
    rows: list[ProbeTokens] = []
    for probe, prompt, whole in zip(probes, prompts, wholes, strict=True):
        if not 0 < len(prompt) < len(whole):
            raise EmptyTargetError(
                f"{probe.name}: prompt {probe.prompt!r} or answer {probe.answer!r} has no tokens of its own in this "
                "tokenizer; give text it can write."
            )
        bounds.check(whole, len(whole) - 1, probe.name)
        rows.append(ProbeTokens(whole[:-1], whole[len(prompt) :]))
    return rows


def encode(tok: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Tokenise texts that something is to follow: special tokens before the text stay, those after it go.

    Args:
        tok: A Hugging Face tokenizer; its settings are neither used nor changed.
        texts: Texts.

    Returns:
        Their token ids, in order.
    """
    if not texts:
        return []
    encoded = tok(list(texts), return_special_tokens_mask=True, return_attention_mask=False, verbose=False)
    rows = []
    for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        # An EOS that the tokenizer appends would stand between a prompt and its answer.
        end = len(ids)
        while end and special[end - 1]:
            end -= 1
        rows.append(tuple(ids[:end]))
    return rows


def _grouped(number: int, part: str, groups: Any, name: str) -> Iterator[Probe]:
    if groups is None:
        return
    for key, group in _mapping(groups, name).items():
        where = f"{name}.{key}"
        if group is None or (prompts := _mapping(group, where).get("prompt")) is None:
            continue
        answers = group.get("ground_truth")
        if isinstance(prompts, str):
            prompts, answers = [prompts], [answers]
        if (
            not isinstance(prompts, list | tuple)
            or not isinstance(answers, list | tuple)
            or len(prompts) != len(answers)
        ):
            raise RequestError(
                f"{where}: prompt {_size(prompts)} does not go with ground_truth {_size(answers)}; give one string each, or "
                "lists of the same length."
            )
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            place = f"{where}[{index}]"
            prompt, answer = _text(prompt, f"{place}, prompt"), _text(answer, f"{place}, ground_truth")
            yield Probe(number, part, str(key), prompt, answer, place)


def _mapping(value: Any, name: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(
            f"{name} is a {type(value).__name__}; give {{name: {{'prompt': ..., 'ground_truth': ...}}}}."
        )
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} is a {type(value).__name__} ({value!r:.60}); give one string.")
    if not value.strip():
        raise EmptyTargetError(f"{name} is empty; give text, or leave the whole part out.")
    return value


def _size(value: Any) -> str:
    kind = type(value).__name__
    return f"({kind} of {len(value)})" if isinstance(value, list | tuple) else f"({kind})"
