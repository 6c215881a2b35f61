"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347).

Legend: B rows.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from pipelines.config import OnPolicyConfig
from pipelines.config_base import PositiveInt, Schedule
from pipelines.dataflow import Dataflow, Rollouts
from pipelines.on_policy import ActorCriticLearner, advantages
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Averages, Loss, Metrics
from rl_ops.losses import (
    approx_kl,
    clip_frac,
    clipped_surrogate,
    clipped_surrogate_slope,
    explained_variance,
    value_loss,
)


class PPOConfig(OnPolicyConfig):
    """PPO with the clipped surrogate."""

    algo: Literal["ppo"] = "ppo"
    """Name of the algorithm."""
    clip_eps: Schedule = 0.2
    """Limit of the probability ratio's distance from 1."""
    value_clip: float | None = Field(default=None, gt=0)
    """Limit of a value's change in one version; None leaves values free."""
    num_epochs: PositiveInt = 10
    """Passes over each version's rows."""
    minibatch_rows: PositiveInt = 256
    """Rows of a minibatch, at most: a version's rows are split evenly."""
    normalize_advantage: bool = True
    """Shift and scale the advantages of each minibatch to mean 0 and deviation 1."""
    target_kl: float | None = Field(default=None, gt=0)
    """Stop a version's epochs once the policy moved this far, in nats; None never."""


class PPOLearner(ActorCriticLearner[PPOConfig]):
    """Several epochs of minibatches over each version's rows."""

    reads: ClassVar[tuple[str, ...]] = (c.ACTION, c.LOGP, c.VALUE, c.ADVANTAGE, c.VALUE_TARGET)

    def loss(self, batch: Batch) -> Loss:
        """Clipped surrogate, value and entropy terms (eq. 9)."""
        config, entropy_coef = self.config, self.entropy_coef()
        # An entropy that nothing is made of would cost a tenth of the loss.
        logp_B, entropy_B, value_B = self.evaluate(batch, entropy=entropy_coef != 0)
        policy_B = clipped_surrogate(
            logp_B,
            batch.logp,
            self.standardized(batch.advantage),
            clip_eps=self.at(config.clip_eps),
        )
        value_loss_B = value_loss(
            value_B, batch.value_target, old_value=batch.value, clip=config.value_clip
        )
        terms = {
            "policy_loss": policy_B.mean(),
            "value_loss": config.value_coef * value_loss_B.mean(),
        }
        if entropy_B is not None:
            terms["entropy_loss"] = -entropy_coef * entropy_B.mean()
        return Loss(terms, {})

    def descend_minibatch(self, batch: Batch) -> Mapping[str, Any]:
        """One step down `loss`, with its gradient written out where there is one (`Pullback`)."""
        config, pullback = self.config, self.pullback
        if pullback is None or config.value_clip is not None:
            return self.descend(self.loss(batch))
        entropy_coef = self.entropy_coef()
        logp_B, entropy_B, value_B = pullback.forward(
            batch.obs, batch.action, entropy=entropy_coef != 0
        )
        policy_B, slope_B = clipped_surrogate_slope(
            logp_B,
            batch.logp,
            self.standardized(batch.advantage),
            clip_eps=self.at(config.clip_eps),
        )
        error_B, weight = value_B - batch.value_target, config.value_coef
        terms = {"policy_loss": policy_B.mean(), "value_loss": error_B.dot(error_B)}
        terms["value_loss"] *= 0.5 * weight / batch.rows
        if entropy_B is not None:
            terms["entropy_loss"] = -entropy_coef * entropy_B.mean()
        share = 1 / batch.rows
        pullback.backward(
            slope_B.mul_(share), error_B.mul_(weight * share), entropy=-entropy_coef * share
        )
        return self.descend_written(terms)

    @torch.no_grad()
    def diagnose(self, batch: Batch) -> Metrics:
        """How far the policy has moved on `batch` since it acted, and what it knew then."""
        logp_B, entropy_B, _ = self.evaluate(batch)
        clip_eps = self.at(self.config.clip_eps)
        figures = {
            "entropy": entropy_B.mean(),
            "approx_kl": approx_kl(logp_B, batch.logp).mean(),
            "clip_frac": clip_frac(logp_B, batch.logp, clip_eps=clip_eps).mean(),
            "explained_variance": explained_variance(batch.value, batch.value_target),
        }
        return {name: float(value) for name, value in figures.items()}

    def update(self, batch: Batch) -> Metrics:
        """`num_epochs` passes, or fewer when target_kl is passed."""
        config, averages = self.config, Averages()
        prepared = self.prepare(batch).select(("obs", *self.reads))
        rows, epochs = config.minibatch_rows, 0
        count = self.num_minibatches(prepared, max_rows=rows)
        for _ in range(config.num_epochs):
            for minibatch in prepared.minibatches(rows, generator=self.generator, min_count=count):
                averages.add(self.descend_minibatch(minibatch))
            epochs += 1
            if config.target_kl is not None:
                # Of all ranks: each deciding alone, one would wait for the others' gradients.
                kl = self.world.gather_objects(self.diagnose(prepared)["approx_kl"])
                if sum(kl) / len(kl) > config.target_kl:
                    break
        return averages.means() | self.diagnose(prepared) | {"epochs": epochs}


def dataflow(config: PPOConfig) -> Dataflow:
    """Rollouts → GAE → PPO."""
    return Dataflow(
        source=Rollouts(then=advantages(config)),
        learner=PPOLearner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
