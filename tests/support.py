"""What many tests need: hyperparameters for tiny models, statistics, sessions."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import pytest
import torch

from nas_plugin import hparams as hparams_module
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.stored import moments_for
from nas_plugin.session import EditSession
from tests.conftest import PROMPTS, SUBJECTS, TARGETS, build_model, build_tokenizer

TEXT = [prompt.format(subject) + " " + target for prompt in PROMPTS for subject in SUBJECTS for target in TARGETS]
TEMPLATES = (("{}",), ("The cat sat. {}", "Therefore we go. {}", "Because of it. {}", "I am here. {}", "You know. {}"))
FLAT = [template for group in TEMPLATES for template in group]
METHOD_NAMES = ("MEMIT", "PRUNE", "RECT", "AlphaEdit", "ENCORE", "LyapLock")


def tiny_hparams(method: str, **overrides: Any) -> Any:
    numbers: dict[str, Any] = {
        "model_name": "tiny",
        "layers": [0, 1],
        "v_num_grad_steps": 4,
        "v_lr": 0.1,
        "clamp_norm_factor": 0.75,
        "mom2_update_weight": 10.0,
        "mom2_dataset": "given",
        "nas_pilots": "builtin",
        "nas_n_pilots": 4,
    }
    if method == "AlphaEdit":
        # A tiny random layer has no true null space: free the weakest directions of its spectrum.
        numbers |= {"nullspace_threshold": 0.5, "L2": 1.0}
    return getattr(hparams_module, f"NAS{method}Hparams")(**(numbers | overrides))


@cache
def moments(family: str, layers: tuple[int, ...], dtype: torch.dtype, seed: int):
    model, tok = build_model(family, dtype, seed), build_tokenizer()
    session = EditSession(model, tok, tiny_hparams("MEMIT", layers=list(layers)), progress=False)
    hparams = tiny_hparams("MEMIT", layers=list(layers), mom2_dtype="float64" if dtype == torch.float64 else "float32")
    return moments_for(session.em, session.locator, hparams, session.fingerprint, texts=TEXT, progress=False)


def tiny_session(
    family: str, method: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, tok: Any = None, **overrides: Any
) -> EditSession:
    hparams = tiny_hparams(method, **overrides)
    return EditSession(
        build_model(family, dtype, seed),
        tok if tok is not None else build_tokenizer(),
        hparams,
        contexts=ContextTemplates(TEMPLATES),
        moments=moments(family, hparams.layers, dtype, seed),
        progress=False,
    )


def edited_matrices(session: EditSession) -> list[torch.Tensor]:
    return [session.em.matrix(layer).clone() for layer in session.em.layers]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


class _Float64Only:
    """`torch`, except that float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def without_float32_inside(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a float64 model compute in float64 only.

    Several families run norms, rotary tables or attention in float32 whatever the model's dtype; what two forms of the same
    computation differ by is then float32's rounding, and says nothing about the forms.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for name in {type(module).__module__ for module in model.modules()}:
        if name.startswith("transformers.models."):
            monkeypatch.setattr(sys.modules[name], "torch", _Float64Only())
