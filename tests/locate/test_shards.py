"""Text in shards, streamed through `datasets`; statistics that a colleague hands over."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from nas_plugin.errors import StatisticsError
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.stored import moments_path
from nas_plugin.locate.texts import texts_of
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_tokenizer
from tests.support import TEMPLATES, TEXT, tiny_hparams

SHARDS = (TEXT[:50], TEXT[50:90], TEXT[90:])


def written(folder: Path, kind: str) -> Path:
    folder.mkdir()
    for number, texts in enumerate(SHARDS):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        path = folder / f"part-{number}.{kind}"
        if kind == "parquet":
            Dataset.from_dict({"text": list(texts)}).to_parquet(str(path))
        elif kind == "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        else:
            path.write_text("\n".join(texts) + "\n" if kind == "txt" else lines)
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt", "jsonl.gz"])
def test_shards_are_read_in_the_order_of_their_names(kind: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "shards", kind)
    assert list(texts_of(str(folder))) == list(texts_of(f"{folder}/part-*.{kind}")) == TEXT
    assert list(texts_of(f"{folder}/part-1.{kind}")) == TEXT[50:90]


def session_of(source: str, folder: Path, **more: Any) -> EditSession:
    model = more.pop("model", None) or build_model("llama", more.pop("dtype", torch.float32))
    tok = more.pop("tok", None) or build_tokenizer()
    hparams = tiny_hparams("MEMIT", mom2_dataset=source, stats_dir=str(folder), use_nas=False, **more)
    return EditSession(model, tok, hparams, contexts=TEMPLATES, progress=False)


def test_statistics_of_shards_are_those_of_the_whole(tmp_path: Path) -> None:
    folder, whole = written(tmp_path / "shards", "jsonl"), tmp_path / "whole.json"
    whole.write_text(json.dumps(TEXT))
    sharded, plain = (session_of(str(source), tmp_path / "stats") for source in (folder, whole))
    ours, theirs = sharded.prepare().moments, plain.prepare().moments
    assert ours.provenance["text"] == theirs.provenance["text"]
    assert all(torch.equal(ours.matrices[layer], theirs.matrices[layer]) for layer in (0, 1))
    # Kept under its own name, and found there without the shards.
    shutil.rmtree(folder)
    again = session_of(str(folder), tmp_path / "stats")
    assert torch.equal(again.prepare().moments.matrices[0], ours.matrices[0])


def test_no_more_is_read_than_is_wanted(tmp_path: Path) -> None:
    folder = written(tmp_path / "shards", "jsonl")
    (folder / "part-2.jsonl").write_text("{ no JSON")
    assert session_of(str(folder), tmp_path / "few", mom2_n_samples=60).prepare().moments.tokens > 0
    with pytest.raises(StatisticsError, match="cannot load dataset"):
        session_of(str(folder), tmp_path / "all").prepare()


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "shards", "jsonl")
    (folder / "notes.md").write_text("not text for statistics")
    with pytest.raises(StatisticsError, match=r"found \.jsonl, \.md; expected files of one kind"):
        list(texts_of(str(folder)))
    with pytest.raises(StatisticsError, match="found no file"):
        list(texts_of(f"{tmp_path}/none-*.jsonl"))


def test_two_patterns_keep_their_statistics_apart(tmp_path: Path) -> None:
    paths = {
        moments_path(session.em, session.hparams, session.fingerprint)
        for session in (session_of(f"{name}/*.jsonl", tmp_path) for name in ("left", "right"))
    }
    assert len(paths) == 2


def handed_over(folder: Path) -> SecondMoments:
    session = session_of("given", folder)
    path = folder / "theirs.safetensors"
    text = folder / "text.json"
    text.write_text(json.dumps(TEXT))
    session.hparams.mom2_dataset = str(text)
    session.prepare().moments.save(path)
    return SecondMoments.load(path)


def taken_by(session: EditSession, moments: SecondMoments) -> None:
    EditSession(
        session.model, session.tok, session.hparams, contexts=TEMPLATES, moments=moments, progress=False
    ).prepare()


def test_a_colleagues_file_is_taken_where_it_fits(tmp_path: Path) -> None:
    taken_by(session_of("given", tmp_path / "mine"), handed_over(tmp_path))


def test_a_colleagues_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    theirs, mine = handed_over(tmp_path), tmp_path / "mine"
    other_tok = build_tokenizer()
    other_tok.add_tokens(["<new>"])
    wrong = {
        "another model": session_of("given", mine, model=build_model("llama", seed=1)),
        "another tokenizer": session_of("given", mine, tok=other_tok),
        r"another number type \(float32, here bfloat16\)": session_of("given", mine, dtype=torch.bfloat16),
        r"another module \(model\.layers\.\{\}\.mlp\.down_proj": session_of(
            "given", mine, rewrite_module_tmp="model.layers.{}.self_attn.o_proj"
        ),
        "no second moments for layer 2": session_of("given", mine, layers=[0, 2]),
    }
    for message, session in wrong.items():
        with pytest.raises(StatisticsError, match=message):
            taken_by(session, theirs)
    changed = {layer: matrix.double() for layer, matrix in theirs.matrices.items()}
    with pytest.raises(StatisticsError, match="say that they are float32 and hold float64"):
        taken_by(session_of("given", mine), SecondMoments(changed, theirs.tokens, theirs.provenance))
