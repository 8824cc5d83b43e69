"""Writing files so that a crash leaves the old one or the new one, never half of either; reading tensors from them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file through a temporary one in the same folder: written, synced, renamed.

    Args:
        path: Final path; missing folders are made.
        data: Content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:200]}.{secrets.token_hex(4)}"
    # Not `tempfile`, whose files nobody else may read: who may is the user's to say (umask).
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; a system that cannot sync folders does not need to.

    Args:
        path: The folder.
    """
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, atomically.

    Args:
        path: Final path.
        content: What to write.
    """
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write tensors as safetensors, atomically.

    Args:
        path: Final path.
        tensors: Named tensors.
        metadata: Strings kept in the header.

    Returns:
        SHA-256 of the file, as hex.
    """
    contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    data = save(contiguous, dict(metadata))
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, *names: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file that anybody may have written.

    Args:
        path: The file.
        names: Tensors to read; all when none is named.

    Returns:
        The strings of its header, and the tensors on the CPU.

    Raises:
        OSError: There is no such file.
        ValueError: It is no safetensors file, or it lacks a tensor that is named.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # Copied: a file's bytes lie at other alignments than allocated ones, which shows in the last bits of products.
            return metadata, {name: file.get_tensor(name).clone() for name in names or file.keys()}
    except (
        SafetensorError,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
    ) as error:
        # Torch has a complaint of its own for each way in which a header can lie about types and shapes.
        raise ValueError(f"{type(error).__name__}: {error!s:.200}") from error
