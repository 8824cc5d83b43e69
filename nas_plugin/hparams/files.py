"""Find and read hyperparameter files: the shipped ones by name, any other by path."""

from __future__ import annotations

import contextlib
import difflib
import os
from pathlib import Path
from typing import Any

from nas_plugin.errors import HparamsError
from nas_plugin.hparams.parse import parse_yaml
from nas_plugin.reading import short

_SUFFIXES = (".yaml", ".yml")
# Far more than the parser takes, so that a wrong file, such as a model, is not read in whole before it is refused.
_MOST_BYTES = 1 << 20
_LONGEST_KEY = 80


def shipped_folder() -> Path:
    """Where the shipped files are: inside an installed package, beside it in a source checkout.

    Returns:
        The folder that holds `NAS-MEMIT/`, `NAS-AlphaEdit/` and so on.

    Raises:
        HparamsError: the installation carries no hyperparameter files.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_hparams", package.parent / "hparams"):
        if (folder / "NAS-MEMIT").is_dir():
            return folder
    raise HparamsError(
        f"No shipped hyperparameter files beside {package}; the installation is incomplete: reinstall nas-plugin."
    )


def shipped_names() -> tuple[str, ...]:
    """Names of all shipped files.

    Returns:
        Sorted names such as "NAS-AlphaEdit/llama3-8b".
    """
    folder = shipped_folder()
    return tuple(sorted(path.relative_to(folder).with_name(path.stem).as_posix() for path in folder.glob("*/*.yaml")))


def find_file(name_or_path: str | os.PathLike[str], own_folder: str) -> Path:
    """Resolve a path or a shipped name; an existing file wins over a shipped one of the same name.

    Args:
        name_or_path: a path with or without `.yaml`, or a name such as "NAS-AlphaEdit/llama3-8b" or "llama3-8b".
        own_folder: folder of the asking class, in which a bare name is looked up.

    Returns:
        Path of an existing file.

    Raises:
        HparamsError: there is no such file; the message lists the nearest shipped names.
    """
    given = os.fspath(name_or_path)
    path = Path(given if given.endswith(_SUFFIXES) else given + ".yaml")
    with contextlib.suppress(RuntimeError):  # the home of somebody who does not exist
        path = path.expanduser()
    with contextlib.suppress(OSError):  # longer than a path can be
        if path.is_file():
            return path
    name = given.removesuffix(".yaml").removesuffix(".yml")
    name = name if "/" in name else f"{own_folder}/{name}"
    names = shipped_names()
    if name in names:
        return shipped_folder() / f"{name}.yaml"
    # Only the last two parts of a path can resemble a shipped name.
    wanted = "/".join(name.replace("\\", "/").split("/")[-2:])[-_LONGEST_KEY:]
    nearest = difflib.get_close_matches(wanted, names, n=3, cutoff=0.0)
    raise HparamsError(
        f"No hyperparameter file {short(str(path), 300)}, and none of that name is shipped. "
        f"Nearest shipped names: {', '.join(nearest)}."
    )


def read_file(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one flat mapping.

    Args:
        path: an existing file.

    Returns:
        Keys and raw values.

    Raises:
        HparamsError: the file is no readable YAML, its top level is not a mapping, or it holds something else than texts, numbers
            and lists.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
        values = parse_yaml(data.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise HparamsError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(values, dict) or not values:
        raise HparamsError(
            f"{path}: expected `key: value` lines, got {'nothing' if not values else type(values).__name__}."
        )
    for key in values:
        if len(key) > _LONGEST_KEY:
            raise HparamsError(f"{path}: unknown key {short(key)}...; no key has more than {_LONGEST_KEY} characters.")
    return values


def put(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a file, and folders that are missing.

    Args:
        path: The file.
        data: Its content.
        overwrite: Replace a file that is there.

    Raises:
        HparamsError: The file is there, or cannot be written.
    """
    if not overwrite:
        refuse_existing(path)
    # Here, because it imports torch.
    from nas_plugin.files import write_bytes

    try:
        write_bytes(path, data)
    except OSError as error:
        raise HparamsError(f"{path}: cannot be written ({error}).") from error


def refuse_existing(path: Path) -> None:
    """Refuse a path at which something is.

    Args:
        path: The path.

    Raises:
        HparamsError: Something is there.
    """
    if path.exists():
        raise HparamsError(f"{path} exists; give another name, or say that it is to be overwritten.")
