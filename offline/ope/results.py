"""Off-policy estimates as rows of the lake, each evaluation once."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from offline import schemas as s
from offline.lake import Lake
from offline.ope.settings import Estimate, Evaluation, OpeSettings
from offline.storage import Storage
from offline.transact import transact
from rl_ops import columns as c

WRITER: Final = "ope"
_OPE_ID: Final = "ope_id"
_OWN_COLUMNS: Final = ("gamma", "level", "method", "seed")
"""Settings that have columns of their own."""


@dataclass(frozen=True)
class Subject:
    """What was evaluated, and on which rows.

    Attributes:
        run_id, session: of the checkpoint.
        checkpoint: its folder.
        sha256: of its manifest.json.
        policy_version: of its policy.
        target: "explore" or "greedy".
        table_version: of `steps`.
        conditions: that hold of the rows: [column, operator, value] each.
        lake: its address.
    """

    run_id: str
    session: int
    checkpoint: str
    sha256: str
    policy_version: int
    target: str
    table_version: int
    conditions: tuple[tuple[str, str, Any], ...]
    lake: str

    def ope_id(self, settings: OpeSettings) -> str:
        """The name of this evaluation: the same for the same question."""
        asked = {
            **{"sha256": self.sha256, "target": self.target, "version": self.table_version},
            **{"conditions": self.conditions, "settings": settings.to_json()},
        }
        text = json.dumps(asked, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def rows_of(subject: Subject, settings: OpeSettings, found: Evaluation) -> pa.Table:
    """A row of table `ope_results` for each estimate."""
    rest = {k: v for k, v in settings.to_json().items() if k not in _OWN_COLUMNS}
    rest |= {"target": subject.target, "warnings": found.warnings, **found.details}
    shared = {
        _OPE_ID: subject.ope_id(settings),
        c.RUN_ID: subject.run_id,
        s.SESSION: subject.session,
        s.CHECKPOINT: subject.checkpoint,
        s.SHA256: subject.sha256,
        c.POLICY_VERSION: subject.policy_version,
        s.TABLE: s.STEPS.name,
        "table_version": subject.table_version,
        "conditions": json.dumps(subject.conditions, default=str),
        "level": settings.level,
        "episodes": found.episodes,
        s.ROWS: found.rows,
        "behavior_mean": found.behavior.value,
        "gamma": settings.gamma,
        s.SEED: settings.seed,
        "settings": json.dumps(rest, sort_keys=True),
        s.AT: datetime.now(UTC),
    }
    rows = [shared | _estimate(each) for each in found.estimates]
    return pa.Table.from_pylist(rows, schema=s.OPE_RESULTS.schema)


def _estimate(found: Estimate) -> dict[str, Any]:
    values = {"estimate": found.value, "low": found.low, "high": found.high}
    known = {k: v if math.isfinite(v) else None for k, v in values.items()}
    return {"estimator": found.estimator, "method": found.method, "ess": found.ess, **known}


def log_results(storage: Storage, evaluations: Sequence[pa.Table]) -> list[bool]:
    """Add evaluations to a lake, in one batch, but for those that are there already.

    Args:
        storage: of the lake; it gets the table if it is older.
        evaluations: as `rows_of` gives them.

    Returns:
        Of each whether it was added now.

    Raises:
        LakeError: it cannot be written.
    """
    added: list[bool] = []

    def new_rows(lake: Lake) -> dict[str, pa.Table]:
        known = lake.ope_results(columns=[_OPE_ID]).to_arrow()
        there = set(known.column(_OPE_ID).to_pylist())
        new = {_id(rows): rows for rows in evaluations if _id(rows) not in there}
        added[:] = [_id(rows) in new for rows in evaluations]
        return {s.OPE_RESULTS.name: pa.concat_tables(new.values())} if new else {}

    transact(storage, WRITER, new_rows)
    return added


def _id(rows: pa.Table) -> Any:
    return rows.column(_OPE_ID)[0].as_py()
