"""Hyperparameters by name and models by hyperparameters, as commands take them."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from nas_plugin.errors import HparamsError, ModelError
from nas_plugin.hparams import DEMO_MODEL, NASHparams
from nas_plugin.hparams.files import find_file, read_file

DEMO = "demo"
"""What commands call the embedded model."""


def load_hparams(name_or_path: str | os.PathLike[str], overrides: Mapping[str, Any]) -> NASHparams:
    """Load hyperparameters with the class that their file names.

    Args:
        name_or_path: A shipped name such as "NAS-MEMIT/nas-demo", or a path.
        overrides: Fields that replace those of the file.

    Returns:
        The hyperparameters; for the embedded model in float64 unless they name another dtype.

    Raises:
        HparamsError: There is no such file, it names no editor of this package, or something in it is wrong.
    """
    path = find_file(name_or_path, own_folder="NAS-MEMIT")
    name = read_file(path).get("alg_name")
    loaded = hparams_class(str(name), str(path)).from_hparams(path, **overrides)
    if loaded.model_name == DEMO_MODEL and loaded.torch_dtype is None and not loaded.fp16:
        # As `nas-edit demo`: a collapsing model amplifies rounding, and in float32 the order of a sum moves its collapse point.
        loaded.torch_dtype = "float64"
    return loaded


def hparams_class(name: str, where: str) -> type[NASHparams]:
    """Find the class of an editor's hyperparameters.

    Args:
        name: The editor, with or without the prefix for norm anchoring.
        where: Where the name stands, for messages.

    Returns:
        The class.

    Raises:
        HparamsError: It is no editor of this package.
    """
    classes = {cls.method: cls for cls in NASHparams.__subclasses__()}
    if (found := classes.get(name.removeprefix("NAS-"))) is None:
        known = ", ".join(f"NAS-{method}" for method in sorted(classes))
        raise HparamsError(f"{where}: {name!r} is no editor of this package; it has {known}.")
    return found


def model_name(name: str) -> str:
    """Translate what commands call a model into what hyperparameters call it.

    Args:
        name: "demo", or a path or name for `transformers`.

    Returns:
        The field `model_name`.
    """
    return DEMO_MODEL if name == DEMO else name


def load_model(hparams: NASHparams) -> tuple[Any, Any]:
    """Load the model that hyperparameters name, in their dtype and on their device.

    Args:
        hparams: Hyperparameters of one of the six methods.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelError: There is no such model.
    """
    from huggingface_hub.errors import HFValidationError

    from nas_plugin.easyedit.prepare import for_editor
    from nas_plugin.parallel import Group

    launched = Group.launched().device
    if hparams.device is None and launched is not None:
        # Of several accelerators each process of a launch has its own.
        hparams = copy.copy(hparams)
        hparams.device = str(launched)
    try:
        ready = for_editor(hparams, is_wheel=False)
    except (OSError, HFValidationError) as error:
        # The latter of hub releases before 1.0, which take a missing folder for a malformed name.
        raise ModelError(
            f"the model {str(hparams.model_name)!r} cannot be loaded: {error}. Give --model (model_name) the folder it lies in, "
            "or 'demo'."
        ) from error
    model, tok = ready.model_name
    if not ready.model_parallel:
        model.to(ready.device)
    return model, tok
