"""Turn what a YAML file or a caller wrote into the declared type of each field, and nothing else.

Conversion follows the declared type only. YAML 1.1 reads `5e-1` as a string: it becomes a float where a float is declared
and stays a string everywhere else (a device "0" or a model called "7" must not turn into a number).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from nas_plugin.errors import HparamsError
from nas_plugin.reading import LARGEST, LONGEST_TEXT, short

_MOST_LAYERS, _HIGHEST_LAYER = 500, 10**6


def convert_fields(hparams: Any) -> None:
    """Convert every field of a hyperparameter dataclass in place.

    Args:
        hparams: instance whose annotations are keys of the table at the end of this module.

    Raises:
        HparamsError: a value does not fit its declared type.
    """
    for field in fields(hparams):
        value = getattr(hparams, field.name)
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise HparamsError(f"{field.name}: a text of {len(value)} characters; expected at most {LONGEST_TEXT}.")
        expected, converter = _CONVERTERS[str(field.type)]
        try:
            converted = converter(value)
        except (TypeError, ValueError, OverflowError) as error:
            given = f"{short(value)} ({type(value).__name__})" if _is_plain(value) else type(value).__name__
            raise HparamsError(f"{field.name}: expected {expected}, got {given}.") from error
        setattr(hparams, field.name, converted)


def _is_plain(value: Any) -> bool:
    """Whether the value is short enough to quote: a model object must not be printed into an error."""
    return value is None or isinstance(value, (str, int, float, list, dict))


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _to_int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        number = _to_float(value)
        if not number.is_integer():
            raise ValueError(value)
        value = int(number)
    if abs(value) > LARGEST:
        raise OverflowError
    return int(value)


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _to_str(value: Any) -> str:
    text = os.fspath(value)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(value)
    return text


def _to_layers(value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, dict)):
        raise TypeError(value)
    layers = tuple(_to_int(layer) for layer in value)
    if len(layers) > _MOST_LAYERS or any(abs(layer) > _HIGHEST_LAYER for layer in layers):
        raise ValueError(layers)
    return layers


def _to_device(value: Any) -> int | str | None:
    # `torch.device` is recognised by name: this room does without torch.
    if type(value).__name__ == "device":
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, str, type(None))):
        raise TypeError(value)
    return value


def _to_model(value: Any) -> Any:
    """Keep any object (EasyEdit users put loaded models here), but refuse what can only be a slip in a file."""
    if value is None or isinstance(value, (bool, int, float, bytes, list, dict, set)):
        raise TypeError(value)
    return _to_str(value) if isinstance(value, (str, os.PathLike)) else value


def _optional(converter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else converter(value)


_CONVERTERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "str": ("a string", _to_str),
    "str | None": ("a string or null", _optional(_to_str)),
    "float": ("a number", _to_float),
    "float | None": ("a number or null", _optional(_to_float)),
    "int": ("a whole number", _to_int),
    "int | None": ("a whole number or null", _optional(_to_int)),
    "bool": ("true or false", _to_bool),
    "tuple[int, ...]": ("a list of layer numbers", _to_layers),
    "int | str | None": ("a device number, a device name or null", _to_device),
    "Any": ("a model name, a path or a loaded model", _to_model),
}
