"""Token sequences with the place of the subject's last token, built from ids and character offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import (
    EmptyTargetError,
    PlaceholderError,
    PromptTooLongError,
    SpecialTargetError,
    SubjectNotFoundError,
    TokenizerError,
)
from nas_plugin.request import EditRequest


@dataclass(frozen=True)
class TokenSequence:
    """Token ids with the index of the subject's last token.

    Attributes:
        ids: Token ids, special tokens of the tokenizer included.
        lookup: Index of the subject's last token.
        prompt_length: Number of tokens before the target.
    """

    ids: tuple[int, ...]
    lookup: int
    prompt_length: int

    def up_to_subject(self) -> TokenSequence:
        """Return the sequence without the tokens after the subject."""
        return TokenSequence(self.ids[: self.lookup + 1], self.lookup, self.lookup + 1)


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences padded on the right, whatever side the tokenizer pads on.

    Attributes:
        input_ids: `(rows, positions)`.
        attention_mask: `(rows, positions)`.
        lookup: Subject's last token, `(rows,)`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    lookup: Tensor

    def rows(self, index: Tensor) -> PaddedBatch:
        """Return the batch of some rows.

        Args:
            index: Row numbers `(k,)`.

        Returns:
            Their batch.
        """
        return PaddedBatch(self.input_ids[index], self.attention_mask[index], self.lookup[index])


def pad(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device) -> PaddedBatch:
    """Pad sequences on the right.

    Args:
        sequences: Rows.
        pad_id: Any id in the vocabulary: padding is masked.
        device: Where to put the tensors.

    Returns:
        The batch.
    """
    width = max(len(row.ids) for row in sequences)
    ids = [list(row.ids) + [pad_id] * (width - len(row.ids)) for row in sequences]
    mask = [[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in sequences]
    lookup = [row.lookup for row in sequences]
    return PaddedBatch(*(torch.tensor(values, device=device) for values in (ids, mask, lookup)))


class Locator:
    """Turns requests into token sequences without touching the tokenizer's settings.

    Attributes:
        pad_id: Id used for (masked) padding.
    """

    def __init__(self, tok: Any, max_positions: int, vocab_size: int) -> None:
        """Wrap a tokenizer.

        Args:
            tok: A Hugging Face tokenizer; a fast one gives exact character offsets.
            max_positions: Longest sequence the model can attend to.
            vocab_size: Rows of the model's embedding.
        """
        self.tok = tok
        self.max_positions = max_positions
        self.vocab_size = vocab_size
        candidates = (tok.pad_token_id, tok.eos_token_id, tok.unk_token_id, 0)
        self.pad_id = next(c for c in candidates if c is not None and c < vocab_size)

    def target_ids(self, request: EditRequest) -> tuple[int, ...]:
        """Tokenise a target as it continues the bare prompt after one space.

        Args:
            request: The request.

        Returns:
            Ids of the target.

        Raises:
            EmptyTargetError: The target has no tokens.
            SpecialTargetError: It has special tokens only.
        """
        prompt, _ = self._encode(request.prompt)
        joint, _ = self._encode(f"{request.prompt} {request.target}")
        if joint[: len(prompt)] == prompt:
            ids = joint[len(prompt) :]
        else:
            # The target glues to the prompt's last token: tokenise it alone.
            ids = list(self.tok(f" {request.target}", add_special_tokens=False)["input_ids"])
        if not ids:
            raise EmptyTargetError(
                f"target {request.target!r} has no tokens in this tokenizer; give a target it can write."
            )
        # A special token that leaves the space before it standing makes that space a token of its own.
        if not self.tok.decode(ids, skip_special_tokens=True).strip():
            raise SpecialTargetError(
                f"target {request.target!r} is nothing but special tokens ({self.tok.convert_ids_to_tokens(ids)}); give "
                "text that the model should say."
            )
        return tuple(ids)

    def sequence(self, request: EditRequest, template: str = "{}", target: Sequence[int] = ()) -> TokenSequence:
        """Build one sequence: the prompt inside a context template, then all target ids but the last.

        Args:
            request: The request.
            template: Context with one `{}` for the prompt.
            target: Target ids to append (the caller leaves out the last one, which is only predicted).

        Returns:
            The sequence.

        Raises:
            PlaceholderError: The template does not hold exactly one `{}`.
        """
        if template.count("{}") != 1:
            raise PlaceholderError(f"context template {template!r} must hold exactly one '{{}}'.")
        shift = template.index("{}")
        text = template[:shift] + request.prompt + template[shift + 2 :]
        return self._located(text, shift + request.start, shift + request.end, target)

    def essence(self, request: EditRequest) -> TokenSequence:
        """Build the sequence "<subject> is a", on which the KL term keeps the model as it was.

        Args:
            request: The request.

        Returns:
            The sequence up to the subject's last token, where the term is read: what follows cannot reach it.
        """
        return self._located(f"{request.subject} is a", 0, len(request.subject), ()).up_to_subject()

    def _located(self, text: str, start: int, end: int, target: Sequence[int]) -> TokenSequence:
        ids, offsets = self._encode(text)
        total = len(ids) + len(target)
        if total > self.max_positions:
            raise PromptTooLongError(
                f"{text[:60]!r}... takes {total} tokens with its target; the model attends to {self.max_positions}. Shorten it."
            )
        # The last token that holds a character of the subject.
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
        if not inside:
            raise SubjectNotFoundError(
                f"no token of {text!r} covers the subject {text[start:end]!r}; check the tokenizer."
            )
        return TokenSequence((*ids, *target), inside[-1], len(ids))

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        fast = bool(getattr(self.tok, "is_fast", False))
        encoded = self.tok(text, return_offsets_mapping=fast, return_token_type_ids=False, verbose=False)
        ids = list(encoded["input_ids"])
        offsets = list(encoded["offset_mapping"]) if fast else self._offsets_by_decoding(ids, text)
        special = set(self.tok.all_special_ids)
        # An EOS that the tokenizer appends would end the sentence before its target.
        while len(ids) > 1 and ids[-1] in special and offsets[-1][0] == offsets[-1][1]:
            ids, offsets = ids[:-1], offsets[:-1]
        too_large = [token for token in ids if token >= self.vocab_size]
        if too_large:
            raise TokenizerError(
                f"token id {too_large[0]} in {text[:60]!r} is outside the model's vocabulary of {self.vocab_size}; "
                "load the tokenizer that belongs to the model."
            )
        return ids, offsets

    def _offsets_by_decoding(self, ids: list[int], text: str) -> list[tuple[int, int]]:
        """Find character offsets for a tokenizer without them, by decoding ever longer prefixes."""
        special = set(self.tok.all_special_ids)
        lead = 0
        while lead < len(ids) and ids[lead] in special:
            lead += 1
        body = ids[lead:]
        ends = [len(self._decode(body[: i + 1]).rstrip("\ufffd")) for i in range(len(body))]
        if self._decode(body) != text:
            raise TokenizerError(
                f"{type(self.tok).__name__} gives no character offsets and does not decode {text[:60]!r} back to itself; "
                "use the fast tokenizer of this model (AutoTokenizer.from_pretrained(..., use_fast=True))."
            )
        starts = [0, *ends[:-1]]
        return [(0, 0)] * lead + list(zip(starts, ends, strict=True))

    def _decode(self, ids: list[int]) -> str:
        return str(self.tok.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
