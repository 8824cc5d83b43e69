"""Pilot facts: what the anchor is measured with."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from nas_plugin.errors import AnchorError, RequestError
from nas_plugin.reading import parse_json, short
from nas_plugin.request import EditRequest, as_requests

BUILTIN = "builtin"
DEMO = "demo"
_RELATIONS = (
    ("The capital of {} is", "capital"),
    ("The official language of {} is", "language"),
    ("The currency used in {} is the", "currency"),
    ("{} is a country on the continent of", "continent"),
)


def pilot_requests(source: str) -> list[EditRequest]:
    """Read pilot facts.

    Args:
        source: "builtin" (countries with a wrong capital, language, currency or continent), "demo" (the embedded world's), or the
            path of a JSON list of records as EasyEdit or ROME have them.

    Returns:
        Validated requests.

    Raises:
        AnchorError: The file is missing, not a list, or holds a record that is no edit request.
    """
    if source == BUILTIN:
        return _builtin()
    if source == DEMO:
        from nas_plugin.demo.world import World

        return as_requests(pilot.to_request() for pilot in World().pilots())
    try:
        records = parse_json(Path(source).read_bytes())
    except (OSError, ValueError) as error:
        raise AnchorError(
            f"nas_pilots: cannot read {source!r}: {error}. Give 'builtin' or a JSON list of records."
        ) from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise AnchorError(f"nas_pilots: {source} must hold a JSON list of records with prompt, subject and target_new.")
    pilots: list[EditRequest] = []
    for number, record in enumerate(records):
        pilots += _read(record, number, source)
    return pilots


def _read(record: dict[str, Any], number: int, source: str) -> list[EditRequest]:
    rewrites = record.get("requested_rewrite", record)
    # MQuAKE has a list of them.
    listed = rewrites if isinstance(rewrites, list) else [rewrites]
    if not all(isinstance(rewrite, dict) for rewrite in listed):
        raise AnchorError(
            f"nas_pilots: record {number} of {source}: requested_rewrite is {short(rewrites)}; expected an object or "
            "a list of them."
        )
    try:
        return as_requests(rewrites)
    except RequestError as error:
        raise AnchorError(f"nas_pilots: record {number} of {source}: {error.message}") from error


def _builtin() -> list[EditRequest]:
    """Pair each country with another one's value: well-formed facts that no model holds true."""
    text = resources.files("nas_plugin").joinpath("data/countries.json").read_text(encoding="utf-8")
    countries = json.loads(text)
    pilots = []
    for prompt, key in _RELATIONS:
        values = [country[key] for country in countries]
        for number, country in enumerate(countries):
            others = [value for value in values[number + 1 :] + values[:number] if value != country[key]]
            pilots.append(EditRequest(prompt, country["name"], others[0], id=f"pilot-{key}-{country['name']}"))
    return pilots
