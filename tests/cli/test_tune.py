"""`nas-edit tune`: what is tried, how it is scored, and the file that the best becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_plugin import hparams as hyperparameters
from nas_plugin.demo import load_demo
from nas_plugin.errors import HparamsError, NonFiniteError, RunError
from nas_plugin.evaluation import tuning
from nas_plugin.evaluation.runner.load import load_hparams
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.evaluation.tuning import Trial, bands, learning_rates, tune, write_tuned
from nas_plugin.hparams import list_hparams
from nas_plugin.session import EditSession
from tests.cli.calling import SMALL, call

SETTINGS = {"mom2_n_samples": 40, "nas_n_pilots": 3, "v_num_grad_steps": 5}


@pytest.mark.parametrize(
    ("layers", "blocks", "found"),
    [
        # Llama 3 8B's own, Qwen2.5's depth, and one later.
        ((4, 5, 6, 7, 8), 32, [(4, 5, 6, 7, 8), (8, 9, 10, 11, 12), (12, 13, 14, 15, 16)]),
        (
            (13, 14, 15, 16, 17),
            48,
            [(13, 14, 15, 16, 17), (6, 7, 8, 9, 10), (12, 13, 14, 15, 16), (18, 19, 20, 21, 22)],
        ),
        ((0,), 2, [(0,), (1,)]),
        ((0, 1), 2, [(0, 1)]),
        ((3,), 4, [(3,), (0,), (1,), (2,)]),
    ],
)
def test_bands_begin_where_published_ones_do(
    layers: tuple[int, ...], blocks: int, found: list[tuple[int, ...]]
) -> None:
    assert bands(layers, blocks) == found


@pytest.mark.parametrize("name", [file.name for file in list_hparams() if file.mark == "published"])
def test_published_bands_are_among_those_tried(name: str) -> None:
    hparams = load_hparams(name, {})
    tried = bands(hparams.layers, 48)
    assert tried[0] == hparams.layers and all(len(band) == len(hparams.layers) for band in tried)


def test_learning_rates_are_around_the_files() -> None:
    assert learning_rates(0.1) == [0.05, 0.1, 0.2]


def trial(score: float, norm: float = 1.0, rejected: int = 0, failed: str | None = None) -> Trial:
    return Trial((0,), 0.1, 1.0, {"score": score}, norm, rejected, 1.0, failed)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (trial(90.0, 9.0), trial(80.0, 1.0)),
        (trial(90.0, 2.0), trial(90.0, 3.0)),
        (trial(90.0, 3.0), trial(90.0, 2.0, rejected=1)),
        (trial(0.0), trial(0.0, failed="not finite")),
        (replace(trial(0.0), parts={"efficacy": 50.0}), replace(trial(0.0), parts={})),
    ],
)
def test_what_is_better(better: Trial, worse: Trial) -> None:
    assert max([worse, better], key=lambda one: one.rank) is better


@pytest.fixture(scope="module")
def tried() -> tuple[list[Trial], list[Trial], Any, Any]:
    model, tok = load_demo(torch.float64)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    hparams = load_hparams("NAS-MEMIT/nas-demo", SETTINGS)
    told: list[Trial] = []
    trials = tune(
        model, tok, hparams, load_stream("demo", limit=4).cases, clamps=(6.0,), tell=told.append, progress=False
    )
    return trials, told, model, before


def test_layers_then_rates_then_clamps(tried: tuple[list[Trial], list[Trial], Any, Any]) -> None:
    trials, told, _, _ = tried
    assert [(t.layers, t.v_lr, t.clamp_norm_factor) for t in told[:2]] == [((0,), 2.5, 12.0), ((1,), 2.5, 12.0)]
    best = max(told[:2], key=lambda t: t.rank)
    assert {(t.layers, t.v_lr) for t in told[2:4]} == {(best.layers, 1.25), (best.layers, 5.0)}
    best = max(told[:4], key=lambda t: t.rank)
    assert [(t.layers, t.v_lr, t.clamp_norm_factor) for t in told[4:]] == [(best.layers, best.v_lr, 6.0)]
    assert trials == sorted(told, key=lambda t: t.rank, reverse=True)


def test_scores_are_those_of_a_run_of_its_own(tried: tuple[list[Trial], list[Trial], Any, Any], tmp_path: Path) -> None:
    from nas_plugin.evaluation.logs import read_run

    first = tried[1][0]
    out = tmp_path / "run"
    call("run", "NAS-MEMIT/nas-demo", *SMALL, "--edits", "4", "--drift", "0", "--out", out)
    last = read_run(out).checkpoints[-1]
    for part in ("efficacy", "generalization", "specificity", "score"):
        assert first.parts[part] == pytest.approx(last.final[f"{part}/probability"].mean)
    assert first.norm == pytest.approx(last.norm)


def test_the_model_is_left_unedited(tried: tuple[list[Trial], list[Trial], Any, Any]) -> None:
    _, _, model, before = tried
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_second_moments_are_measured_once_for_each_band(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    measure = tuning.moments_for

    def counted(em: Any, *arguments: Any, **settings: Any) -> Any:
        calls.append(em.layers)
        return measure(em, *arguments, **settings)

    monkeypatch.setattr(tuning, "moments_for", counted)
    monkeypatch.setattr("nas_plugin.foundation.moments_for", lambda *_, **__: 1 / 0)
    hparams = load_hparams("NAS-MEMIT/nas-demo", SETTINGS)
    tune(*load_demo(torch.float64), hparams, load_stream("demo", limit=1).cases, v_lrs=(2.5,), progress=False)
    assert calls == [(0,), (1,)]


def test_a_session_finds_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hparams = load_hparams("NAS-MEMIT/nas-demo", {**SETTINGS, "stats_dir": str(tmp_path)})
    model, tok = load_demo(torch.float64)
    best = tune(model, tok, hparams, load_stream("demo", limit=1).cases, v_lrs=(2.5,), progress=False)[0]
    monkeypatch.setattr("nas_plugin.locate.stored.collect_moments", lambda *_, **__: pytest.fail("measured again"))
    EditSession(model, tok, replace(hparams, layers=best.layers), progress=False).prepare()


def test_in_memory_are_the_moments_of_the_best_band_and_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hparams = load_hparams("NAS-MEMIT/nas-demo", SETTINGS)
    model, tok = load_demo(torch.float64)
    trials = tuning._Trials(model, tok, hparams, load_stream("demo", limit=1).cases, 1, lambda _: None, False)
    held: list[set[tuple[int, ...]]] = []
    # Only the second band of three is any good.
    scores = {(0,): 10.0, (1,): 90.0, (0, 1): 20.0}

    def write(self: Any, session: EditSession, numbers: Any) -> Trial:
        session.prepare()
        held.append(set(self._moments))
        return replace(trial(scores[numbers.layers]), layers=numbers.layers)

    monkeypatch.setattr(tuning._Trials, "_write", write)
    for layers in ((0,), (1,), (0, 1), (1,)):
        trials.add(replace(hparams, layers=layers, v_lr=1.0 + len(held)))
    assert held == [{(0,)}, {(0,), (1,)}, {(1,), (0, 1)}, {(1,), (0, 1)}]


def test_numbers_that_fail_lose_and_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    edit = EditSession.edit

    def failing(self: EditSession, requests: Any) -> Any:
        if self.hparams.layers == (0,):
            raise NonFiniteError("a value is not finite.")
        return edit(self, requests)

    monkeypatch.setattr(EditSession, "edit", failing)
    hparams = load_hparams("NAS-MEMIT/nas-demo", SETTINGS)
    trials = tune(*load_demo(torch.float64), hparams, load_stream("demo", limit=2).cases, v_lrs=(), progress=False)
    assert [one.layers for one in trials] == [(1,), (0,)] and trials[1].failed == "a value is not finite."


def test_layers_above_the_loss_are_left_out() -> None:
    hparams = load_hparams("NAS-MEMIT/nas-demo", {**SETTINGS, "v_loss_layer": 0})
    trials = tune(*load_demo(torch.float64), hparams, load_stream("demo", limit=1).cases, v_lrs=(), progress=False)
    assert [one.layers for one in trials] == [(0,)]


def test_there_must_be_cases() -> None:
    with pytest.raises(RunError, match="no case"):
        tune(None, None, hyperparameters.NASMEMITHparams(), [])


def test_the_file_is_one_that_loads(tmp_path: Path) -> None:
    hparams = load_hparams("NAS-AlphaEdit/llama3-8b", {"stats_dir": "my stats"})
    best = replace(trial(99.0), layers=(8, 9, 10), v_lr=0.05, clamp_norm_factor=2.0)
    write_tuned(tmp_path / "tuned.yaml", hparams, best, source="tuned on\nsomething.")
    read = load_hparams(tmp_path / "tuned.yaml", {})
    assert (read.layers, read.v_lr, read.clamp_norm_factor) == ((8, 9, 10), 0.05, 2.0)
    changed = {"layers": hparams.layers, "v_lr": hparams.v_lr, "clamp_norm_factor": hparams.clamp_norm_factor}
    assert replace(read, **changed) == hparams
    assert "# Derived: tuned on something.\n" in (tmp_path / "tuned.yaml").read_text()
    with pytest.raises(HparamsError, match="exists"):
        write_tuned(tmp_path / "tuned.yaml", hparams, best, source="")


def test_the_command_shows_what_was_tried_and_writes_the_best(tmp_path: Path) -> None:
    out = tmp_path / "tuned.yaml"
    given = ("tune", "NAS-MEMIT/nas-demo", *SMALL, "--edits", "2", "--v-lr", "2.5,5", "--layers", "0", "--out", out)
    said = call(*given)
    assert "layers 0, v_lr 5, clamp 12: score " in said and "generalization" in said and f"Best: {out}" in said
    assert load_hparams(out, {}).layers == (0,)
    assert "exists; give another name (--out), or --overwrite" in call(*given, code=1)
    assert "give numbers with commas" in call(*given[:-1], tmp_path / "b.yaml", "--v-lr", "fast", code=1)
    assert "v_lr: must be greater than 0" in call(*given[:-1], tmp_path / "b.yaml", "--v-lr", "-1", code=1)
    assert not (tmp_path / "b.yaml").exists()
