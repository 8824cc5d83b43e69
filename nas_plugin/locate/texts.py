"""Text for second moments: strings, local files, or a Hugging Face dataset by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nas_plugin.errors import StatisticsError
from nas_plugin.reading import parse_json, short

# The names that EasyEdit's and MEMIT's hyperparameter files use.
_KNOWN = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}
DEMO = "demo"


def texts_of(source: str | Path | Sequence[str]) -> Iterator[str]:
    """Read documents one by one.

    Args:
        source: A list of strings; a path to `.txt` (one document per line), `.json` (a list of strings or of objects with
            "text") or `.jsonl`; "demo" for the embedded world; "wikipedia", "wikitext" or any Hugging Face dataset name.

    Yields:
        Non-empty documents.

    Raises:
        StatisticsError: The file cannot be read as text, or the dataset cannot be loaded.
    """
    if not isinstance(source, str | Path):
        documents: Iterator[Any] = iter(source)
    elif str(source) == DEMO:
        from nas_plugin.demo.world import World

        documents = iter(World().moment_texts())
    elif Path(source).suffix in (".txt", ".json", ".jsonl"):
        documents = _from_file(Path(source))
    else:
        documents = _from_hub(str(source))
    for number, document in enumerate(documents):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise StatisticsError(
                f"document {number} of {short(source, 80)} is {type(document).__name__}; expected text or an object with 'text'."
            )
        if text.strip():
            yield text


def _from_file(path: Path) -> Iterator[Any]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StatisticsError(
            f"cannot read text for second moments from {path}: {error}. Give a UTF-8 .txt, .json or .jsonl."
        ) from error
    if path.suffix == ".txt":
        return iter(content.splitlines())
    try:
        if path.suffix == ".jsonl":
            return iter([parse_json(line) for line in content.splitlines() if line.strip()])
        documents = parse_json(content)
    except ValueError as error:
        raise StatisticsError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(documents, list):
        raise StatisticsError(
            f"{path} holds a {type(documents).__name__}; expected a list of strings or of objects with 'text'."
        )
    return iter(documents)


def _from_hub(name: str) -> Iterator[Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise StatisticsError(
            f"second moments over the dataset {name!r} need the datasets package: pip install 'nas-plugin[eval]', "
            "or set mom2_dataset to a local .txt, .json or .jsonl file."
        ) from error
    path, config = _KNOWN.get(name, (name, None))
    try:
        return iter(load_dataset(path, config, split="train", streaming=True))
    except (OSError, ValueError, RuntimeError) as error:
        raise StatisticsError(
            f"cannot load dataset {name!r}: {error}. Set mom2_dataset to a local .txt, .json or .jsonl file."
        ) from error
