"""Reading JSON and JSON Lines files with complaints that name file, line and field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_plugin.errors import RunFolderError
from nas_plugin.reading import LARGEST, parse_json, short

_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


@dataclass(frozen=True)
class JsonLines:
    """Content of a JSON Lines file.

    Attributes:
        records: One object per whole line.
        whole_bytes: Length of the file up to the end of the last whole line; where a writer that goes on has to cut it.
        torn: Half a line stands after that.
    """

    records: tuple[dict[str, Any], ...]
    whole_bytes: int
    torn: bool


def read_jsonl(path: Path) -> JsonLines:
    """Read a JSON Lines file that its writer may have been killed over.

    Args:
        path: The file. One that does not exist holds nothing.

    Returns:
        Its whole lines.

    Raises:
        RunFolderError: A line other than an unfinished last one is no JSON object, or the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}.") from error
    records: list[dict[str, Any]] = []
    end = 0
    # A line ends where its writer ended it, which no other sign means.
    *whole, last = data.split(b"\n")
    lines = [line + b"\n" for line in whole] + ([last] if last else [])
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
        except ValueError as error:
            if line.endswith(b"\n"):
                raise RunFolderError(
                    f"{path}, line {number}: no JSON ({error}); remove the line or the run."
                ) from error
            return JsonLines(tuple(records), end, torn=True)
        if not isinstance(record, dict):
            raise RunFolderError(f"{path}, line {number}: a {type(record).__name__}; expected one object a line.")
        records.append(record)
        end += len(line)
    return JsonLines(tuple(records), end, torn=False)


class Fields:
    """An object from a file that complains by file, line and field.

    Attributes:
        values: The object.
        where: File, line and field it stands in, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def maybe(self, name: str, kind: type) -> Any:
        """Take a field that may be null or absent.

        Args:
            name: Field.
            kind: `str`, `int`, `float` (whole numbers are numbers too), `bool`, `dict` or `list`.

        Returns:
            Its value, None where there is none.

        Raises:
            RunFolderError: The value is of another kind.
        """
        value: Any = self.values.get(name)
        if value is None:
            return None
        kinds: tuple[type, ...] = (int, float) if kind is float else (kind,)
        # A truth value is an int to Python, and no number here.
        fits = isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)
        if not fits or (isinstance(value, int) and abs(value) > LARGEST):
            raise RunFolderError(
                f"{self.where}, field {name}: {short(value)} is a {type(value).__name__}; expected {_KINDS[kind]}"
                f"{' of at most 64 bits' if fits else ''}."
            )
        return float(value) if kind is float else value

    def get(self, name: str, kind: type) -> Any:
        """Take a field that must be there.

        Args:
            name: Field.
            kind: As for `maybe`.

        Returns:
            Its value.

        Raises:
            RunFolderError: There is none, or of another kind.
        """
        value = self.maybe(name, kind)
        if value is None:
            raise RunFolderError(f"{self.where}: field {name} is missing; expected {_KINDS[kind]}.")
        return value

    def inner(self, name: str) -> Fields:
        """Step into an object.

        Args:
            name: Field that holds it.

        Returns:
            The object, an empty one for null.
        """
        return type(self)(self.maybe(name, dict) or {}, f"{self.where}, field {name}")

    def numbers(self) -> dict[str, float]:
        """Take all fields as numbers.

        Returns:
            Those that are not null.
        """
        return {name: self.get(name, float) for name, value in self.values.items() if value is not None}


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        RunFolderError: There is no such file, or it holds something else.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} does not exist; give a folder that `nas-edit run` or `compare` wrote.") from error
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is no JSON ({error}); give a folder that a run wrote.") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} holds a {type(content).__name__}; expected an object.")
    return content
