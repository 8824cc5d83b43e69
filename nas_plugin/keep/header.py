"""What a file of edits says about itself: one text in its header, sorted, with a digest, so that one changed character shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nas_plugin.reading import number, parse_json, short

# One key, because safetensors writes several in another order each time, and the same edits are to give the same bytes.
KEY = "nas-plugin-edits"
_OWN = ("parameters", "factored")


@dataclass(frozen=True)
class LoadedEdits:
    """What a file of edits says about them.

    Attributes:
        parameters: Names of the parameters it holds, sorted.
        version: Version of this package that made the edits.
        base: Fingerprint of the model as it was when their session began.
        method: Method, as "MEMIT".
        use_nas: Whether norms were anchored.
        hparams: Digest of the hyperparameters.
        edits: Number of edits that stand.
        anchor: tau; None without NAS.
        weights: Digest of the parameters, as `EditSession.weights_digest` gives it.
        factored: Those of the parameters that the file holds as factors, sorted.
    """

    parameters: tuple[str, ...]
    version: str
    base: str
    method: str
    use_nas: bool
    hparams: str
    edits: int
    anchor: float | None
    weights: str
    factored: tuple[str, ...] = ()


def text_of(about: LoadedEdits, form: str, more: Mapping[str, Any] | None = None) -> str:
    """Write a header's text.

    Args:
        about: What is known about the edits.
        form: Format of the file.
        more: What the format says besides.

    Returns:
        The text; names of tensors are not in it, for they are the file's own.
    """
    values: dict[str, Any] = {**asdict(about), **(more or {}), "format": form}
    for name in _OWN:
        del values[name]
    return json.dumps({**values, "sha256": text_digest(values)}, sort_keys=True)


def text_digest(values: Mapping[str, Any]) -> str:
    """Return the digest that a header notes of its own values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def values_of(text: str | None, *forms: str) -> dict[str, Any]:
    """Read a header's text.

    Args:
        text: The text; None if the file has none.
        forms: Formats that can be read.

    Returns:
        Its values.

    Raises:
        ValueError: It is none, of another format, or was changed.
    """
    values = parse_json(text) if text is not None else {}
    if not isinstance(values, dict) or values.get("format") not in forms:
        given = short(values.get("format")) if isinstance(values, dict) else "no object"
        raise ValueError(f"its format is {given}, and this release reads {' and '.join(map(repr, forms))}")
    noted = values.pop("sha256", None)
    if noted != text_digest(values) or text != json.dumps({**values, "sha256": noted}, sort_keys=True):
        raise ValueError("its header does not have the digest that it says")
    return values


def about_of(values: Mapping[str, Any], parameters: tuple[str, ...], factored: tuple[str, ...] = ()) -> LoadedEdits:
    """Take from a header's values what every format says.

    Args:
        values: The values.
        parameters: Names of the parameters that the file holds.
        factored: Those of them that are factors.

    Returns:
        What they say; ValueError, LookupError or TypeError if they do not.
    """
    return LoadedEdits(
        parameters=parameters,
        version=text_in(values, "version"),
        base=text_in(values, "base"),
        method=text_in(values, "method"),
        use_nas=bool(values["use_nas"]),
        hparams=text_in(values, "hparams"),
        edits=number(values, "edits", int),
        anchor=None if values["anchor"] is None else number(values, "anchor", float),
        weights=text_in(values, "weights"),
        factored=factored,
    )


def text_in(values: Mapping[str, Any], name: str) -> str:
    """Return a text among values; ValueError or LookupError if there is none."""
    value = values[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {short(value)}; expected a text")
    return value
