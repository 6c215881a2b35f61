"""A Q network beside a model of the policy that its data came from: it acts as the data would.

Legend: B rows, A actions.
"""

import dataclasses
from typing import Final

import torch
from torch import nn

from rl_ops.conservative_losses import constrained_q
from rl_ops.model_spec import ModelSpec
from rl_ops.q_models import QNetwork

_CONV: Final = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


class ConstrainedQ(nn.Module):
    """Q of every action, logits of each in the data, and the Q of those likely enough.

    Images go through the convolutions of Mnih et al. 2015, whatever the spec's are.

    Args:
        spec: with a plain `q`; `shared` for one trunk of both.

    Attributes:
        threshold: one entry, how likely an action must be beside the likeliest; a buffer, so that
            who acts has the learner's.

    Source: Fujimoto et al. 2019, arXiv:1910.01708.
    """

    threshold: torch.Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        if spec.q is None or spec.q.num_atoms > 1:
            raise ValueError("a constrained Q network needs ModelSpec.q, of means")
        self.num_actions, self.shared = spec.q.num_actions, spec.shared
        both = dataclasses.replace(spec.q, num_actions=2 * self.num_actions)
        if len(spec.obs_shape) == 3:
            spec = dataclasses.replace(spec, kind="cnn", conv=_CONV)
        if spec.shared:
            self.q = QNetwork(dataclasses.replace(spec, q=both))
        else:
            self.q, self.imitation = QNetwork(spec), QNetwork(spec)
        self.register_buffer("threshold", torch.zeros(()))

    def values(self, obs: torch.Tensor) -> torch.Tensor:
        """Obs [B, *shape] → Q [B, A] of all actions."""
        q_BA: torch.Tensor = self.q(obs)[0]
        return q_BA[:, : self.num_actions]

    def both(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Obs [B, *shape] → Q and the imitation's logits, [B, A] each."""
        q_BA: torch.Tensor = self.q(obs)[0]
        if self.shared:
            return q_BA[:, : self.num_actions], q_BA[:, self.num_actions :]
        return q_BA, self.imitation(obs)[0]

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Obs [B, *shape] → Q [B, A] where allowed, the least there is elsewhere; the best [B]."""
        allowed_q_BA = constrained_q(*self.both(obs), threshold=self.threshold)
        return allowed_q_BA, allowed_q_BA.amax(1)
