"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(str, Enum):
    """How it stands with something."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        name: What was looked at.
        state: "ok"; "warning": editing works, but slower, or not all of it; "problem": it does not work.
        says: What is there.
        advice: What to do about it; None if there is nothing to do.
    """

    name: str
    state: State
    says: str
    advice: str | None = None


def ok(name: str, says: str, advice: str | None = None) -> Finding:
    """Say that something is as it should be."""
    return Finding(name, State.OK, says, advice)


def warning(name: str, says: str, advice: str) -> Finding:
    """Say that something is not as it should be, and that editing works nevertheless."""
    return Finding(name, State.WARNING, says, advice)


def problem(name: str, says: str, advice: str) -> Finding:
    """Say that editing does not work because of something."""
    return Finding(name, State.PROBLEM, says, advice)


def gigabytes(number: int) -> str:
    """Write a number of bytes as people do."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
