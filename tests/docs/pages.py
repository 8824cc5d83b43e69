"""The pages of the documentation and the fenced blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("needs a download and an accelerator", "needs the network", "needs data of your own", "takes hours")
"""Titles of blocks that do not run here."""
RUN = ("bash", "python")
SHOWN = ("console", "html", "json", "text", "yaml")
"""Languages of blocks that show something instead of doing it."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
_INFO = re.compile(r'^(?P<language>\w*)(?: title="(?P<title>[^"]*)")?$')


@dataclass(frozen=True)
class Block:
    """A fenced block: the page's path below the checkout, the line of its fence, and what stands in it."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    @property
    def runs(self) -> bool:
        """Whether it has to run here."""
        return self.language in RUN and self.title not in MARKS

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """List README.md and every page below docs/, by their paths below the checkout."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks(page: str) -> list[Block]:
    """List the blocks of a page in order; ValueError if a fence is not closed or says more than a language and a title."""
    return parse(page, (ROOT / page).read_text(encoding="utf-8"))


def parse(page: str, text: str) -> list[Block]:
    found, inside, indent = [], None, ""
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line)
        if inside is not None:
            if fence and not fence["info"].strip():
                found.append(Block(page, *inside[:3], "\n".join(inside[3]) + "\n"))
                inside = None
            else:
                inside[3].append(line.removeprefix(indent))
        elif fence:
            info = _INFO.match(fence["info"].strip())
            if info is None:
                raise ValueError(f'{page}:{number}: {fence["info"]!r} is no language with a title="..."')
            inside, indent = (number, info["language"], info["title"], []), fence["indent"]
    if inside is not None:
        raise ValueError(f"{page}:{inside[0]}: this block is not closed")
    return found
