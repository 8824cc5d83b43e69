"""Run a script that uses EasyEdit, sent to the CPU as in the tests: `python -m tests.docs.run_example SCRIPT`."""

from __future__ import annotations

import runpy
import sys
from contextlib import ExitStack

from tests.docs.run_page import to_cpu

if __name__ == "__main__":
    with ExitStack() as stack:
        to_cpu(stack)
        runpy.run_path(sys.argv[1], run_name="__main__")
