"""Token accuracy of many requests in few forward passes.

EasyEdit's evaluator runs a forward pass for every prompt (list) of every request, with the head at every position. Here all
prompts of all requests are sorted by length, padded on the right and run together, with the head where an answer is predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from nas_plugin.errors import ModelError, RequestError
from nas_plugin.evaluation.probes import LOCALITY, PORTABILITY, Probe, ProbeTokens, probes_of, tokenise
from nas_plugin.locate.sequences import TokenSequence, pad
from nas_plugin.model.trace import as_found

_TOKENS_PER_PASS = 2048
# Rows join a pass of longer ones if the padding they need there costs less than a pass of their own.
_PADDING_PER_PASS = 16


def evaluate_requests(
    model: Any,
    tok: Any,
    requests: Iterable[Mapping[str, Any]],
    *,
    tokens_per_pass: int = _TOKENS_PER_PASS,
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
    if not probes:
        return results
    rows = tokenise(probes, tok, model.get_input_embeddings().weight.shape[0], _max_positions(model))
    for probe, row, answer in zip(probes, rows, _predict(model, rows, tokens_per_pass), strict=True):
        _enter(results[probe.request], probe, row.labels, answer)
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


def _enter(result: dict[str, Any], probe: Probe, labels: Sequence[int], answer: list[int]) -> None:
    if probe.part == LOCALITY:
        result[LOCALITY].setdefault(f"{probe.key}_output", []).append(answer)
    elif probe.part == PORTABILITY:
        result[PORTABILITY].setdefault(f"{probe.key}_acc", []).append(_share_equal(answer, labels))
    else:
        result[f"{probe.part}_acc"] = [_share_equal(answer, labels)]


def _compare(after: dict[str, Any], before: Mapping[str, Any], name: str) -> None:
    for field, outputs in list(after.items()):
        earlier = before.get(field)
        if earlier is None or list(map(len, earlier)) != list(map(len, outputs)):
            raise RequestError(
                f"{name}, locality: pre has no {field} of the same lengths; give the same request's results."
            )
        key = field.removesuffix("_output")
        after[f"{key}_acc"] = [_share_equal(*pair) for pair in zip(outputs, earlier, strict=True)]


def _share_equal(left: Sequence[int], right: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def _predict(model: Any, rows: Sequence[ProbeTokens], tokens_per_pass: int) -> list[list[int]]:
    """Return the most probable token at every position that predicts an answer, in the order of the rows."""
    # Requests about the same things ask the same: each distinct row runs once.
    distinct = sorted(dict.fromkeys(rows), key=lambda row: len(row.ids), reverse=True)
    with torch.no_grad(), as_found(model):
        parts = [_forward(model, batch) for batch in _passes(distinct, tokens_per_pass)]
    # Moved to the host once, after the last pass: the device never waits.
    flat = iter(torch.cat(parts).tolist())
    answers = {row: [next(flat) for _ in row.labels] for row in distinct}
    return [list(answers[row]) for row in rows]


def _passes(rows: Sequence[ProbeTokens], tokens_per_pass: int) -> Iterator[Sequence[ProbeTokens]]:
    """Cut rows, longest first, into passes of bounded size and little padding."""
    start = width = 0
    for length, group in groupby(enumerate(rows), key=lambda item: len(item[1].ids)):
        numbers = [number for number, _ in group]
        if (width - length) * len(numbers) > _PADDING_PER_PASS:
            yield rows[start : numbers[0]]
            start, width = numbers[0], length
        width = max(width, length)
        while (count := max(1, tokens_per_pass // width)) <= numbers[-1] - start:
            yield rows[start : start + count]
            start, width = start + count, len(rows[start + count].ids)
    yield rows[start:]


def _forward(model: Any, rows: Sequence[ProbeTokens]) -> Tensor:
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head; load it as a causal language model.")
    device = model.get_input_embeddings().weight.device
    # Any id will do for padding: it is masked, and stands where no token before it looks.
    batch = pad([TokenSequence(row.ids, 0, row.first + 1) for row in rows], 0, device)
    wanted = [(number, row.first + i) for number, row in enumerate(rows) for i in range(len(row.labels))]
    row_of, position = torch.tensor(wanted, device=device).T

    def select(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        return (hidden[row_of.to(hidden.device), position.to(hidden.device)][None],)

    # Selecting at the head's door keeps what the family does on either side of it: final norm, scaling, capping.
    handle = head.register_forward_pre_hook(select)
    try:
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    finally:
        handle.remove()
    logits: Tensor = output.logits
    if logits.shape[:2] != (1, len(wanted)):
        raise ModelError(
            f"{type(model).__name__} does not run its output head as a module; it cannot be evaluated here."
        )
    return logits[0].argmax(-1)


def _max_positions(model: Any) -> int | None:
    config = model.config
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
