"""MQuAKE (Zhong et al., arXiv 2305.14795): several edits to a case, and multi-hop questions that follow from all of them."""

from __future__ import annotations

from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.streams.fields import Record

FAMILY = "mquake"


def read(record: Record) -> Case:
    """Read a record of MQuAKE.

    EasyEdit's reader joins the prompts, subjects and targets of all edits into one text each; here each edit is a request.

    Args:
        record: `requested_rewrite` (a list of `prompt`, `subject`, `target_new.str`, `target_true.str`), `questions`,
            `new_answer`; perhaps `new_answer_alias`.

    Returns:
        The case, with the answers before the edit only if it writes a single fact.

    Raises:
        RecordError: A field is missing or malformed, or there is nothing to write.
    """
    rewrites = record.parts("requested_rewrite")
    if not rewrites:
        raise record.error("requested_rewrite", "is an empty list; a case writes at least one fact")
    alone = len(rewrites) == 1
    return Case(
        id=record.case,
        family=FAMILY,
        requests=tuple(
            rewrite.request("prompt", "subject", "target_new", record.case if alone else f"{record.case}/{index}")
            for index, rewrite in enumerate(rewrites)
        ),
        true_target=rewrites[0].target("target_true") if alone and rewrites[0].has("target_true") else None,
        questions=record.asks("questions", "new_answer", "new_answer_alias"),
    )
