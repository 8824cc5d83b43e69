"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas_plugin.errors import ExportError
from nas_plugin.files import sync_folder


def check_free(folder: Path) -> None:
    """Refuse to write over something.

    Args:
        folder: Folder to be made.

    Raises:
        ExportError: Something is there already.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ExportError(f"{folder} is there already; give a folder that does not exist yet, or an empty one.")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder under another name, sync it and rename it.

    Args:
        folder: The folder.

    Yields:
        Where to write.

    Raises:
        ExportError: Something is there already, or it cannot be written.
    """
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.parent / f".{folder.name[:200]}.{secrets.token_hex(4)}"
        temporary.mkdir()
    except OSError as error:
        raise ExportError(f"{folder} cannot be made: {error.strerror}; give another folder.") from error
    try:
        yield temporary
        # Who may read them is the user's to say (umask), whatever wrote them.
        mode = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(mode)
                _sync(file)
        sync_folder(temporary)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error.strerror or error}; give another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(file: Path) -> None:
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
