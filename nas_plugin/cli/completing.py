"""What a shell may complete: names of editors, shipped hyperparameters, trackers, and files beside them.

Imported by every call of `nas-edit`, and asked at every press of a key: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

# As `nas_plugin.evaluation.runner.entrants` has them, which imports torch; a test compares the two.
_OURS = ("MEMIT", "PRUNE", "RECT", "AlphaEdit", "ENCORE", "LyapLock")
_HOSTS = ("FT", "ROME", "MEND", "GRACE", "MELO", "WISE", "UltraEdit")
_HPARAMS_FILES, _STREAM_FILES = (".yaml", ".yml"), (".json", ".jsonl")


def hparams_files(incomplete: str) -> list[str]:
    """List hyperparameters that begin so: shipped names, and YAML files.

    Args:
        incomplete: What has been typed.

    Returns:
        The names.
    """
    from nas_plugin.hparams import shipped_names

    return [*_beginning(shipped_names(), incomplete), *_paths(incomplete, _HPARAMS_FILES)]


def models(incomplete: str) -> list[str]:
    """List what a model may be called: "demo", or a folder; see `hparams_files`."""
    return [*_beginning(["demo"], incomplete), *_paths(incomplete, ())]


def hparams_names(incomplete: str) -> list[str]:
    """List the names that shipped hyperparameters of all editors have; see `hparams_files`."""
    from nas_plugin.hparams import shipped_names

    return _beginning(sorted({name.partition("/")[2] for name in shipped_names()}), incomplete)


def methods(incomplete: str) -> list[str]:
    """List editors, without and with norm anchoring, and EasyEdit's; see `hparams_files`."""
    return _beginning([*_OURS, *(f"NAS-{name}" for name in _OURS), *_HOSTS], incomplete)


def streams(incomplete: str) -> list[str]:
    """List streams: "demo", and files of records; see `hparams_files`."""
    return [*_beginning(["demo"], incomplete), *_paths(incomplete, _STREAM_FILES)]


def trackers(incomplete: str) -> list[str]:
    """List experiment trackers; see `hparams_files`."""
    return _beginning(["tensorboard", "wandb", "trackio"], incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """List folders, and files with these suffixes, that begin so."""
    folder, _, begin = incomplete.rpartition("/")
    prefix = f"{folder}/" if "/" in incomplete else ""
    try:
        inside = sorted(Path(prefix or ".").iterdir())
    except OSError:
        return []
    found = [path for path in inside if path.name.startswith(begin) and (begin or not path.name.startswith("."))]
    return [
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
        for path in found
        if path.is_dir() or path.suffix in suffixes
    ]
