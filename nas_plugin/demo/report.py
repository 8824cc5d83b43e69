"""The demo's table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from nas_plugin.demo.stream import COLLAPSED, Stream

# Okabe and Ito's palette: told apart with any colour vision; line styles repeat the difference.
_STYLE = {False: ("#D55E00", "--", "o"), True: ("#0072B2", "-", "s")}
_NORM_ALPHA = 0.45


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
    """Draw score and norm ratio against edits, one panel a method, collapse points marked.

    Args:
        streams: Results.
        path: PNG or SVG file to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(stream.plan.method for stream in streams))
    figure = Figure(figsize=(5.2 * len(methods) + 0.6, 4.4), layout="constrained")
    axes = figure.subplots(1, len(methods), squeeze=False)[0]
    for axis, method in zip(axes, methods, strict=True):
        norms = axis.twinx()
        for stream in (s for s in streams if s.plan.method == method):
            _draw_stream(axis, norms, stream)
        axis.axhline(COLLAPSED, color="0.6", linewidth=0.8, linestyle=":")
        axis.annotate(
            "collapse line: score 60",
            (0.02, COLLAPSED),
            (0, 3),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            color="0.4",
            fontsize=8,
        )
        axis.set(title=method, xlabel="edits", ylabel="score (thick lines)", ylim=(0, 103), xlim=(0, None))
        norms.set(ylabel="‖W‖ / ‖W₀‖ (thin lines)", ylim=(0, None))
        axis.set_zorder(norms.get_zorder() + 1)
        axis.patch.set_visible(False)
        axis.legend(loc="lower left", fontsize=9, framealpha=0.9)
    figure.suptitle("One edit after another on the embedded model: the same editor without and with norm anchoring")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_stream(axis: Any, norms: Any, stream: Stream) -> None:
    colour, line, marker = _STYLE[stream.plan.use_nas]
    edits = [c.edits for c in stream.checkpoints]
    collapse = stream.collapse_point
    label = f"{stream.plan.label} (collapse: {collapse if collapse is not None else 'none'})"
    axis.plot(edits, [c.score for c in stream.checkpoints], color=colour, linestyle=line, linewidth=2.2, label=label)
    norms.plot(
        [0, *edits],
        [1.0, *(c.norm_ratio for c in stream.checkpoints)],
        color=colour,
        linestyle=line,
        linewidth=1,
        alpha=_NORM_ALPHA,
    )
    if collapse is not None:
        height = next(c.score for c in stream.checkpoints if c.edits == collapse)
        axis.plot([collapse], [height], marker=marker, markersize=9, color=colour, markeredgecolor="white", zorder=5)
