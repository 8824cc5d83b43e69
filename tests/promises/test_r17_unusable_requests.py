"""R17: a request that says nothing, or more than the model can read, is refused by name.

Empty, blank or special-token-only targets, empty prompts and subjects, and prompts longer than the context each have an error of
their own. The model is not called and no weight changes, even if the other requests of the step are fine.
"""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast

from nas_plugin import errors
from tests.conftest import build_requests, build_tokenizer
from tests.promises.watching import counted_calls, digests
from tests.support import tiny_session

FINE = {"prompt": "{} was born in", "subject": "Lyon", "target_new": "Madrid"}
LONG = "a very long story about " * 60
UNUSABLE: list[tuple[str, dict[str, Any], type[errors.NasPluginError]]] = [
    ("empty target", {"target_new": ""}, errors.EmptyTargetError),
    ("blank target", {"target_new": " \t\n"}, errors.EmptyTargetError),
    ("empty prompt", {"prompt": ""}, errors.EmptyPromptError),
    ("blank prompt", {"prompt": "  \n"}, errors.EmptyPromptError),
    ("empty subject", {"subject": ""}, errors.EmptySubjectError),
    ("blank subject", {"subject": "   "}, errors.EmptySubjectError),
    ("long prompt", {"prompt": LONG + "{} was born in"}, errors.PromptTooLongError),
    ("long target", {"target_new": LONG}, errors.PromptTooLongError),
]


@pytest.mark.parametrize("place", ["alone", "last of a batch"])
@pytest.mark.parametrize(
    ("change", "error"), [case[1:] for case in UNUSABLE], ids=[case[0].replace(" ", "-") for case in UNUSABLE]
)
def test_refused_by_name_without_a_trace(change: dict[str, Any], error: type, place: str) -> None:
    session = tiny_session("gpt2", "AlphaEdit", use_nas=False)
    session.prepare()
    before = digests(session.model)
    bad = {**FINE, **change}
    with counted_calls(session.model) as calls, pytest.raises(error) as caught:
        session.edit(bad if place == "alone" else [*build_requests(3), bad])
    assert type(caught.value) is error
    assert calls == [] and digests(session.model) == before and session.steps == 0
    with counted_calls(session.model) as calls:
        assert session.edit(FINE).step == 1
    assert calls and digests(session.model) != before


def test_a_request_is_refused_before_anything_is_measured() -> None:
    session = tiny_session("llama", "MEMIT")
    with counted_calls(session.model) as calls, pytest.raises(errors.PromptTooLongError, match="128"):
        session.edit({**FINE, "prompt": LONG + "{} was born in"})
    assert calls == [] and session.anchor is None


def beginning_tokenizer(lstrip: bool) -> PreTrainedTokenizerFast:
    """A tokenizer that puts its special token before every text, as Llama's do."""
    tok = build_tokenizer()
    tok.add_special_tokens({"eos_token": AddedToken("<eos>", lstrip=lstrip, special=True)})
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    return tok


@pytest.mark.parametrize("target", ["<eos>", "<eos><eos>"])
# GPT-2's and Llama 3's special tokens leave the space before them standing: " <eos>" is a space and an <eos>.
@pytest.mark.parametrize("lstrip", [True, False])
def test_nothing_but_special_tokens_is_no_target(target: str, lstrip: bool) -> None:
    session = tiny_session("gpt2", "MEMIT", tok=beginning_tokenizer(lstrip), use_nas=False)
    session.prepare()
    before = digests(session.model)
    with counted_calls(session.model) as calls, pytest.raises(errors.SpecialTargetError):
        session.edit({**FINE, "target_new": target})
    assert calls == [] and digests(session.model) == before
