"""What the sections run on: random models of real shapes, a tokenizer, CounterFact-like requests, statistics.

Everything is generated from seeds; nothing is read or downloaded. Times depend on shapes and lengths, not on what the weights
know, so random ones do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from nas_plugin import hparams as hyperparameters
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.request import EditRequest

FAMILIES = ("gpt2", "llama")
D_MODEL = 768
D_FF = {"gpt2": 3072, "llama": 2048}
VOCAB = 32_000
# As long as what the released code lets a random model write: ten tokens that need a few more when read again.
CONTEXTS = ContextTemplates((
    ("{}",),
    (
        "The people who live near the old river in the north know it. {}",
        "Therefore the new company had to move its main office to the north. {}",
        "Because they could not find the old book in the city near them. {}",
        "I was born in a small town near the sea in the old north. {}",
        "You can see the first part of the old film here and in the city. {}",
    ),
))  # fmt: skip
_RELATIONS = (
    "{} is located in the country of", "The native language of {} is", "The headquarters of {} are in the city of",
    "The mother tongue of {} is", "{}, which was produced by the company of", "{} was created by the designer called",
    "{} is a native speaker of", "The original language of {} was", "In the country of {}, the language spoken is",
    "{} is a part of the continent of", "The person who is known as {}, a citizen of", "{} plays in the position of",
    "The official religion of {} is", "{} used to work in the city of", "{}, whose headquarters are in",
    "What is the twin city of {}? It is", "{} was originally developed and released by", "{}, in",
    "The capital of the region of {} is", "What does {} play? They play",
)  # fmt: skip
_REPHRASED = "Not long ago somebody asked about it again. {}"
_TARGETS = (
    "English", "French", "Antarctica", "New Zealand", "Sweden", "South Korea", "Honda", "Madrid", "Islam", "ice hockey",
    "Tokyo", "Los Angeles", "Boston", "Russian", "Microsoft Windows", "Vienna",
)  # fmt: skip
_SYLLABLES = (
    "an el or mar ven tol ris dan cu rie stel jo ban lor sen kat mir pol gre dov han bel ser nik ra tho mas ly on vik ter "
    "gal fen hol bri ast umb"
).split()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on generated text, small enough that names take about four tokens as they do for GPT-2."""
    words = _names(400, seed=1)
    text = [r.format(s) + " " + t for r in _RELATIONS for s, t in zip(words, _TARGETS * 25, strict=True)]
    # Everyday words often enough to become single tokens; names seldom enough not to.
    text += [line.format("") for line in (*CONTEXTS.flat, _REPHRASED, *_RELATIONS)] * 200 + [
        f" {t}" for t in _TARGETS
    ] * 200
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")


def random_model(family: str, seed: int = 0, layers: int = 12, d_model: int = D_MODEL, d_ff: int | None = None) -> Any:
    """Make a random model of a family's shape, in evaluation mode and with frozen parameters, as EasyEdit has it.

    Args:
        family: "gpt2" or "llama".
        seed: Of the weights.
        layers: Blocks.
        d_model: Width; one head per 64.
        d_ff: Width of the MLP; by default that of the family at `D_MODEL`.

    Returns:
        The model, float32.
    """
    heads, inner = max(1, d_model // 64), d_ff if d_ff is not None else D_FF[family]
    ids = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    config: Any
    if family == "gpt2":
        config = GPT2Config(n_embd=d_model, n_layer=layers, n_head=heads, n_inner=inner, n_positions=256, **ids)
    else:
        config = LlamaConfig(
            hidden_size=d_model,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 3),
            max_position_embeddings=256,
            **ids,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    # EasyEdit's AlphaEdit and its evaluator go by the name.
    model.config._name_or_path = f"random-{'gpt2-xl' if family == 'gpt2' else family}"
    return model.eval().requires_grad_(False)


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make requests as EasyEdit's users write them, with what its evaluator asks.

    Args:
        count: How many.
        seed: Of names and pairings.

    Returns:
        Records with `prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality`, `portability`.
    """
    rng, made = random.Random(seed), []
    for number, subject in enumerate(_names(count, seed=1000 + seed)):
        prompt = _RELATIONS[number % len(_RELATIONS)].format(subject)
        new, true = rng.sample(_TARGETS, 2)
        others = [rng.choice(_RELATIONS).format(name) for name in _names(3, seed=5000 + number)]
        made.append({
            "case_id": number,
            "prompt": prompt,
            "subject": subject,
            "target_new": new,
            "ground_truth": true,
            "rephrase_prompt": _REPHRASED.format(prompt),
            "locality": {"neighborhood": {"prompt": others[:2], "ground_truth": [true, true]}},
            "portability": {"one_hop": {"prompt": others[2], "ground_truth": new}},
        })  # fmt: skip
    return made


def requests(count: int, seed: int = 0) -> list[EditRequest]:
    """Return the same as validated requests."""
    return [EditRequest.from_mapping(record) for record in records(count, seed)]


def numbers(method: str, layers: Sequence[int], **overrides: Any) -> Any:
    """Return a method's hyperparameters for the random models: EasyEdit's numbers for models of these families.

    Args:
        method: One of the six editors.
        layers: Edited layers.
        **overrides: Fields to replace.

    Returns:
        Hyperparameters.
    """
    fields: dict[str, Any] = {
        "model_name": "random",
        "layers": list(layers),
        "v_num_grad_steps": 25,
        "v_lr": 0.1,
        "v_weight_decay": 0.5,
        "clamp_norm_factor": 0.75,
        "kl_factor": 0.0625,
        "mom2_update_weight": 15000.0,
        "mom2_dataset": "given",
        "nas_pilots": "builtin",
    }
    if method == "AlphaEdit":
        fields |= {"nullspace_threshold": 0.02, "L2": 10.0}
    return getattr(hyperparameters, f"NAS{method}Hparams")(**(fields | overrides))


@dataclass(frozen=True)
class Statistics:
    """A second moment with known eigenvalues, so that no section waits for a factorisation it does not measure.

    Attributes:
        values: Eigenvalues `(d,)`.
        vectors: Eigenvectors `(d, d)`.
    """

    values: Tensor
    vectors: Tensor

    @property
    def moment(self) -> Tensor:
        """C `(d, d)`, float64."""
        return (self.vectors * self.values) @ self.vectors.T

    def projector(self, threshold: float) -> Tensor:
        """Return P onto the eigenvectors with a value below a threshold."""
        free = self.vectors[:, self.values < threshold]
        return free @ free.T

    def inverse(self, weight: float) -> Tensor:
        """Return (weight C)^-1."""
        return (self.vectors / (weight * self.values)) @ self.vectors.T


@cache
def statistics(width: int) -> Statistics:
    """Make statistics with eigenvalues spread evenly in their logarithm, 1e2 to 1e-5, as measured on real layers."""
    generator = torch.Generator().manual_seed(width)
    vectors = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    return Statistics(torch.logspace(2, -5, width, dtype=torch.float64), vectors)


@contextmanager
def known_priors(made: Statistics) -> Iterator[None]:
    """Let editors made inside take their priors from known statistics instead of factorising a moment per layer.

    Args:
        made: The statistics of all their layers.

    Yields:
        Nothing.
    """

    def covariance(_moment: Tensor, weight: float, ridge: float = 0.0) -> Tensor:
        return (made.vectors / (weight * made.values + ridge)) @ made.vectors.T

    def null_space(_moment: Tensor, threshold: float, ridge: float) -> Tensor:
        return made.projector(threshold) / ridge

    with ExitStack() as stack:
        stack.enter_context(mock.patch("nas_plugin.write.methods.memit.covariance_prior", covariance))
        stack.enter_context(mock.patch("nas_plugin.write.methods.alphaedit.null_space_prior", null_space))
        yield


def lengths(items: Sequence[EditRequest]) -> str:
    """Describe the sequences of some requests: padded length in their contexts, tokens from the subject's last one on.

    Args:
        items: Requests.

    Returns:
        A sentence.
    """
    tok = tokenizer()
    padded, suffix, targets = [], [], []
    for item in items:
        target = tok(f" {item.target}")["input_ids"]
        rows = [tok(template.replace("{}", item.prompt))["input_ids"] for template in CONTEXTS.flat]
        padded.append(max(map(len, rows)) + len(target) - 1)
        head = tok(item.prompt[: item.end])["input_ids"]
        suffix.append(len(rows[0]) - len(head) + len(target))
        targets.append(len(target))
    mean = [sum(values) / len(values) for values in (padded, suffix, targets)]
    return (
        f"Padded length {mean[0]:.1f} tokens on average, {mean[1]:.1f} from the subject's last token on, targets of "
        f"{mean[2]:.1f} tokens; 7 rows a request (bare prompt, 5 contexts, `<subject> is a`)."
    )


def _names(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 3))).capitalize()

    return [f"{word()} {word()}" for _ in range(count)]
