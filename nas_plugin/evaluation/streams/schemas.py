"""Which schemas there are, and telling them apart by the fields of the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_plugin.errors import SchemaError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.streams import counterfact, knowedit, mquake, wikibigedit, zsre
from nas_plugin.evaluation.streams.fields import Record

# A few records of a file may be malformed, so several are looked at.
_LOOKED_AT = 20


@dataclass(frozen=True)
class Schema:
    """How the records of a benchmark are written.

    Attributes:
        name: What `load_stream` calls it.
        family: Family of the cases.
        signs: Sets of fields; a record that has all fields of one of them is taken for this schema.
        read: Makes a case of a record, or raises a `RecordError`.
    """

    name: str
    family: str
    signs: tuple[frozenset[str], ...]
    read: Callable[[Record], Case]

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Tell whether a record looks like this schema.

        Args:
            record: A parsed record.

        Returns:
            Whether it has the fields (null counts as absent).
        """
        present = {name for name, value in record.items() if value is not None}
        return any(sign <= present for sign in self.signs)

    def __str__(self) -> str:
        return f"{self.name} ({' or '.join(', '.join(sorted(sign)) for sign in self.signs)})"


def _signs(*fields: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(names.split()) for names in fields)


# The first that fits is taken: those with more particular signs come first.
SCHEMAS = (
    Schema("mquake", mquake.FAMILY, _signs("requested_rewrite questions"), mquake.read),
    Schema("counterfact", counterfact.FAMILY, _signs("requested_rewrite"), counterfact.read_original),
    Schema("zsre-mend", zsre.FAMILY, _signs("src alt"), zsre.read_mend),
    Schema("wikibigedit", wikibigedit.FAMILY, _signs("update ans"), wikibigedit.read_released),
    Schema(
        "counterfact-easyedit",
        counterfact.FAMILY,
        _signs("prompt target_new ground_truth locality_prompt"),
        counterfact.read_flat,
    ),
    Schema(
        "wikibigedit-easyedit", wikibigedit.FAMILY, _signs("prompt target_new locality_prompt"), wikibigedit.read_flat
    ),
    Schema("zsre-knowedit", zsre.FAMILY, _signs("prompt target_new cond"), zsre.read_knowedit),
    Schema("knowedit", knowedit.FAMILY, _signs("prompt target_new", "text labels"), knowedit.read),
)
"""All schemas; MultiCounterFact is written as CounterFact, WikiRecent, wiki_counterfact and WikiBio as KnowEdit."""


def named(name: str) -> Schema:
    """Look a schema up.

    Args:
        name: Its name.

    Returns:
        The schema.

    Raises:
        SchemaError: There is none of that name.
    """
    for schema in SCHEMAS:
        if schema.name == name:
            return schema
    raise SchemaError(f"schema {name!r} is unknown; there are {', '.join(schema.name for schema in SCHEMAS)}.")


def detect(values: Sequence[Any], source: str) -> Schema:
    """Tell the schema of records by their fields: the one that most of the first records fit.

    Args:
        values: Parsed records, malformed ones among them.
        source: Where they are from, for messages.

    Returns:
        The schema.

    Raises:
        SchemaError: None fits.
    """
    records = [value for value in values[:_LOOKED_AT] if isinstance(value, Mapping)]
    votes = Counter(schema for record in records if (schema := _first_fitting(record)) is not None)
    if votes:
        return max(SCHEMAS, key=lambda schema: votes[schema])
    raise SchemaError(f"{source}: {_seen(records)} fit no schema. Known: {'; '.join(map(str, SCHEMAS))}.")


def _first_fitting(record: Mapping[str, Any]) -> Schema | None:
    return next((schema for schema in SCHEMAS if schema.fits(record)), None)


def _seen(records: Iterable[Mapping[str, Any]]) -> str:
    fields = list(dict.fromkeys(str(name) for record in records for name in record))
    if not fields:
        return "the first records, none of which is an object with fields,"
    return f"the fields of the first records ({', '.join(fields)[:400]})"
