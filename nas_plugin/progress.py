"""Progress bars on a terminal, silence elsewhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress_bar(description: str, total: int, enabled: bool = True) -> Iterator[Progress]:
    """Show a bar for one task while the block runs.

    Args:
        description: What is being done.
        total: Number of units; advance with `bar.advance(bar.task_ids[0], units)`.
        enabled: False, or no terminal, shows nothing.

    Yields:
        The bar.
    """
    # Importing rich.progress draws from Python's random stream, which is the caller's.
    state = random.getstate()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    random.setstate(state)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (enabled and console.is_terminal)) as bar:
        bar.add_task(description, total=total)
        yield bar
