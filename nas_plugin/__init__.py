"""Norm-anchor scaling for sequential model editing, as a plug-in for EasyEdit.

Names are loaded on first use: importing the package imports neither torch nor EasyEdit and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_plugin.easyedit import Preloaded, commit_edits, register, session_of, unregister
    from nas_plugin.hparams import (
        NASAlphaEditHparams,
        NASENCOREHparams,
        NASLyapLockHparams,
        NASMEMITHparams,
        NASPRUNEHparams,
        NASRECTHparams,
    )
    from nas_plugin.keep.edits import load_edits
    from nas_plugin.keep.header import LoadedEdits
    from nas_plugin.report import EditReport, StepReport
    from nas_plugin.request import EditRequest
    from nas_plugin.session import EditSession
    from nas_plugin.share.apply import Applied, apply_edits
    from nas_plugin.share.export import Exported, export_edits
    from nas_plugin.share.hub import push_to_hub
    from nas_plugin.share.kept import kept_edits

__version__ = "0.1.0"

__all__ = [
    "Applied",
    "EditReport",
    "EditRequest",
    "EditSession",
    "Exported",
    "LoadedEdits",
    "NASAlphaEditHparams",
    "NASENCOREHparams",
    "NASLyapLockHparams",
    "NASMEMITHparams",
    "NASPRUNEHparams",
    "NASRECTHparams",
    "Preloaded",
    "StepReport",
    "apply_edits",
    "commit_edits",
    "export_edits",
    "kept_edits",
    "load_edits",
    "push_to_hub",
    "register",
    "session_of",
    "unregister",
]

_HPARAMS = "nas_plugin.hparams"
_HOMES = {
    "Applied": "nas_plugin.share.apply",
    "EditReport": "nas_plugin.report",
    "EditRequest": "nas_plugin.request",
    "EditSession": "nas_plugin.session",
    "Exported": "nas_plugin.share.export",
    "LoadedEdits": "nas_plugin.keep.header",
    "Preloaded": "nas_plugin.easyedit",
    "StepReport": "nas_plugin.report",
    "apply_edits": "nas_plugin.share.apply",
    "commit_edits": "nas_plugin.easyedit",
    "export_edits": "nas_plugin.share.export",
    "kept_edits": "nas_plugin.share.kept",
    "load_edits": "nas_plugin.keep.edits",
    "push_to_hub": "nas_plugin.share.hub",
    "register": "nas_plugin.easyedit",
    "session_of": "nas_plugin.easyedit",
    "unregister": "nas_plugin.easyedit",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use.

    Args:
        name: the attribute asked for.

    Returns:
        The class or function of that name.

    Raises:
        AttributeError: the package has no such public name.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, _HPARAMS)
    if home == _HPARAMS:
        # Whoever takes a hyperparameter class may hand it to EasyEdit next, before or after importing it. Nothing is
        # cached in this module, so that asking again after `unregister()` arms the hook again.
        from nas_plugin.easyedit.hook import arm

        arm()
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """List the public names along with those already loaded.

    Returns:
        Sorted names.
    """
    return sorted({*globals(), *__all__})
