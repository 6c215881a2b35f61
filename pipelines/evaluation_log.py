"""Logging an evaluation of a checkpoint in the lake of the run that wrote it."""

import time
import uuid
from pathlib import Path

from offline import schemas as s
from offline.errors import LakeBusyError
from offline.storage import Storage
from pipelines.checkpoint import Checkpoint
from pipelines.evaluation import Evaluation, EvaluationTask
from pipelines.tracing import EvaluationRows, rows_to_tables
from rl_ops import columns as c

BUSY_S = 60.0
"""How long to wait while other evaluations of the run are being logged."""


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
    storage: Storage, checkpoint: Checkpoint, found: Evaluation, task: EvaluationTask
) -> str:
    """Add an evaluation and its episodes to a lake.

    Returns:
        The evaluation's id there.

    Raises:
        LakeError: it cannot be written.
    """
    from offline.writer import LakeWriter

    run_id, session = checkpoint.state["run_id"], checkpoint.state["loop"]["incarnation"]
    evaluation_id = f"{run_id}/evaluate/{uuid.uuid4().hex[:12]}"
    rows = EvaluationRows.of(
        found, task, evaluation_id=evaluation_id, checkpoint=str(checkpoint.path)
    )
    own = {c.RUN_ID: run_id, s.SESSION: session}
    tables = rows_to_tables(
        {
            s.EVALUATIONS.name: [own | rows.summary],
            s.EPISODES.name: [own | episode for episode in rows.episodes],
        }
    )
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            with LakeWriter(storage, f"{run_id}/evaluate") as writer:
                writer.write(tables)
            return evaluation_id
        except LakeBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
