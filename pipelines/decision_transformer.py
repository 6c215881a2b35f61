"""Decision Transformer (Chen et al. 2021, arXiv:2106.01345): imitation, told the return to come.

A transformer learns which action was taken after K steps of returns-to-go, observations and
actions; asked for a high return, it takes actions that led to one. It learns from logged rows
alone.

Legend: B windows, K steps, P distribution parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from pipelines.config import ModelConfig, OptimConfig
from pipelines.config_base import Fraction, PositiveInt
from pipelines.dataflow import Dataflow
from pipelines.logged import LoggedConfig, logged
from pipelines.off_policy import Learned, ReplayLearner
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Loss, Metrics, Modules
from rl_ops.model_spec import SequenceSpec
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.policy import Weights
from rl_ops.transformer import DecisionTransformer


class DTConfig(LoggedConfig):
    """Decision Transformer; model.hidden are the widths of its blocks, all the same."""

    algo: Literal["dt"] = "dt"
    """Name of the algorithm."""
    context_steps: PositiveInt = 20
    """K, the newest steps that it acts by."""
    target_return: float | None = None
    """Return that it is asked for when it acts; None is that of the best episode in the data."""
    return_scale: float | None = Field(default=None, gt=0)
    """What returns-to-go are divided by; None is the largest in the data, by size."""
    num_heads: PositiveInt = 1
    """Of attention, in each block."""
    dropout: Fraction = 0.1
    """Share of numbers left out while learning."""
    max_t: PositiveInt = 1000
    """Steps of an episode that are told apart; later ones count as the last."""
    minibatch_rows: PositiveInt = 64
    """Windows drawn for a gradient step, on each learner rank."""
    model: ModelConfig = ModelConfig(hidden=(128, 128, 128), activation="relu")
    optim: OptimConfig = OptimConfig(
        kind="adamw",
        lr=((0, 0.0), (10_000, 1e-4)),
        eps=1e-8,
        weight_decay=1e-4,
        max_grad_norm=0.25,
    )

    @model_validator(mode="after")
    def _draws_episodes(self) -> Self:
        if not self.is_offline:
            raise ValueError(
                f"dt learns from logged episodes alone, got offline.frac={self.offline.frac:g}"
            )
        if self.offline.load == "stream":
            raise ValueError("dt draws windows of episodes, which do not stream; load in memory")
        return self

    def sequence(self) -> SequenceSpec:
        """What the transformer sees; of actions it learns from the environment."""
        return SequenceSpec(
            steps=self.context_steps, heads=self.num_heads, dropout=self.dropout, max_t=self.max_t
        )


@dataclass
class DTModules(Modules):
    """A transformer, which knows what it is asked for, its optimiser, input statistics."""

    model: DecisionTransformer
    optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class DTLearner(ReplayLearner[DTConfig]):
    """One step of maximum likelihood on each minibatch of windows."""

    reads: ClassVar[tuple[str, ...]] = (c.ACTION, c.RETURN_TO_GO, c.T, c.STEP_MASK)
    modules: DTModules

    def build(self) -> DTModules:
        """See `Learner.build`."""
        torch.manual_seed(self.config.seed)
        self.distribution = self.policy.distribution
        model = DecisionTransformer(self.policy.model).to(self.world.device)
        return DTModules(model, self.optimizer(model), *new_moments(self.config, self.policy))

    def update_logged(self, count: int) -> Metrics:
        """See `Learner.update_logged`."""
        self._aim()
        return super().update_logged(count)

    def weights(self) -> Weights:
        """See `Learner.weights`."""
        self._aim()
        return super().weights()

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        if self.config.dropout:
            # Dropout knows no generator, and a run that is resumed must leave out the same numbers.
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
        loss = self.loss(batch)
        noted = self.step(self.modules.optimizer, loss, lr=self.at(self.config.optim.lr))
        return Learned({**noted, **loss.metrics}, None)

    def loss(self, batch: Batch) -> Loss:
        """Minus logp of the actions taken, on average over the steps there are.

        Differs: a Gaussian's likelihood of a Box's actions, as in Zheng et al. 2022,
        arXiv:2202.05607, where Chen et al. take the squared error of a tanh.
        """
        params_BKP = self.modules.model(
            batch.obs, batch.action, batch.return_to_go, t=batch.t, mask=batch.step_mask
        )
        logp = self.distribution.logp(params_BKP[batch.step_mask], batch.action[batch.step_mask])
        weight = batch.is_weight[:, None].expand(batch.step_mask.shape)[batch.step_mask]
        loss = {"dt_loss": -(weight * logp).mean()}
        return Loss(loss, {c.LOGP: logp.detach().mean()})

    def _aim(self) -> None:
        """What the configuration leaves to the data; the configuration's own is newer than that."""
        config, model, data = self.config, self.modules.model, self.data
        if data is not None and model.target_return.isnan():
            model.target_return.fill_(data.best_return)
            model.return_scale.fill_(data.largest_return or 1.0)
        given: Mapping[str, float | None] = {
            "target_return": config.target_return,
            "return_scale": config.return_scale,
        }
        for name, value in given.items():
            if value is not None:
                getattr(model, name).fill_(value)


def dataflow(config: DTConfig) -> Dataflow:
    """Windows of logged episodes → Decision Transformer."""
    return logged(config, DTLearner, policy=PolicyKind(head="actor", sequence=config.sequence()))
