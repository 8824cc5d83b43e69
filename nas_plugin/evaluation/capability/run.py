"""Running tasks on a model and handing back plain numbers."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nas_plugin.errors import CapabilityError, PackageMissingError, TokenizerError
from nas_plugin.evaluation.capability.contain import quiet, unchanged_process
from nas_plugin.evaluation.capability.suite import LIKELIHOOD, STANDARD, Suite, load_suite, shipped_tasks
from nas_plugin.model.trace import as_found, forked_rng
from nas_plugin.parallel import ALONE, Group

LOG = logging.getLogger(__name__)

DEFINITIONS = {
    "acc": "Accuracy: the right answer has the highest log-likelihood, summed over its tokens, 0-shot (%).",
    "f1": "F1 averaged over classes, weighted by their frequency (%); of the answer parsed from 5 greedy tokens, unparsable "
    "counting as wrong, in the paper's protocol.",
    "f1_new": "The paper's protocol: weighted F1 of the answer with the highest mean log-likelihood per token (%).",
    "mcc": "Matthews' correlation coefficient of right and given answers, times 100: -100 to 100, 0 is chance.",
    "unparsable": "The paper's protocol: generated answers that hold none of the words looked for (%).",
}
# What lm-eval gives between 0 and 1 (or -1 and 1); other metrics, perplexity for one, stay as they are.
_SHARES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1", "mcc", "unparsable"}
_SEED = 1234
# "auto" starts where the logits of a batch of long prompts take 2 GiB in float32, and halves what does not fit.
_LONG_PROMPT, _LOGIT_BYTES, _LARGEST_BATCH = 1024, 2**31, 64


def capabilities(
    model: Any,
    tok: Any,
    tasks: Sequence[str],
    *,
    data_dir: str | os.PathLike[str] | None,
    limit: int | None = None,
    batch_size: int | str = "auto",
    protocol: str = STANDARD,
    group: Group = ALONE,
) -> dict[str, dict[str, float]]:
    """Measure tasks on a model through lm-eval.

    Nothing is downloaded for the shipped tasks (`shipped_tasks()`), and their data sets leave no cache behind. Any other name
    is lm-eval's, which then uses the network and the Hugging Face cache. Prompts longer than the model attends to lose their
    beginning; that is logged.

    Args:
        model: Causal language model; left as it is found.
        tok: Its tokenizer; never changed.
        tasks: Names.
        data_dir: Folder with the files of shipped tasks (`sst2.json`, `mrpc.json`, `cola.json`, `rte.json`, `nli.json`,
            `mnli.json`, `mmlu.json`: those of the tasks asked for); None without such tasks.
        limit: Measure the first so many records of each task only.
        batch_size: Rows per pass, or "auto".
        protocol: "standard", or "paper" for the NAS paper's: records 11 to 110 of a file, 0-shot, five greedy tokens searched
            for answer words, RTE's labels inverted.
        group: Processes that share the records; every one gets all results.

    Returns:
        Name -> metric -> value, a percentage where the metric is a share (`DEFINITIONS`). In the paper's protocol names begin
        with `paper_`. A tag of lm-eval gives an entry for each of its tasks; a group one entry if it has metrics of its own.
        What is not finite (the perplexity of a broken model) is left out, since JSON has no word for it.

    Raises:
        CapabilityError: A task or protocol is unknown, its data are missing or malformed, or a number is out of range.
        PackageMissingError: lm-eval is not installed.
        TokenizerError: The tokenizer is none that lm-eval can use.
    """
    names = _checked(tasks, limit, batch_size, protocol)
    with ExitStack() as stack:
        stack.enter_context(unchanged_process())
        scratch = stack.enter_context(TemporaryDirectory(prefix="nas-plugin-", ignore_cleanup_errors=True))
        _require_lm_eval()
        _require_tokenizer(tok)
        for guard in (quiet(), as_found(model), forked_rng(model, _SEED)):
            stack.enter_context(guard)
        suite = load_suite(names, Path(data_dir) if data_dir is not None else None, protocol, Path(scratch))
        return _measure(model, tok, suite, limit, batch_size, group)


def run_suite(lm: Any, suite: Suite, limit: int | None) -> dict[str, dict[str, float]]:
    """Run tasks on anything that lm-eval can evaluate.

    Args:
        lm: An `lm_eval.api.model.LM`.
        suite: Tasks.
        limit: Measure the first so many records of each task only.

    Returns:
        As `capabilities` does.
    """
    from lm_eval.evaluator import evaluate

    loaded = {"tasks": suite.tasks, "groups": suite.groups}
    rows = evaluate(lm, loaded, limit=limit, bootstrap_iters=0, log_samples=False)["results"]
    results: dict[str, dict[str, float]] = {}
    for asked, members in suite.members.items():
        for name in [asked] if _metrics(rows.get(asked, {})) else members:
            metrics = _metrics(rows[name])
            if name.endswith(LIKELIHOOD) and name.removesuffix(LIKELIHOOD) in results:
                results[name.removesuffix(LIKELIHOOD)]["f1_new"] = metrics["f1"]
            else:
                results[name] = metrics
    return results


def _checked(tasks: Sequence[str], limit: int | None, batch_size: int | str, protocol: str) -> list[str]:
    shipped_tasks(protocol)
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names or len(set(names)) != len(names):
        raise CapabilityError(f"tasks is {names}; give at least one name, and each once.")
    if limit is not None and not (isinstance(limit, int) and limit > 0):
        raise CapabilityError(f"limit is {limit!r}; expected a positive number of records, or None for all.")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size > 0):
        raise CapabilityError(f"batch_size is {batch_size!r}; expected a positive number of rows, or 'auto'.")
    return names


def _require_lm_eval() -> None:
    try:
        for name in ("lm_eval.evaluator", "lm_eval.models.huggingface", "lm_eval.tasks"):
            import_module(name)
    except ImportError as error:
        raise PackageMissingError(
            f"Capabilities need lm-eval ({error}); install it with `pip install 'nas-plugin[eval]'`."
        ) from error


def _require_tokenizer(tok: Any) -> None:
    from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

    if not isinstance(tok, PreTrainedTokenizer | PreTrainedTokenizerFast):
        raise TokenizerError(f"tok is a {type(tok).__name__}; lm-eval needs a tokenizer of transformers.")
    if tok.eos_token_id is None:
        raise TokenizerError("The tokenizer has no EOS token, at which lm-eval ends generation; set tok.eos_token.")


def _measure(
    model: Any, tok: Any, suite: Suite, limit: int | None, batch_size: int | str, group: Group
) -> dict[str, dict[str, float]]:
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    from nas_plugin.evaluation.capability.live import LiveModel, OutOfMemoryElsewhereError

    row_bytes = _LONG_PROMPT * model.get_input_embeddings().weight.shape[0] * 4
    rows = batch_size if isinstance(batch_size, int) else max(1, min(_LARGEST_BATCH, _LOGIT_BYTES // row_bytes))
    while True:
        try:
            return run_suite(LiveModel(model, tok, rows, group), suite, limit)
        except RuntimeError as error:
            less = isinstance(error, OutOfMemoryElsewhereError) or should_reduce_batch_size(error)
            if batch_size != "auto" or rows == 1 or not less:
                raise
        rows //= 2
        LOG.warning("out of memory: measuring capabilities again with %d rows at once", rows)
        clear_device_cache(garbage_collection=True)


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for key, value in row.items():
        # lm-eval's keys are "metric,filter"; the rest are names and counts.
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float) or not isfinite(value):
            continue
        metrics[metric if kind == "none" else key] = float(value) * (100 if metric in _SHARES else 1)
    return metrics
