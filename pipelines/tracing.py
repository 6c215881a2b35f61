"""What a run leaves in its lake: its steps, through the learner's sink, and its own story."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from offline import schemas as s
from offline.background import BackgroundWriter, Batch, WritePolicy
from offline.failpoints import fail_point
from offline.storage import Storage, require_writable
from pipelines import provenance
from pipelines.checkpoint import Checkpoint, read_state
from pipelines.config import TraceConfig
from pipelines.evaluation import Evaluation, EvaluationTask
from pipelines.remote import address_of
from rl_ops import columns as c
from rl_ops.spaces import space_to_json

if TYPE_CHECKING:
    from offline.sink import TraceSink
    from pipelines.dataflow import Plan  # imports torch; evaluations are logged without

log = logging.getLogger(__name__)

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Trace:
    """Where a run logs, as every learner rank is told.

    Attributes:
        storage: of the lake.
        space: key of the run's spaces there.
        session: how often the run was started before.
    """

    storage: Storage
    space: str
    session: int


def lake_of(config: TraceConfig, storage: Path) -> Storage:
    """The lake that a configuration names."""
    return Storage.at(config.lake if config.lake is not None else address_of(storage / "lake"))


def write_policy(config: TraceConfig) -> WritePolicy:
    """When batches are written."""
    return WritePolicy(
        interval_s=config.commit_interval_s,
        rows=config.commit_rows,
        max_queue_bytes=config.max_queue_bytes,
        compression=config.compression,
        on_error=config.on_storage_error,
    )


def open_lake(plan: "Plan", storage: Path) -> tuple[Storage, str]:
    """Make a run's lake ready.

    Returns:
        It, and the key of the run's spaces in it.

    Raises:
        LakeError: it cannot be written, or is of another version.
    """
    from offline.spaces import register_space
    from offline.tables import create_tables
    from offline.writer import recover

    lake = lake_of(plan.config.trace, storage)
    require_writable(lake)
    create_tables(lake)
    for finished in recover(lake):
        log.info("%s", finished)
    policy = plan.policy
    return lake, register_space(lake, policy.obs_space, policy.action_connectors.input_space)


def next_session(storage: Storage, run_id: str) -> int:
    """One more than any session of the run that the lake knows; 0 for a run it does not."""
    from offline.lake import Lake

    known = Lake(storage).runs(where=[(c.RUN_ID, "=", run_id)], columns=[s.SESSION]).to_arrow()
    return int(max(known.column(s.SESSION).to_pylist(), default=-1)) + 1


def make_sink(plan: "Plan", trace: Trace | None, *, rank: int) -> "TraceSink | None":
    """The sink of a learner rank; None where nothing is logged."""
    if trace is None:
        return None
    from offline.sink import TraceSink
    from offline.steps import StepFormat

    config, policy = plan.config.trace, plan.policy
    form = StepFormat(
        run_id=plan.rollout.run_id,
        session=trace.session,
        space=trace.space,
        obs_space=policy.obs_space,
        action_space=policy.action_connectors.input_space,
        columns=config.columns,
        episode_frac=config.episode_frac,
    )
    return TraceSink(trace.storage, form, rank=rank, policy=write_policy(config))


class _Rows(NamedTuple):
    table: str
    rows: Sequence[Mapping[str, Any]]


class RunLog:
    """Logs what the driver knows: the run itself, results, checkpoints, evaluations, failures.

    Args:
        trace: where.
        run_id: of the run.
        policy: when batches are written.
    """

    def __init__(self, trace: Trace, *, run_id: str, policy: WritePolicy) -> None:
        self._trace = trace
        self._own = {c.RUN_ID: run_id, s.SESSION: trace.session}
        self._evaluations = 0
        self._about: dict[str, Any] = {}
        self._writer = BackgroundWriter[_Rows](
            trace.storage, f"{run_id}/driver", make=_tables, policy=policy
        )

    @property
    def uri(self) -> str:
        """Address of the lake."""
        return self._trace.storage.uri

    def started(
        self,
        plan: "Plan",
        checkpoint: Checkpoint | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Log that the session began; it is in the lake afterwards.

        Args:
            plan: of the run.
            checkpoint: from which it goes on; None for none.
            inputs: which logged rows it learns from; None for none.

        Raises:
            LakeError: it cannot be written, or another process runs under the same name.
        """
        config, policy = plan.config, plan.policy
        spaces = {
            c.OBS: space_to_json(policy.obs_space),
            c.ACTION: space_to_json(policy.action_connectors.input_space),
            "env_action": space_to_json(policy.action_space),
        }
        self._about = {
            "algo": config.algo,
            s.ENV: config.env.id,
            s.SEED: config.seed,
            "config": config.model_dump_json(),
            "spaces": json.dumps(spaces),
            "packages": provenance.packages(),
            "code": provenance.code(),
            "host": provenance.host(),
            "resumed_from": _origin(checkpoint),
            "input_versions": json.dumps(inputs or {}),
        }
        self._put(s.RUNS, {**self._about, s.STATUS: "running"})
        if checkpoint is not None and self._is_unlogged(checkpoint):
            self._put(
                s.CHECKPOINTS, {s.AT: _now(), **checkpoint_row(checkpoint.path, checkpoint.state)}
            )
        self._writer.flush()

    def _is_unlogged(self, checkpoint: Checkpoint) -> bool:
        """Whether a kill came between a checkpoint of this lake and its row."""
        from offline.lake import Lake

        if checkpoint.state.get("lake", {}).get("uri") != self._trace.storage.uri:
            return False
        where = [(s.SHA256, "=", _manifest_sha256(checkpoint.path))]
        return not Lake(self._trace.storage).checkpoints(where=where).count()

    def result(self, result: Mapping[str, Any]) -> None:
        """Log the numbers of a training result."""
        same = {
            s.ITERATION: result["training_iteration"],
            s.ENV_STEPS: result["env_steps"],
            c.POLICY_VERSION: result["policy_version"],
            s.AT: _now(),
        }
        numbers = []
        for key, value in result.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.append({**same, s.KEY: key, s.VALUE: float(value)})
        self._put(s.METRICS, *numbers)

    def failures(self, failures: Sequence[Mapping[str, Any]]) -> None:
        """Log what failed; each mapping holds columns of the table."""
        self._put(s.FAILURES, *({s.COUNT: 1, s.AT: _now(), **failure} for failure in failures))

    def checkpoint(self, path: Path) -> None:
        """Log a checkpoint that was just written; its row is in the lake afterwards."""
        fail_point("checkpoint.logged")
        self._put(s.CHECKPOINTS, {s.AT: _now(), **checkpoint_row(path, read_state(path))})
        self._writer.flush()

    def evaluation(self, found: Evaluation, task: EvaluationTask) -> None:
        """Log an evaluation and its episodes."""
        own, number = f"{self._own[c.RUN_ID]}/evaluation", self._evaluations
        self._evaluations += 1
        rows = EvaluationRows.of(
            found, task, evaluation_id=f"{own}/{self._own[s.SESSION]}.{number:05d}"
        )
        self._put(s.EVALUATIONS, rows.summary)
        self._put(s.EPISODES, *rows.episodes)

    def ended(self, status: str, message: str | None = None) -> None:
        """Log how the session ended, write what is left, and end."""
        try:
            self._put(s.RUNS, {**self._about, s.STATUS: status, s.MESSAGE: message})
        finally:
            self._writer.close()

    def _put(self, table: s.TableSchema, *rows: Mapping[str, Any]) -> None:
        if not rows:
            return
        own = self._own | ({s.AT: _now()} if table is s.RUNS else {})
        found = [{**own, **row} for row in rows]
        self._writer.put(_Rows(table.name, found), rows=len(found), num_bytes=200 * len(found))


class EvaluationRows(NamedTuple):
    """An evaluation as the tables have it; columns run_id and session are added by the log.

    Attributes:
        summary: row of `evaluations`.
        episodes: rows of `episodes`.
    """

    summary: dict[str, Any]
    episodes: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        found: Evaluation,
        task: EvaluationTask,
        *,
        evaluation_id: str,
        checkpoint: str | None = None,
    ) -> Self:
        """From what an evaluation task found; `checkpoint` where one was evaluated."""
        figures, at, version = found.figures(), _now(), task.version
        summary = {
            "evaluation_id": evaluation_id,
            s.CHECKPOINT: checkpoint,
            c.POLICY_VERSION: version,
            s.ENV: task.env.id,
            s.SEED: task.seed,
            "explore": task.explore,
            "episodes": figures["episodes"],
            **{
                f"return_{name}": figures[f"episode_return_{name}"]
                for name in ("mean", "std", "min", "max")
            },
            "length_mean": figures["episode_length_mean"],
            s.AT: at,
        }
        episodes = [
            {
                c.EPISODE_ID: f"{evaluation_id}/{i:05d}",
                s.KIND: EVALUATION,
                s.CHECKPOINT: checkpoint,
                s.RETURN: value,
                s.LENGTH: length,
                c.ABORTED: False,
                s.POLICY_VERSION_FIRST: version,
                s.POLICY_VERSION_LAST: version,
                s.ENDED_AT: at,
            }
            for i, (value, length) in enumerate(zip(found.returns, found.lengths, strict=True))
        ]
        return cls(summary, episodes)


def checkpoint_row(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint as the table has it."""
    lake, learner = state["lake"], state["learner"]
    return {
        s.SESSION: lake["session"],
        "checkpoint_id": state["loop"]["iteration"],
        s.PATH: address_of(path),
        s.SHA256: _manifest_sha256(path),
        c.POLICY_VERSION: learner["version"],
        s.ENV_STEPS: learner["env_steps"],
        "fragments": lake["fragments"],
        "table_versions": json.dumps(lake["versions"]),
    }


def _manifest_sha256(path: Path) -> str:
    return hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()


def _origin(checkpoint: Checkpoint | None) -> str | None:
    """Where a session goes on from, as JSON."""
    if checkpoint is None:
        return None
    state = checkpoint.state
    origin = {
        "run_id": state["run_id"],
        "session": state["loop"]["incarnation"],
        "checkpoint_id": state["loop"]["iteration"],
        "path": str(checkpoint.path),
    }
    return json.dumps(origin)


def _tables(items: Sequence[_Rows]) -> Batch:
    by_table: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        by_table.setdefault(item.table, []).extend(item.rows)
    return Batch(rows_to_tables(by_table))


def rows_to_tables(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, pa.Table]:
    """Rows of several tables, with the columns they have, in their tables' schemas."""
    return {
        name: pa.Table.from_pylist([_plain(row) for row in found], schema=s.TABLES[name].schema)
        for name, found in rows.items()
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}


def _now() -> int:
    """UTC microseconds."""
    return time.time_ns() // 1000
