"""What learners of policy gradients with a value baseline share.

Legend: B rows, P distribution parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from pipelines.config import OnPolicyConfig
from pipelines.dataflow import learner_reward
from pipelines.statistics import acting_weights, new_moments, normalized, observe
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Learner, Loss, Modules, load_arrays
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.operators import AddDiscount, AddGAE, Operator
from rl_ops.optim import FlatOptimizer
from rl_ops.policy import Weights
from rl_ops.pullback import Pullback, covers
from rl_ops.returns import VTrace, vtrace

C = TypeVar("C", bound=OnPolicyConfig)


def advantages(config: OnPolicyConfig) -> tuple[Operator, ...]:
    """The operators that turn rewards and values into advantages, in the rollout worker."""
    before, reward = learner_reward(config)
    return (*before, AddGAE(config.gamma, config.gae_lambda, reward=reward))


SEGMENTS = (
    *(c.ACTION, c.LEARNER_REWARD, c.DISCOUNT, c.IS_LAST, c.LOGP),
    c.FINAL_MODEL_OBS,
)
"""What V-trace is made of, besides the observation."""


def discounts(config: OnPolicyConfig) -> tuple[Operator, ...]:
    """The operators that leave advantages to the learner, whose policy has moved on."""
    before, reward = learner_reward(config)
    return (*before, AddDiscount(config.gamma, reward=reward))


@dataclass
class ActorCritic(Modules):
    """One actor-critic, its optimiser, the statistics of its inputs, and perhaps a slow copy."""

    model: nn.Module
    optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None
    target: nn.Module | None = None


class ActorCriticLearner(Learner[C]):
    """Builds an actor-critic, evaluates it on rows, and descends a loss."""

    modules: ActorCritic

    def build(self) -> ActorCritic:
        """See `Learner.build`."""
        config = self.config
        torch.manual_seed(config.seed)
        model = build_model(self.policy.model).to(self.world.device)
        optimizer = FlatOptimizer([model], config.optim.spec(), reduce_gradient=self.world.average)
        self.distribution = self.policy.distribution
        self._forward = torch.compile(model) if config.learner.compile else model
        written = covers(model, self.distribution) and not config.learner.compile
        self.pullback = Pullback(model, self.distribution) if written else None
        self.on_nonfinite = config.faults.on_nonfinite_loss
        moments = new_moments(config, self.policy)
        return ActorCritic(model, optimizer, moments.obs, moments.reward)

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

    def vtrace(
        self,
        batch: Batch,
        *,
        log_rho: torch.Tensor,
        value: torch.Tensor,
        final_value: torch.Tensor,
        rho_bar: float = 1.0,
        c_bar: float = 1.0,
    ) -> VTrace[torch.Tensor]:
        """Targets and advantages of rows [B], env-major, in whole segments; see `returns.vtrace`.

        Args:
            batch: rows with `SEGMENTS`.
            log_rho: [B] of the policy to value over the one that acted, in nats.
            value: [B] V(obs).
            final_value: [B] V(final_model_obs) where a segment is cut; anything elsewhere.
            rho_bar: limit of the weights in temporal differences.
            c_bar: limit of the weights in traces.
        """
        next_value_B = torch.where(batch.is_last, final_value, value.roll(-1))
        return vtrace(
            log_rho,
            batch.learner_reward,
            batch.discount,
            value,
            next_value_B,
            batch.is_last,
            rho_bar=rho_bar,
            c_bar=c_bar,
            gae_lambda=self.config.gae_lambda,
        )

    @torch.no_grad()
    def final_value(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """V(final_model_obs) [B] by `network` where a segment is cut and goes on, 0 elsewhere."""
        value_B = torch.zeros_like(batch.learner_reward)
        cut = (batch.is_last & (batch.discount > 0)).nonzero()[:, 0]
        if len(cut):
            value_B[cut] = network(batch.final_model_obs[cut])[1]
        return value_B

    def descend(self, loss: Loss) -> Mapping[str, torch.Tensor | float]:
        """One optimiser step; see `Learner.step`."""
        return self.step(self.modules.optimizer, loss, lr=self.at(self.config.optim.lr))

    def descend_written(self, terms: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """As `descend`, along the gradient that `pullback` left; `terms` are for the log."""
        norm = self.modules.optimizer.descend(lr=self.at(self.config.optim.lr))
        return self.checked(terms, norm)

    def num_minibatches(self, batch: Batch, *, max_rows: int) -> int:
        """How many minibatches every rank makes of its rows; at most as many as it has rows."""
        rows = self.world.gather_objects(batch.rows)
        return min(-(-max(rows) // max_rows), *rows)

    def prepare(self, batch: Batch) -> Batch:
        """Normalise observations with the statistics that acted, then learn the batch's own."""
        modules, clip = self.modules, self.config.connectors.obs_clip
        names = [name for name in (c.OBS, c.FINAL_MODEL_OBS) if name in batch]
        fed = {name: normalized(modules, getattr(batch, name), clip=clip) for name in names}
        observe(modules, batch, self.world)
        return batch.with_columns(**fed)

    def weights(self) -> Weights:
        """See `Learner.weights`."""
        return acting_weights(self.modules, self.modules.model, env_steps=self.env_steps)

    def set_weights(self, weights: Weights) -> None:
        """See `Learner.set_weights`."""
        load_arrays(self.modules.model, weights.module)
        self.world.synchronize(self.modules)
