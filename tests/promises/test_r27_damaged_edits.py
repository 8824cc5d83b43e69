"""R27: of a damaged file of edits comes a named error, and no weight changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas_plugin import load_edits
from nas_plugin.keep.edits import LoadedEdits, read_edits, write_edits
from nas_plugin.keep.header import KEY, text_digest
from tests.conftest import build_model
from tests.promises.hostile import FUZZ, damaged, little_memory, survives
from tests.promises.test_r13_hostile_tensors import file_of, hostile_tensors, split
from tests.promises.test_r27_save_load import edited, unchanged_by
from tests.promises.watching import digests


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "edits.safetensors"
    edited().save_edits(path)
    return path


def test_files_that_are_no_edits(saved: Path, tmp_path: Path) -> None:
    about, tensors = read_edits(saved)
    name = about.parameters[0]
    write_edits(tmp_path / "none", {}, about)
    write_edits(tmp_path / "row", {name: tensors[name][0]}, about)
    write_edits(tmp_path / "whole numbers", {name: tensors[name].to(torch.int32)}, about)
    write_edits(tmp_path / "other weights", {name: tensors[name]}, about)
    header, body = split(saved.read_bytes())
    (tmp_path / "format").write_bytes(file_of(with_text(header, format="nas-plugin-edits-3"), body))
    (tmp_path / "count").write_bytes(file_of(with_text(header, edits=-1), body))
    (tmp_path / "untold").write_bytes(file_of({**header, "__metadata__": {}}, body))
    (tmp_path / "folder").mkdir()
    model = build_model("gpt2")
    for file, says in {
        "none": "no parameters", "row": "not a matrix", "whole numbers": "not a matrix", "other weights": "digest",
        "format": "'nas-plugin-edits-3', and this release reads 'nas-plugin-edits-1'", "count": "edits is -1",
        "untold": "format is None", "folder": "cannot read", "gone": "cannot read",
    }.items():  # fmt: skip
        unchanged_by(model, tmp_path / file, says, check=False)


def with_text(header: Any, **values: Any) -> Any:
    """The header with other values, and the digest that belongs to them."""
    text = {**json.loads(header["__metadata__"][KEY]), **values}
    text.pop("sha256", None)
    return {**header, "__metadata__": {KEY: json.dumps({**text, "sha256": text_digest(text)}, sort_keys=True)}}


def test_cut_anywhere_or_one_bit_changed(saved: Path, tmp_path: Path) -> None:
    good, model = saved.read_bytes(), build_model("gpt2")
    (length,) = (int.from_bytes(good[:8], "little"),)
    places = {0, 7, 8, 9, 8 + length - 1, 8 + length, len(good) - 1, *range(0, len(good), 97)}
    cut = tmp_path / "cut.safetensors"
    for place in sorted(places):
        cut.write_bytes(good[:place])
        unchanged_by(model, cut, "cannot read")
        if not 8 <= place < 8 + length or good[place : place + 1].isalnum():
            # Other marks in the header may be ones that JSON ignores, which changes nothing.
            cut.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            unchanged_by(model, cut, "cannot read", check=False)


@pytest.fixture(scope="module")
def memory() -> Iterator[nn.Module]:
    model = build_model("gpt2")
    with little_memory():
        yield model


@FUZZ
@given(data=st.data())
def test_damaged_files(saved: Path, tmp_path: Path, memory: nn.Module, data: st.DataObject) -> None:
    path = tmp_path / "edits.safetensors"
    path.write_bytes(data.draw(hostile_tensors(saved.read_bytes())))
    before = digests(memory)
    found = survives(lambda: read_edits(path))
    if found is not None:
        assert same(found, read_edits(saved)), "what is taken is what was saved"
        return
    survives(lambda: load_edits(memory, path, check=False))
    assert digests(memory) == before


@FUZZ
@given(data=st.data())
def test_headers_that_lie(saved: Path, tmp_path: Path, memory: nn.Module, data: st.DataObject) -> None:
    header, body = split(saved.read_bytes())
    told = json.loads(header["__metadata__"][KEY])
    del told["sha256"]
    values = data.draw(damaged({"told": told}))
    try:
        text = json.dumps({**values["told"], "sha256": text_digest(values["told"])}, sort_keys=True)
    except (KeyError, TypeError):
        text = json.dumps(values)
    path = tmp_path / "edits.safetensors"
    path.write_bytes(file_of({**header, "__metadata__": {KEY: text}}, body))
    before = digests(memory)
    found = survives(lambda: read_edits(path))
    if found is None:
        survives(lambda: load_edits(memory, path, check=False))
        assert digests(memory) == before
    else:
        about = found[0]
        assert all(isinstance(value, str) for value in (about.version, about.base, about.method, about.hparams))
        assert type(about.edits) is int and type(about.use_nas) is bool and about.weights == told["weights"]
        assert about.anchor is None or type(about.anchor) is float
        if about.base != told["base"]:
            survives(lambda: load_edits(memory, path))
            assert digests(memory) == before


def same(left: tuple[LoadedEdits, Any], right: tuple[LoadedEdits, Any]) -> bool:
    return left[0] == right[0] and all(torch.equal(left[1][name], right[1][name]) for name in left[0].parameters)
