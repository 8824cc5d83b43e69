"""Every metric by name with its exact protocol, as reports print it. A case's value is the mean over its prompts."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from nas_plugin.errors import MeasureError

SPARE_TOKENS = 5
"""Tokens that greedy writing may take beyond those of the target, so that another spelling and a word's end fit in."""
QUESTION_TOKENS = 20
"""Tokens that an answer to a multi-hop question may take."""
FLUENCY_TOKENS = 100
"""Length of a sampled text in tokens, prompt included."""

_TARGET = "the new target, after the edited prompt"
_REPHRASED = "the new target, after each rephrased prompt"
_NLL = "mean negative log-probability per token (teacher-forced)"
_EXACT = "every token is the model's most probable one (teacher-forced)"
_SHARE = "share of tokens that are the model's most probable one (teacher-forced)"
_GREEDY = (
    f"the text that the model writes greedily, in at most {SPARE_TOKENS} tokens more than the target has, begins with the "
    "target's words (Unicode NFKC, case, punctuation and spacing ignored)"
)

PROTOCOLS: dict[str, str] = {
    "efficacy/probability": f"Edited prompt: % where the new target has a lower {_NLL} than the true one.",
    "efficacy/exact": f"% where {_EXACT}: {_TARGET}.",
    "efficacy/token_accuracy": f"%, {_SHARE}: {_TARGET}.",
    "efficacy/generated": f"% where {_GREEDY}: edited prompt.",
    "generalization/probability": f"Rephrased prompts: % where the new target has a lower {_NLL} than the true one.",
    "generalization/exact": f"% where {_EXACT}: {_REPHRASED}.",
    "generalization/token_accuracy": f"%, {_SHARE}: {_REPHRASED}.",
    "generalization/generated": f"% where {_GREEDY}: rephrased prompts.",
    "specificity/probability": f"Neighbourhood prompts: % where their own true answer has a lower {_NLL} than the new target.",
    "specificity/exact": f"Neighbourhood prompts: % where {_EXACT}, for their own true answer.",
    "locality/<group>/unchanged_tokens": (
        "%, share of answer positions, the dataset's answer given, at which the most probable token is that of the original "
        "model."
    ),
    "locality/<group>/token_accuracy": f"%, {_SHARE}, for the dataset's answer, whatever the original model said.",
    "locality/unchanged_tokens": "Mean over a case's locality groups of locality/<group>/unchanged_tokens.",
    "portability/<group>/token_accuracy": f"%, {_SHARE}, for an answer that follows from the edit.",
    "portability/token_accuracy": "Mean over a case's portability groups of portability/<group>/token_accuracy.",
    "questions/token_accuracy": f"Multi-hop questions: %, {_SHARE}, for the new answer; mean over a case's questions.",
    "questions/generated_any": (
        f"% of cases where the model, asked the bare multi-hop questions, writes greedily in {QUESTION_TOKENS} tokens the new "
        "answer or an alias of it as whole words (Unicode NFKC, case, punctuation and spacing ignored), for any question."
    ),
    "fluency": (
        f"100 (2/3 H2 + 4/3 H3) / 2, Hn the base-2 entropy of n-grams of words, of texts sampled from the generation prompts "
        f"among the 5 most probable tokens to {FLUENCY_TOKENS} tokens, prompt included; not a percentage. Words are split by a "
        "regular expression. Seeds depend on the case alone."
    ),
    "consistency": (
        "100 times the cosine of TF-IDF vectors, between a case's sampled texts and its reference texts; document frequencies "
        "are those of all reference texts of the stream."
    ),
    "score/probability": (
        "Harmonic mean of the unrounded means of efficacy, generalization and specificity, each /probability; 0 if one is 0. "
        "One number for all cases: its std is 0."
    ),
    "score/token_accuracy": (
        "Harmonic mean of the unrounded means of efficacy/token_accuracy and, where measured, generalization/token_accuracy "
        "and locality/unchanged_tokens; 0 if one is 0. One number for all cases: its std is 0."
    ),
}
"""Metric -> what exactly is measured. `<group>` stands for a group's name; 0 to 100 unless the definition says otherwise."""

SCORES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "score/probability": (("efficacy/probability", "generalization/probability", "specificity/probability"), ()),
    "score/token_accuracy": (
        ("efficacy/token_accuracy",),
        ("generalization/token_accuracy", "locality/unchanged_tokens"),
    ),
}
"""What a score is made of: metrics without which there is none, and those that count where measured."""

_MADE_OF = {score: required + others for score, (required, others) in SCORES.items()} | {
    "locality/unchanged_tokens": ("locality/<group>/unchanged_tokens",),
    "portability/token_accuracy": ("portability/<group>/token_accuracy",),
}

WRITTEN = frozenset(
    {
        "efficacy/generated",
        "generalization/generated",
        "questions/generated_any",
        "fluency",
        "consistency",
    }
)
"""Metrics for which the model has to write, a forward pass for every token: many times the time of all others."""

TEACHER_FORCED = frozenset(PROTOCOLS) - WRITTEN
"""Metrics that need one forward pass."""


def needed_for(names: Iterable[str]) -> frozenset[str]:
    """Add to metrics those that they are made of.

    Args:
        names: Keys of `PROTOCOLS`.

    Returns:
        The metrics to measure, as keys of `PROTOCOLS`.

    Raises:
        MeasureError: One of them is unknown.
    """
    wanted = {template_of(name) for name in names}
    # Twice, because a score is made of means over groups.
    for _ in range(2):
        wanted |= {part for name in wanted for part in _MADE_OF.get(name, ())}
    return frozenset(wanted)


def template_of(name: str) -> str:
    """Return a metric's key in `PROTOCOLS`: its name with `<group>` for the name of a group.

    Args:
        name: Metric of a case or a summary, as "locality/Forgetfulness/token_accuracy".

    Returns:
        Its key, as "locality/<group>/token_accuracy".

    Raises:
        MeasureError: There is no such metric.
    """
    first, _, rest = name.partition("/")
    template = name if name in PROTOCOLS else f"{first}/<group>/{rest.rpartition('/')[2]}"
    if template not in PROTOCOLS:
        near = get_close_matches(name, PROTOCOLS, n=1, cutoff=0.0)[0]
        raise MeasureError(f"there is no metric {name!r}; the nearest is {near!r}. PROTOCOLS lists all of them.")
    return template


def protocols_of(names: Iterable[str]) -> dict[str, str]:
    """Return the definitions of metrics as a run's results name them, groups included.

    Args:
        names: Metrics of cases or summaries.

    Returns:
        Metric -> definition, in the order of `PROTOCOLS`, then by group.

    Raises:
        MeasureError: One of them is unknown.
    """
    order = {template: number for number, template in enumerate(PROTOCOLS)}
    known = sorted(set(names), key=lambda name: (order[template_of(name)], name))
    return {name: PROTOCOLS[template_of(name)] for name in known}
