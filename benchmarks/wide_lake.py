"""A lake with as many logged rows as wanted, made at once: for loading, streaming and reading."""

import numpy as np
import pyarrow as pa
from gymnasium.spaces import Box

from offline import schemas as s
from offline.space_codec import SpaceCodec
from offline.spaces import register_space
from offline.steps import constant, table_of
from offline.storage import Storage
from offline.writer import LakeWriter
from rl_ops import columns as c

LENGTH = 250


def write_rows(storage: Storage, *, files: int, file_rows: int, width: int) -> None:
    """Whole episodes of observations that are `width` wide; the first file is a run of its own.

    There are few distinct numbers, so that files are small.
    """
    obs_space = Box(-1.0, 1.0, (width,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)
    key = register_space(storage, obs_space, action_space)
    obs, action = SpaceCodec(obs_space), SpaceCodec(action_space)
    rng, t = np.random.default_rng(0), np.arange(file_rows) % LENGTH
    is_last = t == LENGTH - 1
    with LakeWriter(storage, "wide") as writer:
        for k in range(files):
            values = (rng.integers(-128, 128, (file_rows, width)) / 128).astype(np.float32)
            episode = (k * file_rows + np.arange(file_rows)) // LENGTH
            arrays = {
                c.RUN_ID: constant("wide" if k else "first", file_rows),
                s.SESSION: pa.array(np.zeros(file_rows, np.int32)),
                c.EPISODE_ID: pa.array([f"wide/{i:07d}" for i in episode]),
                c.T: pa.array(t.astype(np.int32)),
                s.SPACE: constant(key, file_rows),
                c.OBS: obs.columns(values).values,
                c.FINAL_OBS: obs.columns(values, is_last).values,
                c.ACTION: action.columns(values[:, :2]).values,
                c.REWARD: pa.array(np.ones(file_rows)),
                c.TRUNCATED: pa.array(is_last),
            }
            writer.write({"steps": table_of(arrays, s.STEPS.schema, rows=file_rows)}, fragments=[k])
