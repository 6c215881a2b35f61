"""What algorithms that learn from logged rows share.

Legend: B rows, K critics, A actions.
"""

from typing import Any, TypeVar

import torch

from pipelines.config import DataConfig, ModelConfig, OffPolicyConfig, OptimConfig
from pipelines.dataflow import Dataflow, Rollouts, source_of
from pipelines.off_policy import ReplayLearner, replayed, transitions
from pipelines.specs import PolicyKind
from rl_ops.distributions import Categorical, Distribution
from rl_ops.errors import SpecError
from rl_ops.exploration import Act, Sample
from rl_ops.q_losses import taken
from rl_ops.q_models import CriticEnsemble

C = TypeVar("C", bound=OffPolicyConfig)


class LoggedConfig(OffPolicyConfig):
    """An algorithm made for logged rows; with offline.frac below 1 it goes on with rollouts."""

    offline: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig(hidden=(256, 256), activation="relu")
    optim: OptimConfig = OptimConfig(lr=3e-4, eps=1e-8, max_grad_norm=None)


def logged(
    config: LoggedConfig,
    learner: type[ReplayLearner[Any]],
    *,
    policy: PolicyKind,
    act: Act | None = None,
) -> Dataflow:
    """Logged rows, and those of rollouts where some are wanted → a learner.

    Args:
        config: says which rows.
        learner: of minibatches.
        policy: what acts.
        act: how rollouts, and evaluation if asked to, explore; None samples the policy.
    """
    return Dataflow(
        source=source_of(config, Rollouts(act=act or Sample(), then=transitions(config))),
        policy=policy,
        replay=None if config.is_offline else replayed(config),
        learner=learner,
        fragments_per_version=1 if config.is_offline else config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )


class Critics:
    """Critics of actions that are given, or of every one of a few.

    Args:
        learner: whose networks' spec, device and action distribution count.
        num_critics: K.

    Attributes:
        network: [K] critics, to be trained.
        is_discrete: whether each values every action.

    Raises:
        SpecError: actions are neither one Box nor one Discrete.
    """

    def __init__(self, learner: ReplayLearner[Any], *, num_critics: int) -> None:
        distribution: Distribution = learner.policy.distribution
        self.is_discrete = isinstance(distribution, Categorical)
        if isinstance(distribution, Categorical):
            inputs, outputs = 0, distribution.num_actions
        elif hasattr(distribution, "size"):
            inputs, outputs = distribution.size, 1
        else:
            raise SpecError(
                f"{learner.config.algo} values actions of one Box or one Discrete space, got "
                f"{distribution}"
            )
        self.network = CriticEnsemble(
            learner.policy.model, num_critics=num_critics, inputs=inputs, outputs=outputs
        ).to(learner.world.device)

    def __call__(self, network: Any, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Q [K, B] of actions by `network`: the critics themselves, or a copy of them."""
        if not self.is_discrete:
            q_KB: torch.Tensor = network(obs, action)[..., 0]
            return q_KB
        return torch.stack([taken(q_BA, action) for q_BA in network(obs)])


def state_values(learner: ReplayLearner[Any]) -> CriticEnsemble:
    """A network of V(obs): `network(obs)[0, :, 0]` is [B]."""
    network = CriticEnsemble(learner.policy.model, num_critics=1, inputs=0, outputs=1)
    return network.to(learner.world.device)
