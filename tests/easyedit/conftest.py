"""Fixtures for the tests of the EasyEdit room.

One run has one host: the checkout that EASYEDIT_HOME names, else the installed wheel. The wheel sends every tensor to a GPU by
hard-coded device names; `host_on_cpu` redirects those, so tests that use it are contract tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_redirect import accelerators_are_cpu
from easyedit_support import REQUESTS, TEXTS, make_model, make_tokenizer

from nas_plugin import hparams as hyperparameters
from nas_plugin.easyedit.host import Host, load_host
from nas_plugin.easyedit.preloaded import Preloaded
from nas_plugin.easyedit.registry import register, unregister
from nas_plugin.errors import HostMissingError


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host writes `./logs`."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def loaded_host() -> Host:
    """The host of this run."""
    try:
        return load_host()
    except HostMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def host(loaded_host: Host) -> Iterator[Host]:
    """The host with the editors registered, and as it was afterwards."""
    register()
    yield loaded_host
    unregister()


@pytest.fixture
def host_on_cpu(host: Host) -> Iterator[Host]:
    """The host, able to run without a GPU."""
    with accelerators_are_cpu(host.is_wheel):
        yield host


@pytest.fixture(params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest) -> Preloaded:
    """A tiny model and its tokenizer, of both weight layouts."""
    return Preloaded(make_model(request.param), make_tokenizer(), name=f"tiny-{request.param}")


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Any]:
    """Makes hyperparameters that a tiny model can be edited with in a moment."""
    texts, pilots = tmp_path / "texts.json", tmp_path / "pilots.json"
    texts.write_text(json.dumps(TEXTS), encoding="utf-8")
    pilots.write_text(json.dumps([{**r, "target_new": "Bern"} for r in REQUESTS]), encoding="utf-8")
    small = {
        "layers": (0,),
        "v_num_grad_steps": 2,
        "mom2_dataset": str(texts),
        "mom2_n_samples": 200,
        "nas_pilots": str(pilots),
        "nas_n_pilots": 2,
    }

    def make(method: str = "AlphaEdit", model_name: Any = None, **values: Any) -> Any:
        cls = getattr(hyperparameters, f"NAS{method}Hparams")
        return cls(**{**small, "model_name": model_name if model_name is not None else "nas-demo", **values})

    return make
