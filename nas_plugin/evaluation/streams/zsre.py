"""ZsRE (Levy et al., arXiv 1706.04115) as MEND split it (Mitchell et al., arXiv 2110.11309) and as KnowEdit has it."""

from __future__ import annotations

from dataclasses import replace

from nas_plugin.evaluation.cases import NEIGHBORHOOD, Case
from nas_plugin.evaluation.streams import knowedit
from nas_plugin.evaluation.streams.fields import Record

FAMILY = "zsre"
ONE_HOP = "one_hop"
"""EasyEdit's name for the portability group of the MEND split."""


def read_mend(record: Record) -> Case:
    """Read a record of `zsre_mend_eval.json`.

    Args:
        record: `src` (a question), `subject`, `alt` (the new answer), `rephrase`; perhaps `answers`, `loc` and `loc_ans` (a
            question of Natural Questions, with its prefix "nq question: " kept), `portability` with `New Question` and
            `New Answer`.

    Returns:
        The case. `loc` is its locality group "neighborhood", the portability question its group "one_hop".

    Raises:
        RecordError: A field is missing or malformed, also an empty `alt`, which EasyEdit passes over in silence.
    """
    unrelated = record.asks("loc", "loc_ans") if record.has("loc") else ()
    hops = record.part("portability").asks("New Question", "New Answer") if record.has("portability") else ()
    return Case(
        id=record.case,
        family=FAMILY,
        requests=(record.request("src", "subject", "alt"),),
        true_target=record.first_answer("answers"),
        rephrases=record.texts("rephrase"),
        locality={NEIGHBORHOOD: unrelated} if unrelated else {},
        portability={ONE_HOP: hops} if hops else {},
    )


def read_knowedit(record: Record) -> Case:
    """Read a record of KnowEdit's ZsRE.

    Args:
        record: As for `knowedit.read`; `rephrase_prompt`, which EasyEdit's reader leaves out, is read.

    Returns:
        The case, of the family "zsre".

    Raises:
        RecordError: A field is missing or malformed.
    """
    return replace(knowedit.read(record), family=FAMILY)
