"""`nas-edit log`: what is shown of a ledger, which of it, and what a folder and a model are checked for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nas_plugin.cli import app
from nas_plugin.errors import LedgerError, ModelError, SnapshotError
from nas_plugin.files import read_tensors, write_tensors
from nas_plugin.keep.log import Wanted, read_log, rows, summary
from nas_plugin.keep.snapshots import manifest_digest, names
from nas_plugin.keep.verify import verify, verify_model
from nas_plugin.session import EditSession
from tests.conftest import SUBJECTS, build_model
from tests.promises.keeping import kept, stream

Event = Callable[[EditSession], None]


def call(*arguments: object, code: int = 0) -> str:
    given = ["log", *map(str, arguments)]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "240", "TERM": "dumb"})
    assert result.exit_code == code, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EditSession]:
    """Ten edits, three at once, the third undone, the fourth replaced, the last rolled back; and a bad one."""
    folder = tmp_path_factory.mktemp("kept")
    session = kept(folder, on_reject="continue")
    session.edit(stream(3))
    for request in stream(8)[3:]:
        session.edit(request)
    session.undo("2")
    session.edit({**stream(4)[3], "target_new": "Rome", "case_id": "new"})
    session.edit({**stream(9)[8], "prompt": "nobody in here"})
    session.edit(stream(10)[9])
    session.rollback()
    return folder, session


@pytest.fixture
def copy(made: tuple[Path, EditSession], tmp_path: Path) -> Path:
    return shutil.copytree(made[0], tmp_path / "copy")


def cases(folder: Path, **wanted: Any) -> list[str | None]:
    return [row.line.get("case") for row in rows(read_log(folder), Wanted(**wanted))]


def test_statuses_are_those_of_the_session(made: tuple[Path, EditSession]) -> None:
    folder, session = made
    shown = rows(read_log(folder), Wanted())
    assert [(row.line["id"], row.now) for row in shown if row.now] == [
        (entry.id, entry.status) for entry in session.history.entries
    ]
    assert [row.line["event"] for row in shown if row.now is None] == ["undo", "rollback"]
    assert [row.edit for row in shown if row.edit] == list(range(1, 12))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"status": "undone"}, ["2"]),
        ({"status": "replaced"}, ["3"]),
        ({"status": "rejected"}, ["8"]),
        ({"status": "taken back"}, ["9"]),
        ({"status": "skipped"}, []),
        ({"case": "5"}, ["5"]),
        ({"case": "new", "status": "written"}, ["new"]),
        ({"case": "new", "status": "undone"}, []),
        ({"subject": SUBJECTS[0].upper(), "last": 1}, ["6"]),
        ({"subject": SUBJECTS[0]}, ["0", "6"]),
        ({"subject": "no such"}, []),
        ({"status": "written", "last": 2}, ["7", "new"]),
        ({"last": 2}, ["9", None]),
        ({"last": 100, "case": "1"}, ["1"]),
    ],
)
def test_filters(made: tuple[Path, EditSession], wanted: dict[str, Any], found: list[str | None]) -> None:
    assert cases(made[0], **wanted) == found


def test_alarms(made: tuple[Path, EditSession]) -> None:
    folder, session = made
    assert session.keeper is not None
    wanted = [line["case"] for line in session.keeper.ledger.lines if line.get("alarm")]
    assert wanted and cases(folder, alarms=True) == wanted
    assert summary(read_log(folder)).alarms == 1


def test_an_id_finds_its_undo_too(made: tuple[Path, EditSession]) -> None:
    folder, session = made
    entry = session.history.named("2")
    assert entry is not None
    assert [row.line["event"] for row in rows(read_log(folder), Wanted(id=entry.id))] == ["edit", "undo"]


def test_the_table(made: tuple[Path, EditSession]) -> None:
    folder, session = made
    text = call(folder)
    for entry in session.history.entries:
        assert re.search(rf"{entry.id}.* {entry.status}", text), entry.id
    assert "UNDO" in text and "ROLLBACK" in text and "nobody in here" in text
    assert f"NAS-MEMIT on the model {session.fingerprint[:12]}" in text
    assert "11 edits: 1 rejected, 1 replaced, 1 taken back, 1 undone, 7 written" in text
    assert f"|W|/|W0| {session.weights.total_ratio():.4f}." in text and "verified" not in text


def test_the_ledger_itself_may_be_given(made: tuple[Path, EditSession]) -> None:
    assert call(made[0] / "ledger.jsonl") == call(made[0])


def test_one_filter_on_the_command_line(made: tuple[Path, EditSession]) -> None:
    lines = call(made[0], "--status", "taken back", "--json").splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["9"]
    assert "is not one of" in call(made[0], "--status", "lost", code=2)


def test_json_is_the_lines_and_the_status_now(made: tuple[Path, EditSession]) -> None:
    folder, session = made
    assert session.keeper is not None
    found = [json.loads(line) for line in call(folder, "--json").splitlines()]
    assert [line.pop("now", None) for line in found if line["event"] == "edit"] == [
        entry.status for entry in session.history.entries
    ]
    assert found == session.keeper.ledger.lines[1:]


def test_markup_and_controls_are_text(tmp_path: Path) -> None:
    session = kept(tmp_path, on_reject="continue")
    session.edit({"prompt": "[red]no\x1b[31m subject", "subject": "Nemo", "target_new": "x"})
    assert "[red]no\ufffd[31m subject" in call(tmp_path)


@pytest.mark.parametrize(
    ("event", "statuses", "norm"),
    [
        (lambda session: session.undo("1"), ["written", "undone", "written"], None),
        (lambda session: session.rollback(), ["written", "written", "taken back"], 2),
        (lambda session: session.revert(), ["taken back"] * 3, 0),
    ],
)
def test_after_an_event(tmp_path: Path, event: Event, statuses: list[str], norm: int | None) -> None:
    session, ratios = kept(tmp_path), [1.0]
    for request in stream(3):
        session.edit(request)
        ratios.append(session.weights.total_ratio())
    event(session)
    read = read_log(tmp_path)
    assert [row.now for row in rows(read, Wanted()) if row.now] == statuses
    assert read.replay.marks[-1].digest == session.weights_digest()
    assert summary(read).norm == (session.weights.total_ratio() if norm is None else ratios[norm])


def test_an_undone_replacement_gives_the_earlier_one_back(tmp_path: Path) -> None:
    session = kept(tmp_path)
    session.edit(stream(1))
    session.edit({**stream(1)[0], "target_new": "Rome", "case_id": "later"})
    assert [row.now for row in rows(read_log(tmp_path), Wanted())] == ["replaced", "written"]
    session.undo("later")
    assert [row.now for row in rows(read_log(tmp_path), Wanted())] == ["written", "undone", None]


def test_a_rollback_takes_back_the_last_step_that_wrote(tmp_path: Path) -> None:
    session = kept(tmp_path, on_reject="continue")
    session.edit(stream(1))
    session.edit({**stream(2)[1], "prompt": "nobody in here"})
    session.rollback()
    read = read_log(tmp_path)
    assert [row.now for row in rows(read, Wanted())] == ["taken back", "rejected", None]
    assert read.replay.marks[-1].digest == session.weights_digest() == read.ledger.lines[0]["weights"]


def test_a_foreign_change(tmp_path: Path) -> None:
    session = kept(tmp_path)
    session.edit(stream(1))
    with torch.no_grad():
        session.em.weight(0).mul_(1.01)
    session.edit(stream(2)[1])
    assert "FOREIGN" in call(tmp_path, "--verify")
    assert cases(tmp_path, status="taken back") == ["0"]


@pytest.mark.parametrize("cut", [1, 40, 2000])
def test_a_torn_file_is_left_as_it_is(copy: Path, cut: int) -> None:
    ledger = copy / "ledger.jsonl"
    shutil.rmtree(copy / "snapshots")
    ledger.write_bytes(ledger.read_bytes()[:-cut])
    before = contents(copy)
    assert "are no whole step" in call(copy, "--verify")
    assert contents(copy) == before


def test_half_a_step_is_left_out_and_left_there(tmp_path: Path) -> None:
    kept(tmp_path).edit(stream(3))
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    before = ledger.read_bytes()
    assert cases(tmp_path) == [] and ledger.read_bytes() == before


@pytest.mark.parametrize("name", ["nothing", "nothing/ledger.jsonl", ""])
def test_no_ledger(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    where = path / "ledger.jsonl" if not name else path
    assert f"there is no ledger at {where}" in call(path, code=1)


def test_an_empty_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b"")
    assert "holds no whole line" in call(tmp_path, code=1)


def test_good_files_are_verified_and_left_as_they_are(made: tuple[Path, EditSession]) -> None:
    before = contents(made[0])
    text = call(made[0], "--verify", "--last", 1)
    assert re.search(
        r"verified: 14 ledger lines, chained to \w{12}; snapshot lines-\d+ and its weights; .* of factors", text
    )
    assert contents(made[0]) == before


def test_json_with_verify_is_still_lines(made: tuple[Path, EditSession]) -> None:
    result = CliRunner().invoke(app, ["log", str(made[0]), "--json", "--verify"])
    assert all(json.loads(line) for line in result.stdout.splitlines()) and "verified" in result.stderr


@pytest.mark.parametrize("method", ["PRUNE", "RECT", "AlphaEdit"])
@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_two_snapshots_of_a_method(tmp_path: Path, method: str, layers: list[int]) -> None:
    session = kept(tmp_path, method, layers=layers, snapshot_every=2)
    for request in stream(5):
        session.edit(request)
    assert len([piece for piece in verify(read_log(tmp_path)) if "and its weights" in piece]) == 2


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x02
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_byte_in_the_ledger(copy: Path, place: float) -> None:
    flip(copy / "ledger.jsonl", place)
    with pytest.raises(LedgerError):
        read_log(copy)
    call(copy, "--verify", code=1)


@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["state.safetensors", "manifest.json", "factors", "moments"])
def test_a_flipped_byte_in_another_file(copy: Path, kind: str, place: float) -> None:
    if kind == "factors":
        path = next((copy / "factors").iterdir())
    elif kind == "moments":
        path = copy / "moments.safetensors"
    else:
        path = copy / "snapshots" / names(copy / "snapshots")[0] / kind
    flip(path, place)
    with pytest.raises(SnapshotError):
        verify(read_log(copy))
    assert "SnapshotError".lower() in call(copy, "--verify", code=1)
    # Without --verify it is of no interest.
    call(copy)


def test_factors_that_are_gone(copy: Path) -> None:
    shutil.rmtree(copy / "factors")
    assert "cannot read the factors" in call(copy, "--verify", code=1)


def test_a_ledger_that_was_cut_at_a_line(copy: Path) -> None:
    ledger = copy / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:5]))
    assert "the ledger ends before it" in call(copy, "--verify", code=1)


def test_a_snapshot_of_another_session(copy: Path, tmp_path: Path) -> None:
    other = kept(tmp_path / "other")
    for request in reversed(stream(7)):
        other.edit(request)
    shutil.rmtree(copy / "snapshots")
    shutil.copytree(tmp_path / "other" / "snapshots", copy / "snapshots")
    assert "it is of another ledger" in call(copy, "--verify", code=1)


def test_weights_that_are_not_the_ledgers(copy: Path) -> None:
    path = copy / "snapshots" / names(copy / "snapshots")[0]
    tensors = read_tensors(path / "state.safetensors")[1]
    digest = write_tensors(path / "state.safetensors", {**tensors, "0.master": tensors["0.master"] * 2}, {})
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.safetensors"] = digest
    manifest["digest"] = manifest_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "do not have the digest" in call(copy, "--verify", code=1)


@pytest.fixture(scope="module")
def saved(made: tuple[Path, EditSession], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    made[1].model.save_pretrained(folder)
    return folder


def test_the_right_model(made: tuple[Path, EditSession], saved: Path) -> None:
    assert f"the 1 edited parameter of {saved}" in call(made[0], "--verify", "--model", saved)


def test_a_model_alone_is_verified_too(made: tuple[Path, EditSession], saved: Path) -> None:
    assert "verified: 14 ledger lines" in call(made[0], "--model", saved)


def test_the_unedited_model(made: tuple[Path, EditSession], tmp_path: Path) -> None:
    build_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(LedgerError, match="those after line 1;"):
        verify_model(read_log(made[0]), tmp_path)
    assert "LedgerError".lower() in call(made[0], "--verify", "--model", tmp_path, code=1)


@pytest.mark.parametrize(("family", "named"), [("gpt2", "float64.*none of its lines"), ("llama", "has no parameter")])
def test_another_model(made: tuple[Path, EditSession], tmp_path: Path, family: str, named: str) -> None:
    build_model(family).to(torch.float64).save_pretrained(tmp_path)
    with pytest.raises(LedgerError, match=named):
        verify_model(read_log(made[0]), tmp_path)


def test_a_model_after_a_revert(tmp_path: Path) -> None:
    session = kept(tmp_path / "kept")
    session.edit(stream(2))
    session.revert()
    build_model("gpt2").save_pretrained(tmp_path / "model")
    assert verify_model(read_log(tmp_path / "kept"), tmp_path / "model")


def test_a_model_in_half_precision(tmp_path: Path) -> None:
    session = kept(tmp_path / "kept", dtype=torch.bfloat16, snapshot_every=2)
    for request in stream(2):
        session.edit(request)
    session.model.save_pretrained(tmp_path / "model")
    text = call(tmp_path / "kept", "--model", tmp_path / "model")
    assert "and its weights" in text and "1 edited parameter" in text


@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_no_model(made: tuple[Path, EditSession], saved: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model"
    if kind == "empty":
        path.mkdir()
    elif kind == "damaged":
        shutil.copytree(saved, path)
        (path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError):
        verify_model(read_log(made[0]), path)
