"""Conservative Q-learning (Kumar et al. 2020, arXiv:2006.04779), in its variant CQL(H).

Values of all actions, by a soft maximum, are pushed down, and those of logged actions up. With
continuous actions it is a soft actor-critic; with discrete ones the network that acts gives Q of
every action, and acting by chance draws them in proportion to exp Q.

Legend: B rows, A actions, K critics.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch

from pipelines.config_base import PositiveInt, Schedule
from pipelines.conservative import (
    ConservativeConfig,
    CQLModules,
    QModules,
    gap_weight,
    sampled_actions,
    weigh,
)
from pipelines.dataflow import Dataflow
from pipelines.logged import LoggedConfig, logged
from pipelines.off_policy import (
    TRANSITION,
    Follower,
    Learned,
    ReplayLearner,
    follower_of,
    noted_steps,
)
from pipelines.soft_actor import TemperatureConfig, build_soft, sample, target_entropy, temper
from pipelines.soft_nets import soft_nets
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from rl_ops.batch import Batch
from rl_ops.conservative_losses import conservative_gap_discrete
from rl_ops.distributions import Categorical, SquashedGaussian
from rl_ops.errors import SpecError
from rl_ops.learner import Loss
from rl_ops.models import build_model
from rl_ops.q_losses import double_q_value, taken, td_target
from rl_ops.sampled_critics import SampledCritics
from rl_ops.soft_losses import clipped_double_q, soft_next_value


class CQLConfig(LoggedConfig):
    """CQL, on SAC for continuous actions and on double DQN for discrete ones."""

    algo: Literal["cql"] = "cql"
    """Name of the algorithm."""
    conservative: ConservativeConfig = ConservativeConfig()
    double: bool = True
    """Discrete actions: the network chooses the action that its target values."""
    temperature: TemperatureConfig = TemperatureConfig()
    entropy_target: bool = False
    """Continuous actions: count the policy's entropy in the critics' targets, as SAC does."""
    num_critics: PositiveInt = 2
    """Critics of continuous actions, of which the least value counts."""
    actor_lr: Schedule | None = 1e-4
    """Learning rate of the actor of continuous actions; None is optim.lr."""


class CQLLearner(ReplayLearner[CQLConfig]):
    """A step of the values, and of what acts by them, on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: CQLModules | QModules

    def build(self) -> CQLModules | QModules:
        """See `Learner.build`."""
        distribution, config = self.policy.distribution, self.config
        torch.manual_seed(config.seed)
        if isinstance(distribution, Categorical):
            weight = gap_weight(self, default=1.0)
            model = build_model(self.policy.model).to(self.world.device)
            optimizer, target = self.optimizer(model), follower_of(model)
            self._follower = Follower(target, optimizer, config.target)
            optimizers = optimizer, self.optimizer(weight)
            return QModules(model, target, weight, *optimizers, *new_moments(config, self.policy))
        if not isinstance(distribution, SquashedGaussian):
            raise SpecError(f"cql acts in one Box or one Discrete space, got {distribution}")
        weight = gap_weight(self, default=5.0)
        self.target_entropy = target_entropy(config.temperature.target_entropy, distribution)
        soft, self._follower = build_soft(
            self, num_critics=config.num_critics, inputs=distribution.size, outputs=1
        )
        self.nets = soft_nets(self, soft)
        kept = self.config.conservative.gradient_samples
        self.sampled = SampledCritics(soft.critics, kept=kept)
        return CQLModules(**vars(soft), gap_weight=weight, gap_optimizer=self.optimizer(weight))

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        modules, lr = self.modules, self.at(self.config.optim.lr)
        if isinstance(modules, QModules):
            learned = self.learn_q(modules, batch, lr=lr)
        else:
            learned = self.learn_soft(modules, batch, lr=lr)
        self._follower.follow(self.updates)
        return learned

    def learn_q(self, modules: QModules, batch: Batch, *, lr: float) -> Learned:
        """Discrete actions: the squared td error and the weighted gap (eq. 4)."""
        weight, is_weight = modules.gap_weight.value, batch.is_weight
        with torch.no_grad():
            next_q_BA = modules.target(batch.bootstrap_obs)[0]
            online_q_BA = modules.model(batch.bootstrap_obs)[0] if self.config.double else None
            next_value_B = double_q_value(next_q_BA, online_q_BA)
            target_B = td_target(batch.return_n, batch.bootstrap_discount, next_value_B)
        q_BA = modules.model(batch.obs)[0]
        q_B = taken(q_BA, batch.action)
        td_error_B = target_B - q_B
        gap_B = conservative_gap_discrete(q_BA, batch.action)
        terms = {
            "q_loss": 0.5 * (is_weight * td_error_B.square()).mean(),
            "conservative_loss": weight * (is_weight * gap_B).mean(),
        }
        noted: dict[str, Any] = {**self.step(modules.optimizer, Loss(terms, {}), lr=lr)}
        noted |= weigh(self, gap_B.detach(), is_weight=is_weight)
        return Learned({**noted, "q_mean": q_B.detach().mean()}, td_error_B.detach().abs())

    def learn_soft(self, modules: CQLModules, batch: Batch, *, lr: float) -> Learned:
        """Continuous actions: a step of the critics, of the actor and of both learned weights."""
        given, alpha = self.config.actor_lr, modules.alpha
        step, td_error_KB, gap_KB = self.critic_step(modules, batch, alpha=alpha, lr=lr)
        loss, entropy_B = self.nets.actor_loss(batch, alpha)
        actor_lr = lr if given is None else self.at(given)
        actor_step = self.checked(loss.terms, modules.actor_optimizer.descend(lr=actor_lr))
        noted = noted_steps(step, actor_step)
        noted |= temper(self, entropy_B, self.target_entropy, is_weight=batch.is_weight)
        noted |= weigh(self, gap_KB, is_weight=batch.is_weight)
        noted |= {"alpha": alpha, "entropy": entropy_B.mean()}
        return Learned(noted, td_error_KB.abs().mean(0))

    def critic_step(
        self, modules: CQLModules, batch: Batch, *, alpha: torch.Tensor, lr: float
    ) -> tuple[Mapping[str, torch.Tensor | float], torch.Tensor, torch.Tensor]:
        """A step down the squared td error and the weighted gap, summed over critics.

        Returns:
            What is noted of it; td error and gap [K, B].

        Source: eq. 4 by appendix F. Differs: the td error is not halved, as in the authors' code;
        the gap's gradient goes through some of the sampled actions, right on average
        (`conservative.gradient_samples`).
        """
        weight, is_weight, rows = modules.gap_weight.value, batch.is_weight, batch.rows
        params_2BP = self.nets.params(batch)
        next_value_B = self.next_value(batch.bootstrap_obs, params_2BP[rows:], alpha)
        target_B = td_target(batch.return_n, batch.bootstrap_discount, next_value_B)
        q_KB = self.nets.q(batch.obs, batch.action)
        td_error_KB = target_B - q_KB
        # of the td error, and of the gap by the logged action; its other part is added below
        self.nets.descend((2 * td_error_KB + weight) * (is_weight * (-1 / rows)))
        mass_KB = self.sampled.descend(
            batch.obs,
            *sampled_actions(self, params_2BP, self.config.conservative.num_samples),
            slope_B=weight * is_weight / rows,
            offset_B=self.offsets(rows),
        )
        gap_KB = mass_KB - q_KB
        terms = {
            "critic_loss": (is_weight * td_error_KB.square()).mean(1).sum(),
            "conservative_loss": weight * (is_weight * gap_KB).mean(1).sum(),
        }
        noted = self.checked(terms, modules.critic_optimizer.descend(lr=lr))
        return {**noted, "q_mean": q_KB.mean()}, td_error_KB, gap_KB

    def offsets(self, rows: int) -> torch.Tensor | None:
        """[B] uniform, by which actions are kept for the gradient; None where all are."""
        if self.config.conservative.gradient_samples is None:
            return None
        return torch.rand(rows, generator=self.generator).to(self.world.device)

    def next_value(
        self, obs: torch.Tensor, params_BP: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """[B] of observations, by the target critics and one action of the policy of now."""
        action, logp_B = sample(self, params_BP)
        q_KB = self.nets.target_q(obs, action)
        if self.config.entropy_target:
            return soft_next_value(q_KB, logp_B, alpha)
        return clipped_double_q(q_KB)


def dataflow(config: CQLConfig) -> Dataflow:
    """Logged transitions → CQL."""
    return logged(config, CQLLearner, policy=PolicyKind(head="actor", squash=True))
