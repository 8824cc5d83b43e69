"""Reading run folders: whole, cut off, and spoilt."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nas_plugin.errors import RunFolderError
from nas_plugin.evaluation.logs import in_layer_order, read_run
from nas_plugin.evaluation.records import read_jsonl
from tests.evaluation.fake_runs import ANCHOR, write_run


def change(path: Path, line: int, **fields: Any) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | fields) + "\n"
    path.write_text("".join(lines))


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "AlphaEdit", use_nas=True, edits=100))
    assert (run.label, run.method, run.use_nas, run.anchor) == ("NAS-AlphaEdit", "AlphaEdit", True, ANCHOR)
    assert [c.edits for c in run.checkpoints] == [0, 20, 40, 60, 80, 100]
    assert run.checkpoints[0].norm == 1 and list(run.checkpoints[0].layer_norms) == ["9", "10"]
    assert run.checkpoints[1].final["score/probability"].count == 20
    assert len(run.checkpoints[0].drift["9"].cloud) == 200
    assert run.checkpoints[-1].capability["sst2"].keys() == {"acc", "mcc"}
    assert len(run.edits) == 100 and run.edits[0].written_norm == ANCHOR
    assert run.torn == ()


@pytest.mark.parametrize("cut", [1, 30, 5000])
def test_half_a_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    folder = write_run(tmp_path, edits=100)
    path = folder / "checkpoints.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    run = read_run(folder)
    # What lacks its line end alone lacks nothing.
    assert [c.edits for c in run.checkpoints] == [0, 20, 40, 60, 80, 100][: 6 if cut == 1 else 5]
    assert run.torn == (() if cut == 1 else ("checkpoints.jsonl",))


def test_a_writer_that_goes_on_learns_where_to_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": "\xc3')
    lines = read_jsonl(path)
    assert lines.records == ({"a": 1}, {"a": 2}) and lines.torn
    assert lines.whole_bytes == len(b'{"a": 1}\n{"a": 2}\n')
    assert read_jsonl(tmp_path / "none.jsonl").records == ()


def test_a_run_that_wrote_no_logs_yet(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, unavailable="the host has no WISE"))
    assert run.edits == run.checkpoints == () and run.unavailable == "the host has no WISE"


@pytest.mark.parametrize(
    ("file", "line", "fields", "message"),
    [
        ("edits.jsonl", 3, {"seconds": "fast"}, "edits.jsonl, line 3, field seconds: 'fast' is a str; expected a number"),
        ("edits.jsonl", 2, {"skipped": 1}, "line 2, field skipped: 1 is a int; expected true or false"),
        ("edits.jsonl", 2, {"edit": True}, "line 2, field edit: True is a bool; expected a whole number"),
        ("edits.jsonl", 2, {"edit": None}, "line 2: field edit is missing"),
        ("edits.jsonl", 4, {"edit": 3}, "line 4: number 3 after 3; expected them to rise"),
        ("edits.jsonl", 4, {"immediate": {"fluency": "high"}}, "line 4, field immediate, field fluency"),
        ("checkpoints.jsonl", 2, {"norm": [1]}, "checkpoints.jsonl, line 2, field norm: .* expected an object"),
        ("checkpoints.jsonl", 2, {"final": {"x": {"mean": 1, "std": 0}}}, "field final, field x: field count is missing"),
        ("checkpoints.jsonl", 2, {"drift": {"9": {"cloud": [[1]]}}}, r"field drift, field 9, field cloud: expected \[x, y\]"),
        ("run.json", 0, {"format": 2}, "format 2; this version reads format 1"),
        ("run.json", 0, {"method": 7}, "run.json, field method: 7 is a int; expected text"),
    ],
)  # fmt: skip
def test_what_the_runner_does_not_write_is_named(tmp_path, file, line, fields, message) -> None:
    folder = write_run(tmp_path, edits=40)
    if line:
        change(folder / file, line, **fields)
    else:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))
    with pytest.raises(RunFolderError, match=message):
        read_run(folder)


def test_a_broken_line_in_the_middle_is_no_torn_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path, edits=40)
    lines = (folder / "edits.jsonl").read_text().splitlines(keepends=True)
    (folder / "edits.jsonl").write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    with pytest.raises(RunFolderError, match="edits.jsonl, line 2: no JSON"):
        read_run(folder)
    (folder / "edits.jsonl").write_text("[1]\n")
    with pytest.raises(RunFolderError, match="line 1: a list; expected one object a line"):
        read_run(folder)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("{", "is no JSON"), ("[]", "holds a list")]
)
def test_a_folder_that_is_no_run(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=message):
        read_run(tmp_path)


def test_what_a_collapsed_model_leaves(tmp_path: Path) -> None:
    folder = write_run(tmp_path, edits=40)
    lost = {"pca_distance": None, "full_distance": None, "spread": None, "cloud": []}
    change(folder / "checkpoints.jsonl", 3, perplexity=math.inf, drift={"9": lost}, norm=None)
    last = read_run(folder).checkpoints[-1]
    assert last.perplexity == math.inf and math.isnan(last.drift["9"].full_distance) and last.drift["9"].cloud == ()
    assert last.norm is None and last.layer_norms == {}


def test_layers_are_ordered_by_number() -> None:
    assert in_layer_order({"10": 0, "embedding": 0, "9": 0, "0": 0}) == ["0", "9", "10", "embedding"]
