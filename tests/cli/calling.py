"""Calling `nas-edit` in this process."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from nas_plugin.cli import app

# Few texts, few pilots, few steps: enough for every path, a second on one core.
SMALL = ("--set", "mom2_n_samples=40", "--set", "nas_n_pilots=3", "--set", "v_num_grad_steps=5")


def call(*arguments: object, code: int = 0) -> str:
    """Call it, and return standard output and standard error without colours."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)
