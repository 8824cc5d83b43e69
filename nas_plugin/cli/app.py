"""The application that commands belong to; errors that have a name end it with their message alone."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import nas_plugin
from nas_plugin.cli import (
    benchmarks,
    comparing,
    demo,
    doctor,
    hparams,
    log,
    measuring,
    running,
    sharing,
    tuning,
    undoing,
)
from nas_plugin.errors import GuardError, NasPluginError
from nas_plugin.evaluation.studies import commands as studies


class _Commands(TyperGroup):
    """Commands whose named errors are messages: whoever reads them needs no traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; see `click.Group.invoke`."""
        try:
            return super().invoke(ctx)
        except NasPluginError as error:
            Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            # What a guard stopped is told apart from what was asked wrongly.
            raise typer.Exit(3 if isinstance(error, GuardError) else 1) from error


_EPILOG = "Exit codes: 0 done; 1 an error with a name, or a problem found; 2 wrong usage; 3 a guard refused an edit."
app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_show_locals=False, epilog=_EPILOG)
for _command in (
    demo.demo,
    running.run,
    comparing.compare,
    running.report,
    log.log,
    sharing.export,
    sharing.apply,
    doctor.doctor,
    measuring.stats,
    measuring.anchor,
    undoing.undo,
    tuning.tune,
    benchmarks.knowedit,
    benchmarks.wikibigedit,
):
    app.command()(_command)
app.command("plot", help="The same as report.\n\nExample: nas-edit plot nas-run")(running.report)
app.add_typer(studies.app, name="study")
app.add_typer(hparams.app, name="hparams")


@app.callback()
def main() -> None:
    """Edits to a language model that last: six locate-and-edit editors with norm-anchor scaling.

    Example: nas-edit demo
    """


@app.command()
def version() -> None:
    """Show the package's version.

    Example: nas-edit version
    """
    Console().print(nas_plugin.__version__)
