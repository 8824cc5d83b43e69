"""Loading EasyEdit: where it is, importing it without side effects, and telling its versions apart."""

from __future__ import annotations

import importlib
import importlib.abc
import inspect
import logging
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from nas_plugin.errors import HostMissingError

NAME = "easyeditor"
HOME = "EASYEDIT_HOME"
LOG = logging.getLogger(__name__)

_HOW_TO_INSTALL = (
    "Install it with `pip install --no-deps easyeditor==0.0.1.dev0` (its other requirements are optional here), or clone "
    f"EasyEdit and name the clone in the environment variable {HOME} (or put it on PYTHONPATH)."
)


@dataclass(frozen=True)
class Host:
    """The parts of EasyEdit that the adapter touches.

    Attributes:
        module: The package `easyeditor`.
        BaseEditor: The class a user edits with.
        BatchEditor: The enumeration of methods that edit in batches.
        ALG_DICT: Method name to function; the very dictionary that the editors read.
        HyperParams: EasyEdit's base class of hyperparameters.
        compute_edit_quality: EasyEdit's evaluator.
        is_wheel: True for the release on the package index, which restores every weight a method returns and whose
            users say `keep_original_weight`; False for the current sources, whose users say `sequential_edit`.
    """

    module: ModuleType
    BaseEditor: type
    BatchEditor: type
    ALG_DICT: MutableMapping[str, Callable[..., Any]]
    HyperParams: type
    compute_edit_quality: Callable[..., Any]
    is_wheel: bool


class HostLoader(importlib.abc.Loader):
    """Run EasyEdit's import with stubs for what is missing, and undo its side effects."""

    def __init__(self, loader: importlib.abc.Loader, finder: HostFinder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the loader that is wrapped."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the wrapped loader under guard, then what was to follow the import."""
        self.finder.remove()
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        import_guarded(lambda: self.loader.exec_module(module))
        if self.finder.after_import is not None:
            self.finder.after_import()


class HostFinder(importlib.abc.MetaPathFinder):
    """Find `easyeditor`, in `EASYEDIT_HOME` first, and have it loaded by `HostLoader`.

    Attributes:
        after_import: Called once, when the import has succeeded.
    """

    def __init__(self, after_import: Callable[[], object] | None = None) -> None:
        self.after_import = after_import

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for `easyeditor` alone. A question is not an import: the finder stays until the loader runs."""
        if fullname != NAME:
            return None
        spec = _find_in_home() if os.environ.get(HOME) else _find_installed(path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = HostLoader(spec.loader, self)
        return spec

    def remove(self) -> None:
        """Leave `sys.meta_path`."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)


def _find_in_home() -> ModuleSpec:
    home = Path(os.environ[HOME]).expanduser()
    spec = PathFinder.find_spec(NAME, [str(home)])
    if spec is None or spec.loader is None:
        raise HostMissingError(
            f"{HOME} is set to {str(home)!r}, but there is no package {NAME!r} in that folder. "
            f"Set it to the top folder of an EasyEdit clone, or unset it."
        )
    return spec


def _find_installed(path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if not isinstance(finder, HostFinder):
            spec = finder.find_spec(NAME, path, target)
            if spec is not None:
                return spec
    return None


def import_guarded(run: Callable[[], object]) -> None:
    """Run an import of EasyEdit with everything that keeps it from failing and from leaving traces.

    Args:
        run: Does the import.
    """
    from nas_plugin.easyedit.host_guard import moved_names, untouched_process
    from nas_plugin.easyedit.host_stubs import FEATURES, missing_packages, stubs

    with ExitStack() as stack:
        stack.enter_context(untouched_process())
        missing = missing_packages()
        stack.enter_context(moved_names())
        stack.enter_context(stubs(missing))
        run()
    if missing:
        off = sorted({FEATURES[name] for name in missing})
        LOG.info("EasyEdit is loaded without %s. Off: %s.", ", ".join(missing), "; ".join(off))


def imported() -> ModuleType | None:
    """Look for EasyEdit among the modules of this process.

    Returns:
        The package if its import has come as far as its editors, else None.
    """
    module = sys.modules.get(NAME)
    return module if module is not None and hasattr(module, "BaseEditor") else None


def armed_finders() -> list[HostFinder]:
    """List the finders that wait for the first import of EasyEdit.

    Returns:
        Those in `sys.meta_path`.
    """
    return [finder for finder in sys.meta_path if isinstance(finder, HostFinder)]


def load_host() -> Host:
    """Import EasyEdit if that has not happened yet, and gather the parts of it that matter here.

    Returns:
        The host.

    Raises:
        HostMissingError: EasyEdit cannot be imported. The message says how to install it.
    """
    if imported() is None:
        _import_host()
    # Star imports inside the host rebind `easyeditor.util` and others: submodules are only safe by their full name.
    part = importlib.import_module
    base = part(f"{NAME}.editors.editor").BaseEditor
    return Host(
        module=sys.modules[NAME],
        BaseEditor=base,
        BatchEditor=part(f"{NAME}.editors.batch_editor").BatchEditor,
        ALG_DICT=part(f"{NAME}.util.alg_dict").ALG_DICT,
        HyperParams=part(f"{NAME}.util.hparams").HyperParams,
        compute_edit_quality=part(f"{NAME}.evaluate.evaluate").compute_edit_quality,
        is_wheel="keep_original_weight" in inspect.signature(base.edit).parameters,
    )


def _import_host() -> None:
    finder = None
    if not armed_finders():
        finder = HostFinder()
        sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(NAME)
    except HostMissingError:
        raise
    except ModuleNotFoundError as error:
        if error.name == NAME:
            raise HostMissingError(f"EasyEdit (the package {NAME!r}) is not installed. {_HOW_TO_INSTALL}") from error
        raise HostMissingError(
            f"EasyEdit was found, but it needs the package {error.name!r}: install that one too."
        ) from error
    except ImportError as error:
        raise HostMissingError(f"EasyEdit was found, but its import fails: {error}. {_HOW_TO_INSTALL}") from error
    finally:
        if finder is not None:
            finder.remove()
