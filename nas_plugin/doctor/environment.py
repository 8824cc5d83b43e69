"""Python, packages, EasyEdit, devices, disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nas_plugin
from nas_plugin.doctor.finding import Finding, gigabytes, ok, problem, warning
from nas_plugin.errors import HostDeviceError, HparamsError, NasPluginError

_PYTHON = (3, 10)
# Name, oldest version, the first that is too new.
_NEEDED = (
    ("torch", (2, 4), None),
    ("transformers", (4, 57), (6,)),
    ("accelerate", (1, 0), None),
    ("safetensors", (0, 4), None),
)
_OPTIONAL = {
    "datasets": ("text for second moments, and streams, by name", "eval"),
    "matplotlib": ("pictures and reports", "eval"),
    "lm_eval": ("capability tasks", "eval"),
    "peft": ("LoRA adapters", "peft"),
    "tensorboard": ("--track tensorboard", "track"),
}
_LITTLE_DISK = 5_000_000_000


def environment() -> Iterator[Finding]:
    """Look at all of it.

    Yields:
        A finding each.
    """
    running = platform.python_version()
    if sys.version_info[:2] < _PYTHON:
        yield problem("python", running, "Use Python 3.10 or newer.")
    else:
        yield ok("python", running)
    yield ok("nas-plugin", f"{nas_plugin.__version__} in {Path(nas_plugin.__file__).parent}")
    for name, oldest, too_new in _NEEDED:
        yield _package(name, oldest, too_new)
    for name, (purpose, extra) in _OPTIONAL.items():
        found = _version(name)
        missing = f"Only for {purpose}: pip install 'nas-plugin[{extra}]'."
        yield ok(name, found) if found else ok(name, "not installed", missing)
    yield shipped()
    yield easyedit()
    yield devices()
    yield disk(Path.cwd())


def shipped() -> Finding:
    """Look for the hyperparameter files that ship."""
    from nas_plugin.hparams import shipped_folder, shipped_names

    try:
        return ok("hyperparameters", f"{len(shipped_names())} files in {shipped_folder()}")
    except HparamsError as error:
        return problem("hyperparameters", error.message, "Install nas-plugin again.")


def easyedit() -> Finding:
    """Import EasyEdit as a user's script would, and look for the editors in its tables; they are taken out again."""
    from nas_plugin.easyedit.host import HOME, NAME, load_host
    from nas_plugin.easyedit.registry import NAS_NAMES, PLAIN_NAMES, is_registered, register, unregister

    home = os.environ.get(HOME)
    try:
        host = load_host()
        before = is_registered()
        register()
        methods = [name for name in (*NAS_NAMES, *PLAIN_NAMES) if name in host.ALG_DICT]
        if not before:
            unregister()
    except NasPluginError as error:
        if home:
            return problem("EasyEdit", error.message, f"Correct or unset {HOME}.")
        if find_spec(NAME) is None:
            return warning(
                "EasyEdit", "not found", f"{error.message} nas_plugin.EditSession and nas-edit work without."
            )
        return problem("EasyEdit", error.message, "Editing without EasyEdit works: nas_plugin.EditSession.")
    kind = "released wheel" if host.is_wheel else "current sources"
    how = f"through {HOME}" if home else "installed, or on PYTHONPATH"
    folder = Path(str(host.module.__file__)).parent
    says = f"{kind}, {folder} ({how}); {len(methods)} methods registered: {', '.join(methods)}"
    missing = [name for name in NAS_NAMES if name not in methods]
    if missing:
        return problem(
            "EasyEdit", f"{says}; without {', '.join(missing)}", "Report this: the tables of EasyEdit changed."
        )
    return _works_here(says, host.is_wheel)


def _works_here(says: str, is_wheel: bool) -> Finding:
    from nas_plugin.easyedit.prepare import wheel_device

    if is_wheel:
        try:
            wheel_device(None)
        except HostDeviceError as error:
            return warning("EasyEdit", says, error.message)
    return ok("EasyEdit", says)


def devices() -> Finding:
    """Look for an accelerator, as editing does."""
    import torch

    from nas_plugin.easyedit.prepare import working_device

    device = torch.device(working_device(None))
    if device.type == "cpu":
        says = f"CPU, threads: {torch.get_num_threads()}, {gigabytes(memory_of(device))} of memory"
        return ok("device", f"{says}; no accelerator", "Models of billions of parameters want one.")
    module: Any = getattr(torch, device.type)
    count = module.device_count()
    names = ", ".join(dict.fromkeys(str(module.get_device_name(number)) for number in range(count)))
    return ok("device", f"{count} of type {device.type}: {names}, {gigabytes(memory_of(device))} each")


def memory_of(device: Any) -> int:
    """Return the bytes that a device has in all; 0 if that is not known.

    Args:
        device: A torch device.
    """
    if device.type != "cpu":
        import torch

        properties = getattr(getattr(torch, device.type), "get_device_properties", None)
        return int(getattr(properties(device), "total_memory", 0)) if properties is not None else 0
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 0


def disk(folder: Path, needed: int = _LITTLE_DISK, name: str = "disk") -> Finding:
    """Look at the space that is free.

    Args:
        folder: Where something is to be written; it need not exist.
        needed: Bytes that will be written.
        name: What the finding is called.

    Returns:
        The finding.
    """
    there = nearest(folder)
    free = shutil.disk_usage(there).free
    says = f"{gigabytes(free)} free where {there} lies"
    if free < needed:
        return warning(name, says, f"About {gigabytes(needed)} may be needed; make room, or set stats_dir elsewhere.")
    return ok(name, says)


def nearest(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _package(name: str, oldest: tuple[int, ...], too_new: tuple[int, ...] | None) -> Finding:
    found = _version(name)
    range_ = f"{name}>={_dotted(oldest)}" + (f",<{_dotted(too_new)}" if too_new else "")
    if found is None:
        return problem(name, "not installed", f"pip install '{range_}'")
    numbers = _numbers(found)
    if numbers < oldest or (too_new is not None and numbers >= too_new):
        return problem(name, f"{found}, which is not supported", f"pip install '{range_}'")
    return ok(name, found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    parts = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
