"""Second moments of all edited layers in one pass over text.

Source: MEMIT (Meng et al., 2023), Eq. 15; the estimator is the one of its released `layer_stats`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import NonFiniteError, StatisticsError
from nas_plugin.locate.kept_sums import KeptSums
from nas_plugin.locate.moments import SecondMoments, dtype_name, tokenizer_fingerprint
from nas_plugin.locate.sequences import Locator, TokenSequence, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found, forward_until
from nas_plugin.parallel import ALONE, Group
from nas_plugin.progress import progress_bar

# Longer documents are cut: a model's full context costs memory without adding to the estimate (EasyEdit issue 470).
_MAX_LENGTH = 1024
TOKENS_PER_PASS = 4096


def collect_moments(
    em: EditableModel,
    locator: Locator,
    texts: Iterable[str],
    *,
    max_documents: int,
    max_tokens: int | None,
    dtype: torch.dtype,
    fingerprint: str,
    progress: bool = True,
    group: Group = ALONE,
    kept: KeptSums | None = None,
) -> SecondMoments:
    """Collect the second moments of all edited layers in one pass over the text.

    Args:
        em: The model, unedited.
        locator: Tokenises the documents.
        texts: Documents.
        max_documents: Stop after so many documents.
        max_tokens: Stop after so many tokens; None for no limit.
        dtype: Type of the result; sums are kept in float64 whatever it is.
        fingerprint: The model's weights fingerprint, kept as provenance.
        progress: Show a progress bar.
        group: Processes that share the passes over the text; all of them read it.
        kept: Where sums are put from time to time, and taken from if the pass over the text was interrupted.

    Returns:
        The statistics, with provenance.

    Raises:
        StatisticsError: There is no text.
        NonFiniteError: An activation is not finite.
        OtherTextError: The sums that were kept are of another text.
    """
    sums = {
        layer: torch.zeros(em.matrix(layer).shape[1:] * 2, dtype=torch.float64, device=em.weight(layer).device)
        for layer in em.layers
    }
    provenance = {
        "model": fingerprint,
        "weights": dtype_name(em.dtype),
        "module": em.paths.rewrite,
        "tokenizer": tokenizer_fingerprint(locator.tok),
    }
    digest = hashlib.sha256()
    tokens = 0
    if kept is not None:
        kept.take_up(sums, provenance)
    total = max_tokens if max_tokens is not None else max_documents
    with progress_bar("second moments", total, progress and group.main) as bar, torch.no_grad(), as_found(em.model):
        for number, rows in enumerate(_passes(em, locator, texts, max_documents, max_tokens, digest)):
            tokens += sum(len(row.ids) for row in rows)
            wanted = list(sums) if kept is None else kept.missing(number, digest.hexdigest())
            if wanted and number % group.size == group.rank:
                _accumulate(em, locator, rows, {layer: sums[layer] for layer in wanted})
            if kept is not None and kept.due():
                kept.put(sums, number, digest.hexdigest())
            bar.advance(bar.task_ids[0], sum(len(row.ids) for row in rows) if max_tokens is not None else len(rows))
    if kept is not None:
        kept.check_end()
    if tokens == 0:
        raise StatisticsError(
            "the text for second moments is empty; set mom2_dataset to a dataset, a file or a list of strings with text in it."
        )
    # One after another, in place: a sum takes gigabytes at the width of a large model.
    matrices = {layer: group.total(sums.pop(layer)).div_(tokens).to(dtype) for layer in em.layers}
    for layer, matrix in matrices.items():
        if not bool(torch.isfinite(matrix).all()):
            raise NonFiniteError(f"second moments of layer {layer} overflowed; load the model in bfloat16 or float32.")
    return SecondMoments(matrices, tokens, {**provenance, "text": digest.hexdigest(), "dtype": dtype_name(dtype)})


def _passes(
    em: EditableModel, locator: Locator, texts: Iterable[str], max_documents: int, max_tokens: int | None, digest: Any
) -> Iterator[list[TokenSequence]]:
    """Group documents into passes of bounded size, cutting the last one to the token limit."""
    length = min(_MAX_LENGTH, em.max_positions)
    left = max_tokens if max_tokens is not None else 1 << 62
    rows: list[TokenSequence] = []
    for number, text in enumerate(texts):
        if number >= max_documents or left <= 0:
            break
        ids = locator.tok(text, truncation=True, max_length=length, verbose=False)["input_ids"][:left]
        if not ids:
            continue
        digest.update(text.encode())
        left -= len(ids)
        rows.append(TokenSequence(tuple(ids), 0, len(ids)))
        if sum(len(row.ids) for row in rows) >= TOKENS_PER_PASS:
            yield rows
            rows = []
    if rows:
        yield rows


def _accumulate(em: EditableModel, locator: Locator, rows: list[TokenSequence], sums: dict[int, Tensor]) -> None:
    batch = pad(rows, locator.pad_id, em.input_device)
    mask = batch.attention_mask.bool()

    def add_to(layer: int) -> Callable[[Tensor], None]:
        def add(states: Tensor) -> None:
            keys = states[mask.to(states.device)].to(em.compute_dtype)
            sums[layer].add_(keys.T @ keys)

        return add

    forward_until(
        em.model,
        batch.input_ids,
        batch.attention_mask,
        em.rewrite[max(sums)],
        inputs={em.rewrite[layer]: add_to(layer) for layer in sums},
    )
