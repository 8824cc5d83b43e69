"""KnowEdit (Zhang et al., arXiv 2401.01286): WikiRecent, wiki_counterfact, WikiBio."""

from __future__ import annotations

from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.evaluation.streams.fields import Record

FAMILY = "knowedit"
_NAMES = {"prompt": "text", "subject": "concept", "target_new": "labels"}


def read(record: Record) -> Case:
    """Read a record of KnowEdit.

    Args:
        record: `prompt`, `subject`, `target_new` (in WikiBio `text`, `concept`, `labels`); perhaps `ground_truth`,
            `rephrase_prompt`, and `portability` and `locality` as `{group: [{"prompt", "ground_truth"}]}`, a ground truth being
            text, a list of aliases, or a list of answers that are lists of aliases.

    Returns:
        The case. All answers and aliases to a prompt are its answers; the first is EasyEdit's. Groups without prompts are left
        out.

    Raises:
        RecordError: A field is missing or malformed.
    """
    named = [name if record.has(name) or not record.has(other) else other for name, other in _NAMES.items()]
    return Case(
        id=record.case,
        family=FAMILY,
        requests=(record.request(*named),),
        true_target=record.first_answer("ground_truth"),
        rephrases=record.texts("rephrase_prompt") if record.has("rephrase_prompt") else (),
        locality=_groups(record, "locality"),
        portability=_groups(record, "portability"),
    )


def _groups(record: Record, name: str) -> dict[str, tuple[Ask, ...]]:
    if not record.has(name):
        return {}
    groups = record.part(name)
    asked = {
        group: tuple(ask for item in groups.parts(group) for ask in item.asks("prompt", "ground_truth"))
        for group in groups.fields
        if groups.has(group)
    }
    return {group: asks for group, asks in asked.items() if asks}
