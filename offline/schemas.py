"""The lake's tables: names, columns, partitions, and what each column means.

A name of a column is spelled here or in `rl_ops.columns`, and nowhere else as a string.
"""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from rl_ops import columns as c

SCHEMA_VERSION: Final = 2

SESSION: Final = "session"
"""How often the run had been started before: 0, then 1 after the first resume, and so on."""
SPACE: Final = "space"
"""Key of the observation and action spaces among the table's properties; see `offline.spaces`."""
OBS_BYTES: Final = "obs_bytes"
ACTION_BYTES: Final = "action_bytes"
FINAL_OBS_BYTES: Final = "final_obs_bytes"
KIND: Final = "kind"
"""Of an episode: train, evaluation or import."""
RETURN: Final = "return"
LENGTH: Final = "length"
SEED: Final = "seed"
CHECKPOINT: Final = "checkpoint"
POLICY_VERSION_FIRST: Final = "policy_version_first"
POLICY_VERSION_LAST: Final = "policy_version_last"
FRAGMENT_FIRST: Final = "fragment_first"
FRAGMENT_LAST: Final = "fragment_last"
STARTED_AT: Final = "started_at"
ENDED_AT: Final = "ended_at"
AT: Final = "at"
STATUS: Final = "status"
ITERATION: Final = "iteration"
KEY: Final = "key"
VALUE: Final = "value"
ROWS: Final = "rows"
RANK: Final = "rank"
LEARNER_VERSION: Final = "learner_version"
LAG: Final = "lag"
GRAD_STEPS: Final = "grad_steps"
ENV: Final = "env"
ENV_STEPS: Final = "env_steps"
MESSAGE: Final = "message"
REASON: Final = "reason"
COUNT: Final = "count"
TABLE: Final = "table"
PATH: Final = "path"
SHA256: Final = "sha256"
BYTES: Final = "bytes"

_STRING, _INT, _SHORT, _BOOL = pa.string(), pa.int64(), pa.int32(), pa.bool_()
_DOUBLE, _FLOAT, _BINARY = pa.float64(), pa.float32(), pa.binary()
_TIME: Final = pa.timestamp("us", tz="UTC")
VALUES: Final = pa.list_(pa.field("element", pa.float64()))
"""All numeric leaves of a space, flattened in the space's order: doubles hold each exactly."""


@dataclass(frozen=True)
class TableSchema:
    """One table of the lake.

    Attributes:
        name: folder of the table.
        schema: columns as Arrow has them.
        partition_by: columns kept in the path; empty for tables that stay small.
    """

    name: str
    schema: pa.Schema
    partition_by: tuple[str, ...] = ()


def _table(name: str, *fields: tuple[str, pa.DataType], by_run: bool = True) -> TableSchema:
    schema = pa.schema([pa.field(field, kind) for field, kind in fields])
    return TableSchema(name, schema, (c.RUN_ID,) if by_run else ())


STEPS: Final = _table(
    "steps",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    (c.FRAGMENT_ID, _INT),
    (c.WORKER_ID, _SHORT),
    (c.ENV_ID, _SHORT),
    (c.AGENT_ID, _STRING),
    (c.MODULE_ID, _STRING),
    (c.EPISODE_ID, _STRING),
    (c.T, _SHORT),
    (SPACE, _STRING),
    (c.OBS, VALUES),
    (OBS_BYTES, _BINARY),
    (c.ACTION, VALUES),
    (ACTION_BYTES, _BINARY),
    (c.REWARD, _DOUBLE),
    (c.TERMINATED, _BOOL),
    (c.TRUNCATED, _BOOL),
    (c.ABORTED, _BOOL),
    (c.IS_LAST, _BOOL),
    (c.FINAL_OBS, VALUES),
    (FINAL_OBS_BYTES, _BINARY),
    (c.LOGP, _FLOAT),
    (c.VALUE, _FLOAT),
    (c.POLICY_VERSION, _INT),
    (c.SAMPLED_AT, _TIME),
    (c.EPSILON, _FLOAT),
    (c.NOISE_SCALE, _FLOAT),
)
"""One row per env step of one agent, in the order in which they were sampled."""

EPISODES: Final = _table(
    "episodes",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    (c.EPISODE_ID, _STRING),
    (KIND, _STRING),
    (CHECKPOINT, _STRING),
    (c.WORKER_ID, _SHORT),
    (c.ENV_ID, _SHORT),
    (c.MODULE_ID, _STRING),
    (SEED, _INT),
    (RETURN, _DOUBLE),
    (LENGTH, _INT),
    (c.TERMINATED, _BOOL),
    (c.TRUNCATED, _BOOL),
    (c.ABORTED, _BOOL),
    (POLICY_VERSION_FIRST, _INT),
    (POLICY_VERSION_LAST, _INT),
    (FRAGMENT_FIRST, _INT),
    (FRAGMENT_LAST, _INT),
    (STARTED_AT, _TIME),
    (ENDED_AT, _TIME),
)
"""One row per episode that ended; one cut by a failure or by the run's end is aborted."""

RUNS: Final = _table(
    "runs",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    (STATUS, _STRING),  # running, finished, stopped, failed
    ("algo", _STRING),
    (ENV, _STRING),
    (SEED, _INT),
    ("config", _STRING),
    ("spaces", _STRING),
    ("packages", _STRING),
    ("code", _STRING),
    ("host", _STRING),
    ("resumed_from", _STRING),
    ("input_versions", _STRING),
    (MESSAGE, _STRING),
    (AT, _TIME),
    by_run=False,
)
"""One row per event of a session: it started, it ended. The newest row is how the session is."""

METRICS: Final = _table(
    "metrics",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    (ITERATION, _INT),
    (ENV_STEPS, _INT),
    (c.POLICY_VERSION, _INT),
    (KEY, _STRING),
    (VALUE, _DOUBLE),
    (AT, _TIME),
)
"""One row per number of a training result."""

CONSUMPTION: Final = _table(
    "consumption",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    (c.FRAGMENT_ID, _INT),
    (RANK, _SHORT),
    (ROWS, _INT),
    (c.POLICY_VERSION, _INT),
    (LEARNER_VERSION, _INT),
    (LAG, _INT),
    (GRAD_STEPS, _INT),
    (AT, _TIME),
)
"""One row per fragment that an update used.

policy_version acted; the update took learner_version to learner_version + 1; lag is the
difference of the two.
"""

EVALUATIONS: Final = _table(
    "evaluations",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    ("evaluation_id", _STRING),
    (CHECKPOINT, _STRING),
    (c.POLICY_VERSION, _INT),
    (ENV, _STRING),
    (SEED, _INT),
    ("explore", _BOOL),
    ("episodes", _INT),
    ("return_mean", _DOUBLE),
    ("return_std", _DOUBLE),
    ("return_min", _DOUBLE),
    ("return_max", _DOUBLE),
    ("length_mean", _DOUBLE),
    (AT, _TIME),
    by_run=False,
)

CHECKPOINTS: Final = _table(
    "checkpoints",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    ("checkpoint_id", _INT),  # the iteration
    (PATH, _STRING),
    (SHA256, _STRING),  # of manifest.json
    (c.POLICY_VERSION, _INT),
    (ENV_STEPS, _INT),
    ("fragments", _INT),  # consumed so far: of this session those below it
    ("table_versions", _STRING),  # JSON: table -> version that holds all rows that trained it
    (AT, _TIME),
    by_run=False,
)

FAILURES: Final = _table(
    "failures",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    (KIND, _STRING),  # env, worker, dropped, learner, storage
    (c.WORKER_ID, _SHORT),
    (c.ENV_ID, _SHORT),
    (c.FRAGMENT_ID, _INT),
    (c.EPISODE_ID, _STRING),
    (COUNT, _INT),
    (MESSAGE, _STRING),
    (AT, _TIME),
    by_run=False,
)

REJECTED: Final = _table(
    "rejected",
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    ("source", _STRING),
    (c.EPISODE_ID, _STRING),
    ("row", _INT),
    (REASON, _STRING),
    ("content", _STRING),  # JSON, shortened
    (AT, _TIME),
    by_run=False,
)
"""Rows and episodes that were not taken: of an import, or with values that are not finite."""

OPE_RESULTS: Final = _table(
    "ope_results",
    ("ope_id", _STRING),  # of checkpoint, rows and settings: the same evaluation has the same
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    (CHECKPOINT, _STRING),
    (SHA256, _STRING),  # of its manifest.json
    (c.POLICY_VERSION, _INT),
    (TABLE, _STRING),
    ("table_version", _INT),
    ("conditions", _STRING),  # JSON
    ("estimator", _STRING),
    ("estimate", _DOUBLE),
    ("low", _DOUBLE),
    ("high", _DOUBLE),
    ("level", _DOUBLE),
    ("method", _STRING),
    ("ess", _DOUBLE),
    ("episodes", _INT),
    (ROWS, _INT),
    ("behavior_mean", _DOUBLE),
    ("gamma", _DOUBLE),
    (SEED, _INT),
    ("settings", _STRING),  # JSON
    (AT, _TIME),
    by_run=False,
)
"""One row per estimate of a checkpoint's return from the rows of `table` that hold `conditions`."""

WORKFLOW_RUNS: Final = _table(
    "workflow_runs",
    ("workflow", _STRING),
    ("logical_time", _TIME),
    ("step", _STRING),  # empty for the run as a whole
    ("attempt", _SHORT),  # from 1
    (STATUS, _STRING),  # started, succeeded, failed, skipped, stopped
    ("owner", _STRING),  # of the process that had claimed the run: unique
    ("outputs", _STRING),  # JSON
    (c.RUN_ID, _STRING),  # of the training run or collection that a step was
    ("spec_sha256", _STRING),  # of the workflow's file
    ("command", _STRING),
    ("host", _STRING),
    ("pid", _INT),
    (MESSAGE, _STRING),
    (AT, _TIME),
    by_run=False,
)
"""One row per event of a scheduled run or of one of its steps; the newest row is how it is."""

REGISTRY: Final = _table(
    "registry",
    ("model", _STRING),
    ("alias", _STRING),
    (CHECKPOINT, _STRING),  # its folder; null where the alias was removed
    (SHA256, _STRING),  # of its manifest.json
    (c.RUN_ID, _STRING),
    ("action", _STRING),  # set, rollback, remove
    (REASON, _STRING),  # JSON
    ("workflow", _STRING),
    ("logical_time", _TIME),
    (AT, _TIME),
    by_run=False,
)
"""One row per change of what an alias of a model names; the newest row is what it names."""

LEDGER: Final = _table(
    "ledger",
    ("writer", _STRING),
    ("seq", _INT),
    (TABLE, _STRING),
    (PATH, _STRING),
    (SHA256, _STRING),
    (BYTES, _INT),
    (ROWS, _INT),
    (c.RUN_ID, _STRING),
    (SESSION, _SHORT),
    ("fragments", pa.list_(pa.field("element", pa.int64()))),
    ("replaces", pa.list_(pa.field("element", pa.string()))),  # paths, where compaction wrote it
    (AT, _TIME),
    by_run=False,
)
"""One row per data file of the other tables: its checksum, its rows, the fragments in it."""

LATER: Final = frozenset({OPE_RESULTS.name, WORKFLOW_RUNS.name, REGISTRY.name})
"""Tables that a lake of an earlier release lacks until it is next written to."""

TABLES: Final[dict[str, TableSchema]] = {
    table.name: table
    for table in (
        *(STEPS, EPISODES, RUNS, METRICS, CONSUMPTION, EVALUATIONS, CHECKPOINTS, FAILURES),
        *(REJECTED, OPE_RESULTS, WORKFLOW_RUNS, REGISTRY, LEDGER),
    )
}
