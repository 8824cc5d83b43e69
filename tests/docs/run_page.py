"""Run the blocks of one page in order, in the present folder: `python -m tests.docs.run_page PAGE`.

Python blocks share a namespace. EasyEdit's wheel, which names a GPU in every other line, is sent to the CPU.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from tests.docs.pages import Block, blocks


def main(page: str) -> None:
    """Run a page; the first block that fails ends it and is named on stderr."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with ExitStack() as stack:
        for block in blocks(page):
            if not block.runs:
                continue
            try:
                if "easyeditor" in block.text:
                    to_cpu(stack)
                run(block, names)
            except BaseException:
                sys.stderr.write(f"\n{block}: this block fails\n")
                raise


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block of commands, which the first that fails ends, or of Python, with tracebacks that give the page's lines."""
    if block.language == "bash":
        subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=True)
    else:
        exec(compile("\n" * block.line + block.text, block.page, "exec"), names)


def to_cpu(stack: ExitStack) -> None:
    """Let the host run without an accelerator until the stack is closed."""
    from nas_plugin.easyedit.host import load_host
    from tests.easyedit.cpu_redirect import accelerators_are_cpu

    stack.enter_context(accelerators_are_cpu(load_host().is_wheel))


if __name__ == "__main__":
    main(sys.argv[1])
