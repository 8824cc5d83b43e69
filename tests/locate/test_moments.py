"""Second moments: against a plain loop, on disk and back, refused when they are of something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_plugin.errors import HparamsError, NonFiniteError, StatisticsError
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.stored import moments_for, moments_path, read_npz
from nas_plugin.locate.texts import texts_of
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.support import TEMPLATES, TEXT, tiny_hparams


def session_of(family: str = "gpt2", seed: int = 0, **overrides) -> EditSession:
    return EditSession(
        build_model(family, seed=seed),
        build_tokenizer(),
        tiny_hparams("MEMIT", **overrides),
        contexts=TEMPLATES,
        progress=False,
    )


def collected(session: EditSession, texts=TEXT) -> SecondMoments:
    return moments_for(session.em, session.locator, session.hparams, session.fingerprint, texts=texts, progress=False)


def test_equals_a_loop_over_single_documents(family: str) -> None:
    session = session_of(family)
    ours = collected(session, TEXT[:20])
    for layer in session.em.layers:
        total, count = torch.zeros(ours.matrices[layer].shape), 0
        for text in TEXT[:20]:
            seen: list[torch.Tensor] = []
            hook = session.em.rewrite[layer].register_forward_hook(
                lambda _m, args, _o, seen=seen: seen.append(args[0][0])
            )
            with torch.no_grad():
                session.model(**session.tok(text, return_tensors="pt", return_token_type_ids=False))
            hook.remove()
            total += seen[0].T @ seen[0]
            count += seen[0].shape[0]
        assert ours.tokens == count
        assert torch.allclose(ours.matrices[layer], total / count, rtol=1e-4, atol=1e-6)


def test_token_and_document_limits() -> None:
    assert collected(session_of(mom2_n_tokens=37)).tokens == 37
    few = collected(session_of(mom2_n_samples=3))
    assert few.tokens == sum(len(build_tokenizer()(text)["input_ids"]) for text in TEXT[:3])


def test_file_round_trip_and_reuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXT))
    session = session_of(stats_dir=str(tmp_path / "stats"), mom2_dataset=str(text))
    session.prepare()
    (path,) = (tmp_path / "stats").rglob("*-layers0-1.safetensors")
    loaded = SecondMoments.load(path)
    fresh = collected(session)
    assert all(torch.equal(loaded.matrices[layer], fresh.matrices[layer]) for layer in (0, 1))
    assert loaded.provenance == fresh.provenance
    assert set(loaded.provenance) == {"model", "weights", "module", "tokenizer", "text", "dtype"}
    monkeypatch.setattr("nas_plugin.locate.stored.collect_moments", lambda *a, **k: pytest.fail("collected again"))
    again = session_of(stats_dir=str(tmp_path / "stats"), mom2_dataset=str(text))
    again.prepare()
    assert again.anchor_value == session.anchor_value


def test_another_models_statistics_are_refused(tmp_path: Path) -> None:
    moments = collected(session_of(seed=0))
    other = session_of(seed=1)
    with pytest.raises(StatisticsError, match="another model"):
        moments.check(other.em, other.fingerprint)
    wide = {layer: torch.eye(7) for layer in (0, 1)}
    with pytest.raises(StatisticsError, match=r"\(48, 48\)"):
        SecondMoments(wide).check(other.em, other.fingerprint)
    with pytest.raises(StatisticsError, match="layer 1"):
        SecondMoments({0: torch.eye(48)}).check(other.em, other.fingerprint)
    with pytest.raises(StatisticsError, match="symmetric"):
        SecondMoments({0: torch.randn(48, 48), 1: torch.eye(48)}).check(other.em, other.fingerprint)
    with pytest.raises(NonFiniteError):
        SecondMoments({0: torch.full((48, 48), float("nan")), 1: torch.eye(48)}).check(other.em, other.fingerprint)
    session = EditSession(other.model, other.tok, other.hparams, contexts=TEMPLATES, moments=moments, progress=False)
    before = [session.em.matrix(layer).clone() for layer in (0, 1)]
    with pytest.raises(StatisticsError):
        session.edit(build_requests(1))
    assert all(torch.equal(session.em.matrix(layer), matrix) for layer, matrix in zip((0, 1), before, strict=True))


def npz(path: Path, matrix: np.ndarray, count: int, **extra) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "mom2.constructor": np.array("util.runningstats.SecondMoment()"),
        "mom2.count": np.array(count),
        "mom2.mom2": matrix,
    }
    np.savez(path, **(arrays | {"sample_size": np.array(100)} | extra))
    return path


@pytest.mark.parametrize("folder", ["tiny-model", "some_tiny-model"])
def test_npz_of_the_host_is_found_and_divided_by_its_count(
    tmp_path: Path, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    session = session_of(stats_dir=str(tmp_path), mom2_dataset="wikipedia", mom2_n_samples=100)
    session.em.config._name_or_path = "some/tiny-model"
    fresh = collected(session_of())
    for layer in (0, 1):
        name = f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100.npz"
        npz(tmp_path / folder / "wikipedia_stats" / name, (fresh.matrices[layer] * fresh.tokens).numpy(), fresh.tokens)
    session.prepare()
    assert torch.allclose(session.foundation.moments.matrices[1], fresh.matrices[1], rtol=1e-6)
    assert "do not say which weights" in caplog.text


def test_damaged_npz_is_named(tmp_path: Path) -> None:
    for number, (matrix, count) in enumerate(
        [(np.eye(3, dtype=np.float32), 0), (np.ones((2, 3)), 5), (np.eye(3, dtype=int), 5)]
    ):
        with pytest.raises(StatisticsError, match="square float"):
            read_npz(npz(tmp_path / f"{number}.npz", matrix, count))
    np.savez(tmp_path / "empty.npz", other=np.eye(2))
    with pytest.raises(StatisticsError, match="mom2"):
        read_npz(tmp_path / "empty.npz")
    np.savez(tmp_path / "object.npz", **{"mom2.count": np.array(1), "mom2.mom2": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(StatisticsError):
        read_npz(tmp_path / "object.npz")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "empty.npz").read_bytes()[:-30])
    with pytest.raises(StatisticsError):
        read_npz(tmp_path / "torn.npz")


def test_texts_from_lists_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two\n")
    (tmp_path / "a.json").write_text(json.dumps(["one", {"text": " two"}]))
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": " two"}\n')
    for source in (["one", "", " two"], *(tmp_path / f"a.{kind}" for kind in ("txt", "json", "jsonl"))):
        assert list(texts_of(source)) == ["one", " two"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", "{", "valid JSON"),
        ("x.json", "{}", "list"),
        ("x.jsonl", '{"a": 1}', "document 0"),
        ("x.json", "[3]", "document 0"),
        ("x.txt", b"\xff\xfe\xff", "UTF-8"),
    ],
)
def test_damaged_text_files_are_named(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StatisticsError, match=says):
        list(texts_of(path))


def test_no_text_and_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match="empty"):
        collected(session_of(), texts=["", "  "])
    with pytest.raises(StatisticsError, match="cannot read"):
        list(texts_of(tmp_path / "nowhere.txt"))
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(StatisticsError, match="cannot read"):
        SecondMoments.load(tmp_path / "bad.safetensors")


def test_tokens_for_each_dimension_of_a_key(tmp_path: Path) -> None:
    session = session_of(mom2_tokens_per_dim=2, stats_dir=str(tmp_path))
    assert collected(session).tokens == 2 * 48
    assert "t96" in moments_path(session.em, session.hparams, session.fingerprint).name
    with pytest.raises(HparamsError, match="both say how many tokens"):
        session_of(mom2_tokens_per_dim=2, mom2_n_tokens=37)
    # A file that does not say it is what it was.
    assert tiny_hparams("MEMIT").digest() == tiny_hparams("MEMIT", mom2_tokens_per_dim=None).digest()
    assert tiny_hparams("MEMIT").digest() != tiny_hparams("MEMIT", mom2_tokens_per_dim=2).digest()
