"""`millrace example`: tuned configurations and behaviour datasets that ship with Millrace."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from workflows.exits import BAD_INPUT, Failure
from workflows.logs import verbosity_options
from workflows.options import TrainRequest, json_option, storage_folder, train_options
from workflows.startup import Start

FOLDER = Path(__file__).parent / "examples"
DATASETS = "make-dataset-"
"""Begins the names of files that say how a dataset is made."""
_WIDTH = 28


@click.group()
def example() -> None:
    """Tuned configurations and datasets: list them, print one, run one."""


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
        indent = " " * _WIDTH
        # A name as long as the column still ends before its description.
        click.echo(f"{one['name']:<{_WIDTH - 1}} {one['description']}")
        if one["kind"] == "dataset":
            click.echo(f"{indent}levels {', '.join(one['levels'])}; {one['rows']:,} rows each")
        else:
            click.echo(f"{indent}stops at {_pairs(one['stop'])}")
        if one["measured"]:
            click.echo(f"{indent}measured {_pairs(one['measured'])}")


@example.command("get")
@click.argument("name")
def get_example(name: str) -> None:
    """Print the file of the example NAME; save and change it, then `millrace train file F`."""
    click.echo(path_of(name).read_text(encoding="utf-8"), nl=False)


@example.command("run")
@click.argument("example_name", metavar="NAME")
@train_options
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="Of each level of a dataset.")
@click.option("--levels", metavar="A,B", help="Of a dataset, those to collect.  [default: all]")
@verbosity_options
@click.pass_obj
def run_example(
    start: Start | None,
    /,
    example_name: str,
    rows: int | None,
    levels: str | None,
    **given: Any,
) -> None:
    """Train the example NAME, or make the dataset NAME; options win over its file.

    A dataset takes --rows, --levels, --seed, --storage and --json.
    """
    request = TrainRequest(algo=None, file=str(path_of(example_name)), **given)
    if is_dataset(example_name):
        _make_dataset(example_name, request, rows=rows, levels=levels)
        return
    if rows is not None or levels is not None:
        raise click.UsageError(f"--rows and --levels go with datasets; {example_name} is none")
    from workflows.train import run

    run(request, start)


def _make_dataset(
    name: str, request: TrainRequest, *, rows: int | None, levels: str | None
) -> None:
    """Make a dataset, and say what of it is where."""
    taken = {"algo", "file", "seed", "storage", "as_json"}
    for field in fields(request):
        if field.name not in taken and getattr(request, field.name) != field.default:
            raise click.UsageError(
                f"{_option(field.name)} is for training; a dataset takes --rows, "
                "--levels, --seed, --storage and --json"
            )
    # Imports pydantic and yaml, then numpy and pyarrow, and torch only to train.
    from workflows.collect import lines_of, where_of
    from workflows.datasets import Making, load_dataset
    from workflows.output import json_line

    dataset = load_dataset(path_of(name), seed=request.seed)
    chosen = tuple(dataset.config.levels) if levels is None else tuple(levels.split(","))
    wanted = dataset.config.rows if rows is None else rows
    made = Making(dataset, storage_folder(request.storage), wanted, chosen).run()
    if request.as_json:
        click.echo(json_line([found.figures() for found in made]))
        return
    click.echo("\n\n".join("\n".join(lines_of(found)) for found in made))
    if len(made) > 1:
        click.echo(f"\nmixed      {where_of([found.run_id for found in made])}")


def names() -> list[str]:
    """The examples there are, datasets among them."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def is_dataset(name: str) -> bool:
    """Whether an example is a dataset; the others are configurations."""
    return name.startswith(DATASETS)


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
    if is_dataset(name):
        return _describe_dataset(name)
    from pipelines.config_files import load_config_file  # imports pydantic and yaml

    file = load_config_file(path_of(name))
    return {
        "name": name,
        "kind": "training",
        "description": file.description,
        "algo": file.values["algo"],
        "env": file.values["env"],
        "stop": file.values["stop"],
        "measured": dict(file.measured),
    }


def _describe_dataset(name: str) -> dict[str, Any]:
    from workflows.datasets import load_dataset

    dataset = load_dataset(path_of(name))
    training = dataset.training
    return {
        "name": name,
        "kind": "dataset",
        "description": dataset.description,
        "algo": training.algo,
        "env": training.env.id,
        "stop": training.stop.model_dump(exclude_none=True),
        "measured": dict(dataset.measured),
        "levels": list(dataset.config.levels),
        "rows": dataset.config.rows,
    }


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:,}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in values.items()
    )


def _option(field: str) -> str:
    """The option that a field of a request is from."""
    return "--set" if field == "settings" else "--" + field.replace("_", "-")
