"""What is looked at, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nas_plugin.doctor.environment import environment
from nas_plugin.doctor.finding import Finding


def examine(
    hparams: str | None = None, *, model: str | None = None, settings: Mapping[str, Any] | None = None
) -> Iterator[Finding]:
    """Look at this environment, and at a hyperparameter file with all that it names.

    Args:
        hparams: A shipped name or a path; without it only the environment is looked at.
        model: Folder or name of the model, or "demo"; by default that of the hyperparameters.
        settings: Hyperparameters that replace those of the file.

    Yields:
        Findings as they are made; nothing is raised for what is found to be wrong.
    """
    yield from environment()
    if hparams is not None:
        from nas_plugin.doctor.files import files

        yield from files(hparams, model, settings or {})
