"""Options that commands share, and what they mean.

This module is imported by every call of `nas-edit`, so it imports nothing heavy.
"""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

import typer

from nas_plugin.cli import completing
from nas_plugin.errors import RunError

if TYPE_CHECKING:
    from nas_plugin.evaluation.cases import Case
    from nas_plugin.evaluation.runner import Plan
    from nas_plugin.evaluation.streams import Stream

# Of commands that work on one hyperparameter file; a typer option is data, and several commands may have the same.
HPARAMS_FILE: Any = typer.Argument(
    help="Hyperparameters: a shipped name (NAS-MEMIT/nas-demo) or a path.", autocompletion=completing.hparams_files
)
MODEL: Any = typer.Option(
    help="Folder or name of the model, or 'demo'; by default that of the hyperparameters.",
    autocompletion=completing.models,
)
STREAM: Any = typer.Option(help="'demo', a .json or .jsonl file, or a data set.", autocompletion=completing.streams)
SET: Any = typer.Option(metavar="KEY=VALUE", help="Another value for a hyperparameter; several times.")

_STEPS, _MEASURES, _FOLDER = "Edits and checkpoints", "What is measured", "Folder"


@dataclass(frozen=True)
class RunOptions:
    """How a stream is gone through, as commands that do so are told."""

    model: Annotated[str | None, MODEL] = None
    set: Annotated[list[str] | None, SET] = None
    edits: Annotated[
        int | None, typer.Option(min=1, help="Cases to write; all by default.", rich_help_panel=_STEPS)
    ] = None
    per_step: Annotated[int, typer.Option(min=1, help="Cases written at once.", rich_help_panel=_STEPS)] = 1
    every: Annotated[
        int | None, typer.Option(min=1, help="Cases between checkpoints; a tenth of all.", rich_help_panel=_STEPS)
    ] = None
    grid: Annotated[str | None, typer.Option(help="Checkpoints instead, as 10,100,1000.", rich_help_panel=_STEPS)] = (
        None
    )
    cohort: Annotated[
        int, typer.Option(min=0, help="First cases that are followed to the end.", rich_help_panel=_STEPS)
    ] = 50
    generate: Annotated[
        bool, typer.Option("--generate", help="Sample long texts too: fluency, consistency.", rich_help_panel=_MEASURES)
    ] = False
    text: Annotated[
        str | None, typer.Option(help="File of held-out text, for perplexity.", rich_help_panel=_MEASURES)
    ] = None
    drift: Annotated[
        int,
        typer.Option(
            min=0,
            help="Cases after those written, at most, whose hidden states are followed.",
            rich_help_panel=_MEASURES,
        ),
    ] = 100
    tasks: Annotated[
        str | None, typer.Option(help="Capability tasks, as local_sst2,local_rte.", rich_help_panel=_MEASURES)
    ] = None
    tasks_data: Annotated[
        Path | None, typer.Option(help="Folder with the data of the local tasks.", rich_help_panel=_MEASURES)
    ] = None
    tasks_at: Annotated[
        str | None,
        typer.Option(
            help="Checkpoints that measure tasks, as 0,100; by default first and last.", rich_help_panel=_MEASURES
        ),
    ] = None
    tasks_limit: Annotated[
        int | None, typer.Option(min=1, help="Records of a task, at most.", rich_help_panel=_MEASURES)
    ] = None
    tasks_protocol: Annotated[
        str, typer.Option(help="'standard', or 'paper' for the NAS paper's.", rich_help_panel=_MEASURES)
    ] = "standard"
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.", rich_help_panel=_FOLDER)
    ] = False
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave malformed records out; they are listed.", rich_help_panel=_FOLDER)
    ] = False

    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            autocompletion=completing.trackers,
            help="Tell tensorboard, wandb or trackio of every step and checkpoint; several times.",
            rich_help_panel=_FOLDER,
        ),
    ] = None

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of experiment trackers."""
        return tuple(self.track or ())

    @property
    def settings(self) -> dict[str, Any]:
        """Hyperparameters that replace those of a file; see `settings_of`."""
        return settings_of(self.set)

    def stream(self, name: str) -> tuple[Stream, tuple[Case, ...]]:
        """Read a stream.

        Args:
            name: "demo", or a path or name.

        Returns:
            What is written, and held-out cases: those that follow in the file.
        """
        from nas_plugin.evaluation.streams import load_stream

        written = load_stream(name, limit=self.edits, skip_bad=self.skip_bad)
        if self.edits is None or not self.drift:
            return written, ()
        longer = load_stream(name, limit=self.edits + self.drift, skip_bad=self.skip_bad)
        return written, longer.cases[len(written.cases) :]

    def plan(self, edits: int, **measures: Any) -> Plan:
        """Plan the run.

        Args:
            edits: Cases of the stream.
            **measures: Fields of `Measures` that a command decides itself.

        Returns:
            The plan.
        """
        from nas_plugin.evaluation.runner import Measures, plan_run

        wanted = {
            "generate": self.generate,
            "text": self.text,
            "drift": self.drift,
            "tasks": _names(self.tasks),
            "tasks_at": None if self.tasks_at is None else numbers(self.tasks_at, "--tasks-at"),
            "tasks_data": None if self.tasks_data is None else str(self.tasks_data),
            "tasks_limit": self.tasks_limit,
            "tasks_protocol": self.tasks_protocol,
        }
        return plan_run(
            edits,
            per_step=self.per_step,
            every=self.every,
            grid=None if self.grid is None else numbers(self.grid, "--grid"),
            cohort=self.cohort,
            measures=Measures(**{**wanted, **measures}),
        )


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `RunOptions`, which it gets as its argument `options`.

    Args:
        command: The command.

    Returns:
        The same with a signature that typer can read.
    """
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "options"
    ]
    shared = get_type_hints(RunOptions, include_extras=True)
    more = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=shared[field.name]
        )
        for field in fields(RunOptions)
    ]

    def told(**values: Any) -> None:
        options = RunOptions(**{parameter.name: values.pop(parameter.name) for parameter in more})
        command(**values, options=options)

    told.__name__, told.__doc__ = command.__name__, command.__doc__
    told.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *more)}
    told.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    return told


def settings_of(items: list[str] | None) -> dict[str, Any]:
    """Read hyperparameters that replace those of a file.

    Args:
        items: Each KEY=VALUE, the value in YAML.

    Returns:
        Key -> value.

    Raises:
        RunError: One is not KEY=VALUE, or the value is no YAML.
    """
    from nas_plugin.hparams.parse import parse_yaml
    from nas_plugin.reading import short

    found = {}
    for item in items or ():
        key, sign, value = item.partition("=")
        try:
            found[key.strip()] = parse_yaml(value)
        except ValueError as error:
            raise RunError(f"--set {item:.80}: {short(value)} is no value in YAML ({error}).") from error
        if not sign or not key.strip():
            raise RunError(f"--set {item:.80}: write KEY=VALUE, as in --set v_lr=0.1.")
    return found


def wrong_usage(message: str) -> NoReturn:
    """End a command whose options do not make sense together, as typer does for a single one: exit code 2.

    Args:
        message: What to give instead.

    Raises:
        BadParameter: Always.
    """
    raise typer.BadParameter(message)


def end_with(code: int) -> NoReturn:
    """End a command with an exit code.

    Args:
        code: The code.

    Raises:
        Exit: Always.
    """
    raise typer.Exit(code)


def command_line() -> str:
    """Return the command as it was typed, for the record."""
    return shlex.join(["nas-edit", *sys.argv[1:]])


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read numbers with commas between them.

    Args:
        text: As 10,100,1000.
        option: The option they were given with, for the message.

    Returns:
        The numbers.

    Raises:
        RunError: It is something else.
    """
    names = _names(text)
    if not names or not all(name.isdigit() for name in names):
        raise RunError(f"{option} {text}: give whole numbers with commas, as 10,100,1000.")
    return tuple(map(int, names))
