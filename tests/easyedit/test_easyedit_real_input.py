"""Fifty CounterFact records, one after the other, through `BaseEditor` on a real pretrained model, by each method."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from easyedit_support import staying, weights

from nas_plugin import hparams as hyperparameters
from nas_plugin.evaluation import evaluate_requests, summarise

pytestmark = pytest.mark.contract
LOG = logging.getLogger(__name__)


def records_of_rewrites(records: list[dict[str, str]]) -> list[dict[str, str]]:
    """The prompts that were edited, and nothing else."""
    return [{"prompt": record["prompt"], "target_new": record["target_new"]} for record in records]


@pytest.mark.parametrize("method", ["MEMIT", "PRUNE", "RECT", "AlphaEdit", "ENCORE", "LyapLock"])
def test_fifty_counterfact_edits(host_on_cpu, shared_data: Path, tmp_path, caplog, method) -> None:
    records = json.loads((shared_data / "counterfact" / "counterfact-easyedit-10000.json").read_text(encoding="utf-8"))[
        :50
    ]
    hparams = getattr(hyperparameters, f"NAS{method}Hparams").from_hparams(
        "stories260K",
        model_name=str(shared_data / "models" / "stories260K"),
        mom2_dataset=str(shared_data / "text" / "tinystories-1000.json"),
        mom2_n_samples=200,
        nas_n_pilots=20,
        v_num_grad_steps=10,
        max_length=200,  # the host cuts prompt and target to this; a vocabulary of 512 makes long prompts
        stats_dir=str(tmp_path),
    )
    editor = host_on_cpu.BaseEditor.from_hparams(hparams)
    metrics, model, _ = editor.edit(
        prompts=[record["prompt"] for record in records],
        target_new=[record["target_new"] for record in records],
        ground_truth=[record["ground_truth"] for record in records],
        subject=[record["subject"] for record in records],
        rephrase_prompts=[record["rephrase_prompt"] for record in records],
        verbose=False,
        **staying(host_on_cpu),
    )
    accuracy = [float(record["post"]["rewrite_acc"][0]) for record in metrics]
    final = summarise(evaluate_requests(model, editor.tok, records_of_rewrites(records)))["rewrite_acc"]
    with caplog.at_level(logging.INFO, logger=__name__):
        LOG.info(
            "NAS-%s on stories260K: efficacy %.1f %% of target tokens just after each edit, %.1f %% after all 50",
            method,
            100 * sum(accuracy) / len(accuracy),
            100 * final,
        )
    assert len(accuracy) == 50 and all(0.0 <= value <= 1.0 for value in accuracy)
    assert all(bool(torch.isfinite(value).all()) for value in weights(model).values())
