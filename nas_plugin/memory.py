"""How much memory editing takes, phase by phase, from a model's configuration and the hyperparameters, without loading it.

Sizes: d is the input width of an edited matrix, o its output width, L the number of edited layers, s the bytes of one number of
the model's type and c those of the type that is computed in (4, or 8 for a float64 model). All that is large is a multiple of d^2
(second moments, gains), of d o (masters) or of the model itself; docs/scale.md has the formulas in one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from nas_plugin.errors import UnknownLayerError
from nas_plugin.locate.collecting import TOKENS_PER_PASS
from nas_plugin.model.architectures import Architecture, architecture_of, text_config
from nas_plugin.solve.target import REQUESTS_PER_BATCH
from nas_plugin.write import METHODS
from nas_plugin.write.gain import MAX_PENDING

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# The bare prompt and five generated ones.
_CONTEXTS = 6
# What a gated MLP has; others keep more of their activation function.
_GATES = ("gate_proj", "gate_up_proj")


@dataclass(frozen=True)
class Lengths:
    """Tokens of a request; by default what CounterFact's come to in Llama 3's tokens.

    Attributes:
        row: Its prompt in a context, with the target.
        suffix: Of those, from the subject's last token on.
        target: Of those, the target's.
    """

    row: int = 24
    suffix: int = 8
    target: int = 2


@dataclass(frozen=True)
class PhaseMemory:
    """What lies in memory at most in one phase.

    Attributes:
        name: "load", "statistics", "prior", "solve" or "write".
        parts: What it is -> bytes.
    """

    name: str
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of the device that the model lies on, and beside it.

    Attributes:
        phases: In the order in which they happen.
        host: Bytes in the CPU's memory: the priors that methods with a history go back to. If the model itself lies on the CPU,
            they come on top of "solve" and "write".
        disk: Bytes of the files under `stats_dir`: second moments and priors.
    """

    phases: tuple[PhaseMemory, ...]
    host: int
    disk: int

    @property
    def largest(self) -> PhaseMemory:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def peak(self) -> int:
        """Bytes that the device needs."""
        return self.largest.bytes

    def phase(self, name: str) -> PhaseMemory:
        """Return a phase by its name."""
        return next(phase for phase in self.phases if phase.name == name)


def estimate_memory(
    config: Any, hparams: Any, *, batch_size: int = 1, edits: int = 0, lengths: Lengths | None = None
) -> MemoryEstimate:
    """Say how much memory editing takes once it is under way; the model is not loaded.

    Counted are tensors, as an allocator hands them out. Beside them a process has its libraries, and an accelerator its context
    and what its allocator and its linear algebra hold in reserve.

    Args:
        config: `model.config`, or `AutoConfig.from_pretrained(...)`.
        hparams: Hyperparameters of one of the six methods; `torch_dtype` is the type of the weights, else the config's.
        batch_size: Requests in a step.
        edits: Edits so far: methods with a history keep 8 d bytes of each in every layer.
        lengths: Tokens of a request.

    Returns:
        The phases.

    Raises:
        UnknownArchitectureError: The model family is unknown and the hyperparameters name no modules.
        UnknownLayerError: A module path does not exist in such a model.
    """
    sizes, method = _sizes_of(config, hparams), hparams.method
    layers, square, copies = sizes.layers, sizes.d**2, sizes.layers * sizes.d * sizes.o * sizes.c
    carries, moving = METHODS[method].carries, method == "LyapLock"
    moments, gain = layers * square * _BYTES[hparams.mom2_dtype], layers * square * 8
    # LyapLock widens C for good, and while its queue moves each step has a gain of its own; the last one is kept for a rollback.
    made, gains, renewed = (gain * 2, gain * 3, gain) if moving else (gain, gain, 0)
    pending = min(edits, MAX_PENDING + 2 * batch_size)
    history = layers * sizes.d * 8 * (edits + pending) if carries else 0
    # Unedited, before the last step and now; PRUNE serves other matrices than those it edits.
    masters = copies * (5 if method == "PRUNE" else 3)
    fixed = {"weights": sizes.weights, "masters": copies}
    held = {"weights": sizes.weights, "masters": masters, "second moments": moments, "gains": gains, "history": history}
    rest = made * (layers - 1) // layers
    return MemoryEstimate(
        (
            PhaseMemory("load", {"weights": sizes.weights}),
            PhaseMemory("statistics", {**fixed, "sums": gain, "working": sizes.of_text()}),
            PhaseMemory(
                "prior", {**fixed, "second moments": moments, "gains": rest, "working": square * _PRIOR[method]}
            ),
            PhaseMemory("solve", {**held, "activations": sizes.of_solving(batch_size, lengths or Lengths())}),
            PhaseMemory(
                "write",
                {**held, "new masters": copies, "new gains": renewed, "working": sizes.of_writing(method, batch_size)},
            ),
        ),
        host=gain if carries else 0,
        disk=moments + gain,
    )


# Of each element of C: it widened, symmetrised and factorised, and the factor tested; or what an eigendecomposition works in.
_PRIOR = dict.fromkeys(("MEMIT", "PRUNE", "RECT", "ENCORE", "LyapLock"), 8 + 8 + 8 + 11) | {"AlphaEdit": 8 * 5}


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a model, in numbers, and of its numbers, in bytes."""

    weights: int
    s: int
    c: int
    d: int
    o: int
    layers: int
    hidden: int
    queries: int
    keys: int
    vocab: int
    above: int
    gated: bool
    suffix_only: bool

    def of_text(self) -> int:
        """Bytes of a pass over text: inside an MLP, or at its last matrix, whose input is picked out and widened."""
        # Beside it the embeddings, the residual stream before and after attention, what attention gave, and the norm.
        inside = self.d * self.s * (3 if self.gated else 4)
        widened = self.d * (self.s + self.c + (self.s if self.s != self.c else 0))
        return TOKENS_PER_PASS * (max(inside, widened) + 5 * self.hidden * self.s) + self.d**2 * self.c

    def of_solving(self, requests: int, lengths: Lengths) -> int:
        """Bytes of the graph of one evaluation of the objective, and of the keys and values that it reads."""
        requests = min(requests, REQUESTS_PER_BATCH)
        rows = requests * (_CONTEXTS + 1)
        tokens = lengths.suffix if self.suffix_only else lengths.row
        # Two norms in float32; queries and what attention returns; the MLP (gate, its activation, up; or four terms of GELU).
        norms = 2 * self.hidden * (max(self.c, 4) if self.gated else self.s)
        of_token = norms + self.s * (2 * self.queries + self.d * (3 if self.gated else 4))
        # Attention reads keys and values as wide as the queries.
        attended = 2 * self.s * lengths.row * (self.queries + (self.keys if self.suffix_only else 0))
        graph = self.above * rows * (tokens * of_token + attended)
        places = requests * (_CONTEXTS * lengths.target + 1)
        # Logits, widened where they are narrow, and three gradients of their size.
        return graph + places * self.vocab * (4 * self.c + (self.s if self.s != self.c else 0))

    def of_writing(self, method: str, requests: int) -> int:
        """Bytes beside the new masters: factors of the updates, and what a method makes of them in float64."""
        each, factors = self.d * self.o, self.layers * requests * 8 * (2 * self.d + 2 * self.o)
        if method == "RECT":
            # The masked updates beside the plain ones; W, the update, its relative size and their order.
            return factors + each * (self.c * self.layers + 41)
        if method == "PRUNE":
            # The accumulated change, the part that is squashed, their sum; an eigendecomposition of o x o.
            return factors + each * (self.c * self.layers + 24) + 32 * self.o**2
        if method == "LyapLock":
            # What the queue pulls back in every layer, and four of the kind while it is worked out.
            return factors + each * 8 * (self.layers + 4)
        # The test for finite numbers.
        return factors + each * (self.c + 3)


def _sizes_of(config: Any, hparams: Any) -> _Sizes:
    """Read sizes off a model without numbers."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    paths = architecture_of(config, hparams)
    rewrite = _rewrite(model, paths, hparams.layers[-1])
    stored = rewrite.weight.shape
    d, o = stored if isinstance(rewrite, Conv1D) else (stored[1], stored[0])
    text = text_config(config)
    mlp = model.get_submodule(paths.mlp.format(hparams.layers[-1]))
    heads, last = int(text.num_attention_heads), hparams.v_loss_layer
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    dtype = _dtype_of(config, hparams)
    return _Sizes(
        weights=_BYTES[dtype] * sum(parameter.numel() for parameter in model.parameters()),
        s=_BYTES[dtype],
        c=8 if dtype == "float64" else 4,
        d=int(d),
        o=int(o),
        layers=len(hparams.layers),
        hidden=int(text.hidden_size),
        queries=heads * width,
        keys=int(getattr(text, "num_key_value_heads", None) or heads) * width,
        vocab=int(text.vocab_size),
        above=(int(text.num_hidden_layers) - 1 if last is None else last) - hparams.layers[-1],
        gated=any(hasattr(mlp, name) for name in _GATES),
        suffix_only=paths.prefix_cache,
    )


def _rewrite(model: Any, paths: Architecture, layer: int) -> Any:
    path = paths.rewrite.format(layer)
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UnknownLayerError(
            f"{type(model).__name__} has no module {path!r}; correct the module template or `layers` in the hyperparameters."
        ) from error


def _dtype_of(config: Any, hparams: Any) -> str:
    if hparams.fp16:
        return "float16"
    named = hparams.torch_dtype or getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or "float32"
    return str(named).removeprefix("torch.")
