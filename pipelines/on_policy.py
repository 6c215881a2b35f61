"""What learners of policy gradients with a value baseline share.

Legend: B rows, P distribution parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from pipelines.config import OnPolicyConfig
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Learner, Loss, Modules, check_tensors
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments, normalize
from rl_ops.operators import AddGAE, ClipReward, Operator
from rl_ops.optim import FlatOptimizer
from rl_ops.optim_spec import OptimSpec
from rl_ops.policy import Weights
from rl_ops.pullback import Pullback, covers
from rl_ops.schedules import Schedule, value_at

C = TypeVar("C", bound=OnPolicyConfig)


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or Inf and the configuration says to stop."""


def advantages(config: OnPolicyConfig) -> tuple[Operator, ...]:
    """The operators that turn rewards and values into advantages, in the rollout worker."""
    connectors = config.connectors
    reward = c.SCALED_REWARD if connectors.normalize_reward else c.REWARD
    clip = connectors.clip_reward
    before = () if clip is None else (ClipReward(clip, reward=reward),)
    reward = reward if clip is None else c.CLIPPED_REWARD
    return (*before, AddGAE(config.gamma, config.gae_lambda, reward=reward))


@dataclass
class ActorCritic(Modules):
    """One actor-critic, its optimiser, and the statistics of its inputs."""

    model: nn.Module
    optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class ActorCriticLearner(Learner[C]):
    """Builds an actor-critic, evaluates it on rows, and descends a loss."""

    modules: ActorCritic

    def build(self) -> ActorCritic:
        """See `Learner.build`."""
        config = self.config
        torch.manual_seed(config.seed)
        model = build_model(self.policy.model).to(self.world.device)
        optim = config.optim.model_dump(exclude={"lr"})
        optimizer = FlatOptimizer([model], OptimSpec(**optim), reduce_gradient=self.world.average)
        self.distribution = self.policy.distribution
        self._forward = torch.compile(model) if config.learner.compile else model
        written = covers(model, self.distribution) and not config.learner.compile
        self.pullback = Pullback(model, self.distribution) if written else None
        connectors = config.connectors
        shape = self.policy.obs_connectors.output_space.shape
        return ActorCritic(
            model=model,
            optimizer=optimizer,
            obs_moments=RunningMoments(shape) if connectors.normalize_obs else None,
            reward_moments=RunningMoments() if connectors.normalize_reward else None,
        )

    def at(self, schedule: Schedule) -> float:
        """A schedule's value now."""
        return value_at(schedule, self.env_steps)

    def evaluate(
        self, batch: Batch, *, entropy: bool = True
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Logp [B] of the batch's actions, entropy [B] if asked for, value [B], all as of now."""
        params_BP, value_B = self._forward(batch.obs)
        if not entropy:
            return self.distribution.logp(params_BP, batch.action), None, value_B
        logp_B, entropy_B = self.distribution.logp_entropy(params_BP, batch.action)
        return logp_B, entropy_B, value_B

    def entropy_coef(self) -> float:
        """The weight of the entropy bonus now."""
        return self.at(self.config.entropy_coef)

    def standardized(self, advantage: torch.Tensor) -> torch.Tensor:
        """Advantages [B] with mean 0 and deviation 1, if `normalize_advantage` asks for it."""
        if not self.config.normalize_advantage or len(advantage) < 2:
            return advantage
        variance, mean = torch.var_mean(advantage)
        return (advantage - mean) / (variance.sqrt() + 1e-8)

    def descend(self, loss: Loss) -> Mapping[str, torch.Tensor | float]:
        """One optimiser step; returns the loss's terms and the gradient norm.

        Raises:
            NonFiniteError: the gradient was not finite and `faults.on_nonfinite_loss` is "stop".
                The weights are as they were before the step.
        """
        norm = self.modules.optimizer.step(loss.total, lr=self.at(self.config.optim.lr))
        return self.checked(loss.terms, norm)

    def descend_written(self, terms: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """As `descend`, along the gradient that `pullback` left; `terms` are for the log."""
        norm = self.modules.optimizer.descend(lr=self.at(self.config.optim.lr))
        return self.checked(terms, norm)

    def checked(self, terms: Mapping[str, torch.Tensor], norm: float) -> Mapping[str, Any]:
        """Count a step by its gradient norm, or refuse it; returns what is noted of it."""
        finite = math.isfinite(norm)
        if not finite and self.config.faults.on_nonfinite_loss == "stop":
            values = {name: float(term.detach()) for name, term in terms.items()}
            raise NonFiniteError(
                f"gradient norm {norm} at grad step {self.grad_steps}, loss terms {values}; "
                "lower optim.lr, normalise observations, or set faults.on_nonfinite_loss to skip"
            )
        self.grad_steps += finite
        return {**terms, "grad_norm": norm, "skipped": float(not finite)}

    def num_minibatches(self, batch: Batch, *, max_rows: int) -> int:
        """How many minibatches every rank makes of its rows; at most as many as it has rows."""
        rows = self.world.gather_objects(batch.rows)
        return min(-(-max(rows) // max_rows), *rows)

    def prepare(self, batch: Batch) -> Batch:
        """Normalise observations with the statistics that acted, then learn the batch's own."""
        modules = self.modules
        if modules.reward_moments is not None:
            self._merge(modules.reward_moments, batch.running_return)
        if modules.obs_moments is None:
            return batch
        moments = modules.obs_moments
        clip = self.config.connectors.obs_clip
        mean, std = _mean_std(moments)
        obs = normalize(
            batch.obs, mean=torch.from_numpy(mean), std=torch.from_numpy(std), clip=clip
        )
        self._merge(moments, batch.obs)
        return batch.with_columns(obs=obs)

    def _merge(self, moments: RunningMoments, values: torch.Tensor) -> None:
        """Add the rows of all ranks, in rank order, so that every rank holds the same moments."""
        new = RunningMoments(moments.mean.shape)
        new.update(values.cpu().numpy())
        packed = np.concatenate([[new.count], new.mean.ravel(), new.m2.ravel()])
        for part in self.world.gather(torch.from_numpy(packed)):
            array, shape = part.numpy(), moments.mean.shape
            mean, m2 = np.split(array[1:], 2)
            state = {"count": array[0], "mean": mean.reshape(shape), "m2": m2.reshape(shape)}
            moments.merge(RunningMoments.from_state(state))

    def weights(self) -> Weights:
        """See `Learner.weights`."""
        modules = self.modules
        module = {
            name: tensor.detach().cpu().numpy().copy()
            for name, tensor in modules.model.state_dict().items()
        }
        mean = std = reward_std = None
        if modules.obs_moments is not None:
            mean, std = _mean_std(modules.obs_moments)
        if modules.reward_moments is not None and modules.reward_moments.count > 1:
            reward_std = float(modules.reward_moments.std())
        return Weights(module, mean, std, reward_std)

    def set_weights(self, weights: Weights) -> None:
        """See `Learner.set_weights`."""
        tensors = {name: torch.from_numpy(np.array(x)) for name, x in weights.module.items()}
        check_tensors(self.modules.model.state_dict(), tensors, what="a policy with these weights")
        self.modules.model.load_state_dict(tensors)
        self.world.synchronize(self.modules)


def _mean_std(moments: RunningMoments) -> tuple[Any, Any]:
    """Float32 mean and deviation; 0 and 1 before the first rows."""
    if moments.count == 0:
        return np.zeros_like(moments.mean, np.float32), np.ones_like(moments.mean, np.float32)
    return moments.mean.astype(np.float32), moments.std().astype(np.float32)
