"""Run folders as the runner writes them, with made-up but plausible numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

PROTOCOLS = {
    "efficacy/probability": "Share of edits whose new target has a lower mean token NLL than the true one.",
    "generalization/probability": "The same on rephrased prompts, mean over a case's prompts.",
    "specificity/probability": "Share of neighbours whose true target has the lower mean token NLL.",
    "score/probability": "Harmonic mean of efficacy, generalization and specificity.",
    "efficacy/token_accuracy": "Share of target tokens that are the most probable, earlier ones given.",
    "efficacy/generated": "Share of edits whose greedy continuation starts with the target.",
}
TASKS = ("sst2", "mrpc", "cola", "rte", "mnli", "mmlu")
LAYERS = ("9", "10")
ANCHOR = 3.21


def statistic(mean: float, count: int) -> dict[str, Any]:
    return {"mean": round(mean, 2), "std": round(math.sqrt(max(0.0, mean * (100 - mean))), 2), "count": count}


def metrics(quality: float, count: int) -> dict[str, Any]:
    """A score that falls from 97 to 50 as quality goes from 1 to 0, with all that goes with it."""
    efficacy, generalization, specificity = 52 + 47 * quality, 50 + 45 * quality, 49 + 40 * quality
    score = 3 / (1 / efficacy + 1 / generalization + 1 / specificity)
    return {
        "efficacy/probability": statistic(efficacy, count),
        "generalization/probability": statistic(generalization, count),
        "specificity/probability": statistic(specificity, count),
        "score/probability": {"mean": round(score, 2), "std": 0.0, "count": count},
        "efficacy/token_accuracy": statistic(98 * quality, count),
        "efficacy/generated": statistic(93 * quality, count),
    }


def cloud(rng: np.random.Generator, moved: float) -> list[list[float]]:
    scale = [3 * (1 + moved / 8), 1.2 * (1 + moved / 5)]
    return (rng.normal(size=(200, 2)) * scale + [moved, moved / 2]).round(3).tolist()


def drift(seed: int, growth: float) -> dict[str, Any]:
    moved = 2.5 * (growth - 1)
    return {
        layer: {
            "pca_distance": round(moved * 1.118, 3),
            "full_distance": round(moved * 1.4, 3),
            "spread": round(3 + moved / 3, 3),
            "cloud": cloud(np.random.default_rng(seed + int(layer)), moved),
        }
        for layer in LAYERS
    }


def write_run(
    folder: Path,
    method: str = "MEMIT",
    use_nas: bool = False,
    *,
    edits: int = 300,
    every: int = 20,
    strength: float = 1.0,
    stopped_after: int | None = None,
    extras: bool = True,
    **overrides: Any,
) -> Path:
    """Write a run folder; `strength` says how fast the weights grow, `extras` whether the optional measures are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([len(method), use_nas])
    grid = list(range(every, edits + 1, every))
    cohort = 40
    run = {
        "format": 1,
        "label": f"NAS-{method}" if use_nas else method,
        "method": method,
        "use_nas": use_nas,
        "model": "nas_plugin.demo",
        "hparams": {"layers": [9, 10], "v_lr": 0.5, "use_nas": use_nas},
        "anchor": ANCHOR if use_nas else None,
        "stream": {"name": "demo", "file": None, "sha256": "ab" * 32, "cases": edits, "family": "demo"},
        "edits_per_step": 1,
        "grid": grid,
        "cohort": cohort,
        "versions": {"nas_plugin": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.7"},
        "protocols": PROTOCOLS,
        "command": f"nas-edit run demo --method {method} --edits {edits}",
        "status": "done" if stopped_after is None else "stopped",
        "unavailable": None,
    } | overrides
    (folder / "run.json").write_text(json.dumps(run, indent=1))
    (folder / "base.json").write_text("{}")
    if run["unavailable"] is not None:
        return folder

    rate = strength * (0.0012 if use_nas else 0.012)
    growth = [
        math.exp(rate * n) if not use_nas else 1 + 0.5 * (1 - math.exp(-strength * n / 120)) for n in range(edits + 1)
    ]
    last = edits if stopped_after is None else stopped_after
    lines = []
    for n in range(1, last + 1):
        norm = float(rng.lognormal(math.log(ANCHOR * growth[n] ** 1.3), 0.22))
        immediate = {
            "efficacy/probability": 100.0,
            "efficacy/token_accuracy": 100.0,
            "efficacy/generated": 100.0 * (n % 8 != 0),
        }
        lines.append({
            "edit": n, "step": n, "case_id": f"case-{n}", "prompt": "{} lives in", "subject": f"Person {n}", "target": "Oslo",
            "loss": 0.03, "updates": 12, "value_norm": round(norm, 3), "written_norm": ANCHOR if use_nas else round(norm, 3),
            "skipped": False, "seconds": 0.31 + 0.05 * rng.random(), "immediate": immediate if extras else None,
        })  # fmt: skip
    (folder / "edits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    checkpoints = []
    for n in [0, *(n for n in grid if n <= last)]:
        quality = 1 / (1 + (growth[n] / 6) ** 2) * (1 - 0.2 * n / edits) * (0.97 + 0.03 * rng.random())
        early = min(n, cohort)
        checkpoints.append({
            "edits": n, "step": n, "edit_seconds": round(0.33 * n, 2), "eval_seconds": 2.0,
            "norm": {
                "layers": {"9": round(growth[n] ** 0.9, 4), "10": round(growth[n] ** 1.1, 4)}, "total": round(growth[n], 4),
            },
            "final": metrics(quality, n) if n else {},
            "cohort": metrics(quality * (1 - 0.1 * n / edits), early) if n else metrics(0.02, cohort),
            "perplexity": round(12.3 * growth[n] ** 2, 2) if extras else None,
            "drift": drift(7, growth[n]) if extras and n in (0, last, 100) else None,
            "capability": {
                task: {"acc": round(50 + (38 - 5 * i) * quality + 2 * rng.random(), 1), "mcc": round(60 * quality, 1)}
                for i, task in enumerate(TASKS)
            } if extras and (n % 60 == 0 or n == last) else None,
        })  # fmt: skip
    (folder / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in checkpoints))
    return folder


def write_comparison(folder: Path) -> list[Path]:
    """Six methods, plain and with norm anchoring, and two that could not run."""
    strengths = {"MEMIT": 1.0, "PRUNE": 0.9, "RECT": 0.8, "AlphaEdit": 1.2, "ENCORE": 0.35, "LyapLock": 0.6}
    runs = [
        write_run(folder / f"{'nas-' * nas}{method}", method, nas, strength=strength)
        for method, strength in strengths.items()
        for nas in (False, True)
    ]
    for method, reason in (("WISE", "the installed host has no WISE"), ("GRACE", "no GPU: the host moves it to one")):
        runs.append(write_run(folder / method, method, unavailable=reason, status="stopped"))
    return runs
