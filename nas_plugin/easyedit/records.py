"""What is remembered about a model that is being edited: its sessions and what it was before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas_plugin.model import tensor_digest

if TYPE_CHECKING:
    from torch import nn

    from nas_plugin.session import EditSession

_KEY = "_nas_plugin_record"


class ModelRecord:
    """Sessions of one model object, and digests of the weights they edit from before the first edit.

    The record hangs on the model, not in a table of the adapter: a session refers to its model, so any table, also a weakly
    keyed one, would keep every edited model alive for the life of the process. A deep copy of the model is a model of its own
    with no sessions, but remembers that it has been edited.

    Attributes:
        sessions: Digest of the hyperparameters to session.
        pristine: Parameter name to digest.
        warned: Whether the user has been told that the host rolls edits back.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, EditSession] = {}
        self.pristine: dict[str, str] = {}
        self.warned = False

    @classmethod
    def of(cls, model: nn.Module) -> ModelRecord:
        """Look up the record of a model, and start one if there is none.

        Args:
            model: The model.

        Returns:
            Its record.
        """
        record = model.__dict__.get(_KEY)
        if not isinstance(record, cls):
            record = model.__dict__[_KEY] = cls()
        return record

    def add(self, key: str, session: EditSession, model: nn.Module) -> None:
        """Take in a session before its first edit.

        Args:
            key: Digest of its hyperparameters.
            session: The session.
            model: Its model.
        """
        for name in session.parameter_names:
            if name not in self.pristine:
                self.pristine[name] = tensor_digest(model.get_parameter(name))
        self.sessions[key] = session

    def edited_parameters(self, model: nn.Module) -> tuple[str, ...]:
        """Compare the weights with those before the first edit.

        Args:
            model: The model.

        Returns:
            Names of the parameters that differ.
        """
        return tuple(
            name for name, digest in self.pristine.items() if tensor_digest(model.get_parameter(name)) != digest
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelRecord:
        copied = ModelRecord()
        copied.pristine = dict(self.pristine)
        return copied

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # A pickled model must not need this package to be read, nor carry sessions.
        return dict, ()
