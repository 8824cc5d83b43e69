"""R6: a file that was cut off or damaged anywhere is noticed by name, and the snapshot before is used."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from nas_plugin.errors import LedgerError, SnapshotError
from nas_plugin.files import write_json
from nas_plugin.keep.snapshots import names, read_snapshot
from nas_plugin.session import EditSession
from tests.promises.keeping import kept, same_state, stream

EDITS = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EditSession]:
    folder = tmp_path_factory.mktemp("whole")
    session = kept(folder, "AlphaEdit")
    for request in stream(EDITS):
        session.edit(request)
    return folder, session


def test_two_snapshots_are_kept(whole: tuple[Path, EditSession]) -> None:
    assert [path.name for path in (whole[0] / "snapshots").iterdir() if path.name.startswith(".")] == []
    assert len(names(whole[0] / "snapshots")) == 2


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
def test_a_damaged_snapshot_is_passed_over(file: str, whole: tuple[Path, EditSession], tmp_path: Path) -> None:
    rng = random.Random(file)
    for number in range(4):
        folder = shutil.copytree(whole[0], tmp_path / str(number))
        damaged = folder / "snapshots" / names(folder / "snapshots")[0] / file
        data = bytearray(damaged.read_bytes())
        place = rng.randrange(len(data))
        if number % 2:
            data[place] ^= 0x55
            damaged.write_bytes(bytes(data))
        else:
            damaged.write_bytes(bytes(data[:place]))
        session = kept(folder, "AlphaEdit")
        session.resume()
        assert same_state(whole[1], session)


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
def test_damage_at_any_place_of_a_snapshot_is_named(file: str, whole: tuple[Path, EditSession], tmp_path: Path) -> None:
    path = whole[0] / "snapshots" / names(whole[0] / "snapshots")[0]
    data = (path / file).read_bytes()
    rng = random.Random(f"64 {file}")
    for number, place in enumerate(rng.sample(range(len(data) - 1), 64)):
        folder = shutil.copytree(path, tmp_path / str(number))
        changed = bytearray(data if number % 2 else data[:place])
        if number % 2:
            changed[place] ^= 0x01
        (folder / file).write_bytes(bytes(changed))
        with pytest.raises(SnapshotError, match="cannot read the snapshot"):
            read_snapshot(folder)
    read_snapshot(path)


def test_without_any_snapshot_all_is_done_again(whole: tuple[Path, EditSession], tmp_path: Path) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    shutil.rmtree(folder / "snapshots")
    shutil.rmtree(folder / "factors")
    session = kept(folder, "AlphaEdit")
    session.resume()
    assert same_state(whole[1], session)


def test_a_damaged_ledger_is_refused_and_half_a_line_is_cut(whole: tuple[Path, EditSession], tmp_path: Path) -> None:
    data = (whole[0] / "ledger.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    rng = random.Random(6)
    for number in range(64):
        folder = tmp_path / str(number)
        folder.mkdir()
        place = rng.randrange(len(data) - 1)
        if number % 2:
            (folder / "ledger.jsonl").write_bytes(data[:place])
            lines = len(kept(folder, "AlphaEdit").keeper.ledger.lines)  # type: ignore[union-attr]
            assert lines == sum(end <= place for end in ends)
            continue
        changed = bytearray(data)
        changed[place] ^= 0x01
        (folder / "ledger.jsonl").write_bytes(bytes(changed))
        try:
            session = kept(folder, "AlphaEdit")
        except LedgerError:
            continue
        # What is left: a time, which decides nothing, or the end of the last line.
        assert session.keeper is not None and session.keeper.ledger.chain in {
            line["chain"]
            for line in whole[1].keeper.ledger.lines  # type: ignore[union-attr]
        }


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "file.json"
    old = os.umask(0o027)
    try:
        write_json(path, {"a": 1})
    finally:
        os.umask(old)
    # Who may read it is the user's to say, as with any file.
    assert path.stat().st_mode & 0o777 == 0o640
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"a": 2})
    assert [file.name for file in path.parent.iterdir()] == ["file.json"] and path.read_bytes() == before
