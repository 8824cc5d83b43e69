"""Putting the editors into EasyEdit's tables, and taking them out again."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nas_plugin.hparams as hyperparameters
from nas_plugin.easyedit.adapter import Adapter, adapter_of
from nas_plugin.easyedit.hook import disarm
from nas_plugin.easyedit.host import Host, imported, load_host
from nas_plugin.easyedit.prepare import for_editor
from nas_plugin.hparams import NASHparams

LOG = logging.getLogger(__name__)

NAS_NAMES = ("NAS-MEMIT", "NAS-PRUNE", "NAS-RECT", "NAS-AlphaEdit", "NAS-ENCORE", "NAS-LyapLock")
PLAIN_NAMES = ("PRUNE", "RECT", "ENCORE", "LyapLock")
HPARAMS_NAMES = tuple(f"NAS{name.removeprefix('NAS-')}Hparams" for name in NAS_NAMES)
_EDITING = ("edit", "edit_requests", "batch_edit", "normal_edit")
_BATCHABLE = "is_batchable_method"
_MISSING = object()


def register() -> None:
    """Make the editors known to EasyEdit; importing EasyEdit first if need be. A second call changes nothing."""
    host = load_host()
    disarm()
    if _registered(host) is not None:
        return
    adapter = Adapter(host.is_wheel)
    _add_methods(host, adapter)
    _make_batchable(host, adapter)
    for name in HPARAMS_NAMES:
        _replace(adapter, host.module, name, getattr(hyperparameters, name))
    _replace(adapter, host.BaseEditor, "__init__", _constructor(host))
    for name in _EDITING:
        if hasattr(host.BaseEditor, name):
            _replace(adapter, host.BaseEditor, name, _editing(host, name))


def is_registered() -> bool:
    """Tell whether the editors are in EasyEdit's tables; EasyEdit is not imported for it."""
    return imported() is not None and _registered(load_host()) is not None


def unregister() -> None:
    """Leave EasyEdit exactly as it was, and stop waiting for its import."""
    disarm()
    if imported() is None:
        return
    adapter = _registered(load_host())
    if adapter is not None:
        adapter.undo.close()


def _registered(host: Host) -> Adapter | None:
    return next(filter(None, map(adapter_of, host.ALG_DICT.values())), None)


def _add_methods(host: Host, adapter: Adapter) -> None:
    for name in NAS_NAMES + PLAIN_NAMES:
        if name in host.ALG_DICT:
            LOG.info("EasyEdit has a method %s of its own; it stays. Ours is NAS-%s with use_nas: false.", name, name)
            continue
        host.ALG_DICT[name] = adapter.apply
        adapter.undo.callback(host.ALG_DICT.pop, name, None)


def _make_batchable(host: Host, adapter: Adapter) -> None:
    original: Callable[[str], bool] = getattr(host.BatchEditor, _BATCHABLE)
    ours = frozenset(name for name, function in host.ALG_DICT.items() if adapter_of(function) is adapter)

    @functools.wraps(original)
    def is_batchable_method(alg_name: str) -> bool:
        return alg_name in ours or original(alg_name)

    _replace(adapter, host.BatchEditor, _BATCHABLE, staticmethod(is_batchable_method))


def _replace(adapter: Adapter, owner: Any, name: str, value: Any) -> None:
    """Set an attribute and remember how to undo it, by what the owner itself held, not by what it inherits."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)

    def undo() -> None:
        if vars(owner).get(name) is not value:
            LOG.warning("%s.%s was replaced once more after nas_plugin; it stays as it is.", owner.__name__, name)
        elif before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    adapter.undo.callback(undo)


def _ours(hparams: Any) -> NASHparams | None:
    if isinstance(hparams, type) and issubclass(hparams, NASHparams):
        return hparams()
    return hparams if isinstance(hparams, NASHparams) else None


def _constructor(host: Host) -> Callable[..., None]:
    original: Callable[..., None] = vars(host.BaseEditor)["__init__"]

    @functools.wraps(original)
    def __init__(self: Any, hparams: Any, *args: Any, **kwargs: Any) -> None:
        ours = _ours(hparams)
        if ours is None:
            original(self, hparams, *args, **kwargs)
            return
        with _one_set_of_handlers(original.__module__):
            original(self, for_editor(ours, host.is_wheel), *args, **kwargs)

    return __init__


@contextmanager
def _one_set_of_handlers(logger_name: str) -> Iterator[None]:
    """Undo that the host adds a file and a stream handler for every editor, so that each line would come once per editor."""
    logger = logging.getLogger(logger_name)
    before = list(logger.handlers)
    yield
    if before:
        for handler in [handler for handler in logger.handlers if handler not in before]:
            logger.removeHandler(handler)
            handler.close()


def _editing(host: Host, name: str) -> Callable[..., Any]:
    original = getattr(host.BaseEditor, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        adapter = adapter_of(self.apply_algo)
        if adapter is None or not isinstance(self.hparams, NASHparams):
            return original(self, *args, **kwargs)
        with _host_call(self, single=name in ("edit", "edit_requests"), is_wheel=host.is_wheel):
            result = original(self, *args, **kwargs)
        adapter.warn_if_rolled_back(self.model)
        return result

    return method


@contextmanager
def _host_call(editor: Any, single: bool, is_wheel: bool) -> Iterator[None]:
    """Meet what the host demands of its own call, and undo it afterwards."""
    batch_size, side = editor.hparams.batch_size, editor.tok.padding_side
    if single:
        editor.hparams.batch_size = 1  # one version insists on it, the other sets it for good
    if is_wheel:
        editor.tok.padding_side = "left"  # its evaluator reads the wrong positions otherwise
    try:
        yield
    finally:
        editor.hparams.batch_size, editor.tok.padding_side = batch_size, side
