"""What every reader of files shares: a file may hold anything, and what it holds must not cost more than the file itself.

Nothing here imports torch, because hyperparameters and commands do without it.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any

DEEPEST = 64
"""Lists and objects within each other, at most: comparing, copying and writing a value all descend as deep as it goes."""
LARGEST = 2**63 - 1
"""Whole numbers beyond this fit into no array and, much beyond it, into no text."""
LONGEST_TEXT = 1000
"""Characters of a setting, at most: names and paths have fewer, and messages quote them."""
_LONGEST_NAME = 120
_PLAIN_BITS = 128
# How JSON writes half a surrogate pair. Two halves in a row make a whole character, so this only says where to look.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class _Short(reprlib.Repr):
    """Shows the beginning of a value without making a text of all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write very long numbers out.
        return repr(x) if x.bit_length() <= _PLAIN_BITS else f"a number of {x.bit_length()} bits"


_short = _Short()


def short(value: Any, most: int = 60) -> str:
    """Quote a value in a message, however large or deep it is.

    Args:
        value: Anything.
        most: Characters, at most.

    Returns:
        The beginning of its `repr`.
    """
    return _short.repr(value)[:most]


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that anybody may have written.

    Args:
        text: A text, or its bytes in UTF-8.

    Returns:
        Its value, at most `DEEPEST` deep; every text in it is valid Unicode.

    Raises:
        ValueError: It is no JSON, is nested more deeply, or holds half a surrogate pair.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text)
    except (RecursionError, MemoryError) as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            break
    else:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if _HALF.search(text):
        # It could be written to no file and no terminal, and no tokenizer takes it.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a surrogate pair, {short(error.object[error.start])}") from error
    return value


def is_file_name(text: str) -> bool:
    """Tell whether a text names something inside a folder, and nothing outside of it.

    Args:
        text: Part of a path, from a file or a model.

    Returns:
        Whether it is one part, on every system, and not too long for one.
    """
    if text.strip(".") == "" or any(sign in text for sign in "/\\\0"):
        return False
    return len(text.encode("utf-8", "surrogatepass")) <= 255


def file_name(text: str) -> str:
    """Make a file name of what may be any text, such as the name of a model.

    Args:
        text: Any text.

    Returns:
        The same text if it holds nothing but letters, digits, `-`, `_` and `.`, is no folder and is short; else a text that does,
        with a digest of the given one, so that different texts have different names.
    """
    name = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in text)
    if name == text and is_file_name(text) and len(text.encode()) <= _LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    kept = name.encode()[: _LONGEST_NAME - len(digest) - 1].decode("utf-8", "ignore")
    return f"{kept.strip('.') or 'unnamed'}-{digest}"


def number(values: Mapping[str, Any], name: str, kind: type[int] | type[float]) -> Any:
    """Take a number from an object that was read.

    Args:
        values: The object.
        name: Field.
        kind: `int`, from 0 up to 64 bits, or `float`, finite (whole numbers are numbers too).

    Returns:
        The number.

    Raises:
        ValueError: It is none.
    """
    value = values[name]
    fits = type(value) is int or (kind is float and type(value) is float)
    if not fits or not -LARGEST <= value <= LARGEST or (kind is int and value < 0):
        raise ValueError(f"{name} is {short(value)}; expected a {'whole ' if kind is int else ''}number")
    return kind(value)
