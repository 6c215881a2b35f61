"""`millrace example`: tuned configurations that ship with Millrace."""

from pathlib import Path
from typing import Any

import click

from workflows.exits import BAD_INPUT, Failure
from workflows.logs import verbosity_options
from workflows.options import TrainRequest, json_option, train_options
from workflows.startup import Start

FOLDER = Path(__file__).parent / "examples"


@click.group()
def example() -> None:
    """Tuned configurations: list them, print one, run one."""


@example.command("list")
@json_option
def list_examples(*, as_json: bool) -> None:
    """List the examples, each with its stop criteria and what a run of it gave."""
    from workflows.output import json_line

    found = [describe(name) for name in names()]
    if as_json:
        click.echo(json_line(found))
        return
    for one in found:
        click.echo(f"{one['name']:<16}{one['description']}")
        click.echo(f"{'':<16}stops at {_pairs(one['stop'])}")
        if one["measured"]:
            click.echo(f"{'':<16}measured {_pairs(one['measured'])}")


@example.command("get")
@click.argument("name")
def get_example(name: str) -> None:
    """Print the file of the example NAME; save and change it, then `millrace train file F`."""
    click.echo(path_of(name).read_text(encoding="utf-8"), nl=False)


@example.command("run")
@click.argument("example_name", metavar="NAME")
@train_options
@verbosity_options
@click.pass_obj
def run_example(start: Start | None, /, example_name: str, **given: Any) -> None:
    """Train the example NAME; options win over its file."""
    from workflows.train import run

    run(TrainRequest(algo=None, file=str(path_of(example_name)), **given), start)


def names() -> list[str]:
    """The examples there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file of an example.

    Raises:
        Failure: there is none of that name; lists those there are.
    """
    found = names()
    if name in found:
        return FOLDER / f"{name}.yaml"
    # Only on the way that fails.
    from pipelines.config_errors import shown
    from pipelines.config_explain import nearest

    close = nearest(name, found)
    meant = f"did you mean {close[0]}? " if close else ""
    raise Failure(
        f"Error: no example {shown(name)}; {meant}there are {', '.join(found)}", code=BAD_INPUT
    )


def describe(name: str) -> dict[str, Any]:
    """What `list` says of an example."""
    from pipelines.config_files import load_config_file  # imports pydantic and yaml

    file = load_config_file(path_of(name))
    return {
        "name": name,
        "description": file.description,
        "algo": file.values["algo"],
        "env": file.values["env"],
        "stop": file.values["stop"],
        "measured": dict(file.measured),
    }


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:,}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in values.items()
    )
