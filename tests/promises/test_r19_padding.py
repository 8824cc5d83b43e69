"""R19: how the tokenizer pads, or whether it can, changes no result, and the tokenizer is left exactly as it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import build_requests, build_tokenizer
from tests.support import METHOD_NAMES, edited_matrices, tiny_session


def no_pad_token(tok: Any) -> None:
    tok.pad_token = None


def left_padding(tok: Any) -> None:
    tok.padding_side = "left"


def neither(tok: Any) -> None:
    no_pad_token(tok), left_padding(tok)


def settings(tok: Any) -> dict[str, Any]:
    return {
        "sides": (tok.padding_side, tok.truncation_side),
        "pad": tok.pad_token,
        "special": dict(tok.special_tokens_map),
        "init": dict(tok.init_kwargs),
        "length": len(tok),
        "backend": tok.backend_tokenizer.to_str(),
        "own": {key: repr(value) for key, value in vars(tok).items() if not key.startswith("_tokenizer")},
    }


@pytest.mark.parametrize(
    ("method", "setting"), list(zip(METHOD_NAMES, [no_pad_token, left_padding, neither] * 2, strict=True))
)
def test_same_weights_as_right_padded(method: str, setting: Callable[[Any], None]) -> None:
    reference, tok = tiny_session("llama", method), build_tokenizer()
    setting(tok)
    before = settings(tok)
    session = tiny_session("llama", method, tok=tok)
    for each in (reference, session):
        each.edit(build_requests(1))
        each.edit(build_requests(5)[1:])
    for left, right in zip(edited_matrices(session), edited_matrices(reference), strict=True):
        assert float((left - right).abs().max()) <= 1e-5
    assert session.foundation.anchor.value == pytest.approx(reference.foundation.anchor.value, rel=1e-5)
    assert settings(tok) == before


def test_every_family(family: str) -> None:
    reference, tok = tiny_session(family, "MEMIT", use_nas=False), build_tokenizer()
    neither(tok)
    session = tiny_session(family, "MEMIT", tok=tok, use_nas=False)
    for each in (reference, session):
        each.edit(build_requests(4))
    for left, right in zip(edited_matrices(session), edited_matrices(reference), strict=True):
        assert float((left - right).abs().max()) <= 1e-5
