"""Streams from files, folders and names: counts, order, digests, and what malformed ones say."""

from __future__ import annotations

import copy
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas_plugin.errors import NasPluginError, PackageMissingError, RecordError, SchemaError, StreamError
from nas_plugin.evaluation.probes import probes_of
from nas_plugin.evaluation.streams import load_stream
from tests.evaluation.test_streams_readers import RECORDS, load

FLAT = RECORDS["counterfact-easyedit"]


def many(count: int) -> list[dict[str, Any]]:
    return [FLAT | {"case_id": number} for number in range(count)]


def ids(stream: Any) -> list[str]:
    return [case.id for case in stream.cases]


# ---- the benchmarks' own files


@pytest.mark.parametrize(
    ("file", "schema", "family", "cases", "unanswered"),
    [
        ("counterfact/counterfact-easyedit-10000.json", "counterfact-easyedit", "counterfact", 10_000, 0),
        ("counterfact/counterfact-full-schema-4385.json", "counterfact", "counterfact", 4_385, 0),
        ("zsre/zsre_mend_eval-1037.json", "zsre-mend", "zsre", 1_037, 0),
        ("knowedit/wiki_counterfact-test.json", "knowedit", "knowedit", 885, 27),
        ("knowedit/wikibio-test.json", "knowedit", "knowedit", 306, 0),
        ("mquake/MQuAKE-hard-429.json", "mquake", "mquake", 429, 0),
        ("wikibigedit/wikibigedit-35.json", "wikibigedit-easyedit", "wikibigedit", 35, 0),
    ],
)
def test_every_benchmark_file_loads_whole(
    shared_data: Path, file: str, schema: str, family: str, cases: int, unanswered: int
) -> None:
    stream = load_stream(shared_data / file)
    assert (stream.name, stream.schema, stream.family) == (Path(file).stem, schema, family)
    assert (len(stream.cases), len(stream.left_out), len(stream.unanswered)) == (cases, 0, unanswered)
    assert stream.file == str(shared_data / file)
    assert {case.family for case in stream.cases} == {family} and len(set(ids(stream))) == cases
    if family != "mquake":
        requests = [case.to_easyedit() for case in stream.cases[:300]]
        assert len(probes_of(requests)) >= 2 * len(requests)


def test_three_records_of_zsre_do_not_hold_their_subject(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shared_data / "knowedit" / "zsre-test.json"
    with pytest.raises(RecordError, match=r"zsre-test\.json, record 396, subject: 'Rio Grande 463' does not occur"):
        load_stream(path)
    with caplog.at_level(logging.WARNING):
        stream = load_stream(path, skip_bad=True)
    assert (stream.schema, len(stream.cases)) == ("zsre-knowedit", 1_301)
    assert [number for number, _ in stream.left_out] == [396, 597, 676]
    assert "3 records were left out, 1301 taken" in caplog.text and "Rio Grande 463" in caplog.text


def test_both_files_of_counterfact_ask_for_the_same_edits(shared_data: Path) -> None:
    flat = {case.id: case for case in load_stream(shared_data / "counterfact/counterfact-easyedit-10000.json").cases}
    original = load_stream(shared_data / "counterfact/counterfact-full-schema-4385.json").cases
    both = [(case, flat[case.id]) for case in original if case.id in flat]
    assert len(both) > 1_000
    assert all(a.requests == b.requests and a.true_target == b.true_target for a, b in both)


# ---- malformed records


def broken(schema: str, path: str, value: Any) -> dict[str, Any]:
    """A record with one field replaced, or removed where the value is `...`."""
    record: Any = copy.deepcopy(RECORDS[schema])
    *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    inner = record
    for step in way:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return record


@pytest.mark.parametrize(
    ("schema", "path", "value", "field", "problem"),
    [
        ("counterfact", "requested_rewrite/subject", ..., "requested_rewrite.subject", "is missing"),
        ("counterfact", "requested_rewrite/target_new/str", "", "requested_rewrite.target_new.str", "is empty"),
        ("counterfact", "requested_rewrite/target_true", ..., "requested_rewrite.target_true", "is missing"),
        ("counterfact", "requested_rewrite", [], "requested_rewrite", "is a list"),
        ("counterfact", "requested_rewrite/prompt", "The tongue is", "requested_rewrite.subject", "does not occur"),
        ("counterfact", "requested_rewrite/prompt", "{} and {}", "requested_rewrite.prompt", "more than one"),
        ("counterfact", "paraphrase_prompts", ["x", 3], "paraphrase_prompts", "is a int"),
        ("counterfact", "neighborhood_prompts", ..., "neighborhood_prompts", "is missing"),
        ("counterfact", "case_id", 1.5, "case_id", "number or a name"),
        ("counterfact-easyedit", "target_new", "  ", "target_new", "is empty"),
        ("counterfact-easyedit", "ground_truth", ..., "ground_truth", "is missing"),
        ("counterfact-easyedit", "subject", ["Danielle"], "subject", "is a list"),
        ("counterfact-easyedit", "locality_ground_truth", ..., "locality_ground_truth", "is missing"),
        ("counterfact-easyedit", "prompt", "danielle is \ud800", "prompt", "Unicode"),
        ("zsre-mend", "alt", "", "alt", "is empty"),
        ("zsre-mend", "rephrase", ..., "rephrase", "is missing"),
        ("zsre-mend", "portability", "Where?", "portability", "is a str"),
        ("zsre-mend", "portability/New Answer", ..., "portability.New Answer", "is missing"),
        ("zsre-mend", "src", "Who named it?", "subject", "does not occur"),
        ("knowedit", "prompt", ..., "prompt", "is missing"),
        ("knowedit", "target_new", {"name": "Syria"}, "target_new.str", "is missing"),
        ("knowedit", "locality/Forgetfulness/0/prompt", None, "locality.Forgetfulness[0].prompt", "is missing"),
        ("knowedit", "locality/Forgetfulness", {"prompt": "x"}, "locality.Forgetfulness", "list of objects"),
        ("knowedit", "portability/Reasoning/0", "x", "portability.Reasoning[0]", "give an object"),
        ("knowedit", "portability/Reasoning/0/ground_truth", [[1998]], "Reasoning[0].ground_truth", "is a int"),
        ("wikibigedit", "mhop_ans", ..., "mhop_ans", "is missing"),
        ("wikibigedit", "subject", "Bill Gates", "subject", "'Bill Gates' does not occur in update"),
        ("mquake", "requested_rewrite/1/target_new", ..., "requested_rewrite[1].target_new", "is missing"),
        ("mquake", "requested_rewrite", [], "requested_rewrite", "empty list"),
        ("mquake", "questions", ..., "questions", "is missing"),
    ],
)
def test_a_malformed_record_is_named(
    tmp_path: Path, schema: str, path: str, value: Any, field: str, problem: str
) -> None:
    records = [RECORDS[schema] | {"case_id": "good"}, broken(schema, path, value)]
    if path != "case_id":
        records[1]["case_id"] = "bad"
    with pytest.raises(RecordError) as caught:
        load(tmp_path, *records, schema=schema)
    where = f"{tmp_path / 'records.json'}, record 1{' (case bad)' if path != 'case_id' else ''}, "
    assert str(caught.value).startswith(where) and f"{field}: " in str(caught.value)
    assert problem in str(caught.value) and "skip_bad" in str(caught.value)
    stream = load(tmp_path, *records, schema=schema, skip_bad=True)
    ((number, reason),) = stream.left_out
    assert ids(stream) == ["good"] and number == 1 and problem in reason and "skip_bad" not in reason


def test_a_record_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="record 1 is a str"):
        load(tmp_path, FLAT, "French")


def test_a_case_id_given_twice(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"record 2 \(case 0\), case_id: 0 is also that of record 0"):
        load(tmp_path, FLAT, FLAT | {"case_id": 1}, FLAT)
    stream = load(tmp_path, FLAT, FLAT, FLAT | {"case_id": 1}, skip_bad=True)
    assert ids(stream) == ["0", "1"] and [number for number, _ in stream.left_out] == [1]


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{json.dumps(FLAT)}\n\n{{not json\n{json.dumps(FLAT | {'case_id': 1})}\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"records\.jsonl, record 1 is not JSON"):
        load_stream(path)
    stream = load_stream(path, skip_bad=True)
    assert ids(stream) == ["0", "1"] and [number for number, _ in stream.left_out] == [1]


def test_many_bad_records_are_listed_in_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stream = load(tmp_path, *[{**FLAT, "case_id": i, "subject": ""} for i in range(15)], *[FLAT], skip_bad=True)
    assert len(stream.left_out) == 15 and ids(stream) == ["0"]
    assert "15 records were left out, 1 taken" in caplog.text and "and 5 more" in caplog.text


# ---- malformed files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[{", "is not JSON"),
        (b"{}", "holds a dict; give a list"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(content)
    with pytest.raises(StreamError, match=words) as caught:
        load_stream(path, skip_bad=True)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"), [("missing.json", "cannot be read"), ("a/b.json", "cannot be read"), ("notes", "give a .json")]
)
def test_no_such_stream(name: str, words: str) -> None:
    with pytest.raises(StreamError, match=words):
        load_stream(name)


def test_unknown_fields_are_told(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"sentence, label\) fit no schema. Known: mquake \(questions"):
        load(tmp_path, {"sentence": "x", "label": 1})
    with pytest.raises(SchemaError, match="none of which is an object"):
        load(tmp_path, "x", 3)
    with pytest.raises(SchemaError, match="schema 'mend' is unknown; there are mquake"):
        load(tmp_path, FLAT, schema="mend")


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="no usable records; the first was left out because: .*subject"):
        load(tmp_path, FLAT | {"subject": ""}, skip_bad=True)
    with pytest.raises(StreamError, match="no usable records"):
        load(tmp_path, schema="knowedit")


def test_the_schema_is_that_of_most_records(tmp_path: Path) -> None:
    lacking = {key: value for key, value in FLAT.items() if key != "ground_truth"}
    stream = load(tmp_path, lacking | {"case_id": 9}, *many(3), skip_bad=True)
    assert (stream.schema, ids(stream)) == ("counterfact-easyedit", ["0", "1", "2"])
    assert (
        stream.left_out[0][1].endswith("locality_ground_truth.") and "ground_truth: is missing" in stream.left_out[0][1]
    )


# ---- limit, order, digest


def test_limit_counts_usable_records_and_looks_no_further(tmp_path: Path) -> None:
    records = [FLAT | {"case_id": "bad", "subject": "?"}, *many(2), "broken"]
    stream = load(tmp_path, *records, limit=2, skip_bad=True)
    assert ids(stream) == ["0", "1"] and len(stream.left_out) == 1
    with pytest.raises(StreamError, match="limit is 0"):
        load(tmp_path, *records, limit=0)
    assert load_stream("demo", limit=3).cases == load_stream("demo").cases[:3]


def test_seed_shuffles_the_cases_taken(tmp_path: Path) -> None:
    plain, one, again, two = (load(tmp_path, *many(20), limit=10, seed=seed) for seed in (None, 1, 1, 2))
    assert ids(plain) == [str(number) for number in range(10)]
    assert sorted(ids(one), key=int) == ids(plain) and ids(one) == ids(again)
    assert len({tuple(ids(stream)) for stream in (plain, one, two)}) == 3
    assert one.sha256 == again.sha256 and len({plain.sha256, one.sha256, two.sha256}) == 3
    assert load_stream("demo", limit=10, seed=1).cases != load_stream("demo", limit=10).cases


def test_digest_is_of_the_cases_not_of_the_file(tmp_path: Path) -> None:
    whole = load(tmp_path, *many(3))
    assert len(whole.sha256) == 64 and int(whole.sha256, 16)
    lines = tmp_path / "elsewhere.jsonl"
    lines.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(r, sort_keys=True) for r in many(3)).encode())
    assert load_stream(lines).sha256 == whole.sha256
    assert load(tmp_path, *many(2)).sha256 != whole.sha256
    assert load(tmp_path, *many(2), FLAT | {"case_id": 2, "rephrase_prompt": "x"}).sha256 != whole.sha256


# ---- data sets by name


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets (nas-plugin[eval])")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("hub_cache")
def test_a_folder_of_the_datasets_package(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    folder.mkdir()
    lacking = {key: RECORDS["wikibigedit"][key] for key in ("subject", "update", "ans", "loc", "loc_ans")}
    lines = [json.dumps(RECORDS["wikibigedit"]), json.dumps(lacking)]
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    stream = load_stream(folder)
    assert (stream.name, stream.schema, stream.file, len(stream.cases)) == ("bench", "wikibigedit", None, 2)
    # The table has nulls where the second record has nothing.
    assert stream.cases[1].portability == {} and stream.cases[1].rephrases == ()
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert stream.cases == load_stream(path).cases and stream.sha256 == load_stream(path).sha256


def test_splits_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets (nas-plugin[eval])")
    splits = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(many(3)), "test": datasets.Dataset.from_list(many(2))}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    stream = load_stream("somebody/facts:test")
    assert (stream.name, ids(stream)) == ("somebody/facts:test", ["0", "1"])
    with pytest.raises(StreamError, match="has several splits; give one of somebody/facts:train, somebody/facts:test"):
        load_stream("somebody/facts")
    with pytest.raises(StreamError, match="has no split 'dev'"):
        load_stream("somebody/facts:dev")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.Dataset.from_list(many(3)))
    assert len(load_stream("lukasthede/WikiBigEdit").cases) == 3


def test_a_data_set_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets (nas-plugin[eval])")

    def refuse(name: str) -> None:
        raise datasets.exceptions.DatasetGenerationError("columns differ")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(StreamError, match=r"'zjunlp/KnowEdit' cannot be loaded: columns differ.*path/of/file\.json"):
        load_stream("zjunlp/KnowEdit")


def test_datasets_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PackageMissingError, match=r"pip install 'nas-plugin\[eval\]'"):
        load_stream("lukasthede/WikiBigEdit")


def test_a_file_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recent_test.json"
    path.write_text(json.dumps([RECORDS["knowedit"]]), encoding="utf-8")
    asked: list[tuple[str, ...]] = []

    def download(name: str, part: str, *, repo_type: str) -> str:
        asked.append((name, part, repo_type))
        if "none" in part:
            raise FileNotFoundError("404")
        return str(path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    stream = load_stream("zjunlp/KnowEdit:benchmark/wiki_recent/recent_test.json")
    assert asked == [("zjunlp/KnowEdit", "benchmark/wiki_recent/recent_test.json", "dataset")]
    assert stream.family == "knowedit" and stream.file == str(path) and "KnowEdit" in stream.name
    with pytest.raises(StreamError, match=r"none\.json of the data set 'zjunlp/KnowEdit' cannot be fetched: 404"):
        load_stream("zjunlp/KnowEdit:none.json")


def test_every_error_is_ours() -> None:
    assert issubclass(RecordError, StreamError) and issubclass(SchemaError, StreamError)
    assert issubclass(StreamError, NasPluginError) and issubclass(StreamError, ValueError)
