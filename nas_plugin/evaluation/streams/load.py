"""A stream: the cases of a file, a data set or the embedded world, in order, with what was left out."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nas_plugin.demo.world import World
from nas_plugin.errors import RecordError, StreamError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.streams import demo, schemas
from nas_plugin.evaluation.streams.fields import Record
from nas_plugin.evaluation.streams.schemas import Schema
from nas_plugin.evaluation.streams.sources import Unparsed, read_source

LOG = logging.getLogger(__name__)
DEMO = "demo"
_LISTED = 10


@dataclass(frozen=True)
class Stream:
    """Cases in the order in which they are edited.

    Attributes:
        name: Short name.
        family: Family of all its cases.
        schema: How its records are written; "demo" for the embedded world.
        cases: The cases.
        file: Path of the file they were read from, if there is one.
        sha256: Digest of the cases and their order, as canonical JSON. Equal digests mean equal streams, wherever they lie.
        left_out: Number (from 0) of each record that was left out, and why.
        unanswered: Number of a record, and a field of it that has a prompt but no answer; the prompt is not asked.
    """

    name: str
    family: str
    schema: str
    cases: tuple[Case, ...]
    file: str | None
    sha256: str
    left_out: tuple[tuple[int, str], ...] = ()
    unanswered: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Reading:
    """What became of records.

    Attributes:
        cases: The cases.
        left_out: As in `Stream`.
        unanswered: As in `Stream`.
    """

    cases: list[Case]
    left_out: list[tuple[int, str]]
    unanswered: list[tuple[int, str]]


def load_stream(
    name_or_path: str | Path,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    schema: str | None = None,
    seed: int | None = None,
) -> Stream:
    """Load a stream of edits.

    Args:
        name_or_path: "demo"; a `.json` or `.jsonl` file; a folder for `datasets.load_dataset`; or a data set on the Hugging Face
            hub as "owner/name", "owner/name:split" or "owner/name:path/of/file.json".
        limit: Take the first so many usable records; all when None. Records after them are not looked at.
        skip_bad: Leave malformed records out instead of raising; they are counted, listed and warned of.
        schema: Name of the schema (see `schemas.SCHEMAS`); told by the fields of the first records when None.
        seed: Shuffle the order of the cases that were taken; the file's order when None.

    Returns:
        The stream.

    Raises:
        StreamError: The stream cannot be read, or nothing in it is usable.
        SchemaError: The fields fit no schema, or there is none of that name.
        RecordError: A record is malformed and `skip_bad` is off; the message names file, record, case and field.
        PackageMissingError: A data set was named and the package `datasets` is missing.
    """
    if limit is not None and limit < 1:
        raise StreamError(f"limit is {limit}; give at least 1, or leave it out.")
    name, file = DEMO, None
    if str(name_or_path) == DEMO:
        kind, family, reading = DEMO, demo.FAMILY, Reading(demo.read_world(World())[:limit], [], [])
    else:
        source = read_source(name_or_path)
        name, file = source.name, source.file
        where = file or name
        chosen = schemas.detect(source.values, where) if schema is None else schemas.named(schema)
        kind, family = chosen.name, chosen.family
        reading = read_records(source.values, chosen, where, limit=limit, skip_bad=skip_bad)
    cases = list(reading.cases)
    if seed is not None:
        random.Random(f"stream {seed}").shuffle(cases)
    return Stream(
        name, family, kind, tuple(cases), file, _digest(cases), tuple(reading.left_out), tuple(reading.unanswered)
    )


def read_records(
    values: Sequence[Any], schema: Schema, source: str, *, limit: int | None = None, skip_bad: bool = False
) -> Reading:
    """Turn parsed records of one schema into cases.

    Args:
        values: The records.
        schema: Their schema.
        source: Where they are from, for messages.
        limit: Stop after so many cases; never when None.
        skip_bad: Leave malformed records out instead of raising.

    Returns:
        The cases, what was left out, and what has no answer.

    Raises:
        RecordError: A record is malformed or has the id of an earlier one, and `skip_bad` is off.
        StreamError: No record is usable.
    """
    reading = Reading([], [], [])
    taken: dict[str, int] = {}
    for number, value in enumerate(values):
        if len(reading.cases) == limit:
            break
        unanswered: list[str] = []
        try:
            case = _case(value, number, schema, source, taken, unanswered)
        except RecordError as error:
            if not skip_bad:
                raise RecordError(
                    f"{error.message} Correct it, or leave malformed records out (skip_bad, --skip-bad)."
                ) from error
            reading.left_out.append((number, error.message))
            continue
        taken[case.id] = number
        reading.cases.append(case)
        reading.unanswered.extend((number, field) for field in unanswered)
    _tell(reading, source)
    if not reading.cases:
        why = f"; the first was left out because: {reading.left_out[0][1]}" if reading.left_out else ""
        raise StreamError(f"{source} has no usable records{why or '.'}")
    return reading


def _case(value: Any, number: int, schema: Schema, source: str, taken: dict[str, int], unanswered: list[str]) -> Case:
    if isinstance(value, Unparsed):
        raise RecordError(f"{source}, record {number} {value.problem}.")
    record = Record.of(value, number, source, unanswered)
    if record.case in taken:
        raise record.error("case_id", f"{record.case} is also that of record {taken[record.case]}; give each its own")
    return schema.read(record)


def _tell(reading: Reading, source: str) -> None:
    if reading.unanswered:
        LOG.info("%s: %d prompts have no answer and are not asked.", source, len(reading.unanswered))
    if reading.left_out:
        reasons = [reason for _, reason in islice(reading.left_out, _LISTED)]
        more = len(reading.left_out) - len(reasons)
        LOG.warning(
            "%s: %d records were left out, %d taken.\n%s%s",
            source,
            len(reading.left_out),
            len(reading.cases),
            "\n".join(reasons),
            f"\nand {more} more" if more else "",
        )


def _digest(cases: Sequence[Case]) -> str:
    # ASCII escapes and sorted keys: one text for one stream, whatever the platform.
    canonical = json.dumps(cases, default=vars, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
