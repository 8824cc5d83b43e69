"""What must be known about a transformer: module paths as data, orientation by type, partial forwards."""

from nas_plugin.model.architectures import ARCHITECTURES, Architecture, architecture_of
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.fingerprint import tensor_digest, weights_fingerprint

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "EditableModel",
    "architecture_of",
    "tensor_digest",
    "weights_fingerprint",
]
