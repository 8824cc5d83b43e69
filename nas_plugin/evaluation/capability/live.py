"""lm-eval's view of the live model. Imported on demand: it needs lm-eval."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.models.huggingface import HFLM

from nas_plugin.evaluation.capability.contain import changed
from nas_plugin.evaluation.capability.suite import LIKELIHOOD
from nas_plugin.parallel import ALONE, Group


class OutOfMemoryElsewhereError(RuntimeError):
    """Another process ran out of memory over its share: all have to try again, with fewer rows at once."""


class LiveModel(HFLM):
    """The model as it is, with a tokenizer of its own, since lm-eval sets pad token and padding side.

    Log-likelihoods are computed in float32 whatever the model's dtype: rounded to half precision, close answers tie.
    """

    def __init__(self, model: Any, tok: Any, batch_size: int, group: Group = ALONE) -> None:
        self._group = group
        tok = copy.deepcopy(tok)
        if tok.pad_token_id is None:
            # Padding is masked, so any token of the vocabulary will do; lm-eval would add one the model has no row for.
            tok.pad_token_id = tok.eos_token_id if tok.eos_token_id is not None else 0
        # Tying again would overwrite a head that somebody untied.
        with changed(model, "tie_weights", lambda: None):
            super().__init__(
                pretrained=model, tokenizer=tok, backend="causal", batch_size=batch_size, softmax_dtype="float32"
            )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations: by their sum over tokens, or their mean for the tasks that the paper's code scores so.

        Args:
            requests: lm-eval's requests, each a context and a continuation.
            disable_tqdm: No progress bar.

        Returns:
            (log-likelihood, whether it is what greedy decoding gives), in order.
        """
        results = self._shared(partial(super().loglikelihood, disable_tqdm=disable_tqdm), requests)
        return [
            (total / len(self._encode_pair(*request.args)[1]), greedy)
            if request.task_name.startswith("paper_") and request.task_name.endswith(LIKELIHOOD)
            else (total, greedy)
            for request, (total, greedy) in zip(requests, results, strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts; see `loglikelihood`."""
        return self._shared(partial(super().loglikelihood_rolling, disable_tqdm=disable_tqdm), requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts; see `loglikelihood`."""
        return self._shared(partial(super().generate_until, disable_tqdm=disable_tqdm), requests)

    def _shared(self, answer: Callable[[list[Any]], list[Any]], requests: list[Any]) -> list[Any]:
        """Answer this process's share of requests.

        Returns:
            The answers to all of them, in order.

        Raises:
            RuntimeError: This process failed, or another one.
        """
        failed: RuntimeError | None = None
        mine: list[Any] = []
        try:
            mine = answer(list(self._group.mine(requests)))
        except RuntimeError as error:
            failed = error
        # All end here together, or one would wait for the others for ever.
        fatal = failed is not None and not should_reduce_batch_size(failed)
        if self._group.any(fatal):
            raise failed or RuntimeError("another process could not answer its share of the records.")
        if self._group.any(failed is not None):
            raise failed or OutOfMemoryElsewhereError
        return self._group.gathered(mine, len(requests))
