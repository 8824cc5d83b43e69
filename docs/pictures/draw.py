"""Draw the pictures of the concept pages from runs of the embedded model: `python docs/pictures/draw.py`, about a minute.

Every number in them comes from the editors themselves: stream order 0 of the demo, float64, hyperparameters as shipped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from nas_plugin import EditSession, NASAlphaEditHparams, NASMEMITHparams
from nas_plugin.demo import load_demo
from nas_plugin.demo.score import score
from nas_plugin.demo.world import World
from nas_plugin.write.gain import Gain
from nas_plugin.write.methods.prune import squashed

PLAIN, NAS, GREY = "#D55E00", "#0072B2", "0.45"


@dataclass(frozen=True)
class Run:
    """One stream: per edit the norm as solved and as written and |W| / |W0|; the score at some of them; the anchor."""

    solved: list[float]
    written: list[float]
    growth: list[float]
    scores: dict[int, float]
    anchor: float | None
    session: EditSession


def run(hparams: Any, edits: int, every: int) -> Run:
    """Write a stream of the demo, one edit a step.

    Args:
        hparams: The editor.
        edits: Length of the stream.
        every: Edits between scores.

    Returns:
        What was measured.
    """
    model, tok = load_demo(torch.float64)
    world = World()
    stream = world.edits(edits)
    session = EditSession(model, tok, hparams, progress=False)
    solved, written, growth, scores = [], [], [], {}
    for number, edit in enumerate(stream, start=1):
        report = session.edit(edit.to_request())
        solved.append(report.edits[0].value_norm)
        written.append(report.edits[0].written_norm)
        growth.append(report.norm_ratio)
        if number % every == 0:
            scores[number] = score(model, tok, stream[:number], world.held_out_facts).score
    return Run(solved, written, growth, scores, session.anchor_value, session)


def draw_loop(plain: Run, nas: Run, path: Path) -> None:
    """The feedback loop: solved values, weights and score against edits, without and with NAS."""
    figure = Figure(figsize=(9.6, 3.1), layout="constrained")
    values, weights, scores = figure.subplots(1, 3)
    for each, colour, line, label in ((plain, PLAIN, "--", "MEMIT"), (nas, NAS, "-", "NAS-MEMIT")):
        count = range(1, len(each.solved) + 1)
        values.plot(count, each.solved, ".", markersize=2.5, color=colour, alpha=0.5)
        values.plot(count, running_mean(each.solved), color=colour, linestyle=line, linewidth=2, label=label)
        weights.plot([0, *count], [1.0, *each.growth], color=colour, linestyle=line, linewidth=2)
        scores.plot(list(each.scores), list(each.scores.values()), color=colour, linestyle=line, linewidth=2)
    values.set(title="norm of the value as solved, ‖v*‖", xlabel="edits", yscale="log")
    plain_ticks(values)
    values.legend(fontsize=8)
    weights.set(title="‖W‖ / ‖W₀‖", xlabel="edits", ylim=(0, None))
    scores.axhline(60, color=GREY, linewidth=0.9, linestyle=":")
    scores.set(title="score over all edits so far", xlabel="edits", xlim=(0, None), ylim=(40, 102))
    save(figure, path)


def running_mean(values: Sequence[float], width: int = 20) -> list[float]:
    """Return the mean of the last `width` values at each place."""
    means = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - width) : end]
        means.append(sum(part) / len(part))
    return means


def draw_anchor(nas: Run, plain: Run, pilots: int, path: Path) -> None:
    """The anchor: norms of pilot values on the unedited model, and what a stream solves and writes."""
    model, tok = load_demo(torch.float64)
    session = EditSession(model, tok, NASMEMITHparams(nas_n_pilots=pilots), progress=False)
    requests = [edit.to_request() for edit in World().pilots(pilots)]
    norms = session.solve(requests).values.norm(dim=1).tolist()
    figure = Figure(figsize=(9.6, 3.1), layout="constrained")
    counts, stream = figure.subplots(1, 2, width_ratios=(2, 3), sharey=True)
    low, high = math.log10(min(norms)), math.log10(max(norms))
    counts.hist(
        norms,
        bins=[10 ** (low + (high - low) * step / 20) for step in range(21)],
        orientation="horizontal",
        color=NAS,
        alpha=0.6,
    )
    counts.set(title=f"{pilots} pilots on the unedited model", xlabel="pilots", ylabel="‖v*‖", yscale="log")
    edits = range(1, len(nas.solved) + 1)
    stream.plot(edits, plain.solved, "x", markersize=3, color=PLAIN, alpha=0.5, label="MEMIT, solved and written")
    stream.plot(edits, nas.solved, ".", markersize=4, color=NAS, alpha=0.5, label="NAS-MEMIT, as solved")
    stream.plot(edits, nas.written, color=NAS, linewidth=2, label="NAS-MEMIT, as written")
    stream.set(title="the stream", xlabel="edits")
    for axis in (counts, stream):
        axis.axhline(nas.anchor or 0.0, color="black", linewidth=1, linestyle=":")
    counts.annotate(
        f"τ = {nas.anchor:.1f}", (1, nas.anchor), (-4, -12), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    plain_ticks(counts)
    stream.legend(fontsize=8)
    save(figure, path)


def draw_recursion(edits: int, path: Path) -> None:
    """The recursion: which part of a later edit lands on an earlier key, with the gain as it was and with it carried."""
    keys = run(NASAlphaEditHparams(), edits, edits).session.editors[0].gain.keys
    prior = EditSession(*load_demo(torch.float64), NASAlphaEditHparams(), progress=False)
    prior.prepare()
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, carries in zip(axes, (False, True), strict=True):
        landing, mean = leaks(prior.editors[0].gain.prior().clone(), keys, carries)
        image = axis.imshow(landing, vmin=0, vmax=0.5, cmap="Blues", extent=(0.5, edits + 0.5, edits + 0.5, 0.5))
        kept = "carried: H ← H − B M⁻¹ Bᵀ" if carries else "not carried: H stays H₀"
        axis.set(title=f"{kept}\nmean over pairs {mean:.3f}", xlabel="edit t")
    axes[0].set_ylabel("earlier key i")
    figure.colorbar(image, ax=list(axes), label="| kᵢᵀ Aₜ |", shrink=0.85)
    save(figure, path)


def leaks(prior: torch.Tensor, keys: torch.Tensor, carries: bool) -> tuple[torch.Tensor, float]:
    """Go through the recursion with these keys, one a step.

    Args:
        prior: H before the first step, `(d, d)`.
        keys: `(d, t)`.
        carries: Whether H is carried to the next step.

    Returns:
        Entry (i, t): the share of edit t's residual that is added to the output for the earlier key i, `(t, t)`, NaN where i is
        not earlier; and its mean.
    """
    gain, count = Gain(prior, carries), keys.shape[1]
    landing = torch.full((count, count), float("nan"), dtype=keys.dtype)
    for number in range(count):
        key = keys[:, number : number + 1]
        step = gain.solve(key)
        landing[:number, number] = (keys[:, :number].T @ step.A).abs().squeeze(1)
        gain.absorb(step, key)
    return landing, float(landing[~landing.isnan()].mean())


def draw_squashing(path: Path) -> None:
    """PRUNE's function of singular values, as the editor computes it."""
    largest = 3.0
    values = torch.linspace(0, 15, 301, dtype=torch.float64)
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axis = figure.subplots()
    axis.plot(values, values, color=GREY, linestyle=":", linewidth=1, label="unchanged")
    for alpha, colour, line, name in ((torch.e, NAS, "-", "α = e"), (1.2, PLAIN, "--", "α = 1.2")):
        seen = torch.linalg.svdvals(squashed(torch.diag(values), largest, float(alpha))).sort().values
        # Singular values come sorted; the function rises, so that they are in the order of `values`.
        axis.plot(values, seen, color=colour, linestyle=line, linewidth=2, label=name)
    axis.axvline(largest, color=GREY, linewidth=0.8)
    axis.annotate("σ₀", (largest, 14), (4, 0), textcoords="offset points")
    axis.set(xlabel="singular value of the accumulated change", ylabel="as served", ylim=(0, 15), xlim=(0, 15))
    axis.legend(fontsize=8, loc="lower right")
    save(figure, path)


def plain_ticks(axis: Any) -> None:
    """Write 100 instead of 10² on a logarithmic axis of few decades."""
    axis.set_yticks([30, 50, 100, 200, 300, 500])
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path) -> None:
    """Write a picture: on white, without a date in it."""
    for axis in figure.axes:
        axis.title.set_fontsize(10)
        axis.grid(False)
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--pilots", type=int, default=100)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    every = max(1, chosen.edits // 15)
    plain = run(NASMEMITHparams(use_nas=False), chosen.edits, every)
    nas = run(NASMEMITHparams(nas_n_pilots=chosen.pilots), chosen.edits, every)
    draw_loop(plain, nas, chosen.out / "loop.png")
    draw_anchor(nas, plain, chosen.pilots, chosen.out / "anchor.png")
    draw_recursion(min(chosen.edits, 60), chosen.out / "recursion.png")
    draw_squashing(chosen.out / "prune.png")


if __name__ == "__main__":
    main()
