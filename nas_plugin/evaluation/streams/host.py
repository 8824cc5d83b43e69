"""Records of EasyEdit's data sets as cases.

`load_stream` reads the same files without EasyEdit; this is for data sets that somebody already holds. What the host's readers
drop cannot come back: docs/streams.md lists it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nas_plugin.errors import SchemaError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.streams import schemas
from nas_plugin.evaluation.streams.load import read_records

_KNOWEDIT_GROUPS = {
    "portability": {
        "Reasoning": "portability_r",
        "Subject_Aliasing": "portability_s",
        "Logical_Generalization": "portability_l",
    },
    "locality": {"Relation_Specificity": "locality_rs", "Forgetfulness": "locality_f"},
}
_WIKIBIGEDIT_NAMES = {
    "prompt": "update",
    "target_new": "ans",
    "portability_personas": "personas",
    "portability_hop": "mhop",
    "portability_hop_ans": "mhop_ans",
    "locality": "loc",
    "locality_ans": "loc_ans",
}
_ZSRE_NAMES = {
    "prompt": "src",
    "target_new": "alt",
    "ground_truth": "answers",
    "rephrase_prompt": "rephrase",
    "locality_prompt": "loc",
    "locality_ground_truth": "loc_ans",
}


def from_host(dataset: Any, *, subjects: Sequence[str] | None = None, skip_bad: bool = False) -> list[Case]:
    """Turn a data set of EasyEdit into cases.

    Args:
        dataset: A `KnowEditDataset`, `WikiBigEditDataset`, `ZsreDataset` or `CounterFactDataset`.
        subjects: For `ZsreDataset` alone, which drops the subjects: that of each record of its file, in order.
        skip_bad: Leave malformed records out instead of raising; they are counted and warned of.

    Returns:
        The cases that `load_stream` makes of the same file, less what the host's reader dropped.

    Raises:
        SchemaError: It is another data set, or one of ZsRE without `subjects`.
        RecordError: A record is malformed and `skip_bad` is off.
        StreamError: No record is usable.
    """
    values = [dataset[index] for index in range(len(dataset))]
    source = f"EasyEdit's {type(dataset).__name__}"
    first = values[0] if values and isinstance(values[0], Mapping) else {}
    if "portability_r" in first:
        schema, values = schemas.named("knowedit"), [_knowedit(value) for value in values]
    elif "portability_personas" in first:
        schema, values = schemas.named("wikibigedit"), [_renamed(value, _WIKIBIGEDIT_NAMES) for value in values]
    elif "cond" in first:
        schema = schemas.named("zsre-mend")
        values = [_renamed(value, _ZSRE_NAMES) for value in _with_subjects(values, subjects, source)]
    else:
        schema = schemas.detect(values, source)
    return read_records(values, schema, source, skip_bad=skip_bad).cases


def _knowedit(value: Mapping[str, Any]) -> dict[str, Any]:
    flat = {field: value.get(field) for field in ("prompt", "subject", "target_new", "ground_truth")}
    groups = {
        part: {group: value.get(field) for group, field in fields.items()} for part, fields in _KNOWEDIT_GROUPS.items()
    }
    return {**flat, **groups}


def _renamed(value: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(field, field): content for field, content in value.items()}


def _with_subjects(values: Sequence[Any], subjects: Sequence[str] | None, source: str) -> list[dict[str, Any]]:
    if "ground_truth" not in values[0]:
        raise SchemaError(
            f"{source} takes one locality prompt of each record at random, so that no two readings are alike; use load_stream."
        )
    if subjects is None:
        raise SchemaError(
            f"{source} drops the subjects, without which nothing can be edited; give subjects, or use load_stream."
        )
    # Its case_id is the number of the record in the file, which it keeps where it drops a record.
    last = max(value["case_id"] for value in values)
    if last >= len(subjects):
        raise SchemaError(
            f"{source} has record {last} and there are {len(subjects)} subjects; give one for each record."
        )
    return [{**value, "subject": subjects[value["case_id"]]} for value in values]
