"""Going through streams of edits: run folders, stopping and going on, comparing methods."""

from nas_plugin.evaluation.runner.plan import Measures, Plan, plan_run
from nas_plugin.evaluation.runner.run import run_stream
from nas_plugin.evaluation.runner.writers import SessionWriter, Writer

__all__ = ["Measures", "Plan", "SessionWriter", "Writer", "plan_run", "run_stream"]
