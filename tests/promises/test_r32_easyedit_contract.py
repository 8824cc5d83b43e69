"""R32: every name that is registered keeps EasyEdit's calling convention, and `unregister` leaves EasyEdit as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nas_plugin import hparams as hyperparameters
from nas_plugin.easyedit.host import Host, load_host
from nas_plugin.easyedit.registry import NAS_NAMES, PLAIN_NAMES, register, unregister
from nas_plugin.errors import HostMissingError
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.support import TEXT

CONVENTION = ("model", "tok", "requests", "hparams", "copy", "return_orig_weights", "keep_original_weight")
NAMES = NAS_NAMES + PLAIN_NAMES


@pytest.fixture
def host(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    # EasyEdit writes ./logs.
    monkeypatch.chdir(tmp_path)
    try:
        found = load_host()
    except HostMissingError as error:
        pytest.skip(str(error))
    unregister()
    yield found
    unregister()


def hparams_of(name: str, folder: Any) -> Any:
    texts = folder / "texts.txt"
    texts.write_text("\n".join(TEXT), encoding="utf-8")
    cls = getattr(hyperparameters, f"NAS{name.removeprefix('NAS-')}Hparams")
    return cls(
        model_name="tiny", layers=[0], v_num_grad_steps=2, mom2_dataset=str(texts), mom2_n_samples=20, nas_pilots="builtin",
        nas_n_pilots=2, use_nas=name in NAS_NAMES,
    )  # fmt: skip


def surface(host: Host) -> list[Any]:
    editor, batch = dict(vars(host.BaseEditor)), dict(vars(host.BatchEditor))
    return [list(host.ALG_DICT.items()), editor, batch, {k: v for k, v in vars(host.module).items() if k[:2] != "__"}]


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_name_keeps_the_convention(host: Host, name: str, tmp_path: Any) -> None:
    register()
    apply = host.ALG_DICT[name]
    given = inspect.signature(apply).parameters
    assert tuple(given)[: len(CONVENTION)] == CONVENTION
    assert [parameter.kind for parameter in given.values()][len(CONVENTION) :] == [inspect.Parameter.VAR_KEYWORD]

    model, tok, requests = build_model("gpt2"), build_tokenizer(), build_requests(2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    edited, original = apply(
        model, tok, requests, hparams_of(name, tmp_path), copy=False, return_orig_weights=True,
        keep_original_weight=True, train_ds=None, test_generation=False,
    )  # fmt: skip
    assert edited is model and requests == build_requests(2)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == set(original) == {"transformer.h.0.mlp.c_proj.weight"}
    assert all(torch.equal(value, before[key]) for key, value in original.items())

    fresh = build_model("gpt2")
    copied, _ = apply(fresh, tok, requests, hparams_of(name, tmp_path), copy=True)
    assert copied is not fresh and all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_unregistering_restores_everything(host: Host) -> None:
    before = surface(host)
    register()
    assert surface(host) != before and set(NAMES) <= set(host.ALG_DICT)
    unregister()
    assert surface(host) == before
