"""The function EasyEdit calls for every edit."""

from __future__ import annotations

import copy as copying
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nas_plugin.easyedit.records import ModelRecord
from nas_plugin.errors import EditedModelError, HparamsError
from nas_plugin.hparams import NASHparams
from nas_plugin.session import EditSession

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nas_plugin.request import EditRequest

LOG = logging.getLogger(__name__)


class Adapter:
    """EasyEdit's calling convention on top of `EditSession`.

    Its method `apply` is what EasyEdit's table of methods holds; the table's content is how a registration is recognised.

    Attributes:
        is_wheel: Whether the host is the released wheel, which restores whatever weights it is given.
        undo: Everything `unregister` has to take back.
    """

    is_nas_adapter = True

    def __init__(self, is_wheel: bool) -> None:
        self.is_wheel = is_wheel
        self.undo = ExitStack()

    def session(self, model: PreTrainedModel, tok: PreTrainedTokenizerBase, hparams: NASHparams) -> EditSession:
        """Find the session of a model and hyperparameters, or open it.

        Args:
            model: The model to edit.
            tok: Its tokenizer.
            hparams: Hyperparameters of one of the NAS classes.

        Returns:
            The session.

        Raises:
            HparamsError: The hyperparameters are of another class.
            EditedModelError: The model holds edits of another session, and this one would have to measure its contexts,
                statistics and anchor on it.
        """
        if not isinstance(hparams, NASHparams):
            raise HparamsError(
                f"{getattr(hparams, 'alg_name', 'This method')} got hyperparameters of the class {type(hparams).__name__}; "
                "load the same file with the class from nas_plugin, such as NASMEMITHparams.from_hparams(path)."
            )
        record, key = ModelRecord.of(model), hparams.digest()
        session = record.sessions.get(key)
        if session is not None and _same_tokenizer(session.tok, tok):
            return session
        edited = record.edited_parameters(model)
        if edited:
            raise EditedModelError(
                f"{hparams.alg_name} would start on a model that other edits have changed ({', '.join(edited)}): other "
                "hyperparameters or another tokenizer edited it before. Its statistics and anchor must come from the unedited "
                "model. Load the model anew, or restore its weights, or keep to one method and unchanged hyperparameters."
            )
        session = EditSession(model, tok, hparams)
        record.add(key, session, model)
        return session

    def apply(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        requests: Sequence[Mapping[str, Any] | EditRequest] | Mapping[str, Any],
        hparams: NASHparams,
        copy: bool = False,
        return_orig_weights: bool = False,
        keep_original_weight: bool = False,
        **_kwargs: Any,
    ) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """Carry out one step of edits in place.

        Args:
            model: The model to edit.
            tok: Its tokenizer.
            requests: One or many requests; not changed.
            hparams: Hyperparameters of one of the NAS classes.
            copy: Edit a deep copy instead.
            return_orig_weights: Return the weights from before the step.
            keep_original_weight: On the wheel: the caller restores the weights returned, so return them only when asked to.
            **_kwargs: Whatever else the host passes to its own methods.

        Returns:
            The edited model and the edited weights as they were before, by parameter name, on the CPU.
        """
        if copy:
            model = copying.deepcopy(model)
        session = self.session(model, tok, hparams)
        session.edit([requests] if isinstance(requests, Mapping) else list(requests))
        # The wheel puts back every weight it is given, even when the user wants to keep the edit.
        wanted = return_orig_weights and (keep_original_weight or not self.is_wheel)
        return model, session.weights_before() if wanted else {}

    def warn_if_rolled_back(self, model: PreTrainedModel) -> None:
        """Say once per model that EasyEdit has taken an edit back.

        Args:
            model: The model that EasyEdit has just edited.
        """
        record = ModelRecord.of(model)
        if record.warned or all(session.state_of_weights() != "rolled back" for session in record.sessions.values()):
            return
        record.warned = True
        keep = "without keep_original_weight=True" if self.is_wheel else "with sequential_edit=True"
        LOG.warning(
            "EasyEdit has measured the edit and put the original weights back: the model is unedited now. To keep edits, call "
            "edit() %s, or nas_plugin.commit_edits(editor, requests).",
            keep,
        )


def _same_tokenizer(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    return ours is theirs or (type(ours) is type(theirs) and ours.get_vocab() == theirs.get_vocab())


def adapter_of(function: Any) -> Adapter | None:
    """Recognise a function of this package in EasyEdit's table.

    Args:
        function: Any entry of the table.

    Returns:
        The adapter whose method it is, else None.
    """
    owner = getattr(function, "__self__", None)
    # Not by class: a second import of this package (tests, reloads) must recognise the first one's registration.
    return owner if getattr(owner, "is_nas_adapter", False) else None
