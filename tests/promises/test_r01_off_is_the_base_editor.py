"""R1: with NAS switched off the package is the plain editor: nothing of NAS is left in the weights.

`use_nas: false` and the plain method name give the same bits, whatever the NAS settings say, and both are what a dense, naive
form of the editor computes, to rounding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nas_plugin.request import as_requests
from nas_plugin.session import EditSession
from tests.conftest import ARCHITECTURES, build_requests
from tests.support import (
    FLAT,
    METHOD_NAMES,
    all_equal,
    edited_matrices,
    moments,
    tiny_session,
    without_float32_inside,
)
from tests.twins.dense import DENSE
from tests.twins.naive import naive_step

HOSTS_OWN_NAMES = ("MEMIT", "AlphaEdit")
NONSENSE = {"nas_n_pilots": 9, "nas_seed": 5, "nas_skip_factor": 0.001, "nas_pilots": "no/such/file.json"}
STEPS = (build_requests(1), build_requests(5)[1:])


def edited(family: str, method: str, **overrides: Any) -> EditSession:
    session = tiny_session(family, method, **overrides)
    for step in STEPS:
        session.edit(step)
    return session


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_off_equals_the_plain_name_bit_for_bit(family: str, method: str) -> None:
    off = edited(family, method, use_nas=False)
    # EasyEdit has editors of two of the names: under these this package only answers with its prefix.
    name = f"NAS-{method}" if method in HOSTS_OWN_NAMES else method
    plain = edited(family, method, alg_name=name, **({"use_nas": False} if name != method else {}), **NONSENSE)
    assert plain.anchor is None and off.anchor is None and plain.hparams.use_nas is False
    assert all_equal(edited_matrices(off), edited_matrices(plain))


@pytest.mark.parametrize(
    ("family", "method"),
    [*zip(ARCHITECTURES, METHOD_NAMES, strict=True)],
)
def test_off_equals_the_dense_editor_to_rounding(family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session(family, method, dtype=torch.float64, use_nas=False, layers=[1])
    reference = tiny_session(family, method, dtype=torch.float64, use_nas=False, layers=[1])
    without_float32_inside(session.model, monkeypatch)
    base = session.em.matrix(1).clone()
    twin = DENSE[method](base, moments(family, (1,), torch.float64, 0).matrices[1], session.hparams)
    for step in STEPS:
        session.edit(step)
        reference.em.write(1, twin.w)  # PRUNE goes on from what it has not squashed
        naive_step(reference.model, reference.tok, as_requests(step), FLAT, session.hparams, {1: twin}, None)
    changed = twin.matrix() - base
    assert float(changed.norm()) > 1e-4 * float(base.norm())
    assert float((session.em.matrix(1) - base - changed).norm()) <= 1e-8 * float(changed.norm())


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_on_differs_from_off(method: str) -> None:
    """The tests above have teeth only if the switch does something."""
    assert not all_equal(
        edited_matrices(edited("llama", method)), edited_matrices(edited("llama", method, use_nas=False))
    )
