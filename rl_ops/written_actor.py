"""Likelihoods of actions under an actor alone, and their gradient, without autograd.

Legend: B rows, P distribution parameters.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from rl_ops.distributions import Distribution
from rl_ops.models import MLPActorCritic
from rl_ops.pullback import grad_of, logp_slopes
from rl_ops.written_mlp import WrittenMLP, written_actor


class WrittenActor:
    """Evaluates actions and takes slopes of a loss back to the actor's parameters.

        logp = forward(obs, action);  backward(dL/dlogp)  →  p.grad = dL/dp of every parameter p

    Args:
        mlp: obs [B, D] → params [B, P].
        slopes: of the distribution, as `pullback.logp_slopes` gives them.
        free: parameters that no observation moves, and where they begin among the P; None for none.
    """

    def __init__(self, mlp: WrittenMLP, slopes: Any, free: tuple[Tensor, int] | None) -> None:
        self._mlp, self._slopes = mlp, slopes
        self._free = free
        self._back: Any = None

    @classmethod
    def of(cls, model: nn.Module, distribution: Distribution) -> Self | None:
        """None where model or distribution are not covered."""
        slopes, mlp = logp_slopes(distribution), written_actor(model, with_free=True)
        if slopes is None or mlp is None:
            return None
        assert isinstance(model, MLPActorCritic)  # written_actor's check
        free = model.spec.free_params
        return cls(mlp, slopes, (model.free_params, free[0]) if free else None)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Logp [B] of `action`; `backward` needs it first."""
        params_BP = self._mlp(obs.reshape(len(obs), -1))
        if self._free is not None:
            values, start = self._free
            params_BP[:, start:] = values.detach()
        logp_B: Tensor
        logp_B, _, self._back = self._slopes(params_BP, action, False)
        return logp_B

    def backward(self, d_logp_B: Tensor) -> None:
        """Set every parameter's gradient, for the rows of the last `forward`.

        Args:
            d_logp_B: [B] derivatives of the loss by each row's logp.
        """
        d_BP = self._back(d_logp_B, 0.0)
        if self._free is not None:
            values, start = self._free
            torch.sum(d_BP[:, start:], 0, out=grad_of(values))
            d_BP[:, start:] = 0.0  # the network's own output there is replaced
        self._mlp.backward(d_BP)
