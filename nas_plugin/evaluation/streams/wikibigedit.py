"""WikiBigEdit (Thede et al., arXiv 2503.05683)."""

from __future__ import annotations

from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.streams.fields import Record

FAMILY = "wikibigedit"
LOCALITY, PERSONAS, MULTI_HOP = "locality", "personas", "mhop"
"""EasyEdit's names of the groups."""


def read_released(record: Record) -> Case:
    """Read a record as released.

    What a record lacks is not asked. Released code puts the update question in its place, which rewards it twice.

    Args:
        record: `update` (a question), `subject`, `ans`; perhaps `rephrase`, `personas` (the question as somebody would put it),
            `mhop` with `mhop_ans`, `loc` with `loc_ans`.

    Returns:
        The case. `loc` is its locality group "locality"; "personas" and "mhop" are portability groups, as in EasyEdit.

    Raises:
        RecordError: A field is missing or malformed, or the subject does not occur in the question. Released code then edits at
            "<subject> <question>", a text that the benchmark does not have.
    """
    request = record.request("update", "subject", "ans")
    unrelated = record.asks("loc", "loc_ans") if record.has("loc") else ()
    portability = {
        PERSONAS: record.asks("personas", "ans") if record.has("personas") else (),
        MULTI_HOP: record.asks("mhop", "mhop_ans") if record.has("mhop") else (),
    }
    return Case(
        id=record.case,
        family=FAMILY,
        requests=(request,),
        true_target=record.first_answer("ground_truth"),
        rephrases=record.texts("rephrase") if record.has("rephrase") else (),
        locality={LOCALITY: unrelated} if unrelated else {},
        portability={group: asks for group, asks in portability.items() if asks},
    )


def read_flat(record: Record) -> Case:
    """Read a record in EasyEdit's flat schema without the answer before the edit.

    Args:
        record: `prompt`, `subject`, `target_new`, `locality_prompt`, `locality_ground_truth`; perhaps `rephrase_prompt`.

    Returns:
        The case.

    Raises:
        RecordError: A field is missing or malformed.
    """
    unrelated = record.asks("locality_prompt", "locality_ground_truth")
    return Case(
        id=record.case,
        family=FAMILY,
        requests=(record.request("prompt", "subject", "target_new"),),
        rephrases=record.texts("rephrase_prompt") if record.has("rephrase_prompt") else (),
        locality={LOCALITY: unrelated} if unrelated else {},
    )
