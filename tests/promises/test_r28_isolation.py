"""R28: sessions share nothing: editing with several in turn gives what each gives alone, bit for bit."""

from __future__ import annotations

import pytest
import torch

from nas_plugin.session import EditSession
from tests.conftest import build_requests, build_tokenizer
from tests.support import METHOD_NAMES, all_equal, edited_matrices, tiny_session

STEPS = 4


def requests_of(number: int) -> list[dict[str, str]]:
    """Other facts, in another order, for each session."""
    return build_requests(12)[number : number + STEPS][:: -1 if number % 2 else 1]


def alone(method: str, seed: int, number: int) -> tuple[list[torch.Tensor], float]:
    session = tiny_session("gpt2", method, seed=seed)
    for request in requests_of(number):
        session.edit(request)
    return edited_matrices(session), session.foundation.anchor.value


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_two_sessions_of_one_method_in_turn(method: str) -> None:
    wanted = [alone(method, seed, seed) for seed in (0, 1)]
    tok = build_tokenizer()
    pair = [tiny_session("gpt2", method, seed=seed, tok=tok) for seed in (0, 1)]
    for step in range(STEPS):
        for number, session in enumerate(pair):
            session.edit(requests_of(number)[step])
    for session, (matrices, anchor) in zip(pair, wanted, strict=True):
        assert all_equal(edited_matrices(session), matrices) and session.foundation.anchor.value == anchor
    assert not all_equal(wanted[0][0], wanted[1][0])


def test_sessions_of_all_methods_in_turn_with_rollbacks_between() -> None:
    wanted = [alone(method, 0, number)[0] for number, method in enumerate(METHOD_NAMES)]
    sessions: list[EditSession] = [tiny_session("gpt2", method) for method in METHOD_NAMES]
    for step in range(STEPS):
        for number, session in enumerate(sessions):
            session.edit(requests_of(number)[step])
        taken_back = sessions[step % len(sessions)]
        taken_back.rollback()
        taken_back.edit(requests_of(step % len(sessions))[step])
    for session, matrices in zip(sessions, wanted, strict=True):
        assert all_equal(edited_matrices(session), matrices)
