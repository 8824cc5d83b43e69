"""Records that something has gone wrong with, in a hundred ways: cases or our own errors, nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_plugin.errors import StreamError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.streams import load_stream
from tests.evaluation.test_streams_readers import RECORDS
from tests.promises.hostile import places

FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["{}", "{} {}", " ", "Lyon", "\ud800", "Danielle Darrieux"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MISSING = object()


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A good record in which up to three fields, at any depth, are gone or hold something else."""
    record: Any = copy.deepcopy(RECORDS[draw(st.sampled_from(sorted(RECORDS)))])
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(record) or [("case_id",)]))
        inner = record
        for step in way:
            inner = inner[step]
        value = draw(JSON | st.just(MISSING))
        if value is not MISSING:
            inner[last] = value
        elif isinstance(inner, list) or last in inner:
            del inner[last]
    return record


def read(path: Path, **options: Any) -> tuple[Case, ...]:
    try:
        return load_stream(path, **options).cases
    except StreamError as error:
        assert str(path) in str(error)
        return ()


@FUZZ
@given(records=st.lists(damaged(), min_size=1, max_size=4))
@pytest.mark.parametrize("schema", [None, "knowedit"])
def test_damaged_records(tmp_path: Path, schema: str | None, records: list[Any]) -> None:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    strict = read(path, schema=schema)
    lenient = read(path, schema=schema, skip_bad=True)
    # Whatever reads without skipping reads the same with it; every case can be handed on.
    assert not strict or strict == lenient
    for case in lenient:
        assert case.to_easyedit() if len(case.requests) == 1 else case.questions is not None


@FUZZ
@given(content=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_arbitrary_files(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"records{ending}"
    path.write_bytes(content)
    assert read(path, schema="counterfact", skip_bad=True) == ()
    read(path)


def test_messages_can_be_written_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text(
        '[{"case_id": "\\ud800", "prompt": "a \\ud800", "subject": "b", "target_new": "c"}]', encoding="utf-8"
    )
    with pytest.raises(StreamError) as caught:
        load_stream(path, schema="knowedit")
    assert str(caught.value).encode("utf-8")
