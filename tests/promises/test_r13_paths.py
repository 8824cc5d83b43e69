"""R13: what a file or a model says becomes part of a path only as a name inside the folder it belongs to."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas_plugin.anchoring import _anchor_path
from nas_plugin.editors import prior_path
from nas_plugin.errors import HparamsError, NasPluginError, RunError, RunFolderError
from nas_plugin.evaluation.runner.compare import Job, _report_unavailable
from nas_plugin.evaluation.runner.entrants import HOSTS, Entrant, all_ours, entrant
from nas_plugin.evaluation.runner.folder import RunFolder
from nas_plugin.evaluation.runner.plan import plan_run
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.hparams import NASMEMITHparams
from nas_plugin.locate import stored
from nas_plugin.reading import file_name, is_file_name
from nas_plugin.write import METHODS
from tests.conftest import build_requests
from tests.promises.hostile import FUZZ, as_json
from tests.support import tiny_hparams, tiny_session

LEADING_OUT = [
    *(
        "..",
        ".",
        "/",
        "//",
        "../..",
        "../../escaped",
        "/tmp/escaped",
        "a/../../../escaped",
        "..\\..\\escaped",
        "C:\\escaped",
    ),
    *(
        "a\0b",
        "\0",
        "x" * 300,
        "é" * 300,
        "a/" * 200,
        "~",
        "~/escaped",
        "-rf",
        " ",
        "a\nb",
        "con:",
        "\ud800",
        "%2e%2e%2f",
    ),
    *(".hidden", "...", "é", "名"),
]
NAMES = st.sampled_from(LEADING_OUT) | st.text(st.sampled_from("./\\\0~ab é\n:"), max_size=12)


def model_called(name: str, rewrite: str = "model.{}.down") -> Any:
    config = SimpleNamespace(_name_or_path=name, model_type="tiny")
    paths = SimpleNamespace(rewrite=rewrite)
    return SimpleNamespace(config=config, layers=(0,), paths=paths, value_layer=0)


def settings_with(stats_dir: Path, dataset: str = "wikipedia") -> Any:
    return NASMEMITHparams(stats_dir=str(stats_dir), mom2_dataset=dataset if dataset.strip() else "none")


def inside(path: Path, folder: Path) -> bool:
    """Whether a file could be made there, and would lie in the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # As it is written: through a temporary name that is longer.
    path.with_name(f".{path.name}.12345678").write_bytes(b"")
    return path.resolve().is_relative_to(folder.resolve()) and os.path.normpath(path) == str(path)


@FUZZ
@given(name=NAMES)
def test_file_names(name: str) -> None:
    made = file_name(name)
    assert is_file_name(made) and file_name(made) == made and len(made.encode()) <= 120
    assert set(made) & set("/\\\0:*?<>|\"' \n") == set()
    if is_file_name(name):
        assert os.path.normpath(Path("/a") / name) == f"/a/{name}"


@pytest.mark.parametrize(
    "name", ["gpt2-xl", "Meta-Llama-3-8B-Instruct", "Qwen2.5-7B", "wikipedia", "my_texts.json", "模型"]
)
def test_ordinary_names_stay(name: str) -> None:
    assert file_name(name) == name


def test_different_texts_have_different_names() -> None:
    made = [file_name(name) for name in LEADING_OUT]
    assert len(set(made)) == len(set(LEADING_OUT))


@FUZZ
@given(model=NAMES, dataset=NAMES)
def test_statistics_anchors_and_priors_lie_in_their_folder(
    tmp_path_factory: pytest.TempPathFactory, model: str, dataset: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "stats"
    em, hparams = model_called(model), settings_with(folder, dataset)
    own = stored.statistics_folder(em, hparams, "ab" * 32)
    assert own.parent == folder
    provenance = {"model": "ab" * 32, "hparams": "cd" * 32, "contexts": "ef" * 32}
    anchor = _anchor_path(SimpleNamespace(em=em), hparams, provenance, None)
    for path in (stored.moments_path(em, hparams, "ab" * 32), anchor):
        assert path is not None and path.parent == own and inside(path, folder)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [1e-300, 1e300, 0.1, 123456789.123])
def test_priors(tmp_path: Path, method: str, number: float) -> None:
    hparams = tiny_hparams(method, mom2_update_weight=number)
    path = prior_path(tmp_path, 3, METHODS[method].prior_name(hparams), torch.eye(2))
    assert path.parent == tmp_path and inside(path, tmp_path)


def test_many_layers_make_no_name_that_is_too_long(tmp_path: Path) -> None:
    em = model_called("m")
    paths = []
    for layers in (tuple(range(126)), tuple(range(125))):
        em.layers = layers
        paths.append(stored.moments_path(em, settings_with(tmp_path, "d" * 200), "ab" * 32))
        assert inside(paths[-1], tmp_path)
    assert paths[0] != paths[1]


def npz(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{"mom2.mom2": np.eye(3, dtype=np.float32), "mom2.count": np.array(3)})


OUTSIDE = [
    ("..", "wikipedia", "model.{}.down"),
    ("a/..", "wikipedia", "model.{}.down"),
    ("m", "../../out/wikipedia", "model.{}.down"),
    ("m", "w/../wikipedia", "model.{}.down"),
    ("m", "{out}/wikipedia", "model.{}.down"),
    ("m", "wikipedia", "../../../out/{}"),
    ("m", "wikipedia", "{out}/{{}}"),
]
INSIDE = [
    ("gpt2-xl", "gpt2-xl"),
    ("owner/gpt2-xl", "owner_gpt2-xl"),
    ("owner/gpt2-xl", "gpt2-xl"),
    ("./cache/m", "._cache_m"),
]


@pytest.mark.parametrize(("model", "dataset", "rewrite"), OUTSIDE)
def test_arrays_outside_of_the_folder_are_not_read(
    tmp_path: Path, model: str, dataset: str, rewrite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files lie where these names lead; only what lies in the folder is opened."""
    out, stats = tmp_path / "out", tmp_path / "in" / "stats"
    (stats / "m" / "w").mkdir(parents=True)
    dataset, rewrite = dataset.replace("{out}", str(out)), rewrite.replace("{out}", str(out)).replace("{{}}", "{}")
    em, hparams = model_called(model, rewrite), settings_with(stats, dataset)
    array = f"{rewrite.format(0)}_float32_mom2_100000.npz"
    (stats / model / f"{dataset}_stats").mkdir(parents=True, exist_ok=True)
    npz(stats / model / f"{dataset}_stats" / array)
    opened: list[Any] = []
    monkeypatch.setattr(stored, "read_npz", lambda path: opened.append(path) or (torch.eye(3), 1))
    assert stored._from_npz(em, hparams) is None and opened == []


@pytest.mark.parametrize(("model", "folder"), INSIDE)
def test_arrays_in_the_folder_are_read(
    tmp_path: Path, model: str, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    npz(tmp_path / folder / "wikipedia_stats" / "model.0.down_float32_mom2_100000.npz")
    with caplog.at_level(logging.WARNING):
        assert stored._from_npz(model_called(model), settings_with(tmp_path)) is not None


@pytest.mark.parametrize("name", LEADING_OUT)
def test_arrays_of_any_model_and_data_set_are_looked_for(tmp_path: Path, name: str) -> None:
    assert stored._from_npz(model_called(name, f"{name}{{}}"), settings_with(tmp_path, name)) is None


def test_a_session_of_a_model_with_a_hostile_name_keeps_its_files_in_the_folder(tmp_path: Path) -> None:
    stats = tmp_path / "a" / "b" / "stats"
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(str(request) for request in build_requests(20)))
    session = tiny_session("llama", "MEMIT", stats_dir=str(stats), mom2_dataset=str(text), nas_n_pilots=2)
    session.model.config._name_or_path = "../../../../escaped/.."
    session.given = dataclasses.replace(session.given, moments=None)
    session.edit(build_requests(1))
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != text]
    assert len(written) >= 3 and all(path.is_relative_to(stats) for path in written)


BAD_COUNTS = ["../../../out/x", "/etc/x", "1/../../../out", -1, 2**70, 1.5, True, None, [1]]


@pytest.mark.parametrize("count", BAD_COUNTS, ids=map(str, BAD_COUNTS))
def test_a_count_in_a_log_leads_to_no_other_state(tmp_path: Path, count: Any) -> None:
    """The number of edits at the last checkpoint names the state that is loaded."""
    folder, out = tmp_path / "run", tmp_path / "out"
    (folder / "state" / "after_1").mkdir(parents=True)
    (folder / "state" / "after_..").mkdir()
    out.mkdir()
    (out / "x.json").write_bytes(b"{}")
    run = {"label": "x", "command": "", "versions": {}, "protocols": {}, "hparams_digest": None, "hparams": {}}
    (folder / "run.json").write_bytes(as_json(run))
    (folder / "edits.jsonl").write_bytes(b"")
    (folder / "checkpoints.jsonl").write_bytes(as_json({"edits": count}) + b"\n")
    before = sorted(tmp_path.rglob("*"))
    if count == -1:
        # A number, of a state that is not there: the run begins anew.
        assert RunFolder.go_on(folder, run).edits == 0
        return
    with pytest.raises(RunFolderError, match="edits"):
        RunFolder.go_on(folder, run)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", LEADING_OUT)
def test_folders_of_a_comparison_are_named_after_methods_alone(name: str) -> None:
    for given_name in (name, f"NAS-{name}", f"MEMIT/{name}", f"{name}="):
        with pytest.raises((RunError, HparamsError)):
            entrant(given_name, "nas-demo", None, {})
    assert all(is_file_name(label) for label in (*all_ours(), *HOSTS))


@pytest.mark.parametrize("name", LEADING_OUT[::4])
def test_names_of_cases_and_streams_are_no_paths(tmp_path: Path, name: str) -> None:
    """What a run folder holds has names of its own, whatever its cases and its stream are called."""
    stream = dataclasses.replace(load_stream("demo", limit=1), name=name, file=name, sha256=name)
    case = dataclasses.replace(stream.cases[0], id=name) if name.strip() else stream.cases[0]
    who = Entrant("FT", NASMEMITHparams(model_name=name) if name.strip() else NASMEMITHparams())
    _report_unavailable(Job(who, stream, (), tmp_path / "in" / "run", plan_run(1), False, False, name), name)
    folder = RunFolder(tmp_path / "in" / "run", {"protocols": {}})
    line = {"edit": 1, "case_id": case.id, "seconds": 1.0, "immediate": {}}
    folder.add_edits([line])
    folder.add_checkpoint({"edits": 1, "final": {}, "cohort": {}}, [{"case_id": case.id}])
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        f"in/run/{file}" for file in ("run.json", "edits.jsonl", "checkpoints.jsonl", "cases/after_1.jsonl")
    }


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_in_hyperparameter_files_are_no_shipped_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(NasPluginError):
        NASMEMITHparams.from_hparams(f"NAS-MEMIT/{name}/nothing-there")
