"""The networks of a soft actor-critic as its steps use them, by autograd or written out.

Legend: B rows, D features, P distribution parameters, K critics.

Written out (`WrittenMLP`) they take two thirds of the time: half of an update of (256, 256)
networks is products, and most of the rest was autograd's graph, copies of biases and fresh memory.
Only the sampling of actions, of [B, D], is left to autograd there, so that the distribution's
formula stands in one place.
"""

from typing import Any, Protocol, Self

import torch

from pipelines.off_policy import ReplayLearner, frozen
from pipelines.soft_actor import SoftModules, sample
from rl_ops.batch import Batch
from rl_ops.learner import Loss
from rl_ops.soft_losses import soft_policy_loss
from rl_ops.written_mlp import WrittenMLP, written_actor, written_critics


class SoftNets(Protocol):
    """An actor and its critics of continuous actions, used in the order of the methods.

    Gradients are left where optimisers expect them. What is returned has none, and may lie in
    buffers that the next call overwrites.
    """

    def params(self, batch: Batch) -> torch.Tensor:
        """The actor's [2B, P], at observations, then at those that follow; for `actor_loss` too.

        The actor's step comes last, so one pass serves targets and actor.
        """

    def target_q(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """[K, B] of the target critics."""

    def q(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """[K, B] of the critics; `descend` needs it first."""

    def descend(self, slope_KB: torch.Tensor) -> None:
        """Set the critics' gradients from the derivatives of the loss by the last `q`."""

    def actor_loss(self, batch: Batch, alpha: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        """The actor's loss and a sample of its entropy [B]; sets the actor's gradients.

        Source: Haarnoja et al. 2018, arXiv:1812.05905, eq. 7.
        """


def soft_nets(learner: ReplayLearner[Any], modules: SoftModules) -> SoftNets:
    """Written out where the networks are plain and on the CPU."""
    return WrittenSoftNets.of(learner, modules) or AutogradSoftNets(learner, modules)


class AutogradSoftNets:
    """See `SoftNets`: any networks, on any device."""

    def __init__(self, learner: ReplayLearner[Any], modules: SoftModules) -> None:
        self._learner, self._modules = learner, modules

    def params(self, batch: Batch) -> torch.Tensor:
        """See `SoftNets`."""
        model = self._modules.model
        self._params = model(batch.obs)[0]
        with torch.no_grad():
            return torch.cat([self._params, model(batch.bootstrap_obs)[0]])

    def target_q(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """See `SoftNets`."""
        with torch.no_grad():
            q_KB: torch.Tensor = self._modules.target(obs, action)[..., 0]
        return q_KB

    def q(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """See `SoftNets`."""
        q_KB: torch.Tensor = self._modules.critics(obs, action)[..., 0]
        self._q = q_KB
        return q_KB.detach()

    def descend(self, slope_KB: torch.Tensor) -> None:
        """See `SoftNets`."""
        self._modules.critic_optimizer.differentiate(self._q, slope_KB)

    def actor_loss(self, batch: Batch, alpha: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        """See `SoftNets`."""
        critics = self._modules.critics
        action, logp_B = sample(self._learner, self._params)
        with frozen(critics):
            q_KB = critics(batch.obs, action)[..., 0]
        loss = (batch.is_weight * soft_policy_loss(q_KB, logp_B, alpha)).mean()
        self._modules.actor_optimizer.differentiate(loss)
        return Loss({"actor_loss": loss.detach()}, {}), -logp_B.detach()


class WrittenSoftNets:
    """See `SoftNets`: plain networks on the CPU, without autograd.

    Args:
        learner: whose policy and generator count.
        actor, critics, targets: its networks.
    """

    def __init__(
        self,
        learner: ReplayLearner[Any],
        *,
        actor: WrittenMLP,
        critics: list[WrittenMLP],
        targets: list[WrittenMLP],
    ) -> None:
        self._learner = learner
        self._actor, self._critics, self._targets = actor, critics, targets

    @classmethod
    def of(cls, learner: ReplayLearner[Any], modules: SoftModules) -> Self | None:
        """None for networks that are not covered."""
        actor = written_actor(modules.model)
        critics = written_critics(modules.critics, trained=True)
        targets = written_critics(modules.target, trained=False)
        if actor is None or critics is None or targets is None:
            return None
        return cls(learner, actor=actor, critics=critics, targets=targets)

    @torch.no_grad()
    def params(self, batch: Batch) -> torch.Tensor:
        """See `SoftNets`."""
        params_2BP = self._actor(torch.cat([batch.obs.flatten(1), batch.bootstrap_obs.flatten(1)]))
        self._actor.keep(slice(0, batch.rows))
        self._params = params_2BP[: batch.rows]
        return params_2BP

    @torch.no_grad()
    def target_q(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """See `SoftNets`."""
        return _values(self._targets, obs, action)

    @torch.no_grad()
    def q(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """See `SoftNets`."""
        return _values(self._critics, obs, action)

    @torch.no_grad()
    def descend(self, slope_KB: torch.Tensor) -> None:
        """See `SoftNets`."""
        for critic, slope_B in zip(self._critics, slope_KB, strict=True):
            critic.backward(slope_B.unsqueeze(1))

    @torch.no_grad()
    def actor_loss(self, batch: Batch, alpha: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        """See `SoftNets`."""
        weight_B = batch.is_weight
        params_BP = self._params.detach().requires_grad_()
        with torch.enable_grad():
            action, logp_B = sample(self._learner, params_BP)
        q_KB = self.q(batch.obs, action.detach())
        loss_B = soft_policy_loss(q_KB, logp_B.detach(), alpha)
        slope_1B = (weight_B * (-1 / batch.rows)).unsqueeze(0)
        slope_KB = torch.zeros_like(q_KB).scatter_(0, q_KB.argmin(0, keepdim=True), slope_1B)
        d_action = torch.zeros_like(action).flatten(1)
        for critic, slope_B in zip(self._critics, slope_KB, strict=True):
            d_x = critic.backward(slope_B.unsqueeze(1), parameters=False, inputs=True)
            assert d_x is not None  # asked for
            d_action += d_x[:, -d_action.shape[1] :]
        with torch.enable_grad():
            # Its gradient is the loss's: the critics' part is linear in the action here.
            slope = (weight_B * logp_B).sum() * (alpha / batch.rows)
            slope = slope + (action.flatten(1) * d_action).sum()
        (d_params_BP,) = torch.autograd.grad(slope, params_BP)
        self._actor.backward(d_params_BP)
        return Loss({"actor_loss": (weight_B * loss_B).mean()}, {}), -logp_B.detach()


def _values(critics: list[WrittenMLP], obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    x_BD = torch.cat([obs.flatten(1), action.flatten(1)], 1)
    return torch.cat([critic(x_BD).t() for critic in critics])
