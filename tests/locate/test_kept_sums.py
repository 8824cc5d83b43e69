"""A pass over text that was interrupted goes on, and ends with the same bits; with anything else it begins again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_plugin.locate import collecting, kept_sums
from nas_plugin.locate.collecting import collect_moments
from nas_plugin.locate.kept_sums import KeptSums
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.stored import moments_for
from nas_plugin.parallel import ALONE, Group
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_tokenizer
from tests.support import TEMPLATES, TEXT, tiny_hparams

STOPPED_AT = 5


class Stopped(BaseException):
    """Somebody pressed Ctrl-C."""


@pytest.fixture(autouse=True)
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "TOKENS_PER_PASS", 64)
    monkeypatch.setattr(kept_sums, "_SECONDS", 0.0)
    monkeypatch.setattr(kept_sums, "_SHARE", 0)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The layers of each pass that is run; the one at which it is to stop is set with `stop_at`."""
    calls: list[list[int]] = []
    accumulate = collecting._accumulate

    def counted(em: Any, locator: Any, rows: Any, sums: dict[int, Tensor]) -> None:
        calls.append(list(sums))
        accumulate(em, locator, rows, sums)

    monkeypatch.setattr(collecting, "_accumulate", counted)
    return calls


def session_of(folder: Path, text: list[str] = TEXT, seed: int = 0) -> EditSession:
    source = folder / "text.txt"
    source.write_text("\n".join(text))
    hparams = tiny_hparams("MEMIT", stats_dir=str(folder / "stats"), mom2_dataset=str(source))
    return EditSession(build_model("gpt2", seed=seed), build_tokenizer(), hparams, contexts=TEMPLATES, progress=False)


def collected(session: EditSession) -> SecondMoments:
    return moments_for(session.em, session.locator, session.hparams, session.fingerprint, progress=False)


def stop(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int = STOPPED_AT) -> None:
    """Begin to collect and stop in the midst of a pass."""
    accumulate, number = collecting._accumulate, [0]

    def stopping(*arguments: Any) -> None:
        number[0] += 1
        if number[0] > at:
            raise Stopped
        accumulate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(collecting, "_accumulate", stopping)
        with pytest.raises(Stopped):
            collected(session_of(folder))


def kept_files(folder: Path) -> list[Path]:
    return sorted((folder / "stats").rglob("layer-*.safetensors"))


def same(left: SecondMoments, right: SecondMoments) -> bool:
    return (
        left.tokens == right.tokens
        and left.provenance == right.provenance
        and all(torch.equal(matrix, right.matrices[layer]) for layer, matrix in left.matrices.items())
    )


def whole(folder: Path, text: list[str] = TEXT) -> SecondMoments:
    folder.mkdir()
    return collected(session_of(folder, text))


def test_it_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[list[int]]
) -> None:
    wanted, all_passes = whole(tmp_path / "whole"), len(passes)
    passes.clear()
    stop(tmp_path, monkeypatch)
    assert len(passes) == STOPPED_AT < all_passes and len(kept_files(tmp_path)) == 2
    passes.clear()
    assert same(collected(session_of(tmp_path)), wanted)
    assert len(passes) == all_passes - STOPPED_AT
    assert not list((tmp_path / "stats").rglob("*.sums"))


def test_killed_between_two_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[list[int]]) -> None:
    wanted = whole(tmp_path / "whole")
    write, written = kept_sums.write_tensors, [0]

    def failing(*arguments: Any) -> str:
        written[0] += 1
        if written[0] > 2 * STOPPED_AT + 1:
            raise Stopped
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kept_sums, "write_tensors", failing)
        with pytest.raises(Stopped):
            collected(session_of(tmp_path))
    passes.clear()
    assert same(collected(session_of(tmp_path)), wanted)
    assert passes[0] == [1] and passes[1] == [0, 1], "layer 0 had one pass more"


@pytest.mark.parametrize("text", [["another text", *TEXT[1:]], TEXT[:3]], ids=["changed", "shorter"])
def test_another_text_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = whole(tmp_path / "whole", text)
    stop(tmp_path, monkeypatch)
    assert same(collected(session_of(tmp_path, text)), wanted)
    assert "collecting anew" in caplog.text and not list((tmp_path / "stats").rglob("*.sums"))


@pytest.mark.parametrize("damage", ["cut", "no safetensors", "other model", "not finite", "no number"])
def test_sums_that_are_none_are_not_used(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[list[int]]
) -> None:
    wanted, all_passes = whole(tmp_path / "whole"), len(passes)
    stop(tmp_path, monkeypatch)
    for path in kept_files(tmp_path):
        data = path.read_bytes()
        metadata, tensors = kept_sums.read_tensors(path, "sum")
        if damage == "cut":
            path.write_bytes(data[:-9])
        elif damage == "no safetensors":
            path.write_bytes(b"\xff" * 99)
        elif damage == "other model":
            kept_sums.write_tensors(path, tensors, {**metadata, "model": "0" * 64})
        elif damage == "not finite":
            kept_sums.write_tensors(path, {"sum": tensors["sum"] * float("nan")}, metadata)
        else:
            kept_sums.write_tensors(path, tensors, {**metadata, "pass": "many"})
    passes.clear()
    assert same(collected(session_of(tmp_path)), wanted)
    assert len(passes) == all_passes and not list((tmp_path / "stats").rglob("*.sums"))


def test_what_a_kill_left_of_a_file_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(tmp_path, monkeypatch)
    folder = kept_files(tmp_path)[0].parent
    (folder / ".layer-0-0-of-1.safetensors.0a1b2c3d").write_bytes(b"half")
    collected(session_of(tmp_path))
    assert not folder.exists()


def test_a_short_pass_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_sums, "_SECONDS", 600.0)
    stop(tmp_path, monkeypatch)
    assert not list((tmp_path / "stats").rglob("*.sums"))


class Half(Group):
    """One of two processes, whose sums are looked at by themselves."""

    def total(self, tensor: Tensor) -> Tensor:
        return tensor


def test_each_process_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(tmp_path)

    def collect(group: Group, kept: KeptSums | None) -> dict[int, Tensor]:
        return dict(
            collect_moments(
                session.em, session.locator, TEXT, max_documents=1000, max_tokens=None, dtype=torch.float64,
                fingerprint="one", progress=False, group=group, kept=kept,
            ).matrices
        )  # fmt: skip

    together = collect(ALONE, None)
    halves = []
    for group in (Half(0, 2), Half(1, 2)):
        accumulate, number = collecting._accumulate, [0]

        def stopping(*arguments: Any, number: list[int] = number, accumulate: Any = accumulate) -> None:
            number[0] += 1
            if number[0] > 2:
                raise Stopped
            accumulate(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(collecting, "_accumulate", stopping)
            with pytest.raises(Stopped):
                collect(group, KeptSums(tmp_path / "sums", group))
        halves.append(collect(group, KeptSums(tmp_path / "sums", group)))
        assert all(torch.equal(matrix, collect(group, None)[layer]) for layer, matrix in halves[-1].items())
    for layer, matrix in together.items():
        torch.testing.assert_close(halves[0][layer] + halves[1][layer], matrix, rtol=1e-12, atol=0)
    for group in (Half(0, 2), Half(1, 2)):
        kept = KeptSums(tmp_path / "sums", group)
        assert (tmp_path / "sums").exists()
        kept.remove()
    assert not (tmp_path / "sums").exists()
