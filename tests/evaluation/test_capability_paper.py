"""The paper's protocol: what is asked, how generated answers are read, and RTE's inversion, which is nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas_plugin.evaluation.capability import PAPER
from nas_plugin.evaluation.capability import scores as paper
from nas_plugin.evaluation.capability.suite import shipped_tasks
from tests.evaluation.capability_support import RECORDS, Reader, answers_of, write_data

NAMES = [name for name in shipped_tasks(PAPER) if name != "local_rte"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with enough records that some are left after the ten that the protocol skips."""
    return write_data(tmp_path_factory.mktemp("paper") / "data", times=8)


def test_who_answers_rightly_gets_everything_and_who_answers_wrongly_nothing(data: Path, tmp_path: Path) -> None:
    right = answers_of(Reader(), NAMES, data, tmp_path / "a", PAPER)
    wrong = answers_of(Reader(contrary=True), NAMES, data, tmp_path / "b", PAPER)
    assert set(right) == {"paper_sst2", "paper_mrpc", "paper_cola", "paper_rte_train", "paper_mmlu"}
    for name in right:
        assert right[name] == {"f1": 100.0, "mcc": 100.0, "unparsable": 0.0, "f1_new": 100.0}, name
        assert (wrong[name]["f1"], wrong[name]["f1_new"], wrong[name]["unparsable"]) == (0.0, 0.0, 0.0), name


def test_rte_is_inverted_in_the_paper_and_only_there(data: Path, tmp_path: Path) -> None:
    right = answers_of(Reader(), ["local_rte"], data, tmp_path / "a", PAPER)
    wrong = answers_of(Reader(contrary=True), ["local_rte"], data, tmp_path / "b", PAPER)
    assert right == {"paper_rte_inverted": {"f1": 0.0, "mcc": -100.0, "unparsable": 0.0, "f1_new": 0.0}}
    assert wrong == {"paper_rte_inverted": {"f1": 100.0, "mcc": 100.0, "unparsable": 0.0, "f1_new": 100.0}}
    assert answers_of(Reader(), ["local_rte"], data, tmp_path / "c")["local_rte"]["acc"] == 100.0


def test_records_11_to_110_are_asked(tmp_path: Path) -> None:
    records = [{"sentence": f"a delight from start to end, number {i}", "label": 1} for i in range(115)]
    data = write_data(tmp_path / "data", {"sst2": records})
    reader = Reader()
    answers_of(reader, ["local_sst2"], data, tmp_path / "a", PAPER)
    generated = [request.args[0] for request in reader.asked if request.request_type == "generate_until"]
    assert len(generated) == 100 and len(reader.asked) == 300
    assert generated[0] == "Review :a delight from start to end, number 10\nSentiment :"
    assert generated[-1] == "Review :a delight from start to end, number 109\nSentiment :"
    limited = Reader()
    answers_of(limited, ["local_sst2"], data, tmp_path / "b", PAPER, limit=2)
    assert len(limited.asked) == 6


@pytest.mark.parametrize(
    ("name", "prompt", "choices"),
    [
        (
            "local_mrpc",
            "Are the sentences paraphrases of each other.\nSentence 1: He bought a car.\nSentence 2: A car was bought by him.\n"
            "Answer:",
            [" No", " Yes"],
        ),
        (
            "local_cola",
            "Is this sentence linguistically acceptable?\nSentence: The boy reads a book.\nAnswer: ",
            [" No", " Yes"],
        ),
        (
            "local_rte",
            "All trains were late on Monday.\nquestion: Some train was late. True or False?\nanswer:",
            [" False", " True"],
        ),
        (
            "local_rte_train",
            "All trains were late on Monday. entails the Some train was late. True or False? Answer:",
            [" False", " True"],
        ),
        (
            "local_mmlu",
            "Question: Which is a colour?\n(A) iron\n(B) blue\n(C) seven\n(D) slow\nAnswer:",
            [" A", " B", " C", " D"],
        ),
    ],
)
def test_prompts_and_answer_words(name: str, prompt: str, choices: list[str], data: Path, tmp_path: Path) -> None:
    reader = Reader()
    answers_of(reader, [name], data, tmp_path / "a", PAPER, limit=1)
    generated, *scored = reader.asked
    assert generated.args[0] == prompt and [request.args for request in scored] == [(prompt, word) for word in choices]
    assert generated.args[1]["max_gen_toks"] == 5 and generated.args[1]["do_sample"] is False


@pytest.mark.parametrize(
    ("read", "text", "answer"),
    [
        (paper.read_sst2, " Positive, I think", 1),
        (paper.read_sst2, " negative", 0),
        (paper.read_sst2, " negative or positive", 1),
        (paper.read_sst2, " neutral", paper.UNPARSABLE),
        (paper.read_sst2, " positive\nSentiment : negative", 0),
        (paper.read_yes_no, " I know", 0),
        (paper.read_yes_no, " Yes\nAnswer:", paper.UNPARSABLE),
        (paper.read_yes_no, "", paper.UNPARSABLE),
        (paper.read_rte_inverted, " true, not false", 0),
        (paper.read_rte_inverted, " TRUE", 1),
        (paper.read_rte_train, " true, not false", 1),
        (paper.read_mmlu, " B\n", 1),
        (paper.read_mmlu, " B", paper.UNPARSABLE),
        (paper.read_mmlu, " D\nA\n", 0),
    ],
)
def test_generated_answers_are_read_as_the_paper_reads_them(read: Any, text: str, answer: int) -> None:
    record = {"label": "entailment" if read is paper.read_rte_train else 1, "answer": 1}
    assert read(record, [text]) == {"f1": (1, answer), "mcc": (1, answer), "unparsable": answer == paper.UNPARSABLE}


def test_unparsable_answers_count_against_f1(data: Path, tmp_path: Path) -> None:
    """Right on the two true pairs, silent on the two false: F1 of True 1, of False 0, weighted one half."""

    class Silent(Reader):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [" True" if self.right(request) == "True" else " ..." for request in requests]

    results = answers_of(Silent(), ["local_rte_train"], data, tmp_path / "a", PAPER, limit=4)
    assert {key: results["paper_rte_train"][key] for key in ("f1", "unparsable")} == {"f1": 50.0, "unparsable": 50.0}
    assert RECORDS["nli"][0]["label"] == "entailment"
