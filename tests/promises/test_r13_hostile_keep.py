"""R13: a keep folder may hold anything; a session, a log or a named error come out, whoever has chained the ledger again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas_plugin.errors import LedgerError, NasPluginError, SnapshotError
from nas_plugin.keep.ledger import Ledger, _chained
from nas_plugin.keep.log import Wanted, read_log, rows, summary
from nas_plugin.keep.snapshots import manifest_digest, names, read_snapshot
from nas_plugin.keep.verify import verify
from nas_plugin.reading import parse_json
from nas_plugin.session import EditSession
from tests.promises.hostile import FUZZ, RAW, as_json, damaged, hostile_json, little_memory, mangled, survives
from tests.promises.keeping import kept, same_state, stream
from tests.promises.test_r13_hostile_tensors import hostile_tensors
from tests.support import edited_matrices

# One that carries its history, so that factors are read; few and short edits, for there are many examples.
METHOD, SETTINGS = "AlphaEdit", {"v_num_grad_steps": 1, "snapshot_every": 2}
# A model is made and edits are carried out again, which is half a second of honest work, and two on a busy machine.
WORKING = 10.0


def begun(folder: Path) -> EditSession:
    return kept(folder, METHOD, **SETTINGS)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three steps, an undo and a snapshot."""
    folder = tmp_path_factory.mktemp("good")
    session = begun(folder)
    session.edit(stream(1))
    session.edit(stream(3)[1:])
    session.undo("0")
    session.edit(stream(4)[3])
    assert len(names(folder / "snapshots")) == 1
    # What is loaded once is not what a file costs.
    begun(folder).resume()
    return folder


@pytest.fixture(autouse=True, scope="module")
def memory(good: Path) -> Iterator[None]:
    with little_memory():
        yield


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return tmp_path / "kept"


def again(good: Path, folder: Path) -> Path:
    """Make the folder good again; return its only snapshot."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    return folder / "snapshots" / names(folder / "snapshots")[0]


def lines_of(folder: Path) -> list[Any]:
    return [parse_json(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]


def chained(lines: Sequence[bytes]) -> bytes:
    """The lines, chained anew as far as they can be."""
    chain, written = "", []
    for raw in lines:
        try:
            line = parse_json(raw)
            chain = _chained(chain, {key: value for key, value in line.items() if key != "chain"})
            raw = json.dumps({**line, "chain": chain}).encode()
        except (ValueError, AttributeError):
            pass
        written.append(raw)
    return b"".join(raw + b"\n" for raw in written)


@st.composite
def hostile_ledger(draw: st.DrawFn, lines: Sequence[Any]) -> bytes:
    """Lines of which one is damaged, gone, there twice or at another place, with a chain that fits; or any bytes."""
    written = [as_json(line) for line in lines]
    number, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    kind = draw(st.sampled_from(["values", "values", "json", "gone", "twice", "moved", "bytes"]))
    if kind == "bytes":
        return draw(mangled(b"".join(raw + b"\n" for raw in written)))
    if kind == "gone":
        del written[number]
    elif kind == "twice":
        written.insert(other, written[number])
    elif kind == "moved":
        written[number], written[other] = written[other], written[number]
    else:
        bad = damaged(lines[number]).map(as_json) if kind == "values" else hostile_json(lines[number])
        written[number] = draw(bad)
    return chained(written)


def looked_at(folder: Path) -> bool:
    log = read_log(folder)
    for row in rows(log, Wanted()):
        json.dumps(row.content)
    summary(log)
    return True


def resumed(session: EditSession) -> bool:
    session.resume()
    session.undo("3")
    return True


def check(folder: Path) -> None:
    """Look at the folder, verify it, and go on with it: in the end there are finite weights, or those of the unedited model."""
    survives(lambda: looked_at(folder))
    survives(lambda: verify(read_log(folder)), WORKING)
    session = survives(lambda: begun(folder), WORKING)
    if session is not None:
        session.prepare()
        survives(lambda: resumed(session), WORKING)
        assert all(bool(torch.isfinite(matrix).all()) for matrix in edited_matrices(session))


@FUZZ
@given(data=st.data())
def test_a_ledger_is_read(good: Path, folder: Path, data: st.DataObject) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / "ledger.jsonl"
    path.write_bytes(content := data.draw(hostile_ledger(lines_of(good))))
    survives(lambda: looked_at(folder))
    only_read = survives(lambda: Ledger(path, repair=False))
    assert path.read_bytes() == content
    repaired = survives(lambda: Ledger(path))
    assert (only_read is None) == (repaired is None)
    if repaired is not None and only_read is not None:
        assert repaired.lines == only_read.lines and path.stat().st_size == len(content) - only_read.torn
        assert Ledger(path).lines == repaired.lines


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_session_with_any_ledger(good: Path, folder: Path, snapshot: bool) -> None:
    @FUZZ
    @given(hostile_ledger(lines_of(good)))
    def survived(content: bytes) -> None:
        again(good, folder)
        if not snapshot:
            shutil.rmtree(folder / "snapshots")
        (folder / "ledger.jsonl").write_bytes(content)
        check(folder)

    survived()


@FUZZ
@given(data=st.data())
def test_a_session_with_any_manifest(good: Path, folder: Path, data: st.DataObject) -> None:
    path = again(good, folder) / "manifest.json"
    raw = data.draw(hostile_json(parse_json(path.read_bytes())))
    try:
        content = parse_json(raw)
        raw = json.dumps({**content, "digest": manifest_digest(content)}).encode()
    except (ValueError, TypeError, AttributeError):
        pass
    path.write_bytes(raw)
    check(folder)


@pytest.mark.parametrize("kind", ["state", "factors"])
def test_a_session_with_any_tensors(good: Path, folder: Path, kind: str) -> None:
    snapshot = again(good, folder)
    path = snapshot / "state.safetensors" if kind == "state" else next((folder / "factors").iterdir())
    whole = path.read_bytes()

    @FUZZ
    @given(hostile_tensors(whole))
    def survived(content: bytes) -> None:
        snapshot = again(good, folder)
        path.write_bytes(content)
        manifest = parse_json((snapshot / "manifest.json").read_bytes())
        noted = manifest["sha256"] if kind == "state" else manifest["factors"][path.name]
        noted[path.name if kind == "state" else "sha256"] = hashlib.sha256(content).hexdigest()
        (snapshot / "manifest.json").write_text(json.dumps({**manifest, "digest": manifest_digest(manifest)}))
        check(folder)

    survived()


@pytest.mark.parametrize("raw", sorted(RAW))
def test_one_bad_value_at_each_field_of_an_edit(good: Path, folder: Path, raw: str) -> None:
    """Each mark of `RAW` in the place of each value, which random ones may miss."""
    folder.mkdir()
    lines = lines_of(good)
    for number in (0, 1):
        for key in lines[number]:
            bad = [*lines[:number], {**lines[number], key: raw}, *lines[number + 1 :]]
            (folder / "ledger.jsonl").write_bytes(chained([as_json(line) for line in bad]))
            survives(lambda: looked_at(folder))


@pytest.mark.parametrize("kind", ["folder", "large", "nothing but zeros"])
def test_what_is_no_ledger(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger.jsonl"
    if kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(2**40 if kind == "large" else 100)
    with pytest.raises(LedgerError):
        Ledger(path)


def test_a_large_manifest_is_not_read_in_whole(good: Path, folder: Path) -> None:
    path = again(good, folder)
    with (path / "manifest.json").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(SnapshotError):
        read_snapshot(path)


def test_the_good_folder_is_good(good: Path, folder: Path) -> None:
    again(good, folder)
    assert looked_at(folder) and verify(read_log(folder))
    with_snapshot = begun(folder)
    with_snapshot.resume()
    shutil.rmtree(folder / "snapshots")
    without = begun(folder)
    without.resume()
    assert same_state(with_snapshot, without)
    lines = lines_of(good)
    assert chained([as_json(line) for line in lines]) == (good / "ledger.jsonl").read_bytes()
    with pytest.raises(NasPluginError, match="no session writes that"):
        (folder / "ledger.jsonl").write_bytes(chained([as_json(line) for line in [*lines[:2], lines[1]]]))
        read_log(folder)
