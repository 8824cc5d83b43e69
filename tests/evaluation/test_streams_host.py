"""EasyEdit's own data sets give the cases that `load_stream` makes of the same file, but for what their readers drop.

Each difference is asserted here and listed in docs/streams.md.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_plugin.easyedit.host import load_host
from nas_plugin.errors import HostMissingError, RecordError, SchemaError
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.evaluation.streams.host import from_host
from tests.evaluation.test_streams_readers import RECORDS


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host writes `./logs`."""
    monkeypatch.chdir(tmp_path)


def host_part(module: str, name: str) -> Any:
    """A part of the host of this run: the checkout that EASYEDIT_HOME names, else the wheel."""
    try:
        load_host()
    except HostMissingError as error:
        pytest.skip(str(error))
    try:
        return getattr(importlib.import_module(f"easyeditor.{module}"), name)
    except ModuleNotFoundError:
        pytest.skip(
            f"the released wheel of EasyEdit has no {name}: set EASYEDIT_HOME to a checkout of the current sources"
        )


def written(tmp_path: Path, records: Sequence[Any]) -> Path:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


# ---- the same


@pytest.mark.parametrize("file", ["counterfact-easyedit-10000.json", "counterfact-full-schema-4385.json"])
def test_counterfact_is_the_same(shared_data: Path, file: str) -> None:
    path = shared_data / "counterfact" / file
    dataset = host_part("dataset.counterfact", "CounterFactDataset")(str(path))
    assert from_host(dataset) == list(load_stream(path).cases)


@pytest.mark.parametrize("file", ["wiki_counterfact-test.json", "wikibio-test.json"])
def test_knowedit_is_the_same(shared_data: Path, file: str) -> None:
    path = shared_data / "knowedit" / file
    dataset = host_part("dataset.knowedit", "KnowEditDataset")(str(path))
    assert from_host(dataset) == list(load_stream(path).cases)


def test_wikibigedit_is_the_same(shared_data: Path, tmp_path: Path) -> None:
    names = {
        "prompt": "update",
        "target_new": "ans",
        "rephrase_prompt": "rephrase",
        "locality_prompt": "loc",
        "locality_ground_truth": "loc_ans",
    }
    slice_ = json.loads((shared_data / "wikibigedit" / "wikibigedit-35.json").read_text(encoding="utf-8"))
    released = [{names.get(key, key): value for key, value in record.items()} for record in slice_]
    path = written(tmp_path, [RECORDS["wikibigedit"], *released])
    dataset = host_part("dataset.wikibigedit", "WikiBigEditDataset")(str(path))
    stream = load_stream(path)
    assert from_host(dataset) == list(stream.cases) and len(stream.cases) == 36
    # Both schemas of the slice make the same cases.
    assert list(load_stream(shared_data / "wikibigedit" / "wikibigedit-35.json").cases) == [
        replace(case, id=str(i), requests=(replace(case.requests[0], id=str(i)),))
        for i, case in enumerate(stream.cases[1:])
    ]


# ---- the same, but for what the host drops


def test_zsre_of_mend_lacks_subjects_and_portability(shared_data: Path) -> None:
    path = shared_data / "zsre" / "zsre_mend_eval-1037.json"
    dataset = host_part("dataset.zsre", "ZsreDataset")(str(path))
    with pytest.raises(SchemaError, match="ZsreDataset drops the subjects"):
        from_host(dataset)
    subjects = [record["subject"] for record in json.loads(path.read_text(encoding="utf-8"))]
    with pytest.raises(SchemaError, match="has record 1036 and there are 10 subjects"):
        from_host(dataset, subjects=subjects[:10])
    ours = load_stream(path).cases
    assert all(case.portability for case in ours)
    assert from_host(dataset, subjects=subjects) == [replace(case, portability={}) for case in ours]


def test_zsre_of_mend_is_silent_about_empty_targets(tmp_path: Path) -> None:
    records = [RECORDS["zsre-mend"] | {"portability": None}] * 3
    records[1] = records[1] | {"alt": ""}
    path = written(tmp_path, records)
    dataset = host_part("dataset.zsre", "ZsreDataset")(str(path))
    stream = load_stream(path, skip_bad=True)
    assert [number for number, _ in stream.left_out] == [1] and [case.id for case in stream.cases] == ["0", "2"]
    assert from_host(dataset, subjects=[record["subject"] for record in records]) == list(stream.cases)


def test_zsre_of_mend_refuses_a_file_for_one_other_locality(tmp_path: Path) -> None:
    path = written(tmp_path, [RECORDS["zsre-mend"] | {"loc": "who wrote the song"}])
    with pytest.raises(AssertionError, match="nq question"):
        host_part("dataset.zsre", "ZsreDataset")(str(path))
    assert load_stream(path).cases[0].locality["neighborhood"][0].prompt == "who wrote the song"


def test_zsre_of_knowedit_lacks_rephrases_and_its_name(shared_data: Path) -> None:
    path = shared_data / "knowedit" / "zsre-test.json"
    dataset = host_part("dataset.knowedit", "KnowEditDataset")(str(path))
    with pytest.raises(RecordError, match="EasyEdit's KnowEditDataset, record 396, subject"):
        from_host(dataset)
    ours = load_stream(path, skip_bad=True).cases
    assert all(case.rephrases for case in ours)
    assert from_host(dataset, skip_bad=True) == [replace(case, family="knowedit", rephrases=()) for case in ours]


def test_knowedit_needs_locality_and_has_other_groups_dropped(tmp_path: Path) -> None:
    record = {"subject": "Lyon", "prompt": "Lyon is in", "target_new": "Spain"}
    cls = host_part("dataset.knowedit", "KnowEditDataset")
    with pytest.raises(KeyError, match="locality"):
        cls(str(written(tmp_path, [record])))
    assert load_stream(tmp_path / "records.json").cases[0].locality == {}
    asked = [{"prompt": "Its river is", "ground_truth": "Rhône"}]
    path = written(tmp_path, [record | {"locality": {"Relation_Specificity": asked, "Others": asked}}])
    (ours,) = load_stream(path).cases
    assert set(ours.locality) == {"Relation_Specificity", "Others"}
    (theirs,) = from_host(cls(str(path)))
    assert theirs == replace(ours, locality={"Relation_Specificity": ours.locality["Relation_Specificity"]})


def test_wikibigedit_needs_a_rephrase(tmp_path: Path) -> None:
    record = {key: value for key, value in RECORDS["wikibigedit"].items() if key != "rephrase"}
    path = written(tmp_path, [record])
    with pytest.raises(KeyError, match="rephrase"):
        host_part("dataset.wikibigedit", "WikiBigEditDataset")(str(path))
    assert load_stream(path).cases[0].rephrases == ()


def test_wiki_recent_is_drawn_at_random(tmp_path: Path) -> None:
    locality = {"Relation_Specificity": [{"prompt": "Its river is", "ground_truth": [["Rhône"]]}]}
    path = written(tmp_path, [RECORDS["knowedit"] | {"locality": locality}])
    with pytest.raises(SchemaError, match="WikiRecentDataset takes one locality prompt of each record at random"):
        from_host(host_part("dataset.wiki_recent", "WikiRecentDataset")(str(path)))
    assert len(load_stream(path).cases) == 1


def test_mquake_is_joined_into_one_text(tmp_path: Path) -> None:
    path = written(tmp_path, [RECORDS["mquake"]])
    with pytest.raises(RecordError, match="MQuAKEDataset, record 0, subject: is missing"):
        from_host(host_part("dataset.MQuAKE", "MQuAKEDataset")(str(path)))
    assert len(load_stream(path).cases[0].requests) == 2


# ---- the request that the host prepares


def test_easyedit_request_is_what_the_host_prepares(tmp_path: Path) -> None:
    prepare = host_part("editors.utils", "_prepare_requests")
    record = {key: value for key, value in RECORDS["zsre-mend"].items() if key != "cond"}
    (case,) = load_stream(written(tmp_path, [record])).cases
    (prepared,) = prepare(
        [record["src"]],
        [record["alt"]],
        [record["answers"][0]],
        rephrase_prompts=[record["rephrase"]],
        locality_inputs={"neighborhood": {"prompt": [[record["loc"]]], "ground_truth": [[record["loc_ans"]]]}},
        portability_inputs={"one_hop": {"prompt": [["Where?"]], "ground_truth": [["Mileham"]]}},
        subject=[record["subject"]],
    )
    assert case.to_easyedit() == {"case_id": "0", **prepared}


# ---- without a host


def test_an_unknown_data_set() -> None:
    with pytest.raises(SchemaError, match="EasyEdit's list: the fields of the first records"):
        from_host([{"question": "x"}])
    with pytest.raises(SchemaError, match="EasyEdit's list"):
        from_host([])
