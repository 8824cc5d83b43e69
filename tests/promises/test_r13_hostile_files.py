"""R13: JSON and JSON Lines files may hold anything; what a reader promises or a named error comes out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_plugin.anchor import Anchor
from nas_plugin.errors import AnchorError, NasPluginError, RunFolderError, StatisticsError
from nas_plugin.evaluation.capability.suite import _check_file
from nas_plugin.evaluation.records import read_jsonl, read_object
from nas_plugin.evaluation.runner.state import Measured
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.files import write_json
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.texts import texts_of
from nas_plugin.pilots import pilot_requests
from nas_plugin.reading import DEEPEST, parse_json, short
from nas_plugin.request import EditRequest
from tests.promises.hostile import FUZZ, RAW, as_json, hostile_json, little_memory, survives

REWRITE = {"prompt": "{} lives in", "subject": "Ann", "target_new": {"str": "Oslo"}, "target_true": {"str": "Rome"}}
RECORDS = [
    {"case_id": 1, "prompt": "Ann lives in", "subject": "Ann", "target_new": "Oslo"},
    {"case_id": 2, "requested_rewrite": REWRITE},
    {"case_id": 3, "requested_rewrite": [REWRITE, {**REWRITE, "subject": "Bo"}]},
]
TEXTS = ["A text.", {"text": "Another text.", "title": "T"}]
TASK = [{"sentence": "Fine.", "label": 1}, {"sentence": "Not fine.", "label": 0}]
CONTEXTS = {"groups": [["{}"], ["The cat. {}", "Therefore. {}"]], "seed": 0}
ANCHOR = Anchor(3.2, "paper", 9, 100, 3.2, 3.1, 0.4, 0, "ab" * 32, "cd" * 32, "ef" * 32)


def anchor_of(path: Path) -> Anchor:
    anchor = Anchor.load(path)
    assert anchor.value > 0
    anchor.check("ab" * 32, 9, "cd" * 32)
    return anchor


def texts(path: Path) -> list[str]:
    found = list(texts_of(path))
    assert all(text.encode() for text in found)
    return found


def pilots(path: Path) -> list[EditRequest]:
    found = pilot_requests(str(path))
    for request in found:
        assert request.prompt[request.start : request.end] == request.subject and request.target.encode()
    return found


def contexts(path: Path) -> ContextTemplates | None:
    measured = Measured.load(path.parent)
    if measured is None:
        return None
    assert len(measured.contexts.digest) == 64 and sum(measured.contexts.weights) == pytest.approx(1)
    return measured.contexts


def lines(path: Path) -> Any:
    found = read_jsonl(path)
    assert found.whole_bytes <= path.stat().st_size and (found.torn or found.whole_bytes == path.stat().st_size)
    return found


def good_anchor(folder: Path) -> Any:
    ANCHOR.save(folder / "good.json")
    return parse_json((folder / "good.json").read_bytes())


READERS = {
    "anchor": ("anchor.json", {"format": "nas-plugin-anchor-1", **vars(ANCHOR)}, anchor_of),
    "pilots": ("pilots.json", RECORDS, pilots),
    "texts": ("texts.json", TEXTS, texts),
    "texts by line": ("texts.jsonl", TEXTS[1], texts),
    "texts as they are": ("texts.txt", "A text.", texts),
    "contexts": ("contexts.json", CONTEXTS, contexts),
    "object": ("run.json", {"a": {"b": [1]}}, read_object),
    "lines": ("edits.jsonl", {"a": {"b": [1]}}, lines),
    "task": ("task.json", TASK, lambda path: _check_file(path, {"sentence": "text", "label": [0, 1]}, 1)),
    "stream": ("stream.json", RECORDS[:1], load_stream),
    "stream by line": ("stream.jsonl", RECORDS[0], load_stream),
}


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    with little_memory():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SecondMoments({}, 0).save(tmp_path / "moments.safetensors")
    return tmp_path


@pytest.mark.parametrize("reader", READERS)
def test_a_reader(folder: Path, reader: str) -> None:
    name, good, read = READERS[reader]
    path, by_line = folder / name, name.endswith(".jsonl")
    contents = st.lists(hostile_json(good), min_size=1, max_size=3 if by_line else 1)

    @FUZZ
    @given(contents)
    def survived(content: list[bytes]) -> None:
        path.write_bytes(b"\n".join([*content, b""]) if by_line else content[0])
        survives(lambda: read(path))

    survived()


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_what_is_good(folder: Path, reader: str) -> None:
    name, good, read = READERS[reader]
    (folder / name).write_bytes(as_json(good) + b"\n" * name.endswith("l"))
    read(folder / name)


@pytest.mark.parametrize("raw", RAW)
@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"texts as they are"}))
def test_one_bad_value_at_each_place(folder: Path, reader: str, raw: str) -> None:
    """Each mark of `RAW` in the place of each value of the first level, which random ones may miss."""
    name, good, read = READERS[reader]
    record = good[0] if isinstance(good, list) else good
    for key in record if isinstance(record, dict) else ():
        bad = {**record, key: raw}
        (folder / name).write_bytes(as_json([bad] if isinstance(good, list) else bad) + b"\n")
        survives(lambda: read(folder / name))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["folder", "missing", "no permission"])
def test_what_is_no_file(folder: Path, reader: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, good, read = READERS[reader]
    if kind == "missing" and reader in ("lines", "contexts"):
        assert not (read_jsonl(folder / name).records if reader == "lines" else contexts(folder / name))
        return
    if kind == "folder" and reader.startswith("stream"):
        return  # for the datasets package
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "no permission":
        (folder / name).write_bytes(as_json(good))

        def refused(*_: Any, **__: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        # Whoever runs the tests may be allowed to read everything.
        monkeypatch.setattr(Path, "open", refused)
        monkeypatch.setattr(Path, "read_bytes", refused)
        monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(NasPluginError):
        read(folder / name)


def test_a_line_ends_with_a_newline_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \r2}\n')
    assert read_jsonl(path).records == ({"a": 1}, {"a": 2})
    path.write_bytes(b'no\r{"a": 2}\n')
    with pytest.raises(RunFolderError, match="line 1"):
        read_jsonl(path)


def test_depth(tmp_path: Path) -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    for content in (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), b"[" * 10**6, b'{"a":' * 10**6):
        with pytest.raises(ValueError, match="deep"):
            parse_json(content)


def test_a_large_anchor_is_not_read_in_whole(tmp_path: Path) -> None:
    path = tmp_path / "anchor.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(AnchorError, match="cannot read"):
        Anchor.load(path)


@pytest.mark.parametrize(("text", "halves"), [("\\ud83d\\ude00", False), ("\\ud83d", True), ("\\\\ud83d", False)])
def test_surrogates(tmp_path: Path, text: str, halves: bool) -> None:
    write_json(tmp_path / "other.json", {})
    path = tmp_path / "texts.json"
    path.write_text(f'["{text}"]')
    if not halves:
        assert list(texts_of(path))[0].encode()
        return
    with pytest.raises(StatisticsError, match="surrogate"):
        list(texts_of(path))


BOMB: list[Any] = []
for _ in range(60):
    BOMB = [BOMB] * 9
VALUES = {
    "bomb": BOMB,
    "bomb in an object": {"a": BOMB},
    "number": 10**5000,
    "number in a list": [10**5000],
    "text": "x" * 10**7,
    "half a pair": "\ud800",
    "deep": {1: {2: {3: {4: 5}}}},
}


@pytest.mark.parametrize("kind", VALUES)
def test_quoting_is_short(kind: str) -> None:
    assert len(survives(lambda: short(VALUES[kind])) or "") <= 60 and short(VALUES[kind]).encode()
