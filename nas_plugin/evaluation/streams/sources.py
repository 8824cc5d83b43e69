"""Parsed records from where they are: a local file, a folder or name for the `datasets` package, a file on the hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_plugin.errors import PackageMissingError, StreamError

_ENDINGS = (".json", ".jsonl")
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<part>.+))?")


@dataclass(frozen=True)
class Unparsed:
    """A line of a JSON Lines file that is no JSON.

    Attributes:
        problem: What is wrong with it.
    """

    problem: str


@dataclass(frozen=True)
class Source:
    """Records as parsed.

    Attributes:
        name: Short name of the stream.
        file: Path of the file they are from, if there is one.
        values: The records, with `Unparsed` for lines that are no JSON.
    """

    name: str
    file: str | None
    values: list[Any]


def read_source(name: str | Path) -> Source:
    """Read all records of a file or data set.

    Args:
        name: A path to `.json` (a list) or `.jsonl`; a folder that `datasets.load_dataset` can read; or on the Hugging Face
            hub "owner/name", "owner/name:split" or "owner/name:path/of/a/file.json".

    Returns:
        The records.

    Raises:
        StreamError: There is no such file or data set, or it cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(path.name, None, _table(str(path), None))
    hub = _HUB_NAME.fullmatch(str(name))
    if path.is_file() or hub is None or (hub["part"] is None and path.suffix in _ENDINGS):
        return Source(path.stem, str(path), _parsed(path))
    if hub["part"] is not None and hub["part"].endswith(_ENDINGS):
        path = _downloaded(hub["name"], hub["part"])
        return Source(str(name), str(path), _parsed(path))
    return Source(str(name), None, _table(hub["name"], hub["part"]))


def _parsed(path: Path) -> list[Any]:
    if path.suffix not in _ENDINGS:
        raise StreamError(
            f"{path} is no stream: give a .json or .jsonl file, a Hugging Face data set as 'owner/name', or 'demo'."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise StreamError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StreamError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if path.suffix == ".jsonl":
        return [_line(line) for line in text.split("\n") if line.strip()]
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StreamError(f"{path} is not JSON: {error}. A file with one record a line is called .jsonl.") from error
    if not isinstance(values, list):
        raise StreamError(f"{path} holds a {type(values).__name__}; give a list of records.")
    return values


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unparsed(f"is not JSON ({error})")


def _downloaded(name: str, part: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, part, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise StreamError(f"{part} of the data set {name!r} cannot be fetched: {error}") from error


def _table(name: str, split: str | None) -> list[Any]:
    try:
        from datasets import DatasetDict, load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise PackageMissingError(
            f"the data set {name!r} needs the package datasets: pip install 'nas-plugin[eval]', or give a local .json file."
        ) from error
    try:
        loaded = load_dataset(name)
    except (DatasetsError, OSError, ValueError) as error:
        raise StreamError(
            f"the data set {name!r} cannot be loaded: {error} Its files may have different fields; then give one of them: "
            f"'{name}:path/of/file.json'."
        ) from error
    splits = dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        problem = "has several splits" if split is None else f"has no split {split!r}"
        raise StreamError(f"the data set {name!r} {problem}; give one of {', '.join(f'{name}:{s}' for s in splits)}.")
    return list(splits[split])
