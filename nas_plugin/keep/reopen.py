"""A kept session from its folder alone: hyperparameters lie beside the ledger, the model is loaded anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nas_plugin.errors import HparamsError, ResumeError
from nas_plugin.files import write_bytes

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

HPARAMS_FILE = "hparams.yaml"


def write_hparams(session: EditSession, folder: Path) -> None:
    """Write the hyperparameters of a session, with the number type that its model really has.

    Args:
        session: The session.
        folder: Where it is kept.
    """
    values = session.hparams.to_dict()
    values |= {"torch_dtype": str(session.em.dtype).removeprefix("torch."), "fp16": False}
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    write_bytes(folder / HPARAMS_FILE, text.encode("utf-8", "backslashreplace"))


def reopen(
    folder: str | Path, *, model: str | None = None, settings: Mapping[str, Any] | None = None, progress: bool = True
) -> EditSession:
    """Load the unedited model of a kept session and bring it to where its ledger ends.

    Args:
        folder: Folder that the session was kept in.
        model: Folder or name of the unedited model, or "demo"; by default the name that the session had for it.
        settings: Hyperparameters that replace the session's: where statistics lie, a device. What decides an edit cannot change.
        progress: Show progress bars.

    Returns:
        The session; `undo`, `revert` and `edit` go on with it, and `session.model` is the edited model.

    Raises:
        LedgerError: There is no ledger, or it is damaged.
        ResumeError: The folder has no hyperparameters, or model, hyperparameters or statistics are not those of the session.
        ModelError: There is no such model.
    """
    from nas_plugin.evaluation.runner.load import load_hparams, load_model, model_name
    from nas_plugin.keep.log import read_log
    from nas_plugin.session import EditSession

    folder = Path(folder)
    read_log(folder)
    file = folder / HPARAMS_FILE
    if not file.exists():
        raise ResumeError(
            f"{folder} has no {HPARAMS_FILE}, as folders of earlier versions: put the hyperparameters of its session there, or "
            "use EditSession(model, tok, hparams, keep=folder).resume()."
        )
    named = {} if model is None else {"model_name": model_name(model)}
    try:
        hparams = load_hparams(file, {**named, **(settings or {}), "keep_dir": str(folder)})
    except HparamsError as error:
        raise ResumeError(f"the hyperparameters of the kept session cannot be used: {error.message}") from error
    loaded, tok = load_model(hparams)
    session = EditSession(loaded, tok, hparams, progress=progress)
    session.resume()
    return session
