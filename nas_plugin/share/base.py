"""The unedited model that edits belong to, by name and in the number type they were made in."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError

from nas_plugin.errors import ModelError
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.reading import short

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_base(name: str) -> tuple[Any, Any]:
    """Load a model as it was saved, and its tokenizer.

    Args:
        name: "demo" (or "nas-demo"), or a folder or name for `transformers`.

    Returns:
        The model in evaluation mode on the CPU, and its tokenizer.

    Raises:
        ModelError: There is none.
    """
    from nas_plugin.easyedit.prepare import DEMO, tokenizer_of

    if name in {"demo", DEMO}:
        from nas_plugin.demo import load_demo

        return load_demo()
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        return model.eval(), tokenizer_of(name)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"the model {short(name)} cannot be loaded: {short(str(error), 300)}. Give --model the folder it lies in, its "
            "name on the Hub, or 'demo'."
        ) from error


def in_dtype_of(model: Any, fingerprint: str) -> bool:
    """Turn a model into the number type in which it has a fingerprint, in place.

    Args:
        model: The model, in the type it was saved in.
        fingerprint: Of the model that edits were made on.

    Returns:
        Whether there is such a type; if not, the model stays as it is.
    """
    if weights_fingerprint(model) == fingerprint:
        return True
    for dtype in _DTYPES:
        if weights_fingerprint(model, dtype) == fingerprint:
            # Parameters alone, as `from_pretrained` does: rotary frequencies are buffers, and stay what they are.
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)
            return True
    return False
