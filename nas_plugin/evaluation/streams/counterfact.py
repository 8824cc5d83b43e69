"""CounterFact and MultiCounterFact (Meng et al., ROME, arXiv 2202.05262, appendix D; MEMIT, arXiv 2210.07229)."""

from __future__ import annotations

from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.evaluation.streams.fields import Record

FAMILY = "counterfact"


def read_original(record: Record) -> Case:
    """Read a record of `counterfact.json` or `multi_counterfact.json`, whose prompts may also be lists in lists.

    Attribute prompts have no field of their own in a case: they are prompts about other subjects, not the reference texts of
    the consistency metric.

    Args:
        record: `requested_rewrite` (`prompt`, `subject`, `target_new.str`, `target_true.str`), `paraphrase_prompts`,
            `neighborhood_prompts`; perhaps `generation_prompts`.

    Returns:
        The case. Neighbours keep the rewrite's true target.

    Raises:
        RecordError: A field is missing or malformed.
    """
    rewrite = record.part("requested_rewrite")
    true = rewrite.target("target_true")
    return Case(
        id=record.case,
        family=FAMILY,
        requests=(rewrite.request("prompt", "subject", "target_new"),),
        true_target=true,
        rephrases=record.texts("paraphrase_prompts"),
        neighbours=tuple(Ask(prompt, (true,)) for prompt in record.texts("neighborhood_prompts")),
        generation_prompts=record.texts("generation_prompts") if record.has("generation_prompts") else (),
    )


def read_flat(record: Record) -> Case:
    """Read a record of EasyEdit's flat CounterFact.

    Args:
        record: `prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality_prompt`,
            `locality_ground_truth`.

    Returns:
        The case, with one rephrase and one neighbour.

    Raises:
        RecordError: A field is missing or malformed.
    """
    return Case(
        id=record.case,
        family=FAMILY,
        requests=(record.request("prompt", "subject", "target_new"),),
        true_target=record.target("ground_truth"),
        rephrases=record.texts("rephrase_prompt"),
        neighbours=record.asks("locality_prompt", "locality_ground_truth"),
    )
