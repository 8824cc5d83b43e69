"""The memory formula against the allocator, on models with the proportions of large ones; and what it says of Llama 3 8B."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from nas_plugin import hparams as all_hparams
from nas_plugin.editors import make_editors
from nas_plugin.errors import UnknownLayerError
from nas_plugin.hparams import NASMEMITHparams
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.stored import moments_for
from nas_plugin.memory import MemoryEstimate, estimate_memory
from nas_plugin.request import as_requests
from nas_plugin.session import EditSession
from tests.conftest import build_tokenizer
from tests.measured_memory import live_bytes, peak_above
from tests.promises.keeping import stream
from tests.support import METHOD_NAMES, TEMPLATES, tiny_hparams

LAYERS, BATCH = (2, 3, 4), 4
_COMMON = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(
        **_COMMON, hidden_size=192, intermediate_size=672, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
        max_position_embeddings=512,
    ),
    "gpt2": lambda: GPT2Config(**_COMMON, n_embd=192, n_layer=8, n_head=8, n_positions=512),
}  # fmt: skip
LLAMA_3_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=8192,
)  # fmt: skip


def session_of(family: str, method: str, dtype: str) -> EditSession:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]()).to(getattr(torch, dtype)).eval()
    numbers = {"layers": list(LAYERS), "v_num_grad_steps": 2, "torch_dtype": dtype, "use_nas": False}
    # A queue that moves, and a view that is always taken: the most that these methods need.
    more: dict[str, Any] = {"LyapLock": {"lyap_alpha": 0.05}, "PRUNE": {"prune_double_add": True}}.get(method, {})
    return EditSession(
        model, build_tokenizer(), tiny_hparams(method, **numbers, **more), contexts=TEMPLATES, progress=False
    )


def estimate_for(session: EditSession) -> MemoryEstimate:
    return estimate_memory(session.model.config, session.hparams, batch_size=BATCH, edits=session.history.steps)


def assert_close(estimated: int, measured: int) -> None:
    assert abs(estimated - measured) <= 0.1 * measured, (
        f"{estimated / 1e6:.1f} MB estimated, {measured / 1e6:.1f} measured"
    )


@pytest.mark.parametrize(("family", "dtype"), [("llama", "bfloat16"), ("gpt2", "float32")])
def test_statistics(family: str, dtype: str, tmp_path: Path) -> None:
    others = live_bytes()  # of tests before this one in the process
    session, letters = session_of(family, "MEMIT", dtype), random.Random(0)
    # Short documents, so that a pass over them holds hardly more than it may and little padding.
    texts = ["".join(letters.choice("abcdefghij klmnop,.") for _ in range(60)) for _ in range(100)]
    held = live_bytes() - others

    def collect() -> SecondMoments:
        return moments_for(
            session.em, session.locator, session.hparams, session.fingerprint, texts=texts, progress=False
        )

    above, _ = peak_above(collect, tmp_path)
    assert_close(estimate_for(session).phase("statistics").bytes, held + above)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_an_edit(method: str, tmp_path: Path) -> None:
    check_edit("llama", method, "bfloat16", tmp_path)


def test_an_edit_of_another_build_and_type(tmp_path: Path) -> None:
    check_edit("gpt2", "MEMIT", "float32", tmp_path)


def check_edit(family: str, method: str, dtype: str, folder: Path) -> None:
    others = live_bytes()
    session = session_of(family, method, dtype)
    width = session.em.matrix(LAYERS[0]).shape[1]
    generator = torch.Generator().manual_seed(0)
    # Half of the directions are hardly used, so that AlphaEdit has a null space.
    spectrum = torch.cat([torch.full((width // 2,), 1e-4), torch.full((width - width // 2,), 1.0)])
    moments = {
        layer: (basis := torch.linalg.qr(torch.randn(width, width, generator=generator))[0]) * spectrum @ basis.T
        for layer in LAYERS
    }
    del basis
    session.given = replace(session.given, moments=SecondMoments(moments))
    held, host = live_bytes() - others, estimate_for(session).host
    above, _ = peak_above(lambda: make_editors(session.hparams, moments, session.weights.base, None), folder)
    # On the CPU priors that are carried come on top; those of all layers but the last when the last is made.
    assert_close(estimate_for(session).phase("prior").bytes + host * 2 // 3, held + above)
    del _
    session.prepare()
    requests = list(stream(6 + BATCH))
    for number in range(0, 6, 2):
        session.edit(requests[number : number + 2])
    todo, solver = requests[6:], session.solver()
    held = live_bytes() - others
    above, solved = peak_above(lambda: solver.solve(as_requests(todo), keep_rows=True), folder)
    assert_close(estimate_for(session).phase("solve").bytes + host, held + above)
    solver.solve = lambda *_, **__: solved
    held = live_bytes() - others
    above, _ = peak_above(lambda: session.edit(todo), folder)
    assert_close(estimate_for(session).phase("write").bytes + host, held + above)


def test_the_formula_is_not_a_constant() -> None:
    """What must grow with a size does, by as much as it should."""
    plain = NASMEMITHparams.from_hparams("llama3-8b", torch_dtype="bfloat16")
    base = estimate_memory(LLAMA_3_8B, plain)
    assert base.phase("load").bytes == 2 * 8_030_261_248
    wide = estimate_memory(LLAMA_3_8B, replace(plain, torch_dtype="float32"))
    assert wide.phase("load").bytes == 2 * base.phase("load").bytes
    assert wide.phase("solve").parts["masters"] == base.phase("solve").parts["masters"] == 3 * 5 * 4 * 14336 * 4096
    few = estimate_memory(LLAMA_3_8B, replace(plain, layers=(4, 5)))
    assert few.phase("solve").parts["gains"] == 2 * 8 * 14336**2
    many = estimate_memory(LLAMA_3_8B, plain, batch_size=16)
    assert many.phase("solve").parts["activations"] == 16 * base.phase("solve").parts["activations"]
    assert base.peak == base.largest.bytes == max(phase.bytes for phase in base.phases)


def test_the_table_of_the_documentation() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    for method in METHOD_NAMES:
        row = next(line for line in text.splitlines() if line.startswith(f"| {method} | 16.1"))
        hparams = getattr(all_hparams, f"NAS{method}Hparams").from_hparams("llama3-8b", torch_dtype="bfloat16")
        estimate = estimate_memory(LLAMA_3_8B, hparams, edits=1000)
        figures = [*(phase.bytes for phase in estimate.phases), estimate.host]
        assert [cell.strip() for cell in row.split("|")[2:-1]] == [f"{figure / 1e9:.1f}" for figure in figures]


def test_nothing_is_loaded() -> None:
    held = live_bytes()
    estimate_memory(LLAMA_3_8B, NASMEMITHparams.from_hparams("llama3-8b"))
    assert live_bytes() - held < 1 << 20


def test_a_module_that_does_not_exist_is_refused() -> None:
    hparams = NASMEMITHparams.from_hparams("llama3-8b")
    hparams.rewrite_module_tmp = "model.layers.{}.mlp.down"
    with pytest.raises(UnknownLayerError, match="mlp.down"):
        estimate_memory(LLAMA_3_8B, hparams)
