"""Logged steps as the windows of episodes that a sequence model draws.

Legend: N rows, E episodes.
"""

import numpy as np
import torch

from offline.errors import LakeError
from offline.module_obs import module_obs
from offline.trajectories import Mask, Trajectories
from pipelines.config import AlgorithmConfig
from pipelines.offline_data import Array, DataMoments, drawn_rows
from rl_ops import columns as c
from rl_ops.learner import World
from rl_ops.policy import PolicySpec
from rl_ops.sequence_data import SequenceData


def sequences_of(
    data: Trajectories,
    config: AlgorithmConfig,
    policy: PolicySpec,
    reads: tuple[str, ...],
    world: World,
) -> tuple[SequenceData, DataMoments]:
    """Trajectories as sequences for a learner; see `offline_data.load_rows`.

    Only pieces that reach their episode's end count: of others the return-to-go is not known. That
    of a truncated episode is what was logged up to its end, without a bootstrap, as the authors'.

    Raises:
        LakeError: no episode ends.
    """
    assert policy.model.sequence is not None  # or nobody would read sequences
    ends = _reaches_end(data)
    if not ends.any():
        raise LakeError(
            f"none of the {data.num_episodes} episodes that offline.where leaves ends, so no "
            "return-to-go is known; choose rows of whole episodes."
        )
    data = data if ends.all() else data.take(ends)
    obs = module_obs(data, policy.obs_connectors)
    moments = DataMoments.new(config, policy)
    moments.update(data, obs, gamma=config.gamma)
    drawn = drawn_rows(data, config, policy, reads, obs=obs, moments=moments)
    columns = {c.OBS: obs[: data.rows], c.T: data.t, **drawn.columns}
    returns, whole = data.returns(), data.is_whole()
    sequences = SequenceData(
        {name: _tensor(column) for name, column in columns.items()},
        torch.from_numpy(data.is_last),
        steps=policy.model.sequence.steps,
        begins=torch.arange(world.rank, data.rows, world.size),
        best_return=float(np.max(returns[whole] if whole.any() else returns)),
        largest_return=float(np.abs(columns[c.RETURN_TO_GO]).max()),
        device=world.device,
    )
    return sequences, moments


def _tensor(array: Array) -> torch.Tensor:
    narrow = array.astype(np.float32) if array.dtype == np.float64 else array
    return torch.from_numpy(np.ascontiguousarray(narrow))


def _reaches_end(data: Trajectories) -> Mask:
    """[N] whether a row's piece goes on to the end of its episode."""
    lasts = np.flatnonzero(data.is_last)
    last = lasts[np.searchsorted(lasts, np.arange(data.rows))]
    ended: Mask = data.terminated[last] | data.truncated[last]
    return ended
