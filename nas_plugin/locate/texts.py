"""Text for second moments: strings, local files, shards of them, or a Hugging Face dataset by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
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
# What `datasets` calls the files that it streams, by their suffix.
_KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
_PACKED = (".gz", ".bz2", ".xz", ".zst")


def texts_of(source: str | Path | Sequence[str]) -> Iterator[str]:
    """Read documents one by one.

    Args:
        source: A list of strings; a path to `.txt` (one document per line), `.json` (a list of strings or of objects with
            "text") or `.jsonl`; a folder of such files or of `.parquet`, or a pattern as "shards/*.jsonl.gz", streamed through
            `datasets`, shard after shard in the order of their names; "demo" for the embedded world; "wikipedia", "wikitext" or
            any Hugging Face dataset name, also "name:configuration", streamed too.

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
    elif is_sharded(str(source)):
        documents = _from_shards(str(source))
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


def is_sharded(source: str) -> bool:
    """Tell whether text lies in several files, or in one that only `datasets` reads."""
    path = Path(source)
    return "*" in source or path.suffix in (".parquet", *_PACKED) or path.is_dir()


def _from_shards(source: str) -> Iterator[Any]:
    path = Path(source)
    found = path.iterdir() if path.is_dir() else (Path(name) for name in glob(source, recursive=True))
    shards = sorted(shard for shard in found if shard.is_file() and not shard.name.startswith("."))
    kinds = {_KINDS.get((shard.with_suffix("") if shard.suffix in _PACKED else shard).suffix) for shard in shards}
    if not shards or len(kinds) > 1 or None in kinds:
        names = ", ".join(sorted({shard.suffix or shard.name for shard in shards}))[:80] or "no file"
        raise StatisticsError(
            f"shards of text for second moments at {source}: found {names}; expected files of one kind, .jsonl, .json, .parquet "
            "or .txt, possibly packed (.gz)."
        )
    return _streamed(source, kinds.pop() or "", None, [str(shard) for shard in shards])


def _from_hub(name: str) -> Iterator[Any]:
    path, config = _KNOWN.get(name, (name, None))
    if config is None:
        path, _, named = name.partition(":")
        config = named or None
    return _streamed(name, path, config, None)


def _streamed(source: str, path: str, config: str | None, files: list[str] | None) -> Iterator[Any]:
    """Read documents as they are needed; nothing is downloaded or unpacked ahead."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise StatisticsError(
            f"second moments over the dataset {source!r} need the datasets package: pip install 'nas-plugin[eval]', "
            "or set mom2_dataset to a local .txt, .json or .jsonl file."
        ) from error
    try:
        yield from load_dataset(path, config, data_files=files, split="train", streaming=True)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise StatisticsError(
            f"cannot load dataset {source!r}: {error!s:.300}. Set mom2_dataset to a local .txt, .json or .jsonl file."
        ) from error
