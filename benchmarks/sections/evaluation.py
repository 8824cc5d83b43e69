"""Evaluation of edits: all requests together against EasyEdit's evaluator, one request at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks import workload
from benchmarks.measure import Contender, Save, Section, interleaved
from benchmarks.reference import easyedit_missing
from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.evaluation.measures import measure as measure_cases
from nas_plugin.evaluation.quality import evaluate_requests
from nas_plugin.request import EditRequest

_PROTOCOLS = (
    "efficacy/token_accuracy",
    "generalization/token_accuracy",
    "locality/unchanged_tokens",
    "portability/token_accuracy",
    "fluency",
)

_COLUMNS = ("model", "requests", "ours s/request", "host s/request", "host ÷ ours", "ours forwards/request",
            "host forwards/request", "same numbers", "largest scatter")  # fmt: skip


def measure(quick: bool, save: Save) -> Section:
    """Measure both models; generation once, on one of them.

    Args:
        quick: 16 requests instead of 64, no generation.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    sizes = (1, 16) if quick else (1, 8, 64)
    section = Section(
        "eval",
        "Evaluation",
        "Rewrite, rephrase, two locality prompts and one portability prompt a request, on random 12-layer models. Host: "
        "`compute_edit_quality` of current EasyEdit, request by request (once; EasyEdit itself calls it before and after an "
        "edit). CPU seconds, one thread, medians of 3 interleaved rounds; the host evaluates up to 8 of the requests.",
        _COLUMNS,
    )
    missing = easyedit_missing()
    if missing is not None:
        section.notes.append(missing)
        return section
    logging.getLogger("easyeditor").setLevel(logging.ERROR)
    for family in workload.FAMILIES:
        section.rows += [_row(family, size) for size in sizes]
        save(section)
    if not quick:
        section.rows.append(_generation())
        save(section)
        section.notes.append(
            "With generation: besides the above a text of 100 tokens a request is sampled for the fluency figure. The host runs "
            "a forward pass over the whole text for each token, request by request; ours (`measure`, same metrics) writes all "
            "requests' texts together with a cache; NLTK's tokenizer, which needs a download, is replaced by a split at spaces. "
            "Samples differ, so fluency figures do; the others are those of the row."
        )
    return section


def _row(family: str, size: int) -> dict[str, Any]:
    model, tok = workload.random_model(family), workload.tokenizer()
    records = workload.records(size)
    theirs: list[Any] = []
    mine: list[Any] = []
    few = min(size, 8)
    contenders = {
        "host": Contender(lambda _n: theirs.__setitem__(slice(None), _host(model, tok, records[:few])), units=few),
        "ours": Contender(lambda _n: mine.__setitem__(slice(None), evaluate_requests(model, tok, records)), units=size),
    }
    times = interleaved(contenders, 3)
    return {
        "model": family,
        "requests": size,
        "ours s/request": times["ours"].median,
        "host s/request": times["host"].median,
        "host ÷ ours": times["host"].median / times["ours"].median,
        "ours forwards/request": _forwards(model, lambda: evaluate_requests(model, tok, records)) / size,
        "host forwards/request": _forwards(model, lambda: _host(model, tok, records[:1])) / 1,
        "same numbers": f"{sum(_same(a, b) for a, b in zip(theirs, mine, strict=False))} of {few}",
        "largest scatter": max(time.scatter for time in times.values()),
    }


def _generation(size: int = 16) -> dict[str, Any]:
    model, tok = workload.random_model("llama"), workload.tokenizer()
    records = workload.records(size)
    cases = [_case(record) for record in records]
    contenders = {
        "host": Contender(lambda n: _host(model, tok, records[n : n + 1], generation=True)),
        "ours": Contender(lambda _n: measure_cases(model, tok, cases, protocols=_PROTOCOLS), units=size),
    }
    times = interleaved(contenders, 3)
    return {
        "model": "llama, with generation",
        "requests": size,
        "ours s/request": times["ours"].median,
        "host s/request": times["host"].median,
        "host ÷ ours": times["host"].median / times["ours"].median,
        "ours forwards/request": _forwards(model, lambda: measure_cases(model, tok, cases, protocols=_PROTOCOLS))
        / size,
        "host forwards/request": _forwards(model, lambda: _host(model, tok, records[:1], generation=True)) / 1,
        "largest scatter": max(time.scatter for time in times.values()),
    }


def _case(record: dict[str, Any]) -> Case:
    def asks(group: dict[str, Any]) -> tuple[Ask, ...]:
        prompts, answers = group["prompt"], group["ground_truth"]
        pairs = [(prompts, answers)] if isinstance(prompts, str) else zip(prompts, answers, strict=True)
        return tuple(Ask(prompt, (answer,)) for prompt, answer in pairs)

    return Case(
        id=str(record["case_id"]),
        family="counterfact",
        requests=(EditRequest.from_mapping(record),),
        rephrases=(record["rephrase_prompt"],),
        locality={name: asks(group) for name, group in record["locality"].items()},
        portability={name: asks(group) for name, group in record["portability"].items()},
        generation_prompts=(record["prompt"],),
    )


def _host(model: Any, tok: Any, records: list[dict[str, Any]], generation: bool = False) -> list[Any]:
    from nas_plugin.easyedit.host import load_host

    hparams = SimpleNamespace(alg_name="NAS-MEMIT", max_length=40, device="cpu", model_name="random")
    quality = load_host().compute_edit_quality
    with mock.patch("nltk.word_tokenize", str.split):
        return [quality(model, "random", hparams, tok, r, "cpu", test_generation=generation) for r in records]


def _same(host: dict[str, Any], ours: dict[str, Any]) -> bool:
    parts = ("rewrite_acc", "rephrase_acc", "locality", "portability")
    return all(_plain(host[part]) == _plain(ours[part]) for part in parts)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not key.endswith("_meta")}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return round(float(value), 9) if isinstance(value, int | float) or hasattr(value, "dtype") else value


def _forwards(model: Any, run: Callable[[], object]) -> int:
    with _counting(model) as count:
        run()
    return len(count)


@contextmanager
def _counting(model: Any) -> Iterator[list[None]]:
    seen: list[None] = []
    handle = model.base_model.register_forward_pre_hook(lambda *_: seen.append(None))
    try:
        with torch.no_grad():
            yield seen
    finally:
        handle.remove()
