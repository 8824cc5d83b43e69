"""The other side: the naive twin with the released code's number types, and EasyEdit itself where it can run."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.workload import CONTEXTS, Statistics
from tests.twins.dense import DenseAlphaEdit, DenseMEMIT

_EASYEDIT = {
    "MEMIT": ("memit", "memit_main", "memit_hparams"),
    "AlphaEdit": ("alphaedit", "AlphaEdit_main", "AlphaEdit_hparams"),
}
_TEMPLATES = {
    "gpt2": {
        "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
        "layer_module_tmp": "transformer.h.{}",
        "mlp_module_tmp": "transformer.h.{}.mlp",
        "attn_module_tmp": "transformer.h.{}.attn",
        "ln_f_module": "transformer.ln_f",
        "lm_head_module": "lm_head",
    },
    "llama": {
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
        "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp",
        "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm",
        "lm_head_module": "lm_head",
    },
}


class OfficialMEMIT(DenseMEMIT):
    """The dense twin fed as the released code feeds it: keys and residuals as float64, the weight as the model has it."""

    def step(self, k: Tensor, r: Tensor) -> None:
        """Write one step."""
        self.w = (self.w.double() + self.delta(k.double(), r.double())).float()


class OfficialAlphaEdit(DenseAlphaEdit):
    """The dense twin in float32, as released, with a projector that is known."""

    def __init__(self, w0: Tensor, projector: Tensor, numbers: Any) -> None:
        DenseMEMIT.__init__(self, w0, projector, numbers)
        self.p = projector
        self.s = torch.zeros_like(projector)


def dense_editors(method: str, session: Any, statistics: Statistics) -> dict[int, Any]:
    """Make the twin's editors for the layers of a session.

    Args:
        method: "MEMIT" or "AlphaEdit".
        session: An unedited session on the same weights.
        statistics: Statistics of all layers.

    Returns:
        Layer -> editor.
    """
    if method == "MEMIT":
        moment = statistics.moment
        return {layer: OfficialMEMIT(w, moment, session.hparams) for layer, w in session.weights.base.items()}
    projector = statistics.projector(session.hparams.nullspace_threshold).float()
    return {layer: OfficialAlphaEdit(w, projector, session.hparams) for layer, w in session.weights.base.items()}


class EasyEditEditor:
    """EasyEdit's own MEMIT or AlphaEdit on a model, with contexts and statistics given.

    Attributes:
        hparams: EasyEdit's hyperparameters.
    """

    def __init__(self, method: str, model: Any, tok: Any, ours: Any, statistics: Statistics) -> None:
        """Load EasyEdit and hand it what it would otherwise compute.

        Args:
            method: "MEMIT" or "AlphaEdit".
            model: The model to edit.
            tok: Its tokenizer; padded on the right, as EasyEdit has it for these methods.
            ours: This package's hyperparameters with the numbers to use.
            statistics: Statistics of all layers.
        """
        folder, main, hparams = _EASYEDIT[method]
        self.model, self.tok, self.method = model, tok, method
        self.main: Any = importlib.import_module(f"easyeditor.models.{folder}.{main}")
        kind = getattr(importlib.import_module(f"easyeditor.models.{folder}.{hparams}"), f"{method}HyperParams")
        self.compute_z: Any = importlib.import_module(f"easyeditor.models.{folder}.compute_z").compute_z
        fields = {
            "layers": list(ours.layers),
            "layer_selection": "all",
            "fact_token": "subject_last",
            "v_num_grad_steps": ours.v_num_grad_steps,
            "v_lr": ours.v_lr,
            "v_loss_layer": model.config.num_hidden_layers - 1,
            "v_weight_decay": ours.v_weight_decay,
            "clamp_norm_factor": ours.clamp_norm_factor,
            "kl_factor": ours.kl_factor,
            "mom2_adjustment": True,
            "mom2_update_weight": ours.mom2_update_weight,
            **_TEMPLATES[model.config.model_type],
            "mom2_dataset": "wikipedia",
            "mom2_n_samples": 1,
            "mom2_dtype": "float32",
            "alg_name": method,
            "device": "cpu",
            "model_name": model.config._name_or_path,
            "stats_dir": "",
        }
        if method == "MEMIT" and model.config.model_type == "gpt2":
            # EasyEdit's own file for this family: the tied head has no name of its own.
            fields["lm_head_module"] = "transformer.wte"
        if method == "AlphaEdit":
            # The file only has to exist: what would be read from it is set below.
            fields |= {"nullspace_threshold": ours.nullspace_threshold, "L2": ours.L2, "P_loc": __file__}
        self.hparams = kind(**fields)
        tok.padding_side = "right"
        self._give(statistics)

    def edit(self, records: Sequence[dict[str, Any]]) -> None:
        """Carry out one step.

        Args:
            records: EasyEdit's records.
        """
        apply = getattr(self.main, f"apply_{'memit' if self.method == 'MEMIT' else 'AlphaEdit'}_to_model")
        with contextlib.redirect_stdout(io.StringIO()):
            apply(self.model, self.tok, list(records), self.hparams)

    def target(self, record: dict[str, Any]) -> Tensor:
        """Solve one target.

        Args:
            record: EasyEdit's record.

        Returns:
            The target hidden state.
        """
        request = dict(
            record, prompt=record["prompt"].replace(record["subject"], "{}"), target_new=f" {record['target_new']}"
        )
        with contextlib.redirect_stdout(io.StringIO()):
            z: Tensor = self.compute_z(
                self.model, self.tok, request, self.hparams, self.hparams.layers[-1], self.main.CONTEXT_TEMPLATES_CACHE
            )
        return z

    def _give(self, statistics: Statistics) -> None:
        self.main.CONTEXT_TEMPLATES_CACHE = [list(group) for group in CONTEXTS.groups]
        width = statistics.values.shape[0]
        if self.method == "MEMIT":
            name, moment = self.model.config._name_or_path, statistics.moment.float()
            self.main.COV_CACHE = {
                (name, self.hparams.rewrite_module_tmp.format(layer)): moment for layer in self.hparams.layers
            }
            return
        projector = statistics.projector(self.hparams.nullspace_threshold).float()
        self.main.P = projector.expand(len(self.hparams.layers), -1, -1)
        self.main.P_loaded = self.main.cache_c_new = True
        self.main.cache_c = torch.zeros(len(self.hparams.layers), width, width)


def easyedit_missing() -> str | None:
    """Say why EasyEdit's own editors cannot run here.

    Returns:
        The reason, or None if they can.
    """
    if not os.environ.get("EASYEDIT_HOME"):
        return "EASYEDIT_HOME names no checkout of current EasyEdit, so its own editors were not measured."
    from nas_plugin.easyedit.host import load_host
    from nas_plugin.errors import HostMissingError

    try:
        host = load_host()
    except HostMissingError as error:
        return str(error)
    return None if not host.is_wheel else "EASYEDIT_HOME names the released wheel, not a checkout of current EasyEdit."


def wheel_verdict() -> str:
    """Say what the installed wheel's own MEMIT does on this machine.

    Returns:
        A sentence for the results.
    """
    import transformers

    reasons = []
    if int(transformers.__version__.split(".")[0]) >= 5:
        reasons.append(f"it is known to fail with an IndexError on transformers 5 (here {transformers.__version__})")
    if not torch.accelerator.is_available():
        reasons.append("it sends every tensor to `cuda:<device>`, and there is no accelerator here")
    if not reasons:
        return "The released wheel (easyeditor 0.0.1.dev0) was not measured: only one EasyEdit fits in a process."
    return f"The released wheel's MEMIT (easyeditor 0.0.1.dev0) was not run: {'; and '.join(reasons)}."
