"""The fast form of the corrected forward and the plain one give the same numbers; the model is left as it was found."""

from __future__ import annotations

import itertools

import pytest
import torch

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.resumed import share_prefixes
from nas_plugin.request import as_requests
from nas_plugin.solve import suffix
from nas_plugin.solve.forward import FullForward, can_reuse_prefix, clean_rows
from nas_plugin.solve.passes import SuffixForward, groups_of_like_length
from nas_plugin.solve.rows import TargetRows, row_texts
from tests.conftest import build_requests
from tests.support import tiny_session, without_float32_inside

SHARING = {"shared": 1, "not shared": 1 << 30}


def both_forms(family: str, monkeypatch: pytest.MonkeyPatch, layers: list[int], worth: int = 1):
    session = tiny_session(family, "MEMIT", dtype=torch.float64, use_nas=False, layers=layers)
    em = session.em
    without_float32_inside(em.model, monkeypatch)
    texts = row_texts(as_requests(build_requests(5)), session.locator, session.foundation.contexts)
    with torch.no_grad():
        shared = share_prefixes(em, texts.sequences, texts.generated, 0, worth)
        forms = [clean_rows(em, texts.sequences, texts.generated, prefix, 0) for prefix in (shared, None)]
    return em, texts, shared, *forms


@pytest.mark.parametrize("worth", SHARING.values(), ids=SHARING)
@pytest.mark.parametrize("cost", [0, 1 << 20], ids=["many groups", "one group"])
@pytest.mark.parametrize("layers", [[0], [1]])
def test_forms_agree_with_gradients_on_subsets_and_again(
    family: str, layers: list[int], cost: int, worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    em, texts, shared, fast, plain = both_forms(family, monkeypatch, layers, worth)
    monkeypatch.setattr(suffix, "pass_cost", lambda _em: cost)
    assert (shared.width > 0) == (worth == 1)
    rows = TargetRows.of(texts, torch.device("cpu"))
    for what in ("hidden", "value", "keys"):
        assert torch.allclose(getattr(fast, what), getattr(plain, what), rtol=1e-11, atol=1e-11)
    for subset in (torch.arange(5), torch.tensor([1, 3])):
        view, numbers = rows.take(subset)
        bound = [form.corrected(numbers, view.places) for form in (fast, plain)]
        assert isinstance(bound[0], SuffixForward) and isinstance(bound[1], FullForward)
        assert (len(bound[0].passes) > 1) == (cost == 0)
        # Later calls do not go through the model's own forward any more.
        for scale in (1.0, 0.5):
            shift = torch.linspace(-scale, scale, len(numbers) * 32, dtype=torch.float64).reshape(-1, 32)
            shift.requires_grad_(True)
            results = []
            for form in bound:
                states = form.states(shift)
                (gradient,) = torch.autograd.grad((states**2).sum(), shift)
                results.append((states.detach(), gradient))
            for one, other in zip(*results, strict=True):
                assert torch.allclose(one, other, rtol=1e-10, atol=1e-10 * float(other.abs().max()))
    assert not any("forward" in block.__dict__ or block._forward_pre_hooks for block in em.blocks_below_loss)


def test_subjects_at_the_front_need_no_row_of_their_own_for_what_they_are() -> None:
    session = tiny_session("gpt2", "MEMIT", use_nas=False)
    front = {"prompt": "{} is located in", "subject": "Rome", "target_new": "Asia"}
    inside = {"prompt": "The city of {} is in", "subject": "Rome", "target_new": "Asia"}
    texts = row_texts(as_requests([front, inside]), session.locator, ContextTemplates.bare())
    assert texts.column == (0, 0, 1) and texts.request == (0, 1, 1)
    rows = TargetRows.of(texts, torch.device("cpu"))
    assert rows.kl_row.tolist() == [0, 2] and rows.bare_row.tolist() == [0, 1]


def test_prefixes_are_what_rows_have_in_common_before_any_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    em, texts, shared, *_ = both_forms("llama", monkeypatch, [1])
    for column, length in enumerate(shared.lengths):
        mine = [row for row, c in zip(texts.sequences, texts.generated, strict=True) if c == column]
        if column == 0:
            assert not mine and length == 0
            continue
        assert length <= min(row.lookup for row in mine)
        assert len({row.ids[:length] for row in mine}) == 1
        longer = {row.ids[: length + 1] for row in mine}
        assert len(longer) > 1 or length == min(row.lookup for row in mine)
    assert max(shared.lengths) > 1


def test_groups_cost_least() -> None:
    lengths, cost = [3, 9, 1, 3, 1, 8], 4

    def price(groups: list[list[int]]) -> int:
        return sum(cost + len(group) * max(lengths[row] for row in group) for group in groups)

    order = sorted(range(6), key=lambda row: lengths[row])
    every = [
        [order[a:b] for a, b in zip((0, *cuts), (*cuts, 6), strict=True)]
        for size in range(6)
        for cuts in itertools.combinations(range(1, 6), size)
    ]
    found = groups_of_like_length(lengths, cost)
    assert sorted(row for group in found for row in group) == list(range(6))
    assert price(found) == min(map(price, every))
    assert groups_of_like_length(lengths, 1000) == [list(range(6))]


def test_unknown_attention_and_windows_take_the_plain_form() -> None:
    em = tiny_session("mistral", "MEMIT", use_nas=False).em
    em.config.sliding_window = 8
    assert can_reuse_prefix(em, 7) and not can_reuse_prefix(em, 8)
    em.config.sliding_window = None
    em.config._attn_implementation = "flash_attention_2"
    assert not can_reuse_prefix(em, 7)
