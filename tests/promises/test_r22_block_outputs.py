"""R22: whether a decoder block returns its hidden states or a tuple that begins with them changes nothing.

Families and releases of transformers differ in it. Each tiny model is run as it is and with every block returning the other form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nas_plugin.model import ARCHITECTURES
from nas_plugin.model.trace import hidden_of, with_hidden
from tests.conftest import build_requests
from tests.support import edited_matrices, tiny_session


def wrapped(_module: nn.Module, _args: Any, output: Any) -> Any:
    return output if isinstance(output, tuple) else (output, "something else")


def unwrapped(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The next module takes the tensor, as the model's own loop would hand it on."""
    first = args[0] if args and isinstance(args[0], tuple) else None
    return (args if first is None else (first[0], *args[1:])), kwargs


def return_tuples(model: nn.Module, block: str, final_norm: str) -> None:
    blocks = [model.get_submodule(block.format(layer)) for layer in range(3)]
    for module in blocks:
        module.register_forward_hook(wrapped)
    for module in (*blocks[1:], model.get_submodule(final_norm)):
        module.register_forward_pre_hook(unwrapped, with_kwargs=True)


def test_both_forms_give_the_same_weights(family: str) -> None:
    row = ARCHITECTURES[family]
    plain, tuples = (tiny_session(family, "AlphaEdit") for _ in range(2))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = tuples.model(ids).logits
        return_tuples(tuples.model, row.block, row.final_norm)
        assert torch.equal(tuples.model(ids).logits, before)
    for session in (plain, tuples):
        session.edit(build_requests(1))
        session.edit(build_requests(4)[1:])
    for left, right in zip(edited_matrices(plain), edited_matrices(tuples), strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-6)
    assert tuples.foundation.anchor.value == pytest.approx(plain.foundation.anchor.value, rel=1e-6)


@pytest.mark.parametrize("form", [lambda h: h, lambda h: (h,), lambda h: (h, "more"), lambda h: [h, "more"]])
def test_hidden_states_are_read_and_replaced_in_the_form_they_came_in(form: Callable[[Any], Any]) -> None:
    old, new = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert hidden_of(form(old)) is old
    replaced = with_hidden(form(old), new)
    assert type(replaced) is type(form(old)) and hidden_of(replaced) is new
    assert replaced is new or list(replaced[1:]) == list(form(old)[1:])
