"""Token accuracies of real records on a real pretrained model, ours against the host's evaluator: difference 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from nas_plugin.easyedit.host import Host
from nas_plugin.evaluation.measures import TEACHER_FORCED, base_outputs, measure
from nas_plugin.evaluation.streams import load_stream

pytestmark = pytest.mark.contract
# So long that the host cuts nothing.
SETTINGS = SimpleNamespace(alg_name="NAS-MEMIT", max_length=500)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> tuple[Any, Any, Any]:
    """The model, the model with one layer disturbed, and a tokenizer that pads as the wheel needs it."""
    folder = shared_data / "models" / "stories260K"
    # By its class, because older transformers do not know the one that the folder names.
    tok = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
    # The host takes every token that equals the pad token for padding: one that no prompt holds.
    tok.pad_token = tok.convert_ids_to_tokens(0)
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2)]
    weight = models[1].model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return *models, tok


def percentages(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The host's results of one request under the names of ours."""
    for ours, theirs in (("efficacy", "rewrite_acc"), ("generalization", "rephrase_acc")):
        if theirs in after:
            yield f"{ours}/token_accuracy", 100 * float(after[theirs][0])
    for key, outputs in after["locality"].items():
        pairs = zip(before["locality"][key], outputs, strict=True)
        kept = [sum(a == b for a, b in zip(*pair, strict=True)) / len(pair[0]) for pair in pairs]
        yield f"locality/{key.removesuffix('_output')}/unchanged_tokens", 100 * sum(kept) / len(kept)
    for key, shares in after["portability"].items():
        yield f"portability/{key.removesuffix('_acc')}/token_accuracy", 100 * float(sum(shares) / len(shares))


FILES = [
    ("counterfact/counterfact-full-schema-4385.json", 50),
    ("counterfact/counterfact-easyedit-10000.json", 10),
    ("zsre/zsre_mend_eval-1037.json", 15),
    ("knowedit/wiki_counterfact-test.json", 15),
    ("wikibigedit/wikibigedit-35.json", 15),
]


@pytest.mark.parametrize(("file", "count"), FILES)
def test_equals_the_hosts_evaluator(host_on_cpu: Host, shared_data: Path, stories, file: str, count: int) -> None:
    original, edited, tok = stories
    cases = load_stream(shared_data / file, limit=count).cases
    base = base_outputs(original, tok, cases)
    # The host asks for one rephrase.
    first_only = [replace(case, rephrases=case.rephrases[:1]) for case in cases]
    results = measure(edited, tok, first_only, base=base, protocols=TEACHER_FORCED)
    values = []
    for case, result in zip(cases, results, strict=True):
        before, after = (
            host_on_cpu.compute_edit_quality(model, "stories260K", SETTINGS, tok, case.to_easyedit(), "cpu")
            for model in (original, edited)
        )
        outputs = {f"{group}_output": rows for group, rows in base["locality"][case.id].items()}
        assert before["locality"] == outputs
        for name, value in percentages(before, after):
            assert result[name] == pytest.approx(value, abs=1e-9), f"case {case.id}, {name}"
            values.append(value)
    # There was something to disagree about.
    assert len(values) >= 2 * len(cases) and sum(0 < value < 100 for value in values) >= len(cases) / 2
