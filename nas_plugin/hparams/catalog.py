"""Hyperparameter files as things of their own: which are shipped, what one says and where from, copies, checks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nas_plugin.errors import HparamsError
from nas_plugin.hparams.base import NASHparams
from nas_plugin.hparams.files import find_file, put, read_file, shipped_folder, shipped_names
from nas_plugin.hparams.render import METHODS

MARKS = ("published", "derived", "untested")
"""Where a file's numbers are from: published for this method and model; derived from those of another method or a like model;
untested: chosen by rule, and nobody has said what they do."""

_MARK = re.compile(rf"^# ({'|'.join(map(str.capitalize, MARKS))}): (.+)$")
_MOST_FILES = 10_000


@dataclass(frozen=True)
class HparamsFile:
    """A hyperparameter file and what its head says.

    Attributes:
        name: "NAS-MEMIT/gpt2-xl" for a shipped file, else the path.
        path: Where it lies.
        method: The editor, with `NAS-`; empty if the file does not say.
        model: Folder or hub name of the model; empty if the file does not say.
        mark: One of `MARKS`; empty if the head has none.
        source: Where the numbers are from, as the head says.
    """

    name: str
    path: Path
    method: str
    model: str
    mark: str
    source: str


@dataclass(frozen=True)
class Setting:
    """One resolved value.

    Attributes:
        key: Its key.
        value: Its value.
        origin: "file"; "method" for what a file means by omitting the key; "default" for the class's own.
    """

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file.

    Attributes:
        path: The file.
        message: What, and what to do.
    """

    path: Path
    message: str


def list_hparams(method: str | None = None, mark: str | None = None) -> tuple[HparamsFile, ...]:
    """List the shipped files.

    Args:
        method: Only of this editor, with or without `NAS-`.
        mark: Only with this mark.

    Returns:
        The files, by name.

    Raises:
        HparamsError: The method or the mark does not exist.
    """
    if method is not None and method.removeprefix("NAS-") not in METHODS:
        raise HparamsError(f"no method {method!r}; there are {', '.join(METHODS)}.")
    if mark is not None and mark not in MARKS:
        raise HparamsError(f"no mark {mark!r}; there are {', '.join(MARKS)}.")
    wanted = None if method is None else "NAS-" + method.removeprefix("NAS-")
    found = (_described(name, shipped_folder() / f"{name}.yaml") for name in shipped_names())
    return tuple(file for file in found if wanted in (None, file.method) and mark in (None, file.mark))


def show_hparams(name: str | os.PathLike[str]) -> tuple[HparamsFile, tuple[Setting, ...]]:
    """Resolve a file: every value that an edit would be made with, and where it is from.

    Args:
        name: A shipped name with its method, or a path.

    Returns:
        What the file's head says, and the values in the order of the class.

    Raises:
        HparamsError: No such file, or it cannot be loaded.
    """
    path = _find(name)
    values = read_file(path)
    cls = _class_of(values, path)
    hparams = cls.from_hparams(path)
    resolved = hparams.to_dict()
    settings = []
    for field in fields(cls):
        implied = field.name in cls.file_defaults and values.get("model_name") is not None
        origin = "file" if field.name in values else "method" if implied else "default"
        settings.append(Setting(field.name, resolved[field.name], origin))
    shown = f"{path.parent.name}/{path.stem}"
    return _described(shown if path.parent.parent == shipped_folder() else str(path), path), tuple(settings)


def copy_hparams(name: str, target: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Copy a file to where it can be changed.

    Args:
        name: A shipped name with its method, or a path.
        target: File to write, or an existing folder.
        overwrite: Replace a file that is there.

    Returns:
        The file written.

    Raises:
        HparamsError: No such file, or the target exists.
    """
    path = _find(name)
    goal = Path(target)
    goal = goal / path.name if goal.is_dir() else goal
    put(goal, path.read_bytes(), overwrite=overwrite)
    return goal


def validate_hparams(*paths: str | os.PathLike[str]) -> tuple[tuple[Path, ...], tuple[Problem, ...]]:
    """Check files without loading a model.

    Args:
        *paths: Files, or folders with `.yaml` files at any depth.

    Returns:
        The files that were checked, and everything that is wrong with them.

    Raises:
        HparamsError: A path does not exist, or there is no file in a folder.
    """
    files = [file for path in paths for file in _files_in(Path(path))]
    return tuple(files), tuple(Problem(file, message) for file in files for message in _problems(file))


def _find(name: str | os.PathLike[str]) -> Path:
    given = os.fspath(name)
    bare = "/" not in given and not Path(given).exists() and not Path(f"{given}.yaml").exists()
    if bare and any(shipped.endswith(f"/{given}") for shipped in shipped_names()):
        raise HparamsError(f"{given!r} is shipped for each method; say which, as in NAS-MEMIT/{given}.")
    return find_file(given, own_folder="NAS-MEMIT")


def _class_of(values: dict[str, Any], path: Path) -> type[NASHparams]:
    name = values.get("alg_name")
    cls = METHODS.get(str(name).removeprefix("NAS-"))
    if cls is None:
        known = ", ".join(f"NAS-{method}" for method in METHODS)
        raise HparamsError(
            f"{path}: alg_name: {'missing' if name is None else f'{name!r} is no editor here'}; write one of {known}."
        )
    return cls


def _described(name: str, path: Path) -> HparamsFile:
    values = read_file(path)
    mark, source = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        found = _MARK.match(line)
        if found:
            mark, source = found[1].lower(), [found[2]]
        elif mark:
            source.append(line[1:].strip())
    method, model = (str(values.get(key, "")) for key in ("alg_name", "model_name"))
    return HparamsFile(name, path, method, model, mark, " ".join(source))


def _files_in(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise HparamsError(f"{path}: no such file or folder.")
    found = sorted({*path.rglob("*.yaml"), *path.rglob("*.yml")})[:_MOST_FILES]
    if not found:
        raise HparamsError(f"{path}: no .yaml file in this folder.")
    return found


def _problems(path: Path) -> Iterator[str]:
    """Find everything that is wrong: each key by itself, then the file as a whole if that found nothing."""
    try:
        values = read_file(path)
        cls = _class_of(values, path)
    except HparamsError as error:
        yield _without(path, error)
        return
    found = []
    for key, value in values.items():
        try:
            cls.check_one(key, value)
        except HparamsError as error:
            found.append(_without(path, error))
    try:
        cls.from_hparams(path)
    except HparamsError as error:
        # The first of those found, again, or something between keys or missing.
        if _without(path, error) not in found:
            found.append(_without(path, error))
    yield from found


def _without(path: Path, error: HparamsError) -> str:
    return error.message.removeprefix(f"{path}: ")
