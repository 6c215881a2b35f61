"""SAC's losses for continuous actions with the networks' gradients written out (`WrittenMLP`).

Legend: B rows, D features, K critics.

Half of an update of (256, 256) networks is products; most of the rest was autograd's graph, copies
of biases and fresh memory. Only the sampling of actions, of [B, D], is left to autograd, so that
the distribution's formula stands in one place.
"""

from typing import TYPE_CHECKING, Self

import torch

from pipelines.soft_actor import SoftModules, sample
from rl_ops.batch import Batch
from rl_ops.learner import Loss
from rl_ops.q_losses import td_target
from rl_ops.soft_losses import soft_next_value, soft_policy_loss
from rl_ops.written_mlp import WrittenMLP, written_actor, written_critics

if TYPE_CHECKING:
    from pipelines.sac import SACLearner


class WrittenSoft:
    """Leaves gradients where optimisers expect them; the same numbers as the learner's losses.

    Args:
        learner: whose policy and generator count.
        actor, critics, targets: its networks.
    """

    def __init__(
        self,
        learner: "SACLearner",
        *,
        actor: WrittenMLP,
        critics: list[WrittenMLP],
        targets: list[WrittenMLP],
    ) -> None:
        self._learner = learner
        self._actor, self._critics, self._targets = actor, critics, targets

    @classmethod
    def of(cls, learner: "SACLearner", modules: SoftModules) -> Self | None:
        """For a learner of continuous actions with plain networks; None for others."""
        actor = written_actor(modules.model)
        critics = written_critics(modules.critics, trained=True)
        targets = written_critics(modules.target, trained=False)
        if learner.is_discrete or actor is None or critics is None or targets is None:
            return None
        return cls(learner, actor=actor, critics=critics, targets=targets)

    @torch.no_grad()
    def critic_loss(
        self, batch: Batch, alpha: torch.Tensor
    ) -> tuple[Loss, torch.Tensor, torch.Tensor]:
        """See `SACLearner.critic_loss`; the critics' gradients are set."""
        rows, next_obs = batch.rows, batch.bootstrap_obs.flatten(1)
        # The actor's step comes after, so one pass serves both: one product of twice the rows.
        params_2BP = self._actor(torch.cat([next_obs, batch.obs.flatten(1)]))
        self._actor.keep(slice(rows, 2 * rows))
        self._params = params_2BP[rows:]
        action, logp_B = sample(self._learner, params_2BP[:rows])
        x = torch.cat([next_obs, action.flatten(1)], 1)
        next_q_KB = torch.cat([target(x) for target in self._targets], 1).t()
        next_value_B = soft_next_value(next_q_KB, logp_B, alpha)
        target_B1 = td_target(batch.return_n, batch.bootstrap_discount, next_value_B).unsqueeze(1)
        x = torch.cat([batch.obs.flatten(1), batch.action.flatten(1)], 1)
        q_BK = torch.cat([critic(x) for critic in self._critics], 1)
        td_error_BK = target_B1 - q_BK
        weighted_BK = batch.is_weight.unsqueeze(1) * td_error_BK
        for critic, d_B1 in zip(
            self._critics, torch.split(weighted_BK * (-1 / batch.rows), 1, 1), strict=True
        ):
            critic.backward(d_B1)
        loss = 0.5 * (weighted_BK * td_error_BK).sum() / batch.rows
        return Loss({"critic_loss": loss}, {}), td_error_BK.t(), q_BK.t()

    @torch.no_grad()
    def actor_loss(self, batch: Batch, alpha: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        """See `SACLearner.actor_loss`, after `critic_loss` of it; the actor's gradients are set."""
        obs, weight_B = batch.obs.flatten(1), batch.is_weight
        params_BP = self._params.detach().requires_grad_()
        with torch.enable_grad():
            action, logp_B = sample(self._learner, params_BP)
        x = torch.cat([obs, action.detach().flatten(1)], 1)
        q_BK = torch.cat([critic(x) for critic in self._critics], 1)
        loss_B = soft_policy_loss(q_BK.t(), logp_B.detach(), alpha)
        d_action = torch.zeros_like(action).flatten(1)
        chosen_B1 = q_BK.argmin(1, keepdim=True)
        d_q_BK = torch.zeros_like(q_BK).scatter_(
            1, chosen_B1, (weight_B * (-1 / batch.rows)).unsqueeze(1)
        )
        for critic, d_B1 in zip(self._critics, torch.split(d_q_BK, 1, 1), strict=True):
            d_x = critic.backward(d_B1, parameters=False, inputs=True)
            assert d_x is not None  # asked for
            d_action += d_x[:, obs.shape[1] :]
        with torch.enable_grad():
            # Its gradient is the loss's: the critics' part is linear in the action here.
            slope = (weight_B * logp_B).sum() * (alpha / batch.rows)
            slope = slope + (action.flatten(1) * d_action).sum()
        (d_params_BP,) = torch.autograd.grad(slope, params_BP)
        self._actor.backward(d_params_BP)
        return Loss({"actor_loss": (weight_B * loss_B).mean()}, {}), -logp_B.detach()
