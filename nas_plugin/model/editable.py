"""A model seen as what an editor needs: blocks, rewrite modules, head, and the edited matrices in one orientation."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nas_plugin.errors import AdapterError, ModelError, UnknownLayerError, UnsupportedWeightError
from nas_plugin.model.adapters import is_adapted, unwrapped
from nas_plugin.model.architectures import architecture_of, text_config
from nas_plugin.model.residual import MlpNorm
from nas_plugin.model.trace import input_device

_UNLIMITED = 1 << 30


class EditableModel:
    """Binds a causal language model to the layers that are edited.

    Matrices are handed out as `W (d_out, d_in)`, value = W k, whatever the module stores: `Conv1D` keeps the transpose,
    which is decided by type, never by shape.

    Attributes:
        model: The model itself.
        config: The part of its configuration that describes the decoder.
        layers: Edited layers, ascending.
        compute_dtype: float64 for a float64 model, else float32.

    Raises:
        UnknownArchitectureError: The model family is unknown and the hyperparameters name no modules.
        UnsupportedArchitectureError: The model family is known and cannot be edited.
        UnknownLayerError: A layer or a module path does not exist.
        UnsupportedWeightError: A target weight cannot be edited.
        AdapterError: An adapter lies on a module that would be edited.
        ModelError: The model has no output head.
    """

    def __init__(self, model: Any, hparams: Any, *, without_numbers: bool = False) -> None:
        """Resolve every module and refuse what cannot be edited, before anything is computed.

        Args:
            model: A Hugging Face causal language model.
            hparams: Hyperparameters of any method.
            without_numbers: The model lies on the meta device, and only its shape is looked at.

        Raises:
            ModelError: The model has no output head.
        """
        self.model: Any = (model := unwrapped(model))
        self.paths = architecture_of(model.config, hparams)
        self.config = text_config(model.config)
        self.layers: tuple[int, ...] = tuple(hparams.layers)
        self.n_layers = int(self.config.num_hidden_layers)
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        loss_layer = self.n_layers - 1 if hparams.v_loss_layer is None else hparams.v_loss_layer
        self._check_layers((*self.layers, loss_layer))
        self.loss_layer: int = loss_layer
        self.value_layer = self.layers[-1]
        self.value_block = self._find(self.paths.block, self.value_layer)
        self.blocks_below_loss: list[nn.Module] = [self._find(self.paths.block, i) for i in range(loss_layer)]
        self.loss_block = self._find(self.paths.block, loss_layer)
        blocks = [*self.blocks_below_loss, self.loss_block]
        self.blocks_up_to_value, self.blocks_above_value = (
            blocks[: self.value_layer + 1],
            blocks[self.value_layer + 1 :],
        )
        # Empty if the first edited block is the model's first.
        self.block_before_first = blocks[max(self.layers[0] - 1, 0) : self.layers[0]]
        self.final_norm = self._find(self.paths.final_norm)
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(model).__name__} has no output head; load it as a causal language model.")
        self.head = head
        self.rewrite: dict[int, Any] = {layer: self._find(self.paths.rewrite, layer) for layer in self.layers}
        self.mlps: dict[int, Any] = {layer: self._find(self.paths.mlp, layer) for layer in self.layers}
        self.mlp_norms = self._mlp_norms()
        self.parameter_names = {layer: self.paths.rewrite.format(layer) + ".weight" for layer in self.layers}
        self._check_weights(without_numbers)
        self.compute_dtype = torch.float64 if self.weight(self.value_layer).dtype == torch.float64 else torch.float32

    @property
    def input_device(self) -> torch.device:
        """Device that takes token ids; what is made of all layers comes together there."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the hidden states."""
        dtype: torch.dtype = self.weight(self.value_layer).dtype
        return dtype

    @property
    def max_positions(self) -> int:
        """Longest sequence the model attends to, in tokens."""
        limit = getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "n_positions", None)
        return int(limit) if limit is not None else _UNLIMITED

    @property
    def value_mlp(self) -> nn.Module:
        """MLP of the last edited block; its output is the value."""
        mlp: nn.Module = self.mlps[self.value_layer]
        return mlp

    @property
    def value_norm(self) -> MlpNorm | None:
        """Norm that a value passes on its way to the residual stream; None in most families."""
        return self.mlp_norms.get(self.value_layer)

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def weight(self, layer: int) -> nn.Parameter:
        """Return the parameter that is edited in a layer, as stored."""
        parameter: nn.Parameter = self.rewrite[layer].weight
        return parameter

    def attention(self, layer: int) -> Any:
        """Return the attention module of a layer."""
        return self._find(self.paths.attention, layer)

    def matrix(self, layer: int) -> Tensor:
        """Return a layer's edited matrix as `W (d_out, d_in)`, a view of the parameter."""
        stored = self.weight(layer).detach()
        return stored.T if self.turned(layer) else stored

    def turned(self, layer: int) -> bool:
        """Tell whether the module of a layer stores the transpose."""
        return isinstance(self.rewrite[layer], Conv1D)

    def write(self, layer: int, matrix: Tensor) -> None:
        """Put `W (d_out, d_in)` into the model, cast to its dtype and device.

        Args:
            layer: Edited layer.
            matrix: New matrix.
        """
        with torch.no_grad():
            self.weight(layer).copy_(self.stored(layer, matrix))

    def stored(self, layer: int, matrix: Tensor) -> Tensor:
        """Turn `W (d_out, d_in)` the way the module stores it."""
        return matrix.T if self.turned(layer) else matrix

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states of the loss layer to logits.

        Args:
            hidden: `(rows, d_model)`.

        Returns:
            Logits `(rows, vocabulary)` in the compute dtype, on the device that the hidden states came from.
        """
        logits: Tensor = self.head(self.final_norm(hidden)).to(hidden.device, self.compute_dtype)
        # Of the model, not of its text part: a model that also sees does not cap, whatever its text part says.
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _mlp_norms(self) -> dict[int, MlpNorm]:
        if self.paths.mlp_norm is None:
            return {}
        return {layer: MlpNorm(self._find(self.paths.mlp_norm, layer)) for layer in self.layers}

    def _find(self, template: str, layer: int | None = None) -> Any:
        path = template if layer is None else template.format(layer)
        module = self._modules.get(path)
        if module is None:
            near = get_close_matches(path, self._modules, n=3, cutoff=0.3)
            raise UnknownLayerError(
                f"{type(self.model).__name__} has no module {path!r}. Nearest: {', '.join(near) or 'none'}. "
                f"Layers run from 0 to {self.n_layers - 1}; correct the module template or `layers` in the hyperparameters."
            )
        return module

    def _check_layers(self, layers: Sequence[int]) -> None:
        wrong = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if wrong:
            near = self.paths.rewrite.format(min(max(wrong[0], 0), self.n_layers - 1))
            raise UnknownLayerError(
                f"layer {wrong[0]} does not exist: {type(self.model).__name__} has layers 0 to {self.n_layers - 1}. "
                f"The nearest rewrite module is {near!r}; correct `layers` (or `v_loss_layer`) in the hyperparameters."
            )

    def _check_weights(self, without_numbers: bool) -> None:
        owners: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
        for layer, name in self.parameter_names.items():
            module = self.rewrite[layer]
            if is_adapted(module):
                raise AdapterError(
                    f"{name}: a PEFT adapter lies on the module that would be edited ({type(module).__name__}); merge it first: "
                    "model = model.merge_and_unload(), then edit."
                )
            if not isinstance(module, nn.Linear | Conv1D):
                raise UnsupportedWeightError(
                    f"{name}: {type(module).__name__} is neither nn.Linear nor Conv1D; unwrap adapters or load unquantised."
                )
            weight = module.weight
            if weight.device.type == "meta" and not without_numbers:
                raise UnsupportedWeightError(
                    f"{name} is on the meta device (offloaded); load that layer onto a real device."
                )
            if not weight.is_floating_point() or type(weight) is not nn.Parameter:
                raise UnsupportedWeightError(
                    f"{name} is quantised ({weight.dtype}); load the model in float32, bf16 or fp16."
                )
            if len(owners.get(id(weight), [])) > 1:
                raise UnsupportedWeightError(
                    f"{name} is shared with {owners[id(weight)]}; editing it would change both."
                )
