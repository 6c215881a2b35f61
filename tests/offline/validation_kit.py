"""Logged steps written by hand: whole episodes to be damaged, and lakes that hold them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake
from gymnasium.spaces import Box, Discrete, Space

from offline import schemas as s
from offline.lake import Lake
from offline.space_codec import SpaceCodec
from offline.spaces import register_space
from offline.storage import Storage
from offline.tables import create_tables
from offline.trajectories import Trajectories, trajectories_of
from rl_ops import columns as c

OBS = Box(-10.0, 10.0, (2,), np.float32)
ACTION = Discrete(3)
KEY = "kit"
"""Of the spaces, in rows that no lake holds."""

Row = dict[str, Any]


def row(name: str, t: int, *, run_id: str = "run", space: str = KEY, **changes: Any) -> Row:
    """A step in the middle of an episode; its observation tells its t, and so does its reward."""
    made = {
        c.RUN_ID: run_id,
        s.SESSION: 0,
        c.FRAGMENT_ID: 0,
        c.AGENT_ID: "agent",
        c.EPISODE_ID: name,
        c.T: t,
        s.SPACE: space,
        c.OBS: [float(t % 10), 0.5],
        c.ACTION: [t % 3],
        c.REWARD: float(t),
        c.TERMINATED: False,
        c.TRUNCATED: False,
        c.ABORTED: False,
        c.LOGP: -1.0,
        c.POLICY_VERSION: 7,
    }
    assert not set(changes) - set(s.STEPS.schema.names), changes
    return made | changes


def episode(
    name: str, steps: int = 4, *, end: str = c.TERMINATED, final: bool = True, **changes: Any
) -> list[Row]:
    """A whole episode, with the observation after its end.

    Args:
        name: its id.
        steps: how many.
        end: the flag of its last row; empty where the log ends first.
        final: whether the observation after the last row was logged.
        changes: of every row.
    """
    rows = [row(name, t, **changes) for t in range(steps)]
    if end:
        rows[-1][end] = True
    if final:
        rows[-1][c.FINAL_OBS] = [float(steps % 10), 0.5]
    return rows


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist([dict(one) for one in rows], schema=s.STEPS.schema)


def loaded(
    rows: Sequence[Row], *, obs: Space = OBS, action: Space = ACTION, version: int = 3
) -> Trajectories:
    """Rows as trajectories, without a lake."""
    codecs = SpaceCodec(obs), SpaceCodec(action)
    return trajectories_of(table(rows), *codecs, version=version, uri="memory")


def lake_at(folder: Path) -> Lake:
    storage = Storage.at(folder)
    create_tables(storage)
    return Lake(storage)


def put_behind(
    lake: Lake, rows: Sequence[Row], *, obs: Space = OBS, action: Space = ACTION
) -> None:
    """Append by delta-rs: neither our writer nor an import looks at the rows."""
    key = register_space(lake.storage, obs, action)
    found = table([{**one, s.SPACE: key} for one in rows])
    write_deltalake(lake.storage.table_uri(s.STEPS.name), found, mode="append")
