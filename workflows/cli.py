"""The `millrace` command: its subcommands by name, each imported when it is used."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from workflows.exits import exit_for
from workflows.startup import Start

COMMANDS: dict[str, str] = {
    "train": "workflows.train:train",
    "evaluate": "workflows.evaluate:evaluate",
    "collect": "workflows.collect:collect",
    "example": "workflows.examples:example",
    "plan": "workflows.plan:plan",
    "sql": "workflows.sql:sql",
    "traces": "workflows.traces:traces",
    "ope": "workflows.ope:ope",
    "select": "workflows.select:select",
    "sweep": "workflows.sweep:sweep",
    "workflow": "workflows.workflow:workflow",
    "registry": "workflows.registry:registry",
    "report": "workflows.report:report",
    "lineage": "workflows.lineage:lineage",
    "lake": "workflows.lake:lake",
    "import": "workflows.imports:import_data",
    "export": "workflows.exports:export_data",
    "validate": "workflows.validate:validate",
    "doctor": "workflows.doctor:doctor",
}
"""Name → module:command, in the order of --help. The modules import torch and ray only to run."""


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is asked for, and turns errors into exit codes."""

    def __init__(self, *args: Any, commands: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._where = commands

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """See click."""
        return list(self._where)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """See click."""
        if cmd_name not in self._where:
            return None
        module, _, name = self._where[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click; a misspelt command is answered with the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            # difflib only here: it is not needed on the way that works.
            import difflib

            close = difflib.get_close_matches(args[0], self._where, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(self._where)}."
            raise click.UsageError(f"{error.message.rstrip('.')}. {hint}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """See click; whatever is raised leaves with a message and one of the documented codes."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except BaseException as error:
            raise exit_for(error, traceback_wanted=ctx.meta.get("verbosity", 0) >= 2) from error


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from workflows.packages import own_version  # reads package metadata, which is slow

        click.echo(f"millrace {own_version()}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Reinforcement learning as a streaming dataflow on Ray Data and Ray Train.

    Exit codes: 0 done, 1 failed, 2 bad input, 130 and 143 after a graceful stop by SIGINT or
    SIGTERM.
    """


def main() -> None:
    """Run the command of this process and leave with its exit code."""
    # An installed command has its own folder on sys.path, `python -m` the working one. At the end,
    # so that --env my_module:make is found and nothing of the standard library is shadowed.
    if "" not in sys.path:
        sys.path.append("")
    cli.main(prog_name="millrace", obj=Start.of_this_process())
