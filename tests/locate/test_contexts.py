"""Context templates: seeded, sampled by the unedited model, without side effects."""

from __future__ import annotations

import torch

from nas_plugin.locate.contexts import ContextTemplates, generate_contexts
from nas_plugin.model.editable import EditableModel
from tests.conftest import build_model, build_tokenizer
from tests.support import tiny_hparams


def test_templates_are_five_seeded_and_leave_the_rng_alone(family: str) -> None:
    em, tok = EditableModel(build_model(family), tiny_hparams("MEMIT")), build_tokenizer()
    state = torch.get_rng_state()
    first, again, other = (generate_contexts(em, tok, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert first == again and first.digest != other.digest
    assert first.groups[0] == ("{}",) and len(first.groups[1]) == 5
    assert [text.split(" ")[0][:1] for text in first.groups[1]] == ["T", "T", "B", "I", "Y"]
    assert all(text.endswith(". {}") and text.count("{") == 1 for text in first.groups[1])


def test_weights_are_half_bare_half_generated() -> None:
    contexts = ContextTemplates((("{}",), ("a {}", "b {}")))
    assert contexts.weights == (0.5, 0.25, 0.25)
    assert ContextTemplates.bare().weights == (1.0,)
