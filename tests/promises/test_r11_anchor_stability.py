"""R11: which pilots are drawn hardly matters: two seeds, 32 pilots on a tiny model (a thousand on a real one needs a GPU)."""

from __future__ import annotations

import pytest

from nas_plugin.anchor import Anchor
from tests.support import tiny_session


def anchor_of(family: str, pilots: int, seed: int) -> Anchor:
    numbers = {"nas_n_pilots": pilots, "nas_seed": seed, "v_num_grad_steps": 6, "clamp_norm_factor": 4.0, "v_lr": 0.5}
    anchor = tiny_session(family, "MEMIT", layers=[0], **numbers).foundation.anchor
    assert anchor is not None
    return anchor


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_draws_of_thirty_two_pilots_agree(family: str) -> None:
    first, second = (anchor_of(family, 32, seed) for seed in (0, 1))
    # Other pilots, or there would be nothing to compare.
    assert first.value != second.value and first.pilots == second.pilots == 32
    # The norms themselves differ by more than what is allowed to their mean.
    assert first.spread > 0
    assert abs(first.value / second.value - 1) <= 0.10
    assert abs(first.trimmed_mean / second.trimmed_mean - 1) <= 0.10
