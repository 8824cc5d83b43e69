"""What the documentation says to type runs, or says what it needs; commands and names in what does not run exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from nas_plugin.cli import app
from tests.docs.pages import MARKS, ROOT, RUN, SHOWN, Block, blocks, pages, parse

ALL = [block for page in pages() for block in blocks(page)]
COMMANDS: Any = typer.main.get_command(app)
# Whichever click typer is built on.
USAGE: Any = typer.BadParameter.__mro__[1]


@pytest.mark.parametrize("page", sorted({block.page for block in ALL if block.runs}))
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", 'exec python -m tests.docs.run_page "$0"', page],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("page", pages())
def test_every_block_says_what_it_is(page: str) -> None:
    for block in blocks(page):
        assert block.language in (*RUN, *SHOWN), f"{block}: language {block.language!r}"
        if block.language in RUN and block.title is not None:
            assert block.title in MARKS, f"{block}: title {block.title!r}"


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "python" and not b.runs], ids=str)
def test_python_that_does_not_run_here_imports_what_there_is(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nas_plugin"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), f"{block}: {ast.unparse(node)}"


@pytest.mark.parametrize("page", pages())
def test_commands_have_the_options_that_the_page_gives_them(page: str) -> None:
    for line in commands((ROOT / page).read_text(encoding="utf-8")):
        assert understood(line) is None, f"{page}: {line}: {understood(line)}"


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("nas-edit demo --edits 20", True),
        ("nas-edit", True),
        ("nas-edit study undo --help", True),
        ("nas-edit demo --edit-count 20", False),
        ("nas-edit demonstrate", False),
        ("nas-edit demo --edits many", False),
    ],
)
def test_what_counts_as_a_command_that_exists(line: str, right: bool) -> None:
    assert (understood(line) is None) is right


def test_blocks_are_found_where_they_stand() -> None:
    text = 'a\n```bash title="needs the network"\nls\n```\n\n    ```python\n    x = 1\n    ```\n'
    assert [(b.line, b.language, b.title, b.text, b.runs) for b in parse("p.md", text)] == [
        (2, "bash", "needs the network", "ls\n", False),
        (6, "python", None, "x = 1\n", True),
    ]


@pytest.mark.parametrize("text", ["```bash\nls\n", "```bash {.cls}\nls\n```\n"])
def test_a_fence_that_nobody_understands_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"p\.md:1"):
        parse("p.md", text)


def commands(text: str) -> list[str]:
    """List the `nas-edit` commands of a page, in blocks and in the text."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^\s*(?:\$ )?(nas-edit .*)$", joined, flags=re.MULTILINE)
    return [re.split(r"\s*(?:[|;>&#]|2>)", line)[0] for line in [*lines, *re.findall(r"`(nas-edit [^`]*)`", text)]]


def understood(line: str) -> str | None:
    """Say why the command line is refused; None if it is not. Nothing is run."""
    arguments = shlex.split(line)[1:]
    command: Any = COMMANDS
    while arguments and arguments[0] in getattr(command, "commands", ()):
        command = command.commands[arguments.pop(0)]
    if hasattr(command, "commands"):
        # A group alone, or one of its own options.
        return None if all(argument.startswith("-") for argument in arguments) else f"no command {arguments[0]}"
    if not arguments:
        return None  # the text speaks of the command
    try:
        command.make_context(command.name, arguments)
    except typer.Exit:
        return None  # --help
    except USAGE as error:
        return str(error.format_message())
    return None
