"""Edits that somebody exported, put into the model that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_plugin.errors import EditsError
from nas_plugin.keep.edits import load_edits, read_edits
from nas_plugin.keep.header import LoadedEdits
from nas_plugin.model.adapters import unwrapped
from nas_plugin.share.lora import ADAPTER_FILE, merge_adapter, read_adapter

EDITS_FILE = "edits.safetensors"
EDITS, LORA = "edits", "lora"


@dataclass(frozen=True)
class Applied:
    """What was put into a model.

    Attributes:
        form: "edits", or "lora" for an adapter that was merged into the weights.
        about: What the file says about the edits.
        weights: Digest of the edited parameters as they are now.
        exact: The edited parameters are bit for bit those that were exported. Always so for "edits".
        share: How much of the change was put in, |A|^2 / |change|^2; less than 1 for an adapter that was cut.
    """

    form: str
    about: LoadedEdits
    weights: str
    exact: bool
    share: float = 1.0


def apply_edits(model: Any, path: str | Path, *, check: bool = True) -> Applied:
    """Put exported edits into the model that they were made on, in place; **this changes the model it is given**.

    An adapter is merged into the weights; to keep it apart, load it with `peft.PeftModel.from_pretrained`.

    Args:
        model: The model as it was before the edits, in the same dtype, on any devices.
        path: `edits.safetensors`, `adapter_model.safetensors`, or a folder with one of them.
        check: Refuse a model with another fingerprint than the one the edits were made on. Nothing else is left out without it.

    Returns:
        What was put in.

    Raises:
        EditsError: There is no such file, it is damaged or does not fit the model. No weight has changed.
    """
    file, form = found(path)
    if form == EDITS:
        said = load_edits(model, file, check=check)
        return Applied(EDITS, said, said.weights, exact=True)
    adapter, digest = merge_adapter(unwrapped(model), file, check=check)
    return Applied(LORA, adapter.about, digest, digest == adapter.about.weights, adapter.share)


def found(path: str | Path) -> tuple[Path, str]:
    """Find the file of edits that a path means.

    Args:
        path: The file, or its folder.

    Returns:
        The file, and "edits" or "lora".

    Raises:
        EditsError: There is none, or one of each.
    """
    path = Path(path)
    forms = {EDITS_FILE: EDITS, ADAPTER_FILE: LORA}
    if not path.is_dir():
        return path, forms.get(path.name, EDITS)
    there = [name for name in forms if (path / name).is_file()]
    if len(there) != 1:
        raise EditsError(
            f"{path} holds {' and '.join(there) or f'neither {EDITS_FILE} nor {ADAPTER_FILE}'}; give the folder of one export, "
            "or the file itself. A whole model needs nothing but from_pretrained."
        )
    return path / there[0], forms[there[0]]


def about(path: str | Path) -> LoadedEdits:
    """Read what exported edits say about themselves, without a model.

    Args:
        path: As for `apply_edits`.

    Returns:
        What they say.

    Raises:
        EditsError: There are none, or they are damaged.
    """
    file, form = found(path)
    return read_edits(file)[0] if form == EDITS else read_adapter(file).about
