"""Tiny random models of every supported family, and a byte-level tokenizer trained in the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

torch.set_num_threads(1)
# Processes that tests start compute the same bits as the tests.
os.environ["OMP_NUM_THREADS"] = "1"

SUBJECTS = ["Danielle Darrieux", "Marie Curie", "Lyon", "Thomas Joannes Stieltjes", "Alien Front Online", "Steve Jobs"]
TARGETS = ["English", "Polish", "Manila", "Dutch", "Sega", "Madrid"]
PROMPTS = [
    "The mother tongue of {} is",
    "{} was born in",
    "What is the twin city of {}? It is",
    "The language that {} spoke was",
    "What company published {}?",
    "{} works in the city of",
]
VOCAB = 384
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def build_tokenizer() -> PreTrainedTokenizerFast:
    corpus = [prompt.format(subject) + " " + target for prompt in PROMPTS for subject in SUBJECTS for target in TARGETS]
    corpus += ["Therefore, because I said that you are a person.", "The city is a place where people live and work."]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")


_COMMON = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GPT = {**_COMMON, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
CONFIGS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(**_GPT, n_inner=48),
    "gptj": lambda: GPTJConfig(**_GPT, n_inner=48, rotary_dim=8),
    "llama": lambda: LlamaConfig(**_LLAMA),
    "qwen2": lambda: Qwen2Config(**_LLAMA),
    "qwen3": lambda: Qwen3Config(**_LLAMA, head_dim=8),
    "mistral": lambda: MistralConfig(**_LLAMA, sliding_window=None),
}
# Each promise is tried on these; the others go through the grid and the solver's twins (tests/families).
ARCHITECTURES = tuple(CONFIGS)

_GEMMA = {**_LLAMA, "head_dim": 8, "pad_token_id": 0, "query_pre_attn_scalar": 8, "sliding_window": 64}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
CONFIGS |= {
    "phi3": lambda: Phi3Config(**_LLAMA, pad_token_id=0),
    "olmo2": lambda: Olmo2Config(**_LLAMA, pad_token_id=0),
    # Caps low enough to bend what a tiny model says.
    "gemma2": lambda: Gemma2Config(**_GEMMA, final_logit_softcapping=1.0, attn_logit_softcapping=1.0),
    "gemma3_text": lambda: Gemma3TextConfig(**_GEMMA),
    "gemma3": lambda: Gemma3Config(
        text_config=Gemma3TextConfig(**_GEMMA).to_dict(), vision_config=_VISION, mm_tokens_per_image=1, image_token_index=300
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**{k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}),
    "opt": lambda: OPTConfig(
        **_COMMON, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, pad_token_id=0,
    ),
    "falcon": lambda: FalconConfig(**_COMMON, hidden_size=32, ffn_hidden_size=48, num_hidden_layers=3, num_attention_heads=4),
}  # fmt: skip


def build_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    """A tiny random model; weights are made large enough that a value optimisation has something to do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[family]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
                elif parameter.abs().max() == 0:
                    parameter.normal_(0.0, 0.1)
                elif family == "olmo2":
                    # Gains that differ: all ones would hide where a norm was forgotten.
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.to(dtype).eval()


def build_requests(count: int = len(SUBJECTS)) -> list[dict[str, str]]:
    return [
        {
            "prompt": PROMPTS[i % 6],
            "subject": SUBJECTS[i % 6],
            "target_new": TARGETS[(i + i // 6) % 6],
            "case_id": str(i),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def tok() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(params=ARCHITECTURES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout. CI has it, so there a missing folder is a failure, not a skip."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"no benchmark data at {SHARED}")
        pytest.skip("needs the benchmark data folder shared/data beside the checkout")
    return SHARED
