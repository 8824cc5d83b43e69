"""Token accuracy of EasyEdit's requests, many in few forward passes.

EasyEdit's evaluator runs a forward pass for every prompt (list) of every request, with the head at every position. Here all
prompts of all requests go through the batched scorer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nas_plugin.errors import RequestError
from nas_plugin.evaluation.measures.scoring import TOKENS_PER_PASS, Scored, score, share_equal
from nas_plugin.evaluation.probes import LOCALITY, PORTABILITY, Bounds, Probe, probes_of, tokenise


def evaluate_requests(
    model: Any,
    tok: Any,
    requests: Iterable[Mapping[str, Any]],
    *,
    tokens_per_pass: int = TOKENS_PER_PASS,
    pre: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Score requests by token accuracy with the answer given (teacher forcing), as EasyEdit's `compute_edit_quality` does.

    Prompts are never cut: EasyEdit's `max_length` has no effect in its evaluator either. The tokenizer's padding side and pad
    token have no effect.

    Args:
        model: Causal language model; left as it is found.
        tok: Its tokenizer; never changed.
        requests: Requests as EasyEdit prepares them: `prompt` and `target_new`; where wanted `rephrase_prompt`, and
            `locality` and `portability` as `{name: {"prompt": text or list, "ground_truth": text or list}}`.
        tokens_per_pass: Bound on the padded tokens of a forward pass, hence on its memory. A longer prompt runs alone.
        pre: What this function returned for the same requests before the edit; gives `locality` its accuracies.

    Returns:
        For each request `rewrite_acc` and, if asked for, `rephrase_acc` (lists of one number), `locality` with the predicted
        ids `<name>_output` (and `<name>_acc`, the share equal to `pre`), and `portability` with `<name>_acc`.

    Raises:
        ModelError: The model has no output head to hook into.
        RequestError: A request is malformed or does not fit `pre`. The model has not been run on any request if malformed.
    """
    records = list(requests)
    if pre is not None and len(pre) != len(records):
        raise RequestError(
            f"pre holds {len(pre)} results for {len(records)} requests; give those of the same requests."
        )
    probes = probes_of(records)
    results: list[dict[str, Any]] = [{LOCALITY: {}, PORTABILITY: {}} for _ in records]
    rows = tokenise(probes, tok, Bounds.of(model))
    for probe, scored in zip(probes, score(model, rows, tokens_per_pass=tokens_per_pass), strict=True):
        _enter(results[probe.request], probe, scored)
    if pre is not None:
        for number, (result, before) in enumerate(zip(results, pre, strict=True)):
            _compare(result[LOCALITY], before.get(LOCALITY) or {}, f"request {number}")
    return results


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average results as EasyEdit does: over a request's prompts, then over the requests that have the entry.

    Args:
        results: What `evaluate_requests` returned.

    Returns:
        Means between 0 and 1 under the keys of a result, accuracies only.
    """
    summary: dict[str, Any] = _means(results)
    for part in (LOCALITY, PORTABILITY):
        summary[part] = _means([result.get(part) or {} for result in results])
    return summary


def _means(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for entry in entries:
        for key, accuracies in entry.items():
            if key.endswith("_acc") and accuracies:
                values.setdefault(key, []).append(sum(accuracies) / len(accuracies))
    return {key: sum(numbers) / len(numbers) for key, numbers in values.items()}


def _enter(result: dict[str, Any], probe: Probe, scored: Scored) -> None:
    if probe.part == LOCALITY:
        result[LOCALITY].setdefault(f"{probe.key}_output", []).append(list(scored.predicted))
    elif probe.part == PORTABILITY:
        result[PORTABILITY].setdefault(f"{probe.key}_acc", []).append(scored.token_accuracy)
    else:
        result[f"{probe.part}_acc"] = [scored.token_accuracy]


def _compare(after: dict[str, Any], before: Mapping[str, Any], name: str) -> None:
    for field, outputs in list(after.items()):
        earlier = before.get(field)
        if earlier is None or list(map(len, earlier)) != list(map(len, outputs)):
            raise RequestError(
                f"{name}, locality: pre has no {field} of the same lengths; give the same request's results."
            )
        key = field.removesuffix("_output")
        after[f"{key}_acc"] = [share_equal(*pair) for pair in zip(outputs, earlier, strict=True)]
