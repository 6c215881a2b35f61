"""Lakes with a run's traces: rolled out for real, or tables written by hand."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from gymnasium.spaces import Box, Discrete

from offline import schemas as s
from offline.episodes import EpisodeTracker
from offline.lake import Lake
from offline.space_codec import SpaceCodec
from offline.spaces import register_space
from offline.steps import StepEncoder, StepFormat
from offline.storage import Storage
from offline.tables import create_tables
from offline.writer import LakeWriter
from rl_ops import columns as c
from rl_ops.envs import EnvSpec
from tests.rollout_kit import fragments, make_rollout, policy_spec, random_weights

Array = npt.NDArray[Any]
ROWS = 10
"""In each of the fragments that are written by hand."""
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def empty_lake(folder: Path) -> Lake:
    storage = Storage.at(folder)
    create_tables(storage)
    return Lake(storage)


def put(lake: Lake, table: str, rows: "Sequence[Mapping[str, Any]] | pa.Table") -> None:
    """Append rows; columns that are left out are null."""
    expected = s.TABLES[table]
    if not isinstance(rows, pa.Table):
        rows = pa.Table.from_pylist([dict(row) for row in rows], schema=expected.schema)
    with LakeWriter(lake.storage, "kit") as writer:
        writer.write({table: rows})


def run_row(
    run_id: str,
    session: int = 0,
    *,
    config: Mapping[str, Any] | None = None,
    resumed_from: Mapping[str, Any] | None = None,
    status: str = "running",
    **columns: Any,
) -> dict[str, Any]:
    """A row of table `runs`."""
    return {
        c.RUN_ID: run_id,
        s.SESSION: session,
        s.STATUS: status,
        "config": None if config is None else json.dumps(config),
        "resumed_from": None if resumed_from is None else json.dumps(resumed_from),
        s.AT: at(session * 100),
        **columns,
    }


def config_of(
    env: EnvSpec, *, num_envs: int, seed: int, steps: int, mode: str = "truncate", workers: int = 1
) -> dict[str, Any]:
    """As params.json has it, in part."""
    return {
        "algo": "ppo",
        "env": {
            "id": env.id,
            "kwargs": dict(env.kwargs),
            "vectorization": env.vectorization,
            "max_episode_steps": env.max_episode_steps,
        },
        "seed": seed,
        "connectors": {"squash_action": False},
        "faults": {"max_env_failures": env.guard.max_failures},
        "rollout": {
            "num_workers": workers,
            "num_envs": num_envs,
            "fragment_steps": steps,
            "batch_mode": mode,
        },
    }


def log_run(
    lake: Lake,
    env: EnvSpec,
    *,
    run_id: str = "run",
    session: int = 0,
    num_envs: int = 3,
    steps: int = 16,
    count: int = 4,
    seed: int = 11,
    workers: int = 1,
    restarts: int = 0,
    mode: str = "truncate",
    **form: Any,
) -> list[pa.Table]:
    """Roll out `count` fragments of each worker and log them as a run does; the fragments.

    Worker w makes fragments w, w + workers, and so on. With `restarts` the last worker's second
    half comes from environments that were started again so often.
    """
    policy = policy_spec(env)
    storage = lake.storage
    action_space = policy.action_connectors.input_space
    key = register_space(storage, policy.obs_space, action_space)
    encoder = StepEncoder(StepFormat(run_id, session, key, policy.obs_space, action_space, **form))
    tables: dict[int, pa.Table] = {}
    for worker in range(workers):
        halves = [(0, count)]
        if restarts and worker == workers - 1:
            halves = [(0, count // 2), (count // 2, count)]
        for incarnation, (first, last) in enumerate(halves):
            rollout = make_rollout(
                env,
                num_envs=num_envs,
                steps=steps,
                policy=policy,
                weights=random_weights(policy),
                worker_id=worker,
                incarnation=session * 1000 + incarnation * restarts,
                run_id=run_id,
                seed=seed,
                batch_mode=mode,
                keep=frozenset({c.OBS, c.FINAL_OBS}),
            )
            for k, table in enumerate(fragments(rollout, last - first)):
                tables[(first + k) * workers + worker] = table
    made = [_renumbered(tables[k], k) for k in sorted(tables)]
    tracker = EpisodeTracker(run_id, session)
    put(lake, "steps", encoder.encode(made))
    put(lake, "episodes", tracker.track(made))
    put(lake, "episodes", tracker.close())
    config = config_of(env, num_envs=num_envs, seed=seed, steps=steps, mode=mode, workers=workers)
    put(lake, "runs", [run_row(run_id, session, config=config, env=env.id, seed=seed, algo="ppo")])
    return made


def _renumbered(table: pa.Table, fragment: int) -> pa.Table:
    index = table.column_names.index(c.FRAGMENT_ID)
    ids = pa.array([fragment] * table.num_rows, pa.int64())
    return table.set_column(index, c.FRAGMENT_ID, ids)


def frame_rows(lake: Lake, frames: Array, *, episode_id: str = "r/frames") -> list[dict[str, Any]]:
    """Steps of one episode that shows these pictures."""
    obs_space = Box(0, 255, frames.shape[1:], np.uint8)
    key = register_space(lake.storage, obs_space, Discrete(2))
    raw = SpaceCodec(obs_space).columns(frames).bytes_
    assert raw is not None
    return [
        {
            c.RUN_ID: "r",
            s.SESSION: 0,
            c.FRAGMENT_ID: 0,
            c.WORKER_ID: 0,
            c.ENV_ID: 0,
            c.EPISODE_ID: episode_id,
            c.T: t,
            s.SPACE: key,
            s.OBS_BYTES: picture,
            c.ACTION: [t % 2],
            c.REWARD: float(t),
            c.TERMINATED: t == len(frames) - 1,
            c.TRUNCATED: False,
            c.ABORTED: False,
            c.IS_LAST: t == len(frames) - 1,
            c.POLICY_VERSION: 0,
        }
        for t, picture in enumerate(raw.to_pylist())
    ]


def consumed(run_id: str, session: int, ids: range, start_s: int) -> list[dict[str, Any]]:
    return [
        {
            "run_id": run_id,
            "session": session,
            "fragment_id": k,
            "rank": 0,
            "rows": ROWS,
            "policy_version": k // 2,
            "learner_version": k // 2,
            "lag": 0,
            "at": at(start_s + k),
        }
        for k in ids
    ]


def steps(run_id: str, session: int, ids: range, *, per_episode: int = 15) -> list[dict[str, Any]]:
    """`ROWS` steps in each fragment, of episodes that go on from fragment to fragment."""
    first = ids[0] * ROWS
    return [
        {
            "run_id": run_id,
            "session": session,
            "fragment_id": k,
            "worker_id": 0,
            "env_id": 0,
            "episode_id": f"{run_id}/00000.{session * 1000}/{(row - first) // per_episode:07d}",
            "t": (row - first) % per_episode,
            "reward": 1.0,
        }
        for k in ids
        for row in range(k * ROWS, (k + 1) * ROWS)
    ]


def checkpoint(run_id: str, session: int, number: int, fragments: int, at_s: int) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "session": session,
        "checkpoint_id": number,
        "path": f"/runs/{run_id}/checkpoints/{number:06d}",
        "sha256": f"{session}-{number}",
        "policy_version": number,
        "env_steps": fragments * ROWS,
        "fragments": fragments,
        "table_versions": json.dumps({"steps": number}),
        "at": at(at_s),
    }


def resumed_from(session: int, number: int, **more: Any) -> Mapping[str, Any]:
    return {"session": session, "checkpoint_id": number, "path": f"/runs/r/{number}", **more}
