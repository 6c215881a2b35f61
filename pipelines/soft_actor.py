"""What SAC and TQC share: an actor whose entropy is worth something, critics, a temperature.

Legend: B rows, P distribution parameters, K critics.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from pipelines.config import OffPolicyConfig
from pipelines.config_base import Group, Schedule
from pipelines.off_policy import Follower, ReplayLearner, follower_of
from pipelines.statistics import new_moments
from rl_ops.distributions import Categorical
from rl_ops.learner import Loss, Modules
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.q_models import CriticEnsemble
from rl_ops.soft_losses import temperature_loss


class TemperatureConfig(Group):
    """The weight of the policy's entropy, alpha."""

    alpha: float | Literal["auto"] = "auto"
    """A number, in units of the return; `auto` is learned."""
    init: float = Field(default=1.0, gt=0)
    """Where a learned one starts."""
    target_entropy: float | None = None
    """Entropy that a learned one aims at, in nats; None is minus the number of action dimensions,
    and half of the greatest for discrete actions."""
    lr: Schedule | None = None
    """Learning rate of a learned one; None is optim.lr."""


class Temperature(nn.Module):
    """alpha = exp(log_alpha), positive by construction."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(alpha).log())


@dataclass
class SoftModules(Modules):
    """Actor, critics and their slow copy, temperature, an optimiser each, input statistics."""

    model: nn.Module
    critics: CriticEnsemble
    target: nn.Module
    temperature: Temperature
    actor_optimizer: FlatOptimizer
    critic_optimizer: FlatOptimizer
    alpha_optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None

    @property
    def alpha(self) -> torch.Tensor:
        """The temperature now, a constant to losses."""
        return self.temperature.log_alpha.detach().exp()


def build_soft(
    learner: ReplayLearner[Any], *, num_critics: int, inputs: int, outputs: int
) -> tuple[SoftModules, Follower]:
    """The modules of a soft actor-critic, and what moves its target.

    Args:
        learner: whose policy, configuration and device count.
        num_critics: K.
        inputs: numbers of an action that each is given.
        outputs: of each.
    """
    config: OffPolicyConfig = learner.config
    device, spec = learner.world.device, learner.policy.model
    torch.manual_seed(config.seed)
    model = build_model(spec).to(device)
    critics = CriticEnsemble(spec, num_critics=num_critics, inputs=inputs, outputs=outputs)
    critics = critics.to(device)
    given: TemperatureConfig = learner.config.temperature
    temperature = Temperature(given.init if given.alpha == "auto" else given.alpha).to(device)
    critic_optimizer, target = learner.optimizer(critics), follower_of(critics)
    modules = SoftModules(
        model,
        critics,
        target,
        temperature,
        learner.optimizer(model),
        critic_optimizer,
        learner.optimizer(temperature),
        *new_moments(config, learner.policy),
    )
    return modules, Follower(target, critic_optimizer, config.target)


def target_entropy(given: float | None, distribution: Any) -> float:
    """Nats that a learned temperature aims at.

    Source: Haarnoja et al. 2018, arXiv:1812.05905, appendix D. Differs: for discrete actions half
    of the greatest entropy, not the 0.98 of Christodoulou 2019, at which a policy of few actions
    never becomes decided.
    """
    if given is not None:
        return given
    if isinstance(distribution, Categorical):
        return 0.5 * torch.tensor(float(distribution.num_actions)).log().item()
    return -float(distribution.size)


def sample(learner: ReplayLearner[Any], params_BP: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Actions drawn with the learner's generator, and their logp [B], along the path of params."""
    distribution = learner.policy.distribution
    noise = torch.randn(len(params_BP), distribution.noise_size, generator=learner.generator)
    return distribution.sample_logp(params_BP, noise.to(params_BP.device))


def temper(
    learner: ReplayLearner[Any], entropy_B: torch.Tensor, wanted: float, *, is_weight: torch.Tensor
) -> dict[str, torch.Tensor | float]:
    """A step of a learned temperature towards `wanted` nats; what to note of it."""
    given: TemperatureConfig = learner.config.temperature
    modules: SoftModules = learner.modules  # type: ignore[assignment]
    if given.alpha != "auto":
        return {}
    loss_B = temperature_loss(modules.temperature.log_alpha, entropy_B, wanted)
    loss = Loss({"alpha_loss": (is_weight * loss_B).mean()}, {})
    lr = learner.at(learner.config.optim.lr if given.lr is None else given.lr)
    noted = learner.step(modules.alpha_optimizer, loss, lr=lr)
    return {"alpha_loss": noted["alpha_loss"]}
