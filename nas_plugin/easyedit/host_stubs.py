"""Temporary stand-ins for packages that EasyEdit imports and the six editors never use.

EasyEdit imports the dependencies of all its methods at once: image and video readers, API clients, metric packages. The
stand-ins let its import succeed where such a package is missing, and leave `sys.modules` as soon as that import is over.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

LOG = logging.getLogger(__name__)

# What a user loses inside EasyEdit while the package is missing.
FEATURES = {
    "datasets": "EasyEdit's own statistics (nas_plugin collects its own)",
    "nltk": "fluency metric",
    "scipy": "fluency metric",
    "sklearn": "F1 metric and IKE retrieval",
    "rouge": "ROUGE metric of the unstructured evaluation",
    "sentence_transformers": "IKE retrieval",
    "peft": "LoRA, QLoRA and MELO",
    "accelerate": "model_parallel: true",
    "higher": "MEND and SERAC training",
    "hydra": "MEND and SERAC training",
    "omegaconf": "MEND and SERAC training",
    "openai": "LLM-judge evaluation",
    "zhipuai": "API editing",
    "einops": "KN",
    "matplotlib": "EasyEdit's plots",
    "pandas": "multimodal editing",
    "PIL": "multimodal editing",
    "av": "multimodal editing",
    "cv2": "multimodal editing",
    "fairscale": "multimodal editing",
    "iopath": "multimodal editing",
    "qwen_vl_utils": "multimodal editing",
    "timm": "multimodal editing",
    "torchvision": "multimodal editing",
}


class _PlaceholderType(type):
    """Let a placeholder class be subscripted and or-ed, as annotations of the host do."""

    def __getitem__(cls, _key: object) -> type:
        return cls

    def __or__(cls, _other: object) -> Any:
        return cls

    def __ror__(cls, _other: object) -> Any:
        return cls

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls.__module__}.{cls.__qualname__}", name)


def _placeholder(module: str, name: str) -> type:
    """Return a class that can be subclassed or decorate, and refuses to be used for anything else."""

    def create(cls: type, *args: Any, **_kwargs: Any) -> Any:
        if len(args) == 1 and callable(args[0]) and "__new__" in vars(cls):  # not in a subclass of the host
            return args[0]  # `@decorator` above a function or class of the host
        package = module.partition(".")[0]
        raise ImportError(
            f"{module}.{name} was used, but the package {package!r} is not installed here. "
            f"Install {package!r} and start again to use this part of EasyEdit ({FEATURES.get(package, 'optional')})."
        )

    return _PlaceholderType(name, (), {"__module__": module, "__new__": create})


class _StubModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _placeholder(self.__name__, name)
        setattr(self, name, value)
        return value


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find the missing packages, and any submodule of them, as stub modules."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stub has nothing to run."""


def _importable(name: str) -> bool:
    before = set(sys.modules)
    try:
        if importlib.util.find_spec(name) is None:
            return False
        importlib.import_module(name)
    except Exception:  # an installed but broken package raises anything at all
        LOG.debug("%s is installed but cannot be imported", name, exc_info=True)
        for leftover in set(sys.modules) - before:
            if leftover.partition(".")[0] == name:
                del sys.modules[leftover]
        return False
    return True


def missing_packages() -> tuple[str, ...]:
    """Look which optional packages of the host cannot be imported here.

    Returns:
        Their names. A package that is installed but fails to import counts as missing.
    """
    return tuple(name for name in FEATURES if not _importable(name))


def _remember_availability() -> None:
    """Make transformers look for optional packages now, so that no stub is ever taken for one of them."""
    utils = importlib.import_module("transformers.utils.import_utils")
    for package in (*FEATURES, "vision", "torchvision_v2"):
        check = getattr(utils, f"is_{package.lower()}_available", None)
        if check is not None:
            check()


@contextmanager
def stubs(packages: Sequence[str]) -> Iterator[None]:
    """Put stub modules in place of the named packages for as long as the block runs.

    Args:
        packages: Top-level names, as `missing_packages` gives them.

    Yields:
        Nothing. Afterwards `sys.modules` and `sys.meta_path` hold no stub; modules imported inside keep theirs.
    """
    _remember_availability()
    finder = _StubFinder(packages)
    # Last in line: whatever is installed is found before a stub is.
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StubModule)]:
            del sys.modules[name]
