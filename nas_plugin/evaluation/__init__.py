"""Measuring edits: streams, metrics named by their protocol, runs with logs, reports, capabilities, studies.

`evaluate_requests` and `summarise` give the token accuracy of many requests in few forward passes, at the numbers of EasyEdit's
evaluator. They are loaded on first use: commands that only show their help need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_plugin.evaluation.quality import evaluate_requests, summarise

__all__ = ["evaluate_requests", "summarise"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use.

    Args:
        name: The attribute asked for.

    Returns:
        The function of that name.

    Raises:
        AttributeError: There is no such public name.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("nas_plugin.evaluation.quality"), name)
