"""Writing the page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from nas_plugin.errors import RunFolderError
from nas_plugin.evaluation.logs import read_run
from nas_plugin.evaluation.report import charts, details, palette, sections, tables, words
from nas_plugin.evaluation.report.runs import Run, Style, arrange
from nas_plugin.evaluation.report.svg import draw_symbol
from nas_plugin.files import write_bytes

_SECTIONS = (
    sections.trajectories,
    sections.retention,
    sections.value_norms,
    sections.drift,
    sections.perplexity,
    sections.capabilities,
)
_SAMPLE_WIDTH, _SAMPLE_HEIGHT = 36, 12


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Draw one page from the folders of one run or several, finished or not.

    The page needs nothing but itself: no network, no scripts, no fonts. The same folders give the same bytes.

    Args:
        folders: Run folders.
        out: HTML file to write.

    Returns:
        `out`.

    Raises:
        RunFolderError: There are no folders, or one is not as the runner writes it.
        PackageMissingError: matplotlib is not installed.
    """
    if not folders:
        raise RunFolderError("no run folders; give at least one.")
    runs = arrange(read_run(folder) for folder in folders)
    write_bytes(out, _page(runs).encode())
    return out


def _page(runs: Sequence[Run]) -> str:
    environment = Environment(
        loader=PackageLoader("nas_plugin.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    able = [run for run in runs if run.available]
    drawn = [section for build in _SECTIONS if (section := build(able))]
    styles = {sections.BEFORE: Style("muted", "o", "-"), **{run.symbol: run.style for run in runs}}
    symbols = [
        draw_symbol(partial(charts.paint_symbol, style=style), _SAMPLE_WIDTH, _SAMPLE_HEIGHT, name)
        for name, style in styles.items()
    ]
    return environment.get_template("page.html").render(
        title=words.title(runs),
        conditions=words.conditions(runs),
        verdicts=words.verdicts(able),
        notices=words.notices(runs),
        headline=tables.headline(runs),
        sections=drawn,
        runs=[(run, details.metrics(run), details.settings(run)) for run in runs],
        protocols=details.protocols(runs),
        symbols=symbols,
        light=palette.variables(dark=False),
        dark=palette.variables(dark=True),
    )
