"""Of damaged and hostile exports come named errors, and no weight changes."""

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

from nas_plugin import apply_edits, export_edits
from nas_plugin.errors import EditsError
from nas_plugin.keep.edits import pieces_digest, read_edits
from nas_plugin.keep.header import KEY, text_digest
from nas_plugin.share.lora import read_adapter
from tests.conftest import build_model
from tests.promises.hostile import FUZZ, damaged, little_memory, survives
from tests.promises.test_r13_hostile_tensors import file_of, hostile_tensors, split
from tests.promises.watching import digests
from tests.share.sharing import edited

FORMS = {"edits": "edits.safetensors", "lora": "adapter_model.safetensors"}
READERS = {"edits": read_edits, "lora": read_adapter}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, session = tmp_path_factory.mktemp("good"), edited(edits=2)
    for form in FORMS:
        export_edits(session, root / form, form)
    assert read_edits(root / "edits" / FORMS["edits"])[0].factored, "factors, or there is nothing new to test"
    return {form: root / form / name for form, name in FORMS.items()}


@pytest.fixture(scope="module")
def model() -> Iterator[nn.Module]:
    found = build_model("gpt2")
    with little_memory():
        yield found


def unchanged(model: nn.Module, path: Path, says: str, *, check: bool = True) -> None:
    before = digests(model)
    with pytest.raises(EditsError, match=says) as caught:
        apply_edits(model, path, check=check)
    assert digests(model) == before and len(caught.value.message) < 1000


@pytest.mark.parametrize("form", FORMS)
def test_cut_anywhere_or_one_bit_changed(form: str, good: dict[str, Path], model: nn.Module, tmp_path: Path) -> None:
    whole, path = good[form].read_bytes(), tmp_path / FORMS[form]
    length = int.from_bytes(whole[:8], "little")
    for place in sorted({0, 7, 8, 8 + length - 1, 8 + length, len(whole) - 1, *range(0, len(whole), 211)}):
        path.write_bytes(whole[:place])
        unchanged(model, path, "cannot read")
        if not 8 <= place < 8 + length or whole[place : place + 1].isalnum():
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            unchanged(model, path, "cannot read", check=False)


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(form: str, good: dict[str, Path], model: nn.Module, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / FORMS[form]
    path.write_bytes(data.draw(hostile_tensors(good[form].read_bytes())))
    before = digests(model)
    found = survives(lambda: READERS[form](path))
    if found is None:
        survives(lambda: apply_edits(model, path, check=False))
        assert digests(model) == before
    else:
        assert str(found) == str(READERS[form](good[form])), "what is taken is what was saved"


def lying(path: Path, good: Path, told: Any) -> None:
    """A header that says something else, with the digest that belongs to it."""
    header, body = split(good.read_bytes())
    text = json.dumps({**told, "sha256": text_digest(told)}, sort_keys=True)
    path.write_bytes(file_of({**header, "__metadata__": {KEY: text}}, body))


def told_by(good: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(split(good.read_bytes())[0]["__metadata__"][KEY])
    del found["sha256"]
    return found


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("form", FORMS)
def test_headers_that_lie(form: str, good: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / FORMS[form]
    values = data.draw(damaged({"told": told_by(good[form])})).get("told")
    try:
        lying(path, good[form], values)
    except TypeError:
        return
    victim = build_model("gpt2")
    before = digests(victim)
    if survives(lambda: apply_edits(victim, path, check=False)) is None:
        assert digests(victim) == before
    elif form == "edits":
        assert {name for name, digest in digests(victim).items() if digest != before[name]} == set(
            read_edits(good[form])[0].parameters
        )


@FUZZ
@given(data=st.data())
def test_factors_that_lie(good: dict[str, Path], tmp_path: Path, model: nn.Module, data: st.DataObject) -> None:
    """Numbers of the factors, and their tensors in other shapes and types, with digests that fit."""
    from safetensors.torch import save_file

    path, told = tmp_path / FORMS["edits"], told_by(good["edits"])
    from nas_plugin.files import read_tensors

    tensors = read_tensors(good["edits"])[1]
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64, torch.float32]))
    shape = data.draw(st.lists(st.integers(0, 50), max_size=3))
    value = data.draw(st.integers(-(2**40), 2**40))
    tensors[name] = torch.full(shape, float(value) if kind == torch.float32 else value).to(kind)
    told["pieces"] = pieces_digest(tensors)
    told["factors"] = data.draw(st.just(told["factors"]) | damaged({"x": told["factors"]}).map(lambda v: v.get("x")))
    save_file(tensors, path, {KEY: json.dumps({**told, "sha256": text_digest(told)}, sort_keys=True)})
    before = digests(model)
    survives(lambda: apply_edits(model, path))
    assert digests(model) == before


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ({"exponent": 5000, "dtype": "float32"}, "an exponent is 5000"),
        ({"exponent": 1.5, "dtype": "float32"}, "an exponent is 1.5"),
        ({"exponent": 1, "dtype": "int64"}, "it lacks 'int64'"),
        ({"exponent": 1, "dtype": "float16"}, "do not fit together"),
        ({"dtype": "float32"}, "it lacks 'exponent'"),
        ({"exponent": 3, "dtype": "float32"}, "do not give the weights that were saved"),
    ],
)
def test_numbers_that_are_none(
    factors: dict[str, Any], says: str, good: dict[str, Path], model: nn.Module, tmp_path: Path
) -> None:
    told = told_by(good["edits"])
    told["factors"] = dict.fromkeys(told["factors"], factors)
    lying(tmp_path / "x", good["edits"], told)
    unchanged(model, tmp_path / "x", says)


NAMES = ["../../escaped", "/etc/passwd", "a\0b", "..", "lm_head.weight", "transformer.h.0.mlp.c_proj.bias", "x" * 5000]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12])
@pytest.mark.parametrize("form", FORMS)
def test_names_in_files_are_names_of_parameters_and_nothing_else(
    name: str, form: str, good: dict[str, Path], model: nn.Module, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from nas_plugin.files import read_tensors

    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    told, tensors = told_by(good[form]), read_tensors(good[form])[1]
    old = sorted(tensors)[0].split("transformer.", 1)[1].rsplit(".", 2 if form == "lora" else 1)[0]
    full = f"transformer.{old}"
    tensors = {key.replace(full, name): tensor for key, tensor in tensors.items()}
    told = json.loads(json.dumps(told).replace(json.dumps(full)[1:-1], json.dumps(name)[1:-1]))
    told["pieces"] = pieces_digest(tensors)
    path = inner / FORMS[form]
    save_file(tensors, path, {KEY: json.dumps({**told, "sha256": text_digest(told)}, sort_keys=True)})
    before = {str(file) for file in tmp_path.rglob("*")}
    for check in (True, False):
        unchanged(model, inner, "has no parameter|in this model|is shared with|cannot read", check=check)
    assert {str(file) for file in tmp_path.rglob("*")} == before
