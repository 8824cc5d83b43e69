"""Every error a user of this package can meet, by name.

Each message says what was given, what was expected and what to do. All of them are raised before any weight changes; an
error inside a step leaves the weights as they were before it.
"""

from __future__ import annotations


class NasPluginError(Exception):
    """Base class: `except NasPluginError` catches whatever this package raises on purpose."""

    @property
    def message(self) -> str:
        """What was given, what was expected and what to do; `str(error)` adds where the error is explained."""
        return super().__str__()

    @property
    def entry(self) -> str:
        """Where the documentation explains this error."""
        return f"docs/errors.md#{type(self).__name__.lower()}"

    def __str__(self) -> str:
        return f"{self.message} [{self.entry}]"


class HparamsError(NasPluginError, ValueError):
    """A hyperparameter file or value is unknown, of the wrong type, out of range or of another method."""


class RequestError(NasPluginError, ValueError):
    """An edit request cannot be carried out as written."""


class SubjectNotFoundError(RequestError):
    """The subject does not occur in the prompt, or its tokens cannot be told from the text around it."""


class EmptyTargetError(RequestError):
    """The target is empty or blank, or has no tokens of its own."""


class SpecialTargetError(EmptyTargetError):
    """The target holds nothing but special tokens, such as the beginning of a text."""


class EmptyPromptError(RequestError):
    """The prompt is empty or blank."""


class EmptySubjectError(RequestError):
    """The subject is empty or blank."""


class ConflictError(RequestError):
    """A fact was edited before, or twice in one step, and `on_conflict` is "error"."""


class PlaceholderError(RequestError):
    """A prompt or context template holds no `{}` where one is needed, or more than one."""


class PromptTooLongError(RequestError):
    """Prompt, context and target together exceed what the model can attend to."""


class TokenizerError(NasPluginError, ValueError):
    """The tokenizer cannot tell which token holds which characters."""


class PadTokenError(TokenizerError):
    """The tokenizer has no pad token where the host framework pads."""


class ModelError(NasPluginError, ValueError):
    """The model cannot be edited as described."""


class UnknownArchitectureError(ModelError):
    """No row of the architecture table fits the model and the hyperparameters name no modules."""


class UnsupportedArchitectureError(ModelError):
    """The model's build is known, and what the editors write would not do what they solve for: the message says why."""


class UnknownLayerError(ModelError):
    """A layer number or module template does not exist in the model."""


class UnsupportedWeightError(ModelError):
    """A target weight is quantised, on the meta device, tied, or of a module type that is not a linear map."""


class AdapterError(ModelError):
    """A PEFT adapter is where an edit would be written, or works in a way that edits cannot be combined with."""


class ProcessGroupError(NasPluginError, RuntimeError):
    """The processes of one launch are not alike, or what was asked for is for one process alone."""


class StatisticsError(NasPluginError, ValueError):
    """Second moments are missing, malformed, not positive, or of another model."""


class AnchorError(NasPluginError, ValueError):
    """The norm anchor is missing, malformed, or belongs to another model, layer or method."""


class EditedModelError(AnchorError):
    """Something that must be measured on the unedited model was asked for after an edit."""


class GuardError(NasPluginError):
    """A guard refused an edit; nothing was written. `nas-edit` ends with exit code 3."""


class NonFiniteError(GuardError, ArithmeticError):
    """A value, key, gain or weight came out NaN or infinite; nothing was written."""


class NormAlarmError(GuardError):
    """An edit would have let the edited weights outgrow `norm_alarm`, and `on_norm_alarm` is "stop"; nothing was written."""


class KeepError(NasPluginError, ValueError):
    """What a session keeps on disk cannot be read or written as asked."""


class LedgerError(KeepError):
    """The ledger of edits is damaged, of another session, or not what the weights say."""


class SnapshotError(KeepError):
    """A snapshot of a session's state is damaged, incomplete or of another format."""


class UndoError(KeepError):
    """An edit cannot be undone: unknown, undone before, or nothing was kept to undo it with."""


class EditsError(NasPluginError, ValueError):
    """A file of edits is damaged or of another format, or its parameters do not fit the model they are to be put into."""


class ExportError(NasPluginError, ValueError):
    """Edits cannot be exported as asked: nothing to take them from, no such form, or no room for the folder."""


class HubError(NasPluginError, RuntimeError):
    """A folder could not be put on the Hugging Face Hub."""


class MeasureError(NasPluginError, ValueError):
    """A measurement was asked for that cannot be made: an unknown metric, outputs of other cases, too little to measure."""


class CapabilityError(NasPluginError, ValueError):
    """A capability task is unknown, its data are missing or malformed, or a setting of the measurement is out of range."""


class RunFolderError(NasPluginError, ValueError):
    """A run folder lacks a file or holds what the runner does not write."""


class RunError(NasPluginError, ValueError):
    """A run cannot be made as asked: its grid, its folder, its held-out text or a method's name does not fit."""


class ResumeError(RunFolderError):
    """A run cannot be gone on with: what is asked now differs from what its folder says, or its state is missing."""


class StreamError(NasPluginError, ValueError):
    """A stream of cases cannot be read: no such file, not JSON, not a list, or nothing usable in it."""


class SchemaError(StreamError):
    """The fields of a stream's records fit no known schema."""


class RecordError(StreamError):
    """A record of a stream is malformed; the message names file, record, case and field."""


class HostMissingError(NasPluginError, ImportError):
    """EasyEdit (`easyeditor`) is not installed."""


class HostDeviceError(NasPluginError, RuntimeError):
    """The installed release of EasyEdit cannot work on the devices of this machine."""


class PackageMissingError(NasPluginError, ImportError):
    """A package that only evaluation needs is not installed."""
