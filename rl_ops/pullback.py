"""The gradient of small actor-critics written out, for when autograd's bookkeeping costs more.

Legend: B rows, P distribution parameters, D features, K towers (actor, critic).

An update of 256 rows through two layers of 64 is 40 tensor operations of a few microseconds each;
building and walking a graph of them takes as long again. What is written out here is checked
against autograd in the tests.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from rl_ops.categorical import Categorical
from rl_ops.distributions import Distribution
from rl_ops.gaussian import Gaussian
from rl_ops.models import MLPActorCritic

_Back = Callable[[Tensor, float], Tensor]
"""(dL/dlogp [B], dL/dentropy, the same for every row) → dL/dparams [B, P]."""


class Pullback:
    """Evaluates rows under an actor-critic and takes slopes of a loss back to its parameters.

        logp, entropy, value = forward(obs, action)
        backward(dL/dlogp, dL/dvalue, dL/dentropy)  →  p.grad = dL/dp of every parameter p

    Args:
        model: whose parameters have `grad` tensors already; they are overwritten, not added to.
        distribution: of the actions.

    Raises:
        ValueError: `covers` is False for them.
    """

    def __init__(self, model: nn.Module, distribution: Distribution) -> None:
        if not covers(model, distribution):
            raise ValueError(f"no written-out gradient of {type(model).__name__}, {distribution}")
        assert isinstance(model, MLPActorCritic)  # covers
        self._spec = model.spec
        self._logp = _DISTRIBUTIONS[type(distribution)]
        self._size = getattr(distribution, "size", 0)
        layers = range(len(model.spec.hidden))
        names = [f"{kind}_{i}" for i in layers for kind in ("weight", "bias")]
        heads = [head for head in (model.actor_head, model.critic_head) if head is not None]
        parameters = [getattr(model, name) for name in names]
        parameters += [p for head in heads for p in (head.weight, head.bias)]
        # Views: the optimiser steps the same memory in place.
        self._values = [p.detach() for p in parameters]
        self._grads = [grad_of(p) for p in parameters]
        self._free = getattr(model, "free_params", None)
        self._tape: tuple[list[Tensor], _Back] | None = None

    @torch.no_grad()
    def forward(
        self, obs: Tensor, action: Tensor, *, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logp [B] of `action`, entropy [B] if asked for, value [B]; `backward` needs it first."""
        *layers, actor, actor_bias, critic, critic_bias = self._values
        x = obs.float().reshape(len(obs), -1)
        if self._spec.obs_scale != 1.0:
            x = x * self._spec.obs_scale
        activations = [x.expand(self._spec.num_towers, -1, -1)]
        for weight, bias in zip(layers[::2], layers[1::2], strict=True):
            h = torch.baddbmm(bias, activations[-1], weight)
            np.tanh(h.numpy(), h.numpy())  # a tenth of the time of torch's kernel (measured)
            activations.append(h)
        top = activations[-1]
        params_BP = torch.addmm(actor_bias, top[0], actor.t())
        if self._free is not None:
            params_BP[:, self._size :] = self._free.detach()
        logp_B, entropy_B, back = self._logp(params_BP, action, entropy)
        self._tape = (activations, back)
        return logp_B, entropy_B, torch.addmv(critic_bias, top[-1], critic[0])

    @torch.no_grad()
    def backward(self, logp: Tensor, value: Tensor, *, entropy: float = 0.0) -> None:
        """Set every parameter's gradient, for the rows of the last `forward`.

        Args:
            logp: [B] derivatives of the loss by each row's logp.
            value: [B] by each row's value.
            entropy: by any row's entropy.
        """
        if self._tape is None:
            raise ValueError("backward without a forward: rows are evaluated first")
        (activations, back), self._tape = self._tape, None
        d_params_BP, d_value_B1 = back(logp, entropy), value.unsqueeze(1)
        actor, _, critic, _ = self._values[-4:]
        self._head_gradients(activations[-1], d_params_BP, d_value_B1)
        d_KBD = torch.zeros_like(activations[-1])
        # A shared trunk is one tower, which both heads read.
        d_KBD[0].addmm_(d_params_BP, actor)
        d_KBD[-1].addmm_(d_value_B1, critic)
        for i in reversed(range(len(self._spec.hidden))):
            d_KBD = torch.ops.aten.tanh_backward(d_KBD, activations[i + 1])
            torch.bmm(activations[i].mT, d_KBD, out=self._grads[2 * i])
            torch.sum(d_KBD, 1, keepdim=True, out=self._grads[2 * i + 1])
            if i:
                d_KBD = torch.bmm(d_KBD, self._values[2 * i].mT)

    def _head_gradients(self, top_KBD: Tensor, d_params_BP: Tensor, d_value_B1: Tensor) -> None:
        actor, actor_bias, critic, critic_bias = self._grads[-4:]
        if self._free is not None:
            torch.sum(d_params_BP[:, self._size :], 0, out=grad_of(self._free))
            d_params_BP[:, self._size :] = 0.0  # the network's own output there is replaced
        torch.mm(d_params_BP.t(), top_KBD[0], out=actor)
        torch.sum(d_params_BP, 0, out=actor_bias)
        torch.mm(d_value_B1.t(), top_KBD[-1], out=critic)
        torch.sum(d_value_B1, 0, out=critic_bias)


def covers(model: nn.Module, distribution: Distribution) -> bool:
    """Whether there is a written-out gradient: tanh MLPs on the CPU, plain distributions."""
    if type(model) is not MLPActorCritic or type(distribution) not in _DISTRIBUTIONS:
        return False
    first = next(model.parameters())
    trained = all(p.requires_grad for p in model.parameters())
    spec = model.spec
    plain = spec.activation == "tanh" and bool(spec.hidden) and spec.has_value
    return plain and trained and first.device.type == "cpu" and first.dtype == torch.float32


def _categorical(
    params_BP: Tensor, action: Tensor, entropy: bool
) -> tuple[Tensor, Tensor | None, _Back]:
    """Logits z: d logp(a) / d z_j = [j = a] - p_j;   d H / d z_j = -p_j (log p_j + H)."""
    logp_BP = params_BP.log_softmax(1)
    index_B1 = action.unsqueeze(1)
    p_BP = logp_BP.exp()
    entropy_B = -(p_BP * logp_BP).sum(1) if entropy else None

    def back(d_logp_B: Tensor, d_entropy: float) -> Tensor:
        d_logp_B1 = d_logp_B.unsqueeze(1)
        if entropy_B is None:
            d_BP = p_BP.mul_(-d_logp_B1)
        else:
            d_BP = p_BP * (-d_logp_B1 - d_entropy * (logp_BP + entropy_B.unsqueeze(1)))
        return d_BP.scatter_add_(1, index_B1, d_logp_B1)

    return logp_BP.gather(1, index_B1).squeeze(1), entropy_B, back


def _gaussian(
    params_BP: Tensor, action: Tensor, entropy: bool
) -> tuple[Tensor, Tensor | None, _Back]:
    """Normal: d logp / d mean = z / std;  d logp / d log_std = z^2 - 1;  d H / d log_std = 1."""
    size = params_BP.shape[1] // 2
    distribution = Gaussian(size)
    mean_BD, log_std_BD = params_BP[:, :size], params_BP[:, size:]
    precision_BD = (-log_std_BD).exp()
    z_BD = (action.reshape(len(action), size) - mean_BD) * precision_BD
    logp_B, entropy_B = distribution.logp_entropy(params_BP, action.reshape(len(action), size))

    def back(d_logp_B: Tensor, d_entropy: float) -> Tensor:
        d_logp_B1 = d_logp_B.unsqueeze(1)
        d_mean_BD = d_logp_B1 * z_BD * precision_BD
        d_log_std_BD = d_logp_B1 * (z_BD * z_BD - 1.0) + d_entropy
        return torch.cat([d_mean_BD, d_log_std_BD], 1)

    return logp_B, entropy_B if entropy else None, back


_DISTRIBUTIONS: Final[dict[type, Callable[[Tensor, Tensor, bool], Any]]] = {
    Categorical: _categorical,
    Gaussian: _gaussian,
}


def logp_slopes(distribution: Distribution) -> Callable[[Tensor, Tensor, bool], Any] | None:
    """(params [B, P], action, with entropy) → logp, entropy, and the way back; None for none."""
    return _DISTRIBUTIONS.get(type(distribution))


def grad_of(parameter: Tensor) -> Tensor:
    """A parameter's gradient tensor, which its optimiser made."""
    if parameter.grad is None:
        raise ValueError("a Pullback needs parameters with gradients; make their optimiser first")
    return parameter.grad
