"""The shipped tasks: labels the right way round, data checked, lm-eval's own tasks by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_plugin.errors import CapabilityError
from nas_plugin.evaluation.capability import PAPER, suite
from nas_plugin.evaluation.capability.scores import UNPARSABLE, mcc, weighted_f1
from nas_plugin.evaluation.capability.suite import STANDARD, load_suite, shipped_tasks, tasks_folder
from tests.evaluation.capability_support import RECORDS, Reader, answers_of, write_data

LOCAL = ["cola", "mmlu", "mnli", "mrpc", "rte", "rte_train", "sst2"]


def test_shipped_tasks_are_listed_by_protocol() -> None:
    assert shipped_tasks() == tuple(f"local_{name}" for name in LOCAL)
    assert set(shipped_tasks(STANDARD)) - set(shipped_tasks(PAPER)) == {"local_mnli"}
    with pytest.raises(CapabilityError, match="protocol is 'own'; expected 'standard' or 'paper'"):
        shipped_tasks("own")


def test_every_task_file_has_the_name_of_its_task() -> None:
    for path in tasks_folder().glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert f"\ntask: {path.stem}\n" in text and text.startswith("# ")
    assert len(list(tasks_folder().glob("*.yaml"))) == 7 + 2 * 6


def test_who_answers_rightly_gets_everything_and_who_answers_wrongly_nothing(tmp_path: Path) -> None:
    data, names = write_data(tmp_path / "data"), list(shipped_tasks())
    right = answers_of(Reader(), names, data, tmp_path / "a")
    wrong = answers_of(Reader(contrary=True), names, data, tmp_path / "b")
    assert list(right) == list(wrong) == names
    for name in names:
        if name == "local_cola":
            assert right[name] == {"mcc": 100.0, "acc": 100.0, "f1": 100.0}
            assert wrong[name] == {"mcc": -100.0, "acc": 0.0, "f1": 0.0}
        else:
            assert right[name] == {"acc": 100.0, "f1": 100.0} and wrong[name] == {"acc": 0.0, "f1": 0.0}


def test_one_of_three_right_by_hand(tmp_path: Path) -> None:
    """Always "yes" on 2 true and 1 false claims: F1 of yes 2*2/(2+3) = 0.8, of no 0, weighted (2*0.8 + 1*0)/3."""

    class Yes(Reader):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(0.0 if request.args[1] == " yes" else -1.0, False) for request in requests]

    data = write_data(tmp_path / "data", {"rte": [RECORDS["rte"][i] for i in (0, 1, 2)]})
    (metrics,) = answers_of(Yes(), ["local_rte"], data, tmp_path / "a").values()
    assert metrics == pytest.approx({"acc": 200 / 3, "f1": 160 / 3})


def test_real_records_are_the_right_way_round(shared_data: Path, tmp_path: Path) -> None:
    """Records of the real files whose answer is plain to a reader, asked with the label left out of sight."""
    plain = {
        "local_sst2": (2, "positive"),  # "the film 's performances are thrilling"
        "local_mrpc": (0, "yes"),  # from sour to sweet on a merger = changed their minds on it
        "local_cola": (0, "yes"),  # "The evidence assembled by the prosecution convinced the jury."
        "local_rte": (1, "yes"),  # belongs to the Theravada sect => is a member of Theravada
        "local_rte_train": (2, "no"),  # nothing about Titan being the fifteenth satellite
        "local_mmlu": (1, "B"),  # a small, representative group is a sample
    }
    loaded = load_suite(list(plain), shared_data / "capability", STANDARD, tmp_path)
    for name, (number, word) in plain.items():
        task = loaded.tasks[name]
        record = task.eval_docs[number]
        assert task.doc_to_choice(record)[task.doc_to_target(record)] == word, name


def test_weighted_f1_by_hand() -> None:
    """Class 1: 2*1/(2+1) = 2/3; class 0: 2*1/(2+2) = 1/2; the unparsable one weighs nothing itself."""
    assert weighted_f1([(1, 1), (1, 0), (0, 0), (0, UNPARSABLE)]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert weighted_f1([(1, UNPARSABLE), (0, UNPARSABLE)]) == 0.0


def test_correlation_by_hand() -> None:
    """TP 2, TN 1, FP 1, FN 0: (2*1 - 1*0) / sqrt(3 * 2 * 2 * 1); nothing to correlate with one class."""
    assert mcc([(1, 1), (1, 1), (0, 0), (0, 1)]) == pytest.approx(2 / 12**0.5)
    assert mcc([(1, 0), (0, 0)]) == mcc([(1, 1), (1, 1)]) == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"rte.json: cannot be read \(No such file"),
        ("{", "rte.json: not a JSON file"),
        ("[]", "rte.json: 0 records; expected 1 or more"),
        ('{"sentence1": "a"}', "rte.json: expected a list of records, got dict"),
        ("[7]", "rte.json, record 0, sentence1: expected text, got None"),
        (
            '[{"sentence1": "a", "sentence2": "b", "label": 2}]',
            "rte.json, record 0, label: expected one of 0, 1, got 2",
        ),
        ('[{"sentence1": "a", "sentence2": "b", "label": "0"}]', "record 0, label: expected one of 0, 1, got '0'"),
        ('[{"sentence1": "a", "sentence2": "b", "label": true}]', "record 0, label: expected one of 0, 1, got True"),
    ],
)
def test_bad_files_name_file_record_and_field(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "rte.json").write_text(content, encoding="utf-8")
    with pytest.raises(CapabilityError, match=message):
        load_suite(["local_rte"], tmp_path, STANDARD, tmp_path)


def test_the_papers_protocol_needs_more_than_the_ten_records_it_skips(tmp_path: Path) -> None:
    write_data(tmp_path, {"rte": RECORDS["rte"][:2]}, times=5)
    with pytest.raises(CapabilityError, match="rte.json: 10 records; expected 11 or more"):
        load_suite(["local_rte"], tmp_path, PAPER, tmp_path)


def test_a_question_needs_four_choices(tmp_path: Path) -> None:
    record = {**RECORDS["mmlu"][0], "choices": ["one", "two", "three"]}
    (tmp_path / "mmlu.json").write_text(json.dumps([RECORDS["mmlu"][1], record]), encoding="utf-8")
    with pytest.raises(CapabilityError, match="mmlu.json, record 1, choices: expected 4 texts, got"):
        load_suite(["local_mmlu"], tmp_path, STANDARD, tmp_path)


def test_a_local_task_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="local_rte is measured on a local file; give the folder"):
        load_suite(["local_rte"], None, STANDARD, tmp_path)


def _known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lm-eval know two tasks, a group that averages them and a tag for them, over a local file."""
    from lm_eval.tasks import TaskManager

    base = yaml.safe_load((tasks_folder() / "local_sst2.yaml").read_text(encoding="utf-8").replace("!function ", ""))
    base["dataset_kwargs"] = {"data_files": {"test": str(folder / "sst2.json")}, "cache_dir": str(folder / "cache")}
    base["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    del base["num_fewshot"]
    for name in ("local_sst2", "known_again"):
        base |= {"task": name.replace("local", "known"), "tag": "known_both"}
        (folder / f"{base['task']}.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    group = {
        "group": "known_group",
        "task": ["known_sst2", "known_again"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    }
    (folder / "known_group.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(suite, "_known_tasks", lambda: manager)


class _Positive(Reader):
    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(0.0 if request.args[1] == " positive" else -1.0, False) for request in requests]


def test_any_task_of_lm_eval_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data")
    _known(data, monkeypatch)
    half = {"acc": 50.0}
    for number, (asked, expected) in enumerate(
        {
            "known_sst2": {"known_sst2": half},
            "known_group": {"known_group": half},
            "known_both": {"known_again": half, "known_sst2": half},
        }.items()
    ):
        assert answers_of(_Positive(), [asked], data, tmp_path / str(number)) == expected
    mixed = answers_of(_Positive(), ["known_sst2", "local_sst2"], data, tmp_path / "mixed")
    assert mixed["local_sst2"]["acc"] == 50.0 and mixed["known_sst2"] == half


def test_unknown_tasks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data")
    _known(data, monkeypatch)
    with pytest.raises(CapabilityError, match="No task 'sst-2': neither shipped .*local_sst2.* nor known"):
        load_suite(["sst-2"], data, STANDARD, tmp_path)
    with pytest.raises(CapabilityError, match="The paper's protocol has no task 'known_sst2'; it has local_cola"):
        load_suite(["known_sst2"], data, PAPER, tmp_path)


def test_a_task_whose_data_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data")
    _known(data, monkeypatch)
    (data / "sst2.json").unlink()
    with pytest.raises(CapabilityError, match="lm-eval's task 'known_sst2' could not load its data"):
        load_suite(["known_sst2"], data, STANDARD, tmp_path)
