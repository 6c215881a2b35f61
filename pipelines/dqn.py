"""Deep Q-learning and its extensions, each a setting; all together are Rainbow.

Mnih et al. 2015, Nature 518; van Hasselt et al. 2016, arXiv:1509.06461; Wang et al. 2016,
arXiv:1511.06581; Schaul et al. 2016, arXiv:1511.05952; Fortunato et al. 2018, arXiv:1706.10295;
Bellemare et al. 2017, arXiv:1707.06887; Dabney et al. 2018, arXiv:1710.10044; Hessel et al. 2018,
arXiv:1710.02298.

Legend: B rows, A actions, N atoms.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn

from pipelines.config import ModelConfig, OffPolicyConfig, OptimConfig, RolloutConfig, TargetConfig
from pipelines.config_base import PositiveInt, Schedule
from pipelines.dataflow import Dataflow, Rollouts, source_of
from pipelines.off_policy import (
    TRANSITION,
    Follower,
    Learned,
    ReplayLearner,
    follower_of,
    replayed,
    transitions,
)
from pipelines.q_config import QConfig
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from rl_ops.batch import Batch
from rl_ops.exploration import EpsilonGreedy
from rl_ops.learner import Loss, Modules
from rl_ops.losses import huber, huber_slope
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.q_losses import (
    categorical_cross_entropy,
    categorical_target,
    double_q_value,
    quantile_huber_loss,
    taken,
    td_target,
)
from rl_ops.q_models import QNetwork
from rl_ops.written_mlp import WrittenMLP, written_q


class DQNConfig(OffPolicyConfig):
    """DQN with double Q-learning."""

    algo: Literal["dqn"] = "dqn"
    """Name of the algorithm."""
    q: QConfig = QConfig()
    epsilon: Schedule = ((0, 1.0), (20_000, 0.05))
    """Probability of a uniform action: a number, or [[env_steps, value], ...]."""
    model: ModelConfig = ModelConfig(hidden=(128, 128), activation="relu")
    rollout: RolloutConfig = RolloutConfig(num_envs=16, fragment_steps=16)
    optim: OptimConfig = OptimConfig(lr=1e-3, eps=1e-8, max_grad_norm=10.0)
    target: TargetConfig = TargetConfig(tau=1.0, period_updates=250)
    updates_per_row: float = Field(default=0.25, gt=0)
    """Gradient steps per env step consumed: neither side can run ahead of the other."""
    minibatch_rows: PositiveInt = 128
    """Rows drawn for a gradient step, on each learner rank."""


@dataclass
class QModules(Modules):
    """A Q network, the copy that targets come from, its optimiser, and input statistics."""

    model: nn.Module
    target: nn.Module
    optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class DQNLearner(ReplayLearner[DQNConfig]):
    """One temporal-difference step on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: QModules

    def build(self) -> QModules:
        """See `Learner.build`."""
        torch.manual_seed(self.config.seed)
        model = build_model(self.policy.model).to(self.world.device)
        optimizer, target = self.optimizer(model), follower_of(model)
        self._follower = Follower(target, optimizer, self.config.target)
        # Two of the network: one's buffers keep what its way back needs.
        self.written = written_q(model, trained=True)
        self._next_q = [written_q(network, trained=False) for network in (target, model)]
        return QModules(model, target, optimizer, *new_moments(self.config, self.policy))

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        modules, noisy = self.modules, self.config.q.noisy
        for network in (modules.model, modules.target) if noisy else ():
            assert isinstance(network, QNetwork)  # no other has noise
            network.draw_noise(self.generator)
        lr = self.at(self.config.optim.lr)
        if self.written is not None:
            total, td_error_B, q_B = self.descend_written(self.written, batch)
            terms = self.checked({"q_loss": total}, modules.optimizer.descend(lr=lr))
        else:
            loss_B, td_error_B, q_B = self.losses(batch)
            loss = Loss({"q_loss": (batch.is_weight * loss_B).mean()}, {})
            terms = self.step(modules.optimizer, loss, lr=lr)
        self._follower.follow(self.updates)
        return Learned({**terms, "q_mean": q_B.mean()}, td_error_B.abs())

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each row [B]: the loss, the td error and Q of its action, the latter two detached."""
        config = self.config.q
        outputs_BN = taken(self._outputs(self.modules.model, batch.obs), batch.action)
        target_BN = self._next(batch)
        returns = batch.return_n, batch.bootstrap_discount
        if config.atoms == "categorical":
            support_N = cast(torch.Tensor, self.modules.model.support)
            target_BN = categorical_target(target_BN, *returns, support_N=support_N)
            loss_B = categorical_cross_entropy(outputs_BN, target_BN)
            q_B = outputs_BN.detach().softmax(1) @ support_N
            return loss_B, target_BN @ support_N - q_B, q_B
        if config.atoms == "quantile":
            reward_B1, discount_B1 = (x.unsqueeze(1) for x in returns)
            target_BN = reward_B1 + discount_B1 * target_BN
            loss_B = quantile_huber_loss(outputs_BN, target_BN, kappa=config.huber_delta or 0.0)
            q_B = outputs_BN.detach().mean(1)
            return loss_B, target_BN.mean(1) - q_B, q_B
        q_B = outputs_BN[:, 0]
        td_error_B = td_target(*returns, target_BN[:, 0]) - q_B
        loss_B = huber(td_error_B, delta=config.huber_delta)
        return loss_B, td_error_B.detach(), q_B.detach()

    @torch.no_grad()
    def descend_written(
        self, written: WrittenMLP, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Leave the gradient of the weighted mean of `losses`; that mean, td error and Q [B]."""
        config = self.config.q
        next_q_BA, online_q_BA = (
            network(batch.bootstrap_obs) if network is not None and wanted else None
            for network, wanted in zip(self._next_q, (True, config.double), strict=True)
        )
        assert next_q_BA is not None  # it is written as the network is
        next_value_B = double_q_value(next_q_BA, online_q_BA)
        action_B1, q_BA = batch.action.unsqueeze(1), written(batch.obs)
        q_B = q_BA.gather(1, action_B1).squeeze(1)
        td_error_B = td_target(batch.return_n, batch.bootstrap_discount, next_value_B) - q_B
        slope_B = huber_slope(td_error_B, delta=config.huber_delta) * batch.is_weight
        # the loss is huber(td) and td falls as Q rises
        d_q_BA = torch.zeros_like(q_BA).scatter_(1, action_B1, slope_B.unsqueeze(1))
        written.backward(d_q_BA.mul_(-1 / batch.rows))
        loss_B = huber(td_error_B, delta=config.huber_delta)
        return (batch.is_weight * loss_B).mean(), td_error_B, q_B

    @torch.no_grad()
    def _next(self, batch: Batch) -> torch.Tensor:
        """What the target network says of the action that comes next, [B, N]."""
        modules, obs = self.modules, batch.bootstrap_obs
        outputs_BAN = self._outputs(modules.target, obs)
        chooser = modules.model if self.config.q.double else None
        if outputs_BAN.shape[2] == 1:
            q_BA = None if chooser is None else self._outputs(chooser, obs).squeeze(2)
            return double_q_value(outputs_BAN.squeeze(2), q_BA).unsqueeze(1)
        q_BA = (modules.target if chooser is None else chooser)(obs)[0]
        chosen_BN = taken(outputs_BAN, q_BA.argmax(1))
        return chosen_BN.softmax(1) if self.config.q.atoms == "categorical" else chosen_BN

    def _outputs(self, network: nn.Module, obs: torch.Tensor) -> torch.Tensor:
        """[B, A, N]; a user's own network gives (Q [B, A], value)."""
        if isinstance(network, QNetwork):
            return network.outputs(obs)
        q_BA: torch.Tensor = network(obs)[0]
        return q_BA.unsqueeze(2)


def dataflow(config: DQNConfig) -> Dataflow:
    """Rollouts by epsilon-greedy → n-step returns → replay → DQN."""
    return Dataflow(
        source=source_of(
            config, Rollouts(act=EpsilonGreedy(config.epsilon), then=transitions(config))
        ),
        policy=PolicyKind(head="q", q=config.q.spec()),
        replay=replayed(config),
        learner=DQNLearner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
