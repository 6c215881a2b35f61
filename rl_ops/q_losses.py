"""Targets and losses of Q-learning, plain and distributional: pure functions, one entry per row.

Legend: B rows, A actions, N atoms or quantiles, M quantiles of the target, K critics.

Nothing here is reduced over rows: importance weights and means are applied once, in the learner.
Targets are detached; `bootstrap_discount` is gamma^m * (1 - terminated), as `returns.n_step` gives.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rl_ops.arrays import require_shape


def require_shapes(expected: tuple[int, ...], **tensors: Tensor) -> None:
    """Refuse what would broadcast: a [B, 1] beside a [B] makes a [B, B].

    Raises:
        ValueError: a tensor has another shape than `expected`; the message names it and both.
    """
    for name, tensor in tensors.items():
        require_shape(name, tensor, tuple(expected))


def require_axes(count: int, **tensors: Tensor) -> None:
    """Refuse a tensor with more or fewer axes than `count`.

    Raises:
        ValueError: the message names the tensor and its shape.
    """
    for name, tensor in tensors.items():
        if tensor.ndim != count:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {count} axes")


def td_target(return_n: Tensor, bootstrap_discount: Tensor, next_value: Tensor) -> Tensor:
    """The n-step target of temporal-difference learning.

        y = return_n + bootstrap_discount * V(x_t+m)

    Args:
        return_n: [B] sum of the discounted rewards before the bootstrap.
        bootstrap_discount: [B] gamma^m * (1 - terminated); a truncated window keeps gamma^m.
        next_value: [B] of the observation after the window's last row.

    Returns:
        [B], detached.

    Raises:
        ValueError: shapes disagree; the message names the argument and what was expected.

    Source: Sutton & Barto 2018, eq. 7.1.
    """
    require_shapes(return_n.shape, bootstrap_discount=bootstrap_discount, next_value=next_value)
    return torch.addcmul(return_n, bootstrap_discount, next_value).detach()


def taken(q: Tensor, action_B: Tensor) -> Tensor:
    """The entries of the actions taken.

    Args:
        q: [B, A] values or [B, A, N] atoms, logits or quantiles.
        action_B: [B] int64, counted from 0.

    Returns:
        [B] or [B, N].

    Raises:
        ValueError: `action_B` is not [B], or `q` has another number of axes.
    """
    if q.ndim not in (2, 3):
        raise ValueError(f"q has shape {tuple(q.shape)}, expected [B, A] or [B, A, N]")
    require_shapes(q.shape[:1], action_B=action_B)
    if q.ndim == 2:
        return q.gather(1, action_B[:, None]).squeeze(1)
    # q[arange, action] would take action -1 for the last
    return q.gather(1, action_B[:, None, None].expand(-1, 1, q.shape[2])).squeeze(1)


@torch.no_grad()
def double_q_value(next_q_target_BA: Tensor, next_q_online_BA: Tensor | None = None) -> Tensor:
    """The target net's value of the action that the online net prefers.

        Q_target(x', argmax_a Q_online(x', a))
        max_a Q_target(x', a)                       where there is no online net's

    Args:
        next_q_target_BA: [B, A] Q_target(x', .).
        next_q_online_BA: [B, A] Q_online(x', .), or None for plain Q-learning.

    Returns:
        [B], detached.

    Raises:
        ValueError: the tables' shapes disagree or are not [B, A].

    Source: van Hasselt et al. 2016, arXiv:1509.06461, eq. 4; Mnih et al. 2015 without online.
    """
    require_axes(2, next_q_target_BA=next_q_target_BA)
    if next_q_online_BA is None:
        return next_q_target_BA.amax(1)
    require_shapes(next_q_target_BA.shape, next_q_online_BA=next_q_online_BA)
    return next_q_target_BA.gather(1, next_q_online_BA.argmax(1, keepdim=True)).squeeze(1)


@torch.no_grad()
def categorical_target(
    prob_BN: Tensor, return_n: Tensor, bootstrap_discount: Tensor, *, support_N: Tensor
) -> Tensor:
    """Project the distribution of return_n + bootstrap_discount * Z onto Z's own support.

        b_j      = (clip(return_n + bootstrap_discount * z_j, z_1, z_N) - z_1) / dz
        target_i = sum_j prob_j * max(0, 1 - |b_j - i|)

    A mass between two atoms is split by its distance to each, one beyond an end goes to that end.

    Args:
        prob_BN: [B, N] probabilities of the next observation's Z, for the action chosen there.
        return_n: [B], as in `td_target`.
        bootstrap_discount: [B], as in `td_target`.
        support_N: [N] atoms, at least 2, ascending and evenly spaced.

    Returns:
        [B, N], detached; each row's sum is that of prob_BN.

    Raises:
        ValueError: shapes disagree, or the support has fewer than 2 atoms.

    Source: Bellemare et al. 2017, arXiv:1707.06887, eq. 7 and algorithm 1. Differs: mass on an
    atom stays there, which the algorithm as printed (l = u) would lose.
    """
    require_axes(2, prob_BN=prob_BN)
    rows, num_atoms = prob_BN.shape
    if num_atoms < 2:
        raise ValueError(f"a support needs at least 2 atoms, prob_BN has {num_atoms}")
    require_shapes((rows,), return_n=return_n, bootstrap_discount=bootstrap_discount)
    require_shapes((num_atoms,), support_N=support_N)
    low, last = support_N[0], num_atoms - 1
    # counted in atoms, b_j = b_0 + d * j: with d = 1 and whole atoms of return, exactly on them
    first_B = torch.addcmul(return_n, bootstrap_discount - 1, low)
    first_B.div_((support_N[-1] - low) / last)
    index_N = torch.arange(num_atoms, dtype=support_N.dtype, device=support_N.device)
    position_BN = torch.addcmul(first_B[:, None], bootstrap_discount[:, None], index_N)
    lower_BN = position_BN.clamp_(0, last).floor()
    to_upper_BN = prob_BN * position_BN.sub_(lower_BN)
    # two scatters of [256, 51] take 0.2 ms; the kernel's [B, N, N] takes 10, as a bmm 0.6
    lower_index_BN = lower_BN.long()
    upper_index_BN = (lower_index_BN + 1).clamp_(max=last)
    target_BN = torch.zeros_like(to_upper_BN)
    target_BN.scatter_add_(1, lower_index_BN, prob_BN - to_upper_BN)
    return target_BN.scatter_add_(1, upper_index_BN, to_upper_BN)


def categorical_cross_entropy(logits_BN: Tensor, target_BN: Tensor) -> Tensor:
    """Cross-entropy of a predicted distribution to a target one; a priority as it is.

        loss = -sum_i target_i * log softmax(logits)_i

    Args:
        logits_BN: [B, N] being trained, of the action taken.
        target_BN: [B, N] probabilities, as `categorical_target` gives.

    Returns:
        [B] in nats.

    Raises:
        ValueError: shapes disagree, or are not [B, N].

    Source: Bellemare et al. 2017, arXiv:1707.06887, algorithm 1.
    """
    require_axes(2, logits_BN=logits_BN)
    require_shapes(logits_BN.shape, target_BN=target_BN)
    return cross_entropy(logits_BN, target_BN.detach(), reduction="none")


def quantile_huber_loss(
    quantile_BN: Tensor, target_BM: Tensor, *, kappa: float = 1.0, tau_N: Tensor | None = None
) -> Tensor:
    """Quantile regression of every quantile on every sample of the target.

        u_ij  = target_j - quantile_i
        L(u)  = 0.5 * u^2                            where |u| <= kappa
        L(u)  = kappa * (|u| - 0.5 * kappa)          elsewhere
        loss  = sum_i mean_j |tau_i - 1(u_ij < 0)| * L(u_ij) / kappa

    With kappa 0, L(u) / kappa is |u|: plain quantile regression, of gradient 0 at u = 0.

    Args:
        quantile_BN: [B, N] being trained, of the action taken; or [K, B, N], K critics that
            share the target.
        target_BM: [B, M] samples or quantiles of the target, in any order.
        kappa: where L turns linear, in the units of rewards; at least 0.
        tau_N: [N] which quantiles they are, in (0, 1); None for the midpoints (i + 0.5) / N.

    Returns:
        [B], or [K, B]. TQC (arXiv:2005.04269) divides it by N.

    Raises:
        ValueError: shapes disagree, or kappa is negative.

    Source: Dabney et al. 2018, arXiv:1710.10044, eq. 9, 10 and algorithm 1. Differs: divided by
    kappa as in Dabney et al. 2018, arXiv:1806.06923, eq. 3; the same for kappa 1.
    """
    if kappa < 0:
        raise ValueError(f"kappa must be at least 0, got {kappa}")
    if quantile_BN.ndim not in (2, 3):
        shape = tuple(quantile_BN.shape)
        raise ValueError(f"quantile_BN has shape {shape}, expected [B, N] or [K, B, N]")
    rows, num_quantiles = quantile_BN.shape[-2:]
    require_shapes((rows, *target_BM.shape[-1:]), target_BM=target_BM)
    if tau_N is None:
        dtype, device = quantile_BN.dtype, quantile_BN.device
        tau_N = torch.arange(0.5, num_quantiles, dtype=dtype, device=device).div_(num_quantiles)
    require_shapes((num_quantiles,), tau_N=tau_N)
    loss: Tensor = _QuantileHuber.apply(  # type: ignore[no-untyped-call]
        quantile_BN, target_BM.detach(), kappa, tau_N.detach()
    )
    return loss


class _QuantileHuber(torch.autograd.Function):
    """With its gradient written out: it needs [B, N], where autograd keeps and walks [B, N, M]s.

    With c = clip(u, -kappa, kappa), or sign(u) for kappa 0, L(u) = c * (u - c / 2), and
    |tau - 1(u < 0)| = 1/2 + (tau - 1/2) * sign(u) needs no [B, N, M] of its own. [64, 64] on 64:
    0.7 ms with the gradient instead of 1.5, [32, 200] on 200: 3.5 instead of 13. Memory bounds
    the large ones: [5, 256, 25] on 115 takes 16 ms at once, 9 critic by critic.
    """

    @staticmethod
    def forward(
        ctx: Any, quantile: Tensor, target_BM: Tensor, kappa: float, tau_N: Tensor
    ) -> Tensor:
        u = target_BM[:, None, :] - quantile[..., None]
        c = u.clamp(-kappa, kappa) if kappa else u.sign()
        rest = u.sub_(c, alpha=0.5) if kappa else u
        magnitude, tilt_N, scale = c.abs(), tau_N - 0.5, kappa or 1.0
        slope = torch.addcmul(0.5 * c.mean(-1), tilt_N, magnitude.mean(-1)).div_(-scale)
        ctx.save_for_backward(slope)
        even, tilted = c.mul_(rest).mean(-1), magnitude.mul_(rest).mean(-1)
        return torch.addcmul(0.5 * even, tilt_N, tilted).sum(-1).div_(scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return grad[..., None] * slope, None, None, None
