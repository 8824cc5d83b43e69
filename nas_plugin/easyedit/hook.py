"""Registration by itself, in either import order, without importing anything early.

Whoever takes a hyperparameter class from `nas_plugin` means to edit, perhaps with EasyEdit. If EasyEdit is there already, the
editors register at once; if not, one finder waits for its import. Importing EasyEdit takes seconds, so nothing here causes it.
"""

from __future__ import annotations

import sys

from nas_plugin.easyedit.host import HostFinder, armed_finders, imported


def arm() -> None:
    """Register the editors now or at the first import of EasyEdit; any further call changes nothing."""
    if imported() is not None:
        _register()
    elif not armed_finders():
        sys.meta_path.insert(0, HostFinder(after_import=_register))


def disarm() -> None:
    """Stop waiting for the import of EasyEdit."""
    for finder in armed_finders():
        finder.remove()


def _register() -> None:
    from nas_plugin.easyedit.host_guard import untouched_process

    with untouched_process():  # some packages draw random numbers when they are imported, rich among them
        from nas_plugin.easyedit.registry import register
    register()
