"""EasyEdit's own methods in a run: driven through its editor, measured with our measures, refused with a reason."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from nas_plugin.demo import load_demo
from nas_plugin.easyedit.host import Host, load_host
from nas_plugin.errors import HostDeviceError, HostMissingError, HparamsError, RunError
from nas_plugin.evaluation.runner import Measures, hosts, plan_run, run_stream
from nas_plugin.evaluation.runner.entrants import HOSTS
from nas_plugin.evaluation.runner.hosts import HostWriter
from nas_plugin.evaluation.runner.rows import RowByRow
from tests.evaluation.runner_support import lines_of, stream_of

FILES = Path(__file__).resolve().parents[2] / "nas_plugin" / "evaluation" / "runner" / "demo_hosts"


@pytest.fixture(scope="module")
def host() -> Host:
    try:
        return load_host()
    except HostMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def current(host: Host) -> Host:
    if host.is_wheel:
        pytest.skip("EasyEdit's released wheel works on an accelerator only")
    return host


@dataclasses.dataclass
class Settings:
    """Hyperparameters as EasyEdit has them."""

    alg_name: str
    layers: list[int]
    rewrite_module_tmp: str
    device: Any = None
    model_name: Any = ""
    batch_size: int = 1
    model_parallel: bool = False

    @classmethod
    def from_hparams(cls, path: str) -> Settings:
        return cls(**yaml.safe_load(Path(path).read_text()))


class Beside(torch.nn.Module):
    """What a method returns that leaves the weights alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


class FakeHost:
    """The parts of EasyEdit that a writer touches, with methods of a few lines."""

    is_wheel = False

    def __init__(self) -> None:
        self.calls: list[list[dict[str, Any]]] = []
        self.ALG_DICT = {"FT": self.change, "GRACE": self.put_beside, "ROME": self.fail}
        self.module = SimpleNamespace(**{class_name: Settings for _, class_name in HOSTS.values()})
        self.BatchEditor = SimpleNamespace(is_batchable_method=lambda name: name == "FT")
        self.BaseEditor = SimpleNamespace(from_hparams=self.editor)

    def editor(self, hparams: Settings) -> Any:
        Path("run.log").write_text("EasyEdit writes where it is\n")
        sys.stdout.write("and says a lot")
        model, tok = hparams.model_name
        return SimpleNamespace(
            model=model,
            tok=tok,
            hparams=hparams,
            model_name=hparams.model_name,
            apply_algo=self.ALG_DICT[hparams.alg_name],
        )

    def change(self, model: Any, _tok: Any, requests: list, hparams: Settings, **_: Any) -> tuple[Any, dict]:
        assert hparams.batch_size == len(requests) and str(hparams.model_name) == "gpt2"
        self.calls.append(requests)
        with torch.no_grad():
            model.transformer.h[0].mlp.c_proj.weight.mul_(2.0)
        return model, {}

    def put_beside(self, model: Any, _tok: Any, requests: list, _hparams: Settings, **_: Any) -> tuple[Any, None]:
        self.calls.append(requests)
        return Beside(model), None

    def fail(self, *_: Any, **__: Any) -> None:
        raise KeyError("loc_prompt")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    made = FakeHost()
    monkeypatch.setattr(hosts, "load_host", lambda: made)
    return made


def fake_file(method: str, folder: Path) -> Path:
    path = folder / "settings.yaml"
    settings = {"alg_name": method, "layers": [0], "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj"}
    path.write_text(yaml.safe_dump(settings))
    return path


EDITED = stream_of(12).cases[:8]


def writer_for(method: str, file: Path, **overrides: Any) -> HostWriter:
    model, tok = load_demo()
    unrelated = [case.requests[0].prompt for case in stream_of(12).cases[8:]]
    return HostWriter(model, tok, method, file, overrides, unrelated)


def go(writer: HostWriter, folder: Path, edits: int = 3, **settings: Any) -> bool:
    plan = plan_run(edits, every=edits, cohort=1, measures=Measures(drift=0), **settings)
    return run_stream(writer, stream_of(12), folder, plan, stop=lambda: False, advance=lambda _: None)


@pytest.mark.parametrize("method", HOSTS)
def test_shipped_files_name_their_method(method: str) -> None:
    path = FILES / f"{method}.yaml"
    if method in {"MEND", "MELO"}:
        assert not path.exists()
    else:
        assert yaml.safe_load(path.read_text())["alg_name"] == HOSTS[method][0]


@pytest.mark.parametrize(("per_step", "sizes"), [(1, [1, 1, 1]), (2, [2, 1])])
def test_a_method_that_changes_weights(
    per_step: int, sizes: list[int], fake: FakeHost, tmp_path: Path, capsys: Any
) -> None:
    here = Path.cwd()
    writer = writer_for("FT", fake_file("FT", tmp_path))
    assert go(writer, tmp_path / "run", per_step=per_step)
    assert [len(requests) for requests in fake.calls] == sizes
    request, case = fake.calls[0][0], stream_of(12).cases[0]
    assert request["prompt"] == case.requests[0].prompt and request["target_new"] == case.requests[0].target
    assert request["ground_truth"] == case.true_target and request["loc_prompt"] not in {
        c.requests[0].prompt for c in EDITED
    }
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (
        run["label"] == "FT" and run["use_nas"] is False and run["anchor"] is None and run["hparams"]["layers"] == [0]
    )
    lines = lines_of(tmp_path / "run" / "edits.jsonl")
    assert [line["value_norm"] for line in lines] == [None] * 3 and not any(line["skipped"] for line in lines)
    first, last = lines_of(tmp_path / "run" / "checkpoints.jsonl")
    assert first["norm"] == {"layers": {"0": 1.0}, "total": 1.0} and last["drift"] is None
    assert last["norm"]["total"] == last["norm"]["layers"]["0"] == pytest.approx(2.0 ** len(sizes))
    # What EasyEdit writes lies in the run folder, not where the command was given.
    assert (tmp_path / "run" / "state" / "run.log").exists() and Path.cwd() == here
    assert "and says a lot" not in capsys.readouterr().out


def test_a_method_that_puts_something_beside_the_weights(fake: FakeHost, tmp_path: Path) -> None:
    writer = writer_for("GRACE", fake_file("GRACE", tmp_path))
    assert go(writer, tmp_path / "run") and isinstance(writer.model, RowByRow) and len(fake.calls) == 3
    last = lines_of(tmp_path / "run" / "checkpoints.jsonl")[-1]
    assert last["norm"] == {"layers": {}, "total": None} and last["final"]["locality/unchanged_tokens"]["mean"] == 100


def test_an_error_inside_easyedit_ends_the_run(fake: FakeHost, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="loc_prompt"):
        go(writer_for("ROME", fake_file("ROME", tmp_path)), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["failure"] == "KeyError: 'loc_prompt'"


def test_settings_replace_those_of_the_file_and_must_be_known(fake: FakeHost, tmp_path: Path) -> None:
    file = fake_file("FT", tmp_path)
    assert writer_for("FT", file, layers=[1]).describe()["hparams"]["layers"] == [1]
    with pytest.raises(HparamsError, match="FT has no setting 'layer'"):
        writer_for("FT", file, layer=1).describe()


def test_its_state_cannot_be_saved(fake: FakeHost, tmp_path: Path) -> None:
    file = fake_file("FT", tmp_path)
    go(writer_for("FT", file), tmp_path / "run", edits=1)
    assert not list((tmp_path / "run" / "state").glob("after_*"))
    plan = plan_run(1, cohort=1, measures=Measures(drift=0))
    with pytest.raises(RunError, match="cannot be gone on with"):
        run_stream(writer_for("FT", file), stream_of(12), tmp_path / "run", plan, resume=True)
    for refused in (HostWriter.save, HostWriter.load):
        with pytest.raises(RunError, match="the state of EasyEdit's FT cannot be"):
            refused(writer_for("FT", file), tmp_path / "state.json")


def test_wise_needs_prompts_that_no_edit_is_about(fake: FakeHost, tmp_path: Path) -> None:
    fake.ALG_DICT["WISE"] = fake.put_beside
    model, tok = load_demo()
    writer = HostWriter(model, tok, "WISE", fake_file("WISE", tmp_path), {}, [])
    with pytest.raises(RunError, match="a stream that is longer than the edits"):
        go(writer, tmp_path / "run", edits=1)


@pytest.mark.contract
@pytest.mark.parametrize("method", ["FT", "ROME", "UltraEdit", "GRACE"])
def test_the_shipped_files_run(method: str, current: Host, tmp_path: Path) -> None:
    writer = writer_for(method, FILES / f"{method}.yaml")
    assert go(writer, tmp_path / "run")
    lines = lines_of(tmp_path / "run" / "edits.jsonl")
    if method == "GRACE":
        # A codebook answers its own edits, and nothing else.
        assert all(
            line["immediate"]["efficacy/exact"] == line["immediate"]["efficacy/generated"] == 100 for line in lines
        )
        assert all(line["immediate"]["locality/unchanged_tokens"] == 100 for line in lines)
    else:
        assert lines_of(tmp_path / "run" / "checkpoints.jsonl")[-1]["norm"]["total"] != 1.0


def test_what_the_installed_version_lacks_is_said(host: Host) -> None:
    missing = [method for method, (name, _) in HOSTS.items() if name not in host.ALG_DICT]
    for method in missing:
        with pytest.raises(RunError, match=f"the installed EasyEdit has no {method}"):
            writer_for(method, FILES / f"{method}.yaml").describe()


def test_a_machine_it_cannot_work_on_is_said(host: Host) -> None:
    if not host.is_wheel or torch.accelerator.is_available():
        pytest.skip("this version of EasyEdit works on this machine")
    with pytest.raises(HostDeviceError, match="on an accelerator only"):
        writer_for("FT", FILES / "FT.yaml").describe()
