"""The only room that knows EasyEdit: registration, the functions EasyEdit calls, and edits that stay.

Importing this package imports neither torch nor EasyEdit.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_plugin.easyedit.commit import CommitReport, commit_edits, session_of
    from nas_plugin.easyedit.preloaded import Preloaded
    from nas_plugin.easyedit.registry import register, unregister

__all__ = ["CommitReport", "Preloaded", "commit_edits", "register", "session_of", "unregister"]

_ROOM = {
    "CommitReport": "commit",
    "Preloaded": "preloaded",
    "commit_edits": "commit",
    "register": "registry",
    "session_of": "commit",
    "unregister": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOM[name]}"), name)
