"""A small lake whose every number can be worked out by hand, and rows for others like it.

Two runs. `fast` (seed 1, lag at most 1) failed once and was resumed; `slow` (seed 2, lag 0) still
runs. Episodes of `fast` are named a…, of `slow` b…; the observation of step t is [t, 10 * t].
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from offline.schemas import TABLES
from offline.storage import Storage
from offline.tables import create_tables
from offline.writer import LakeWriter

START = datetime(2026, 5, 1, 10, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def rows(table: str, found: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of a table; a column that a row lacks is null."""
    schema = TABLES[table].schema
    listed = list(found)
    unknown = {name for row in listed for name in row} - set(schema.names)
    assert not unknown, unknown
    return pa.Table.from_pylist(listed, schema=schema)


def append(storage: Storage, table: str, found: Iterable[Mapping[str, Any]] | pa.Table) -> None:
    """One commit; a file for each run in it."""
    data = found if isinstance(found, pa.Table) else rows(table, found)
    with LakeWriter(storage, "kit") as writer:
        writer.write({table: data})


def steps(
    run_id: str,
    episode_id: str,
    rewards: Sequence[float],
    *,
    fragments: Sequence[int],
    end: str | None = "terminated",
    env_id: int = 0,
    session: int = 0,
    values: Sequence[float] | None = None,
    versions: Sequence[int] | None = None,
    start: datetime = START,
) -> list[dict[str, Any]]:
    """The steps of one episode, one a minute; a fragment's last row has its final_obs.

    Args:
        run_id, episode_id, env_id, session: the columns.
        rewards: of each step.
        fragments: of each step.
        end: terminated, truncated, aborted, or None for an episode that goes on.
        values: of each step.
        versions: policy version of each step; by default the fragment's number.
        start: when the first step was sampled.
    """
    made = []
    for t, (reward, fragment) in enumerate(zip(rewards, fragments, strict=True)):
        ends = t == len(rewards) - 1
        cut = ends or fragments[t + 1] != fragment
        made.append(
            {
                "run_id": run_id,
                "session": session,
                "fragment_id": fragment,
                "worker_id": 0,
                "env_id": env_id,
                "module_id": "default",
                "episode_id": episode_id,
                "t": t,
                "space": "0123456789ab",
                "obs": [float(t), 10.0 * t],
                "action": [float(t % 2)],
                "reward": reward,
                "terminated": ends and end == "terminated",
                "truncated": ends and end in ("truncated", "aborted"),
                "aborted": ends and end == "aborted",
                "is_last": cut,
                "final_obs": [t + 1.0, 10.0 * (t + 1)] if cut and end != "aborted" else None,
                "logp": -0.5,
                "value": None if values is None else values[t],
                "policy_version": fragment if versions is None else versions[t],
                "sampled_at": start + timedelta(minutes=t),
            }
        )
    return made


def episode(
    run_id: str, episode_id: str, returned: float | None, length: int, version: int, **given: Any
) -> dict[str, Any]:
    """The row of an episode that ended."""
    usual = {
        "session": 0,
        "kind": "train",
        "worker_id": 0,
        "env_id": 0,
        "module_id": "default",
        "seed": 1,
        "terminated": True,
        "truncated": False,
        "aborted": False,
        "policy_version_first": version,
        "policy_version_last": version,
        "started_at": START,
        "ended_at": at(length),
    }
    named = {"run_id": run_id, "episode_id": episode_id, "return": returned, "length": length}
    return usual | named | given


def consumed(
    run_id: str, fragment: int, *, rows: int, acted: int, learner: int, session: int = 0
) -> dict[str, Any]:
    """The row of a fragment that an update used."""
    return {
        "run_id": run_id,
        "session": session,
        "fragment_id": fragment,
        "rank": 0,
        "rows": rows,
        "policy_version": acted,
        "learner_version": learner,
        "lag": learner - acted,
        "grad_steps": 4 * (learner + 1),
        "at": at(5 * (fragment + 1)),
    }


def event(run_id: str, session: int, status: str, minutes: float, **given: Any) -> dict[str, Any]:
    """A row of `runs`."""
    return {"run_id": run_id, "session": session, "status": status, "at": at(minutes)} | given


def metric(run_id: str, iteration: int, key: str, value: float) -> dict[str, Any]:
    named = {"run_id": run_id, "session": 0, "iteration": iteration, "key": key, "value": value}
    return named | {"env_steps": 100 * iteration, "policy_version": iteration, "at": at(iteration)}


def small_lake(folder: Path | Storage) -> Storage:
    """The lake of this module's docstring."""
    storage = Storage.at(folder)
    create_tables(storage)
    with LakeWriter(storage, "kit") as writer:
        writer.write({table: rows(table, found) for table, found in _contents().items()})
    return storage


def _contents() -> dict[str, list[dict[str, Any]]]:
    failure = {"run_id": "fast", "session": 0, "kind": "env", "worker_id": 0, "env_id": 1}
    return {
        "runs": [
            event("fast", 0, "running", 0, algo="ppo", env="CartPole-v1", seed=1, config=_lag(1)),
            event("fast", 0, "failed", 30, message="worker died"),
            event("fast", 1, "running", 60, algo="ppo", env="CartPole-v1", seed=1, config=_lag(1)),
            event("fast", 1, "finished", 90),
            event("slow", 0, "running", 0, algo="ppo", env="CartPole-v1", seed=2, config=_lag(0)),
        ],
        "steps": [
            # a0 spans fragments 0 and 1, a1 ends in 1, a2 is cut off by an exception in 2.
            *steps("fast", "a0", [1, 1, 1], fragments=[0, 0, 1], values=[3.0, 2.25, 1.0]),
            *steps("fast", "a1", [2], fragments=[1], end="truncated", values=[9.0], start=at(3)),
            *steps("fast", "a2", [1, 0], fragments=[2, 2], end="aborted", env_id=1, start=at(50)),
            *steps("fast", "a3", [1, 1], fragments=[0, 0], session=1, end=None, start=at(61)),
            *steps("slow", "b0", [5, 5], fragments=[0, 0], values=[8.0, 6.0]),
            *steps("slow", "b1", [-1], fragments=[1], values=[0.0], start=at(2)),
        ],
        "episodes": [
            episode("fast", "a0", 3.0, 3, 1, policy_version_first=0),
            episode("fast", "a1", 2.0, 1, 1, terminated=False, truncated=True, started_at=at(3)),
            episode("fast", "a2", None, 2, 2, aborted=True, terminated=False, truncated=True),
            episode("fast", "e0", 7.0, 7, 1, kind="evaluation"),
            episode("slow", "b0", 10.0, 2, 0, seed=2),
            episode("slow", "b1", -1.0, 1, 1, seed=2),
        ],
        "consumption": [
            consumed("fast", 0, rows=2, acted=0, learner=0),
            consumed("fast", 1, rows=2, acted=1, learner=2),
            consumed("slow", 0, rows=2, acted=0, learner=0),
            consumed("slow", 1, rows=1, acted=1, learner=1),
        ],
        "metrics": [
            metric("fast", 1, "episode_return_mean", 2.0),
            metric("fast", 1, "learner/entropy", 0.7),
            metric("fast", 2, "episode_return_mean", 2.5),
            metric("fast", 2, "learner/entropy", 0.6),
            metric("slow", 1, "episode_return_mean", 4.5),
        ],
        "failures": [
            failure | {"episode_id": "a2", "count": 1, "message": "boom", "at": at(51)},
            failure | {"kind": "worker", "count": 2, "message": "killed", "at": at(30)},
        ],
    }


def _lag(bound: int) -> str:
    return f'{{"rollout": {{"max_policy_lag": {bound}}}}}'
