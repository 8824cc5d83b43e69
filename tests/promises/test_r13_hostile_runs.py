"""R13: a run folder may hold anything; logs, a resumed run, a page or a named error come out, and no weight has changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas_plugin.errors import ResumeError, RunFolderError
from nas_plugin.evaluation import stability
from nas_plugin.evaluation.logs import CHECKPOINTS_FILE, EDITS_FILE, RUN_FILE, RunLog, read_run
from nas_plugin.evaluation.measures import DriftProbe, base_outputs, measure
from nas_plugin.evaluation.report import page, sections, write_report
from nas_plugin.evaluation.runner.folder import BASE_FILE, RunFolder
from nas_plugin.evaluation.runner.state import load_state, save_state
from nas_plugin.evaluation.runner.summary import KNOWEDIT, figures
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.reading import parse_json
from nas_plugin.request import as_requests
from nas_plugin.session import EditSession
from tests.conftest import build_requests
from tests.evaluation.fake_runs import write_run
from tests.promises.hostile import FUZZ, RAW, as_json, damaged, hostile_json, little_memory, survives
from tests.promises.test_r13_hostile_tensors import hostile_tensors
from tests.support import all_equal, edited_matrices, tiny_session

LOGS = (EDITS_FILE, CHECKPOINTS_FILE)
METHODS = ("PRUNE", "LyapLock")


@pytest.fixture(autouse=True, scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # What is loaded once, matplotlib and models, is not what a file costs.
    write_report(
        [write_run(tmp_path_factory.mktemp("run"), edits=2, every=1)], tmp_path_factory.mktemp("out") / "r.html"
    )
    for method in METHODS:
        tiny_session("gpt2", method).prepare()
    with little_memory():
        yield


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = write_run(tmp_path_factory.mktemp("good"), "MEMIT", True, edits=3, every=1)
    lines = {name: [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in LOGS}
    for line in lines[CHECKPOINTS_FILE]:
        for layer in (line["drift"] or {}).values():
            del layer["cloud"][4:]
    return {RUN_FILE: [json.loads((folder / RUN_FILE).read_text())], **lines}


def fill(folder: Path, data: st.DataObject, good: dict[str, list[Any]]) -> None:
    """Write a run folder of which one file is damaged."""
    bad = data.draw(st.sampled_from([RUN_FILE, *LOGS, *LOGS]))
    for name, lines in good.items():
        written = [as_json(line) for line in lines]
        if name == bad:
            number = data.draw(st.integers(0, len(lines) - 1))
            kind = st.booleans()
            written[number] = data.draw(
                damaged(lines[number]).map(as_json) if data.draw(kind) else hostile_json(lines[number])
            )
        (folder / name).write_bytes(b"\n".join(written) + b"\n" * (name != RUN_FILE))


def judged(folder: Path) -> RunLog:
    """Read a run and everything that its logs say."""
    log = read_run(folder)
    scores = stability.part_trajectory(log.checkpoints, "score")
    growth = stability.norm_growth(log.checkpoints)
    for line in growth.values():
        stability.log_linear_fit(line)
        stability.norm_score_correlation(line, scores)
    stability.collapse_point(scores)
    stability.retention(log)
    stability.value_norms(log.edits)
    stability.seconds_per_edit(log.edits)
    figures(folder, KNOWEDIT)
    return log


@FUZZ
@given(data=st.data())
def test_a_run_is_read_and_judged_and_a_page_is_written(
    tmp_path: Path, good: dict[str, list[Any]], data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of a page but the strokes of its charts, which take longest."""
    monkeypatch.setattr(sections, "draw", lambda *_: "")
    monkeypatch.setattr(page, "draw_symbol", lambda *_: "")
    fill(tmp_path, data, good)
    if survives(lambda: judged(tmp_path)) is not None:
        assert survives(lambda: write_report([tmp_path], tmp_path / "report.html"))


NUMBERS = [1e308, "@400 digits@"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_page_with_charts(tmp_path: Path, good: dict[str, list[Any]], number: Any) -> None:
    """One hostile number in every place of the last checkpoint and of every edit that may hold any."""

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inner if key in ("cloud", "immediate") else replaced(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [replaced(inner) for inner in value]
        return number if isinstance(value, float) else value

    first, *others, last = copy.deepcopy(good[CHECKPOINTS_FILE])
    lines = {
        **good,
        CHECKPOINTS_FILE: [first, *others, replaced(last)],
        EDITS_FILE: [replaced(line) for line in good[EDITS_FILE]],
    }
    for name, content in lines.items():
        (tmp_path / name).write_bytes(b"".join(as_json(line) + b"\n" for line in content))
    if number == "@400 digits@":
        with pytest.raises(RunFolderError, match="at most 64 bits"):
            write_report([tmp_path], tmp_path / "report.html")
    else:
        assert "</html>" in write_report([tmp_path], tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["<script>x</script> {{ 7 * 7 }} $\\frac$ ../x \0\x1b[31m²", "a" * 3000])
def test_a_page_with_names(tmp_path: Path, good: dict[str, list[Any]], name: str) -> None:
    """A name in every place that is a key or a text: neither markup nor a formula nor a template."""
    (run,), lines = copy.deepcopy(good[RUN_FILE]), copy.deepcopy(good)
    run |= dict.fromkeys(("label", "method", "model", "command"), name) | {
        key: {name: name, **run[key]} for key in ("hparams", "stream", "versions", "protocols")
    }
    for line in lines[CHECKPOINTS_FILE]:
        line["norm"]["layers"] = {name: 1.5}
        line["drift"] = line["drift"] and {name: next(iter(line["drift"].values()))}
        line["capability"] = line["capability"] and {name: {name: 50.0}}
        line["final"][f"efficacy/{name}"] = {"mean": 50.0, "std": 1.0, "count": 2}
    lines[RUN_FILE] = [run]
    for file, content in lines.items():
        (tmp_path / file).write_bytes(b"".join(as_json(line) + b"\n" for line in content))
    text = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "<script" not in text and escape(name) in text


@FUZZ
@given(data=st.data())
def test_a_run_is_gone_on_with(tmp_path: Path, good: dict[str, list[Any]], data: st.DataObject) -> None:
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "after_3.json").write_bytes(b"{}")
    (tmp_path / "cases").mkdir(exist_ok=True)
    for name in ("after_3.jsonl", "after_²x.jsonl", "after_.jsonl", f"after_{'9' * 200}.jsonl"):
        (tmp_path / "cases" / name).write_bytes(b"")
    fill(tmp_path, data, good)
    (tmp_path / BASE_FILE).write_bytes(b"{}")
    run = {**good[RUN_FILE][0], "hparams_digest": None}

    def go_on() -> RunFolder:
        folder = RunFolder.go_on(tmp_path, run)
        assert folder.state_file(folder.edits).parent == tmp_path / "state"
        folder.add_edits([{"edit": folder.edits + 1, "seconds": 1.0, "immediate": {}}])
        return folder

    survives(go_on)


@pytest.fixture(scope="module")
def asked() -> tuple[EditSession, list[Any], list[Any], dict[str, Any]]:
    """A model, cases, held-out facts, and what the original model made of them."""
    session = tiny_session("gpt2", "MEMIT")
    cases = list(load_stream("demo", limit=2).cases)
    requests = as_requests(build_requests(3))
    probe = DriftProbe(session.model, session.tok, session.hparams, requests)
    outputs = base_outputs(session.model, session.tok, cases)
    return session, cases, requests, parse_json(json.dumps({**outputs, "drift": probe.base}))


@FUZZ
@given(data=st.data())
def test_outputs_of_the_original_model(tmp_path: Path, asked: Any, data: st.DataObject) -> None:
    session, cases, requests, outputs = asked
    folder = RunFolder(tmp_path, {})
    (tmp_path / BASE_FILE).write_bytes(data.draw(hostile_json(outputs)))

    def read() -> Any:
        base = folder.base
        if base["drift"] is not None:
            DriftProbe(session.model, session.tok, session.hparams, requests, base=base["drift"])
        return measure(
            session.model, session.tok, cases, base=base, protocols=["consistency", "locality/unchanged_tokens"]
        )

    survives(lambda: folder.base and read())


@pytest.fixture(scope="module", params=METHODS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EditSession, Any, bytes]:
    """A session without edits, and the state of one with two steps."""
    session, manifest = tiny_session("gpt2", request.param), tmp_path_factory.mktemp("state") / "after_2.json"
    for one in build_requests(2):
        session.edit([one])
    save_state(session, manifest)
    content = json.loads(manifest.read_text()), manifest.with_suffix(".safetensors").read_bytes()
    session.revert()
    return (session, *content)


@FUZZ
@given(data=st.data())
def test_a_state(tmp_path: Path, saved: Any, data: st.DataObject) -> None:
    session, content, tensors = saved
    manifest, before = tmp_path / "after_2.json", edited_matrices(session)
    where = data.draw(st.sampled_from(["manifest", "tensors"]))
    good = {**content, "fingerprint": session.fingerprint}
    manifest.write_bytes(data.draw(damaged(good).map(as_json)) if where == "manifest" else as_json(good))
    manifest.with_suffix(".safetensors").write_bytes(
        tensors if where == "manifest" else data.draw(hostile_tensors(tensors))
    )

    def load() -> bool:
        load_state(session, manifest)
        return True

    if survives(load):
        assert all(bool(torch.isfinite(matrix).all()) for matrix in edited_matrices(session))
        session.revert()
    # Whether it was refused or taken back.
    assert all_equal(before, edited_matrices(session)) and session.steps == 0


def test_a_good_state_is_loaded(tmp_path: Path, saved: Any) -> None:
    session, content, tensors = saved
    (tmp_path / "a.json").write_bytes(as_json(content))
    (tmp_path / "a.safetensors").write_bytes(tensors)
    load_state(session, tmp_path / "a.json")
    assert session.steps == 2
    session.edit(build_requests(1))
    session.revert()


@pytest.mark.parametrize("raw", sorted(RAW))
@pytest.mark.parametrize("key", ["history", "editors", "steps", "order", "format", "fingerprint"])
def test_one_bad_field_of_a_state(tmp_path: Path, saved: Any, key: str, raw: str) -> None:
    session, content, tensors = saved
    (tmp_path / "a.json").write_bytes(as_json({**content, key: raw}))
    (tmp_path / "a.safetensors").write_bytes(tensors)
    with pytest.raises(ResumeError):
        load_state(session, tmp_path / "a.json")
