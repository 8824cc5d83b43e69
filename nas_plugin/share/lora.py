"""A change as a LoRA adapter in PEFT's format (Hu et al., 2021): W = W0 + B A, scaling 1.

PEFT is not needed to write one, nor to merge one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nas_plugin.errors import EditsError
from nas_plugin.files import read_tensors, write_json, write_tensors
from nas_plugin.keep.digests import weights_digest
from nas_plugin.keep.edits import check_base, pieces_digest, put, reason_of, targets_of
from nas_plugin.keep.header import KEY, LoadedEdits, about_of, text_in, text_of, values_of
from nas_plugin.reading import number, short
from nas_plugin.share.lowrank import LowRank
from nas_plugin.share.source import Change, Source

CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
FORMAT = "nas-plugin-lora-1"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """What an adapter of ours says about itself.

    Attributes:
        about: The edits.
        share: How much of the change it is, |B A|^2 / |change|^2 over all matrices.
        factors: Module -> A `(r, d_in)` and B `(d_out, r)`.
    """

    about: LoadedEdits
    share: float
    factors: Mapping[str, tuple[Tensor, Tensor]]


def write_adapter(folder: Path, source: Source, changes: Mapping[str, LowRank], share: float, base: str) -> None:
    """Write an adapter that `peft.PeftModel.from_pretrained` loads.

    Args:
        folder: Where to.
        source: What is exported.
        changes: Parameter -> its factors.
        share: How much of the change they are.
        base: Name of the unedited model.
    """
    tensors, ranks = {}, {}
    for change in source.changes:
        b, a = _factors(change, changes[change.name])
        tensors[f"{_PREFIX}{change.module}{_A}"], tensors[f"{_PREFIX}{change.module}{_B}"] = a, b
        ranks[change.module] = len(a)
    largest = max(ranks.values())
    different = {name: rank for name, rank in ranks.items() if rank != largest}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": sorted(ranks),
        "r": largest,
        "lora_alpha": largest,
        # PEFT divides alpha by r, layer by layer: 1 everywhere.
        "rank_pattern": different,
        "alpha_pattern": different,
        "fan_in_fan_out": any(change.turned for change in source.changes),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    text = text_of(source.about, FORMAT, {"pieces": pieces_digest(tensors), "share": share})
    write_json(folder / CONFIG_FILE, config)
    write_tensors(folder / ADAPTER_FILE, tensors, {KEY: text})


def _factors(change: Change, found: LowRank) -> tuple[Tensor, Tensor]:
    """Return B and A; PEFT has no adapter of rank 0, so no change is one of rank 1."""
    kind = change.before.dtype
    if found.rank:
        return found.left.to("cpu", kind).contiguous(), found.right.to("cpu", kind).contiguous()
    rows, columns = change.before.shape
    return torch.zeros(rows, 1, dtype=kind), torch.zeros(1, columns, dtype=kind)


def read_adapter(path: Path) -> Adapter:
    """Read an adapter of ours.

    Args:
        path: Its `adapter_model.safetensors`.

    Returns:
        What it holds.

    Raises:
        EditsError: It is damaged, or none that this package wrote.
    """
    try:
        metadata, tensors = read_tensors(path)
        return _parsed(metadata.get(KEY), tensors)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EditsError(
            f"cannot read an adapter from {path}: {reason_of(error)}. Export it again, or restore the file."
        ) from error


def _parsed(text: str | None, tensors: Mapping[str, Tensor]) -> Adapter:
    if text is None:
        raise ValueError("this package did not write it; load it with peft.PeftModel.from_pretrained")
    values = values_of(text, FORMAT)
    if pieces_digest(tensors) != text_in(values, "pieces"):
        raise ValueError("its matrices do not have the digest that its header says")
    factors = _paired(tensors)
    about = about_of(values, tuple(sorted(f"{module}.weight" for module in factors)))
    return Adapter(about, number(values, "share", float), factors)


def _paired(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    modules = {name.removeprefix(_PREFIX).removesuffix(_A) for name in tensors if name.endswith(_A)}
    if not modules or tensors.keys() != {f"{_PREFIX}{module}{end}" for module in modules for end in (_A, _B)}:
        raise ValueError("its tensors are not pairs of A and B")
    found = {}
    for module in sorted(modules):
        a, b = tensors[f"{_PREFIX}{module}{_A}"], tensors[f"{_PREFIX}{module}{_B}"]
        kinds = {a.dtype, b.dtype}
        if a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1] or not kinds <= {torch.float32, torch.float64}:
            raise ValueError(f"A and B of {short(module)} do not fit together")
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError(f"A or B of {short(module)} holds NaN or infinity")
        found[module] = a, b
    return found


def merge_adapter(model: nn.Module, path: Path, *, check: bool) -> tuple[Adapter, str]:
    """Add an adapter of ours to the matrices that it belongs to, in place.

    Args:
        model: The unedited model, without wrapper.
        path: The adapter's `adapter_model.safetensors`.
        check: Refuse another model than the one that the edits were made on.

    Returns:
        The adapter, and the digest of the matrices as they are now.

    Raises:
        EditsError: It is damaged, or does not fit the model. No weight has changed.
    """
    adapter = read_adapter(path)
    modules: dict[str, Any] = dict(model.named_modules())
    wanted = {}
    for module, (a, b) in adapter.factors.items():
        owner = modules.get(module)
        shape = (a.shape[1], len(b)) if isinstance(owner, Conv1D) else (len(b), a.shape[1])
        kind = getattr(getattr(owner, "weight", None), "dtype", torch.float32)
        wanted[f"{module}.weight"] = torch.Size(shape), kind
    targets = targets_of(model, path, wanted)
    if check:
        check_base(model, path, adapter.about)
    merged = {}
    for module, (a, b) in adapter.factors.items():
        name = f"{module}.weight"
        change = b.to(torch.float64) @ a.to(torch.float64)
        held = targets[name].detach()
        change = change.T if isinstance(modules[module], Conv1D) else change
        merged[name] = (held.to("cpu", torch.float64) + change).to(held.dtype).contiguous()
        if not bool(torch.isfinite(merged[name]).all()):
            raise EditsError(f"{path}: {name} would hold NaN or infinity in {held.dtype}; nothing was written.")
    put(targets, merged)
    return adapter, weights_digest(merged)
