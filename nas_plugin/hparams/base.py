"""What the six editors share: the fields, loading, validation and the digest."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import Any, ClassVar, TypeVar

from nas_plugin.errors import HparamsError
from nas_plugin.hparams.convert import convert_fields
from nas_plugin.hparams.files import find_file, read_file
from nas_plugin.hparams.limits import check_values

logger = logging.getLogger(__name__)

DEMO_MODEL = "nas-demo"
"""Name of the model that ships with the package; class defaults are chosen for it."""

_HOST_METHODS = ("MEMIT", "AlphaEdit")
# Without these a file for a real model would silently run on numbers chosen for the demo model.
_REQUIRED_IN_FILES = (
    "alg_name", "layers", "v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor",
    "mom2_update_weight", "mom2_dataset",
)  # fmt: skip
# Where and how a model runs, and keys without effect: they do not decide what an edit computes.
_NOT_IN_DIGEST = frozenset({
    "alg_name", "model_name", "device", "model_parallel", "batch_size", "max_length", "fp16", "torch_dtype",
    "stats_dir", "nas_anchor_file", "P_loc", "layer_selection", "mom2_adjustment",
    "on_reject", "norm_alarm", "on_norm_alarm", "keep_dir", "snapshot_every",
})  # fmt: skip
_TEXT_SUFFIXES = (".json", ".jsonl", ".parquet", ".txt")

_H = TypeVar("_H", bound="NASHparams")


@dataclass
class NASHparams:
    """Fields common to all editors. Defaults fit the embedded demo model; files carry the numbers of real models.

    Keys are EasyEdit's wherever EasyEdit has one. `None` for a module template means: from the architecture table.
    """

    method: ClassVar[str] = ""
    """The editor without the `NAS-` prefix."""
    file_defaults: ClassVar[dict[str, Any]] = {"nas_pilots": "builtin"}
    """What a file for a real model means by omitting these keys (the class defaults belong to the demo model)."""

    # How EasyEdit loads and drives the model.
    alg_name: str = ""
    model_name: Any = DEMO_MODEL
    device: int | str | None = None
    model_parallel: bool = False
    batch_size: int = 1
    max_length: int = 40
    fp16: bool = False
    torch_dtype: str | None = None
    # The edit: where it is written and how its value is optimised.
    layers: tuple[int, ...] = (0,)
    fact_token: str = "subject_last"
    v_num_grad_steps: int = 25
    v_lr: float = 2.5
    v_loss_layer: int | None = None
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 12.0
    kl_factor: float = 0.0625
    mom2_update_weight: float = 10.0
    # Second moments of the rewrite module's input.
    stats_dir: str | None = None
    mom2_dataset: str = "demo"
    mom2_n_samples: int = 100_000
    mom2_n_tokens: int | None = None
    mom2_tokens_per_dim: int | None = None
    mom2_dtype: str = "float32"
    # Module templates.
    rewrite_module_tmp: str | None = None
    layer_module_tmp: str | None = None
    mlp_module_tmp: str | None = None
    attn_module_tmp: str | None = None
    ln_f_module: str | None = None
    lm_head_module: str | None = None
    # Keys of EasyEdit's files that have no effect here.
    layer_selection: str = "all"
    mom2_adjustment: bool = True
    P_loc: str | None = None
    # Norm-anchor scaling.
    use_nas: bool = True
    nas_mode: str = "paper"
    nas_n_pilots: int = 100
    nas_pilots: str = "demo"
    nas_seed: int = 0
    nas_skip_factor: float | None = None
    nas_anchor_file: str | None = None
    # Context templates.
    context_seed: int = 0
    # Guards: what happens to edits that are bad, contradict earlier ones or let the weights grow.
    on_conflict: str = "replace"
    on_reject: str | None = None
    norm_alarm: float | None = 2.0
    on_norm_alarm: str = "warn"
    # Where ledger and snapshots are kept, and how many edits apart snapshots lie.
    keep_dir: str | None = None
    snapshot_every: int = 100

    def __post_init__(self) -> None:
        """Convert and check all fields; a plain method name switches NAS off."""
        self.validate()

    def validate(self) -> None:
        """Convert each field to its declared type and check it, again after a field was assigned.

        Raises:
            HparamsError: a value has the wrong type, is out of range, or `alg_name` belongs to another class.
        """
        convert_fields(self)
        self._check_alg_name(self.alg_name)
        if self.alg_name == self.method:
            self.use_nas = False
        check_values(self)

    @classmethod
    def from_hparams(cls: type[_H], name_or_path: str | os.PathLike[str], **overrides: Any) -> _H:
        """Load a shipped file by name or any file by path.

        Args:
            name_or_path: "NAS-AlphaEdit/llama3-8b", just "llama3-8b" (this class's own folder), or a path; `.yaml` may
                be left out.
            **overrides: fields that replace those of the file.

        Returns:
            Checked hyperparameters.

        Raises:
            HparamsError: no such file, an unknown key, a wrong type or value, or a file of another method.
        """
        for key in overrides:
            if key not in cls._known_keys():
                raise HparamsError(f"from_hparams({str(name_or_path)!r}): {cls._explain_unknown(key)}")
        path = find_file(name_or_path, own_folder=f"NAS-{cls.method}")
        try:
            hparams = cls(**cls._complete(read_file(path), overrides))
        except HparamsError as error:
            text = error.message
            raise HparamsError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from error
        logger.info("Hyperparameters of %s read from %s.", hparams.alg_name, path)
        return hparams

    @classmethod
    def check_one(cls, key: str, value: Any) -> None:
        """Check one entry of a file by itself.

        Args:
            key: Its key.
            value: Its value, as YAML has it.

        Raises:
            HparamsError: The key is unknown, or the value has the wrong type or is out of range.
        """
        if key in cls._known_keys():
            cls(**{key: value})
        elif key not in _host_only_keys():
            raise HparamsError(cls._explain_unknown(key))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, ready for YAML or JSON; a loaded model appears by its name only.

        Returns:
            Field names and values.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["layers"] = list(self.layers)
        if not isinstance(self.model_name, str):
            values["model_name"] = str(getattr(self.model_name, "name", type(self.model_name).__name__))
        return values

    def digest(self) -> str:
        """Identify what decides the result of an edit on a given model: not devices, folders or batch size.

        Returns:
            SHA-256 in hexadecimal; equal for "PRUNE" and "NAS-PRUNE" with `use_nas: false`.
        """
        return hashlib.sha256(json.dumps(self.decisive(), sort_keys=True).encode()).hexdigest()

    def decisive(self) -> dict[str, Any]:
        """What `digest` is the digest of: no folder and no device of a machine is among it.

        Returns:
            Field names and values.
        """
        decisive = {key: _portable(value) for key, value in self.to_dict().items() if key not in _NOT_IN_DIGEST}
        if not self.use_nas:
            decisive = {key: value for key, value in decisive.items() if not key.startswith("nas_")}
        if self.mom2_tokens_per_dim is None:
            # Digests of files that do not say it are as before there was such a key.
            del decisive["mom2_tokens_per_dim"]
        decisive["method"] = self.method
        return decisive

    @classmethod
    def _known_keys(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def _check_alg_name(cls, name: str) -> None:
        own = f"NAS-{cls.method}"
        if name == own or (name == cls.method and name not in _HOST_METHODS):
            return
        if name in _HOST_METHODS:
            advice = f"{name!r} is EasyEdit's own editor; change it to 'NAS-{name}'"
            if name != cls.method:
                advice += f" and load it with NAS{name}Hparams (for {cls.__name__}: {own!r})"
        else:
            owner = next(
                (other for other in NASHparams.__subclasses__() if name in (other.method, f"NAS-{other.method}")), None
            )
            advice = (
                f"{name!r} belongs to {owner.__name__}; load it with that class"
                if owner
                else f"{name!r} is no editor here"
            )
            advice += f", or change it to {own!r} for {cls.__name__}"
        raise HparamsError(f"alg_name: {advice}.")

    @classmethod
    def _complete(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Check the keys of a file, drop those of EasyEdit that this editor does not use, fill in what it omits."""
        # The method first: in a file of another one every other complaint would be beside the point.
        if isinstance(values.get("alg_name"), str):
            cls._check_alg_name(values["alg_name"])
        unused = set(_host_only_keys()) - set(cls._known_keys())
        for key in sorted(unused & values.keys()):
            logger.debug("%s: %s does not use %s; the key is ignored.", cls.__name__, cls.method, key)
        merged = {key: value for key, value in values.items() if key not in unused} | overrides
        for key in merged:
            if key not in cls._known_keys():
                raise HparamsError(cls._explain_unknown(key))
        if merged.get("model_name", DEMO_MODEL) == DEMO_MODEL:
            return merged
        missing = [key for key in _REQUIRED_IN_FILES if key not in merged]
        if missing:
            raise HparamsError(
                f"missing {', '.join(missing)}: a file for a model other than {DEMO_MODEL!r} must say them "
                f"(the class defaults fit {DEMO_MODEL!r} only)."
            )
        for key in cls.file_defaults.keys() - merged.keys():
            logger.info("%s: %s is not given; using %s.", cls.__name__, key, cls.file_defaults[key])
        return cls.file_defaults | merged

    @classmethod
    def _explain_unknown(cls, key: str) -> str:
        for other in NASHparams.__subclasses__():
            if key in other._known_keys():
                return (
                    f"unknown key {key!r}: it is a setting of NAS-{other.method}, not of NAS-{cls.method}; remove it."
                )
        by_lower = {known.lower(): known for known in cls._known_keys()}
        nearest = difflib.get_close_matches(key.lower(), by_lower, n=1, cutoff=0.5)
        if nearest:
            return f"unknown key {key!r}; did you mean {by_lower[nearest[0]]!r}?"
        return f"unknown key {key!r}; known keys: {', '.join(sorted(cls._known_keys()))}."


def _host_only_keys() -> tuple[str, ...]:
    """Keys of EasyEdit's AlphaEdit files: accepted by every class, so that a file can change its method."""
    return ("nullspace_threshold", "L2")


def _portable(value: Any) -> Any:
    """A text file is identified by its name: the folder it lies in differs between machines."""
    if isinstance(value, str) and value.endswith(_TEXT_SUFFIXES):
        return PurePath(value).name
    return value
