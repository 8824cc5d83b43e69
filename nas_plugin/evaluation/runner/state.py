"""What a run keeps of a session: what it measured before the first edit, and what its edits have changed since.

Tensors lie in safetensors files, everything else in a JSON manifest beside them that is written last: a state without a manifest
is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nas_plugin.anchor import Anchor
from nas_plugin.errors import ResumeError, RunFolderError, SnapshotError
from nas_plugin.evaluation.records import read_object
from nas_plugin.files import read_tensors, write_json, write_tensors
from nas_plugin.keep.state import packed, unpack
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.reading import short
from nas_plugin.session import EditSession

_FORMAT = "nas-plugin-state-2"
_KEYS = "keys"
_CONTEXTS, _MOMENTS, _ANCHOR = "contexts.json", "moments.safetensors", "anchor.json"


@dataclass(frozen=True)
class Measured:
    """What a session measured on the unedited model, as arguments of `EditSession`.

    Attributes:
        contexts: Context templates.
        moments: Second moments.
        anchor: The anchor; None without norm anchoring.
    """

    contexts: ContextTemplates
    moments: SecondMoments
    anchor: Anchor | None

    def save(self, folder: Path) -> None:
        """Write all of it.

        Args:
            folder: Where to.
        """
        if self.anchor is not None:
            self.anchor.save(folder / _ANCHOR)
        self.moments.save(folder / _MOMENTS)
        write_json(folder / _CONTEXTS, self.contexts.to_values())

    @classmethod
    def load(cls, folder: Path) -> Measured | None:
        """Read what `save` wrote.

        Args:
            folder: Where it lies.

        Returns:
            The measurements, None if they were not saved to the end.

        Raises:
            NasPluginError: Something is damaged.
        """
        if not (folder / _CONTEXTS).exists():
            return None
        anchor = folder / _ANCHOR
        return cls(
            ContextTemplates.from_values(read_object(folder / _CONTEXTS), str(folder / _CONTEXTS)),
            SecondMoments.load(folder / _MOMENTS),
            Anchor.load(anchor) if anchor.exists() else None,
        )


def save_state(session: EditSession, manifest: Path) -> None:
    """Save all that a session's edits have changed.

    Args:
        session: The session, between two steps.
        manifest: JSON file to write; the tensors go beside it.
    """
    tensors, values = packed(session)
    tensors |= {f"{layer}.{_KEYS}": editor.gain.keys for layer, editor in session.editors.items()}
    write_tensors(manifest.with_suffix(".safetensors"), tensors, {"format": _FORMAT})
    write_json(manifest, {**values, **_session(session)})


def load_state(session: EditSession, manifest: Path) -> None:
    """Put a fresh session, and its model, where a saved one was.

    Args:
        session: A session on the unedited model, made with what the saved one had measured.
        manifest: What `save_state` wrote.

    Raises:
        ResumeError: The state is of another model or other hyperparameters, or it is damaged. Nothing has changed.
    """
    try:
        content = read_object(manifest)
    except RunFolderError as error:
        raise ResumeError(error.message) from error
    for key, now in _session(session).items():
        if content.get(key) != now:
            raise ResumeError(
                f"{manifest}: {key} is {short(content.get(key))}, here it is {now}; the state is of another session."
            )
    session.prepare()
    path = manifest.with_suffix(".safetensors")
    try:
        _, tensors = read_tensors(path)
        unpack(session, tensors, content, lambda _: {layer: tensors[f"{layer}.{_KEYS}"] for layer in session.editors})
    except (OSError, ValueError) as error:
        reason = error.message if isinstance(error, SnapshotError) else error
        raise ResumeError(f"cannot read the saved state {path}: {reason} Run again from the start.") from error


def _session(session: EditSession) -> dict[str, str]:
    return {"format": _FORMAT, "fingerprint": session.fingerprint, "hparams_digest": session.hparams.digest()}
