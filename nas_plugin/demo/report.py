"""The demo's table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from nas_plugin.demo.stream import COLLAPSED, Stream

# Okabe and Ito's palette: told apart with any colour vision; line styles repeat the difference.
_STYLE = {False: ("#D55E00", "--", "o"), True: ("#0072B2", "-", "s")}


def table(streams: Sequence[Stream], every: int) -> Table:
    """Lay the streams out side by side.

    Args:
        streams: Results, in the order to show.
        every: Show one checkpoint in so many edits, and the last.

    Returns:
        A table for a terminal.
    """
    result = Table(title="score / held-out facts % / |W|/|W0|, after so many edits")
    result.add_column("edits", justify="right")
    for stream in streams:
        result.add_column(stream.plan.label, justify="right")
    last = streams[0].checkpoints[-1].edits
    for row, checkpoint in enumerate(streams[0].checkpoints):
        if checkpoint.edits % every == 0 or checkpoint.edits == last:
            cells = [s.checkpoints[row] for s in streams]
            result.add_row(
                str(checkpoint.edits), *(f"{c.score:.0f} / {c.held_out:.0f} / {c.norm_ratio:.1f}" for c in cells)
            )
    result.add_section()
    result.add_row("collapse", *(str(s.collapse_point or "none") for s in streams))
    return result


def verdicts(streams: Sequence[Stream]) -> list[str]:
    """Say for each method how much later it collapses with NAS.

    Args:
        streams: Results, with and without NAS.

    Returns:
        One sentence per method that was run both ways.
    """
    lines = []
    by_label = {stream.plan.label: stream for stream in streams}
    for stream in streams:
        nas = by_label.get(f"NAS-{stream.plan.method}")
        if stream.plan.use_nas or nas is None:
            continue
        method, plain, last = stream.plan.method, stream.collapse_point, nas.checkpoints[-1].edits
        if plain is None:
            lines.append(f"{method}: no collapse within {last} edits without NAS.")
        elif nas.collapse_point is None:
            times = f"{last / plain:.1f} times as many or more"
            lines.append(f"{method}: collapses at {plain} edits; with NAS not within {last} ({times}).")
        else:
            times = f"{nas.collapse_point / plain:.1f} times as many"
            lines.append(f"{method}: collapses at {plain} edits; with NAS at {nas.collapse_point} ({times}).")
    return lines


def draw(streams: Sequence[Stream], path: Path) -> None:
    """Draw score above norm ratio against edits, one column a method, collapse points marked.

    Args:
        streams: Results.
        path: PNG or SVG file to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(stream.plan.method for stream in streams))
    lowest = min(checkpoint.score for stream in streams for checkpoint in stream.checkpoints)
    figure = Figure(figsize=(4.8 * len(methods) + 0.6, 6.0), layout="constrained")
    axes = figure.subplots(2, len(methods), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 2))
    for (scores, norms), method in zip(axes.T, methods, strict=True):
        for stream in (s for s in streams if s.plan.method == method):
            _draw_stream(scores, norms, stream)
        scores.axhline(COLLAPSED, color="0.45", linewidth=0.9, linestyle=":")
        scores.annotate(
            "collapsed: score 60 or less", (0.99, COLLAPSED), (0, 2), textcoords="offset points",
            xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.35", fontsize=8,
        )  # fmt: skip
        scores.set(title=method, ylim=(min(40, lowest - 5), 102))
        scores.legend(loc="upper right", fontsize=9)
        norms.set(xlabel="edits, one after another", xlim=(0, None), ylim=(0, None))
    axes[0, 0].set_ylabel("score over all edits so far")
    axes[1, 0].set_ylabel("‖W‖ / ‖W₀‖")
    figure.suptitle("The embedded model under the same editor, without and with norm anchoring")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_stream(scores: Any, norms: Any, stream: Stream) -> None:
    colour, line, marker = _STYLE[stream.plan.use_nas]
    edits, collapse = [c.edits for c in stream.checkpoints], stream.collapse_point
    label = f"{stream.plan.label}: " + (f"collapse at {collapse}" if collapse is not None else "no collapse")
    drawn = {"color": colour, "linestyle": line, "linewidth": 2}
    scores.plot(edits, [c.score for c in stream.checkpoints], label=label, **drawn)
    norms.plot([0, *edits], [1.0, *(c.norm_ratio for c in stream.checkpoints)], **drawn)
    if collapse is not None:
        height = next(c.score for c in stream.checkpoints if c.edits == collapse)
        scores.plot([collapse], [height], marker=marker, markersize=10, color=colour, markeredgecolor="white", zorder=5)
        for axis in (scores, norms):
            axis.axvline(collapse, color=colour, linewidth=0.8, alpha=0.5)
