"""Positions by character offsets: BOS, padding side, glued subjects and slow tokenizers make no difference."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from nas_plugin.errors import PlaceholderError, PromptTooLongError, TokenizerError
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator
from nas_plugin.request import EditRequest
from tests.conftest import VOCAB, build_tokenizer


def locator(tok=None, length: int = 128, vocab: int = VOCAB) -> Locator:
    return Locator(tok if tok is not None else build_tokenizer(), length, vocab)


def with_special_tokens(template: str):
    tok = build_tokenizer()
    tok.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<eos>", 0)])
    return tok


def text_up_to_lookup(where: Locator, sequence) -> str:
    return where.tok.decode(sequence.ids[: sequence.lookup + 1])


@pytest.mark.parametrize("template", ["{}", "Well, I said. {}"])
def test_lookup_is_the_subjects_last_token(template: str) -> None:
    where = locator()
    request = EditRequest("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English")
    sequence = where.sequence(request, template)
    assert text_up_to_lookup(where, sequence) == template.replace("{}", "The mother tongue of Danielle Darrieux")


def test_subject_glued_to_what_follows() -> None:
    where = locator()
    sequence = where.sequence(EditRequest("Lyon's language is", "Lyon", "French"))
    assert "Lyon" in text_up_to_lookup(where, sequence)
    assert where.tok.decode(sequence.ids[: sequence.lookup]) != "Lyon"


def test_bos_shifts_everything_and_appended_eos_is_dropped() -> None:
    request = EditRequest("Marie Curie was born in", "Marie Curie", "Warsaw")
    plain, both = locator().sequence(request), locator(with_special_tokens("<eos> $A <eos>")).sequence(request)
    assert both.ids == (0, *plain.ids) and both.lookup == plain.lookup + 1
    assert locator(with_special_tokens("<eos> $A")).target_ids(request) == locator().target_ids(request)


def test_target_ids_are_appended_as_they_are() -> None:
    where = locator()
    request = EditRequest("Marie Curie was born in", "Marie Curie", "New Zealandia")
    target = where.target_ids(request)
    assert where.tok.decode(target) == " New Zealandia" and len(target) > 1
    sequence = where.sequence(request, "{}", target[:-1])
    assert sequence.ids[sequence.prompt_length :] == target[:-1]


def test_tokenizer_without_offsets_gives_the_same_positions() -> None:
    class Slow:
        is_fast = False

        def __init__(self, tok) -> None:
            self.tok = tok

        def __getattr__(self, name: str):
            return getattr(self.tok, name)

        def __call__(self, text: str, return_offsets_mapping: bool = False, **kwargs):
            return self.tok(text, **kwargs)

    slow = Slow(with_special_tokens("<eos> $A"))
    fast = locator(slow.tok)
    for prompt, subject in (("The language of Marie Curie is", "Marie Curie"), ("Lyon's Zürich ist", "Zürich")):
        request = EditRequest(prompt, subject, "Polish")
        assert locator(slow).sequence(request) == fast.sequence(request)


def test_unusable_sequences_are_named() -> None:
    request = EditRequest("Marie Curie was born in", "Marie Curie", "Warsaw")
    with pytest.raises(PromptTooLongError, match="attends to 5"):
        locator(length=5).sequence(request)
    with pytest.raises(TokenizerError, match="belongs to the model"):
        locator(vocab=4).sequence(request)
    with pytest.raises(PlaceholderError, match="exactly one"):
        locator().sequence(request, "no hole")
    with pytest.raises(PlaceholderError, match="bare"):
        ContextTemplates((("a {}",),))
    with pytest.raises(PlaceholderError, match="exactly one"):
        ContextTemplates((("{}",), ("a {} {}",)))
