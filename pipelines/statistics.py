"""Running statistics of a learner's inputs, learned by all ranks from the rows they consume."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pipelines.config import AlgorithmConfig
from rl_ops.batch import Batch
from rl_ops.learner import World
from rl_ops.moments import RunningMoments, normalize
from rl_ops.policy import PolicySpec, Weights


class Moments(NamedTuple):
    """Statistics of observations and of running returns; None where they are not normalised."""

    obs: RunningMoments | None
    reward: RunningMoments | None


class HasMoments(Protocol):
    """`Modules` with statistics, which loading a checkpoint replaces."""

    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


def new_moments(config: AlgorithmConfig, policy: PolicySpec) -> Moments:
    """Empty statistics, of what the configuration normalises."""
    connectors, shape = config.connectors, policy.obs_connectors.output_space.shape
    return Moments(
        obs=RunningMoments(shape) if connectors.normalize_obs else None,
        reward=RunningMoments() if connectors.normalize_reward else None,
    )


def observe(modules: HasMoments, batch: Batch, world: World) -> None:
    """Learn from rows that were consumed; of all ranks, in rank order, so that all agree."""
    if modules.reward_moments is not None:
        _merge(modules.reward_moments, batch.running_return, world)
    if modules.obs_moments is not None:
        _merge(modules.obs_moments, batch.obs, world)


def normalized(modules: HasMoments, obs: torch.Tensor, *, clip: float) -> torch.Tensor:
    """Module observations [B, ...] as the policy sees them with the statistics of now."""
    if modules.obs_moments is None:
        return obs
    mean, std = (torch.from_numpy(x) for x in _mean_std(modules.obs_moments))
    found: torch.Tensor = normalize(obs, mean=mean, std=std, clip=clip)
    return found


def acting_weights(modules: HasMoments, model: torch.nn.Module, *, env_steps: int) -> Weights:
    """What acts: the parameters of `model` as arrays of their own, and the statistics."""
    module = {
        name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()
    }
    mean = std = reward_std = None
    if modules.obs_moments is not None:
        mean, std = _mean_std(modules.obs_moments)
    if modules.reward_moments is not None and modules.reward_moments.count > 1:
        reward_std = float(modules.reward_moments.std())
    return Weights(module, mean, std, reward_std, env_steps)


def _merge(moments: RunningMoments, values: torch.Tensor, world: World) -> None:
    new = RunningMoments(moments.mean.shape)
    new.update(values.cpu().numpy())
    packed = np.concatenate([[new.count], new.mean.ravel(), new.m2.ravel()])
    for part in world.gather(torch.from_numpy(packed)):
        array, shape = part.numpy(), moments.mean.shape
        mean, m2 = np.split(array[1:], 2)
        state = {"count": array[0], "mean": mean.reshape(shape), "m2": m2.reshape(shape)}
        moments.merge(RunningMoments.from_state(state))


def _mean_std(moments: RunningMoments) -> tuple[Any, Any]:
    """Float32 mean and deviation; 0 and 1 before the first rows."""
    if moments.count == 0:
        return np.zeros_like(moments.mean, np.float32), np.ones_like(moments.mean, np.float32)
    return moments.mean.astype(np.float32), moments.std().astype(np.float32)
