"""`millrace plan`: print a configuration's dataflow, checked, starting nothing."""

from typing import Any

import click

from workflows.logs import verbosity_options
from workflows.options import TrainRequest, config_options


@click.command(short_help="Print the dataflow of an algorithm or file, checked.")
@click.argument("algo")
@config_options
@verbosity_options
def plan(algo: str, **given: Any) -> None:
    """Print the dataflow of ALGO, or of a configuration file.

    Stage by stage: what it reads and adds, and the flow control between them. A column that is
    missing fails here, as it would before a run starts.
    """
    # Import pydantic and torch.
    from pipelines.training import plan_for
    from workflows.settings import is_file, read_settings

    from_file = is_file(algo)
    request = TrainRequest(
        algo=None if from_file else algo, file=algo if from_file else None, **given
    )
    click.echo(plan_for(read_settings(request).build(), run_id="plan").describe())
