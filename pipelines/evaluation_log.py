"""Logging an evaluation of a checkpoint in the lake of the run that wrote it."""

import uuid
from pathlib import Path

import pyarrow as pa

from offline import schemas as s
from offline.lake import Lake
from offline.storage import Storage
from pipelines.checkpoint import Checkpoint
from pipelines.evaluation import Evaluation, EvaluationTask
from pipelines.remote import address_of
from pipelines.tracing import EvaluationRows, rows_to_tables
from rl_ops import columns as c


def lake_of_checkpoint(checkpoint: Checkpoint) -> Storage | None:
    """The lake that a checkpoint's run logs in; None where it logged in none, or it is gone.

    The one beside the run's folder first: a storage may have been moved as a whole.
    """
    told = checkpoint.state.get("lake")
    if told is None:
        return None
    places: list[str | Path] = [told["uri"]]
    path = checkpoint.path.absolute()
    if checkpoint.config["trace"]["lake"] is None and path.parent.name == "checkpoints":
        places.insert(0, path.parents[2] / "lake")
    for place in places:
        storage = Storage.at(place)
        if not storage.is_local or Path(storage.uri, s.EVALUATIONS.name).is_dir():
            return storage
    return None


def log_evaluation(
    storage: Storage,
    checkpoint: Checkpoint,
    found: Evaluation,
    task: EvaluationTask,
    *,
    name: str | None = None,
) -> str:
    """Add an evaluation and its episodes to a lake.

    Args:
        storage: of the lake.
        checkpoint: that was evaluated.
        found: what came out.
        task: what was asked for.
        name: of the evaluation; one that is there already is not added again. None for a new one.

    Returns:
        The evaluation's id there.

    Raises:
        LakeError: it cannot be written.
    """
    from offline.transact import transact

    run_id, session = checkpoint.state["run_id"], checkpoint.state["loop"]["incarnation"]
    evaluation_id = f"{run_id}/evaluate/{name or uuid.uuid4().hex[:12]}"
    rows = EvaluationRows.of(
        found, task, evaluation_id=evaluation_id, checkpoint=address_of(checkpoint.path)
    )
    own = {c.RUN_ID: run_id, s.SESSION: session}
    tables = rows_to_tables(
        {
            s.EVALUATIONS.name: [own | rows.summary],
            s.EPISODES.name: [own | episode for episode in rows.episodes],
        }
    )

    def new_rows(lake: Lake) -> dict[str, pa.Table]:
        if name is None:
            return tables
        is_there = lake.evaluations(where=[("evaluation_id", "=", evaluation_id)]).count()
        return {} if is_there else tables

    transact(storage, f"{run_id}/evaluate", new_rows)
    return evaluation_id
