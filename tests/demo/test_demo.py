"""The embedded model and its world, the demo's measurements, table and picture, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nas_plugin.cli import app
from nas_plugin.demo import load_demo, report
from nas_plugin.demo.score import Scores, next_word_logits, score
from nas_plugin.demo.stream import Checkpoint, Plan, Stream, run, run_all
from nas_plugin.demo.world import Edit, Fact, World


@pytest.fixture(scope="module")
def embedded():
    return load_demo()


def stream(method: str, use_nas: bool, scores: list[float]) -> Stream:
    points = tuple(Checkpoint(10 * i, s, s, s, s, 50.0, 1.0 + i) for i, s in enumerate(scores, start=1))
    return Stream(Plan(method, use_nas, 10 * len(scores), 10), points, None)


def test_the_model_knows_its_whole_world(embedded) -> None:
    model, tok = embedded
    world = World()
    facts = world.facts
    prompts = [fact.prompt(phrasing) for fact in facts for phrasing in range(3)]
    answers = torch.tensor([tok.convert_tokens_to_ids(fact.obj) for fact in facts for _ in range(3)])
    assert tok.unk_token_id not in answers
    right = (next_word_logits(model, tok, prompts).argmax(1) == answers).double().mean()
    assert float(right) >= 0.99


def test_model_files_are_small_and_free_of_machine_paths() -> None:
    folder = Path(report.__file__).parent / "model"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 5_000_000
    for file in folder.glob("*.json"):
        assert not {"_name_or_path", "name_or_path"} & json.loads(file.read_text()).keys()


def test_edits_pilots_and_held_out_people_are_apart() -> None:
    world = World()
    edited = {edit.subject for edit in world.edits(100)}
    pilots = {edit.subject for edit in world.pilots()}
    held = {fact.subject for fact in world.held_out_facts}
    assert len(edited) == 100 and not edited & pilots and not edited & held and not pilots & held
    assert World().edits(20) == world.edits(20) != world.edits(20, seed=1)
    with pytest.raises(ValueError, match="may be edited"):
        world.edits(10**6)
    for edit in world.edits(50):
        assert edit.target_new != edit.ground_truth and edit.neighbours and len(edit.paraphrases) == 2


def test_names_are_shared_by_a_few() -> None:
    firsts = [person.split()[0] for person in World().people]
    assert len(set(World().people)) == len(firsts)
    assert 2 <= len(firsts) / len(set(firsts)) <= 10


class Scripted(torch.nn.Module):
    """A model whose next word depends on the last token only."""

    def __init__(self, table: dict[int, dict[int, float]], size: int) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(size, size))
        for last, logits in table.items():
            for word, value in logits.items():
                self.table.data[last, word] = value

    def forward(self, input_ids, attention_mask, use_cache):
        return type("Output", (), {"logits": self.table[input_ids]})


class Words:
    """Word ids 1, 2, ... in the order of a list; 0 pads."""

    pad_token_id = 0

    def __init__(self, words: list[str]) -> None:
        self.ids = {word: i for i, word in enumerate(words, start=1)}

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.ids[word] for word in text.split()] for text in texts]}

    def convert_tokens_to_ids(self, word: str) -> int:
        return self.ids[word]


def test_scores_by_hand() -> None:
    """Rewrite says new; one paraphrase of two says new; two of three neighbours keep true; one of two held-out facts known."""
    tok = Words(["ask", "p1", "p2", "n1", "n2", "n3", "Ann", "new", "true", "other"])
    new, true, other = tok.ids["new"], tok.ids["true"], tok.ids["other"]
    says = {"ask": new, "p1": new, "p2": true, "n1": true, "n2": true, "n3": new}
    table = {tok.ids[word]: {answer: 1.0} for word, answer in says.items()} | {tok.ids["Ann"]: {other: 2.0}}
    edit = Edit("ask", "{}", "new", "true", ("p1", "p2"), ("n1", "Ann n2", "n3"))
    held = [Fact("Ann", "city", "other"), Fact("Ann", "city", "true")]
    # The city relation's first phrasing ends in words of its own: script them to say "other" as well.
    for fact in held:
        for word in fact.prompt(0).split():
            if word not in tok.ids:
                tok.ids[word] = len(tok.ids) + 1
    last = tok.ids[held[0].prompt(0).split()[-1]]
    result = score(Scripted({**table, last: {other: 2.0}}, 40), tok, [edit], held)
    assert result.efficacy == 100 and result.generalization == 50
    assert result.specificity == pytest.approx(200 / 3) and result.held_out == 50
    assert result.score == pytest.approx(3 / (1 / 100 + 1 / 50 + 3 / 200))
    assert Scores(100, 100, 0, 100).score == 0


def test_logits_do_not_depend_on_what_else_is_asked(embedded) -> None:
    model, tok = embedded
    prompts = [fact.prompt(i % 3) for i, fact in enumerate(World().facts[:9])]
    together = next_word_logits(model, tok, prompts)
    for row, prompt in enumerate(prompts):
        assert torch.allclose(together[row], next_word_logits(model, tok, [prompt])[0], atol=1e-4)


def test_collapse_point_and_verdict() -> None:
    plain, nas = stream("MEMIT", False, [80, 60, 70]), stream("MEMIT", True, [90, 80, 75])
    assert plain.collapse_point == 20 and nas.collapse_point is None
    assert report.verdicts([plain, nas]) == [
        "MEMIT: collapses at 20 edits; with NAS not within 30 (1.5 times as many or more)."
    ]
    later = stream("MEMIT", True, [90, 80, 59.9])
    assert report.verdicts([plain, later]) == ["MEMIT: collapses at 20 edits; with NAS at 30 (1.5 times as many)."]
    assert "no collapse" in report.verdicts([nas, stream("MEMIT", False, [90, 90, 90])])[0]


def test_plans_differ_in_nas_only_and_results_do_not_depend_on_processes() -> None:
    plans = [Plan("MEMIT", use_nas, 3, 2) for use_nas in (False, True)]
    done: list[int] = []
    streams = run_all(plans, done.append)
    assert sum(done) == 6
    assert [c.edits for c in streams[0].checkpoints] == [2, 3]
    assert streams[0].anchor is None and streams[1].anchor is not None
    assert run(plans[1]) == streams[1]


@pytest.mark.parametrize("method", ["RECT", "LyapLock"])
def test_the_command_runs_any_method(method: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["demo", "--method", method, "--edits", "2", "--every", "1", "--out", str(tmp_path / "new")]
    )
    assert result.exit_code == 0, result.output
    assert f"NAS-{method}" in result.output
    assert (tmp_path / "new" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    streams = json.loads((tmp_path / "new" / "demo.json").read_text())["streams"]
    assert [s["plan"]["use_nas"] for s in streams] == [False, True] and len(streams[0]["checkpoints"]) == 2


def test_version() -> None:
    assert CliRunner().invoke(app, ["version"]).output.strip() == "0.1.0"
