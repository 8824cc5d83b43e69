"""From the hyperparameters a user wrote to those that EasyEdit's constructor can work with."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch

from nas_plugin.easyedit.preloaded import Preloaded
from nas_plugin.errors import HostDeviceError, HparamsError

if TYPE_CHECKING:
    from nas_plugin.hparams import NASHparams

LOG = logging.getLogger(__name__)
DEMO = "nas-demo"


def for_editor(hparams: NASHparams, is_wheel: bool) -> NASHparams:
    """Make the copy of the hyperparameters that an editor keeps.

    The model is always loaded here, by its configuration: EasyEdit goes by substrings of the path (a folder called
    `host5-llama` is a T5 to it), and its wheel rebuilds Llama tokenizers wrongly under transformers 5.

    Args:
        hparams: As the user gave them; not changed.
        is_wheel: Whether the host is the released wheel.

    Returns:
        A copy whose `model_name` is a `Preloaded` and whose `device` exists and is spelled as the host expects.

    Raises:
        HparamsError: The device or dtype has no meaning.
        HostDeviceError: The wheel is asked to work without an accelerator.
    """
    ready = copy.copy(hparams)
    name: Any = ready.model_name
    if isinstance(name, tuple) and not isinstance(name, Preloaded):
        name = Preloaded(*name)
    if isinstance(name, Preloaded) and ready.device is None:
        ready.device = str(next(name.model.parameters()).device)  # a model that is somewhere stays there
    # Before loading, which can take minutes.
    ready.device = wheel_device(ready.device) if is_wheel else working_device(ready.device)
    ready.model_name = name if isinstance(name, Preloaded) else _load(name, ready)
    if len(set(getattr(ready.model_name.model, "hf_device_map", {}).values())) > 1:
        ready.model_parallel = True  # spread over devices on purpose: the host must not gather it on one
    return ready


def working_device(device: Any) -> str:
    """Turn EasyEdit's ways to name a device into one that works here.

    Args:
        device: A number or numeric string (that accelerator), a torch device or its name, or None for the best there is.

    Returns:
        A name torch understands: the CPU, with a warning, where an accelerator was asked for and none is there.

    Raises:
        HparamsError: It is no device, or one beyond those present.
    """
    number = _number(device)
    if number is not None or device in (None, ""):
        found = _probe(number or 0)
        if found is None and number is not None:
            LOG.warning("device: %r is an accelerator, and none is available here; working on the CPU.", device)
        return "cpu" if found is None else str(found)
    try:
        wanted = torch.device(str(device))
    except RuntimeError as error:
        raise HparamsError(f"device: {device!r} is no device. Write cpu, or the number of an accelerator.") from error
    if wanted.type == "cpu" or _probe(wanted) is not None:
        return str(wanted)
    if _probe(torch.device(wanted.type)) is not None:
        raise HparamsError(
            f"device: {device!r} does not exist; this machine has fewer. Write the number of a present one."
        )
    LOG.warning("device: %s is not available here; working on the CPU.", wanted)
    return "cpu"


def wheel_device(device: Any) -> int:
    """Turn a device into the number that EasyEdit's wheel wants.

    Args:
        device: As for `working_device`.

    Returns:
        The number of an accelerator.

    Raises:
        HostDeviceError: There is none; the wheel sends every tensor to one.
    """
    number = _number(device)
    if number is None:
        number = getattr(torch.device(str(device)), "index", None) if device not in (None, "") else 0
    if _probe(number or 0) is None:
        raise HostDeviceError(
            "The released easyeditor 0.0.1.dev0 runs on an accelerator only, and none is available here. Clone the current "
            "EasyEdit and set EASYEDIT_HOME to it, or edit without EasyEdit: nas_plugin.EditSession."
        )
    return number or 0


def _number(device: Any) -> int | None:
    text = str(device).strip()
    return int(text) if text.isdigit() else None


def _probe(device: int | torch.device) -> torch.device | None:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError):  # what torch raises differs from backend to backend
        return None


def _dtype(hparams: NASHparams) -> torch.dtype:
    name = hparams.torch_dtype or ("float16" if hparams.fp16 else "float32")
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise HparamsError(f"torch_dtype: {name!r} is no floating-point type. Write float32, bfloat16 or float16.")
    return dtype


def _load(name: str, hparams: NASHparams) -> Preloaded:
    dtype = _dtype(hparams)
    if name == DEMO:
        from nas_plugin.demo import load_demo

        return Preloaded(*load_demo(dtype), name=DEMO)
    from transformers import AutoModelForCausalLM

    tok = tokenizer_of(name)
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    tok.padding_side = "left"
    device_map = "auto" if hparams.model_parallel else None
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map=device_map)
    return Preloaded(model, tok)


def tokenizer_of(name: str) -> Any:
    """Load a tokenizer, also one that a newer release of transformers saved.

    Args:
        name: Folder or name.

    Returns:
        The tokenizer.

    Raises:
        ValueError: There is one, of a class that cannot be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(name)
    except ValueError as error:
        # Transformers 5 saves a class name that 4.57 lacks; the tokenizer.json beside it is the same for both.
        if "TokenizersBackend" not in str(error):
            raise
        return PreTrainedTokenizerFast.from_pretrained(name)
