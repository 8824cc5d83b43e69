"""Who takes part in a comparison, as commands name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_plugin.errors import HparamsError, RunError
from nas_plugin.evaluation.runner.load import DEMO, load_hparams, model_name
from nas_plugin.hparams import DEMO_MODEL, NASHparams, NASMEMITHparams

OURS = ("MEMIT", "PRUNE", "RECT", "AlphaEdit", "ENCORE", "LyapLock")
"""The six editors."""
HOSTS = {
    "FT": ("FT", "FTHyperParams"),
    "ROME": ("ROME", "ROMEHyperParams"),
    "MEND": ("MEND", "MENDHyperParams"),
    "GRACE": ("GRACE", "GraceHyperParams"),
    "MELO": ("MELO", "MELOHyperParams"),
    "WISE": ("WISE", "WISEHyperParams"),
    "UltraEdit": ("ULTRAEDIT", "UltraEditHyperParams"),
}
"""Methods of EasyEdit that can be compared with: name -> EasyEdit's name and its class of hyperparameters."""
_DEMO_FILES = Path(__file__).parent / "demo_hosts"
_NEEDS = {
    "MEND": "it needs a network that was trained to edit this model",
    "MELO": "it needs a pretrained encoder to look edits up with",
}


@dataclass(frozen=True)
class Entrant:
    """An editor with its hyperparameters.

    Attributes:
        label: Its name in the comparison, and of its folder.
        hparams: Of one of the six editors; for a method of EasyEdit those that say which model is loaded, and where.
        host_file: EasyEdit's hyperparameter file; None for one of the six editors.
        host_settings: Fields that replace those of that file.
        unavailable: Why it cannot run, None if it might.
    """

    label: str
    hparams: NASHparams
    host_file: Path | None = None
    host_settings: Mapping[str, Any] | None = None
    unavailable: str | None = None

    @property
    def is_host(self) -> bool:
        """Whether it is a method of EasyEdit."""
        return self.label in HOSTS


def all_ours() -> list[str]:
    """Return the six editors, each without and with norm anchoring."""
    return [f"{prefix}{method}" for method in OURS for prefix in ("", "NAS-")]


def entrant(name: str, hparams: str, model: str | None, settings: Mapping[str, Any]) -> Entrant:
    """Find an editor and its hyperparameters.

    Args:
        name: "MEMIT" (without norm anchoring), "NAS-MEMIT" or "FT" (EasyEdit's), or any of them with a file: "FT=ft.yaml".
        hparams: Which of the shipped files of the six editors: "nas-demo", "gpt2-xl".
        model: "demo", or a path or name that replaces the file's; None keeps the file's.
        settings: Fields that replace those of the six editors' files; those of EasyEdit's methods stay.

    Returns:
        The entrant.

    Raises:
        RunError: There is no method of that name, or one of EasyEdit was named without a file.
        HparamsError: Its file does not exist, or something in it is wrong.
    """
    label, _, file = name.partition("=")
    replaced = dict(settings) if model is None else {"model_name": model_name(model), **settings}
    if label in HOSTS:
        return _host(label, file, replaced.get("model_name", DEMO_MODEL), settings)
    method = label.removeprefix("NAS-")
    if method not in OURS:
        raise RunError(f"there is no method {label!r}; there are {', '.join([*all_ours(), *HOSTS])}.")
    loaded = load_hparams(file or f"NAS-{method}/{hparams}", {**replaced, "use_nas": label != method})
    if loaded.method != method:
        raise HparamsError(f"{file} is for {loaded.method}, not for {method}.")
    return Entrant(label, loaded)


def _host(label: str, file: str, model: str, settings: Mapping[str, Any]) -> Entrant:
    where = {key: settings[key] for key in ("device", "torch_dtype", "fp16") if key in settings}
    loading = NASMEMITHparams(model_name=model, **where)
    path = Path(file) if file else _DEMO_FILES / f"{label}.yaml"
    if file and not path.is_file():
        raise HparamsError(f"{path}: there is no such file; give EasyEdit's hyperparameters of {label}.")
    if not file and model != DEMO_MODEL:
        raise RunError(
            f"{label} is EasyEdit's: name its hyperparameter file, {label}=FILE. Only for the model {DEMO!r} some ship."
        )
    if not path.is_file():
        return Entrant(
            label,
            loading,
            unavailable=f"no hyperparameters ship for it, because {_NEEDS[label]}; {label}=FILE names yours.",
        )
    return Entrant(label, loading, path.resolve(), {key: where[key] for key in ("device",) if key in where})
