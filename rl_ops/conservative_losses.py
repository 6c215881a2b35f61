"""Losses that keep to logged actions: CQL, TD3+BC, discrete BCQ. Pure functions, one entry a row.

Legend: B rows, A actions, D features, K critics, N actions sampled of a row.

Nothing here is reduced over rows but a scale; weights and means are applied in the learner.
"""

import math

import torch
from torch import Tensor

from rl_ops.q_losses import require_axes, require_shapes, taken


def sampled_log_mass(q_BN: Tensor, log_density_BN: Tensor) -> Tensor:
    """An estimate of log of the integral of exp Q over actions, by importance sampling.

        log 1/N sum_i exp(Q(x, a_i) - log density(a_i))

    Args:
        q_BN: [..., N] of actions drawn by any densities, N of them in all.
        log_density_BN: [..., N] of each by what it was drawn from, in nats; broadcast.

    Returns:
        [...], with gradient into q_BN.

    Raises:
        ValueError: the last two axes of both disagree.

    Source: Kumar et al. 2020, arXiv:2006.04779, appendix F. Differs: the authors' code adds the
    samples up, so that its estimate grows by log N; the gradient is the same.
    """
    require_shapes(tuple(q_BN.shape[-2:]), log_density_BN=log_density_BN)
    return (q_BN - log_density_BN).logsumexp(-1) - math.log(q_BN.shape[-1])


def conservative_gap_discrete(q_BA: Tensor, action_B: Tensor) -> Tensor:
    """CQL(H)'s term for a Q network of every action.

        gap = log sum_a exp Q(x, a) - Q(x, a_logged)

    Args:
        q_BA: [B, A] being trained.
        action_B: [B] int64, what was logged.

    Returns:
        [B].

    Raises:
        ValueError: shapes disagree.

    Source: Kumar et al. 2020, arXiv:2006.04779, eq. 4.
    """
    require_axes(2, q_BA=q_BA)
    return q_BA.logsumexp(1) - taken(q_BA, action_B)


def lagrange_loss(log_weight: Tensor, gap: Tensor, target_gap: float) -> Tensor:
    """Raises the weight of CQL's term where the gap is wider than wanted, else lowers it.

        loss = -exp(log_weight) * (gap - target_gap)

    Args:
        log_weight: one entry, being trained.
        gap: of any shape, in units of the return.
        target_gap: in the same.

    Returns:
        Of gap's shape, with gradient into log_weight alone.

    Raises:
        ValueError: log_weight has not one entry.

    Source: Kumar et al. 2020, arXiv:2006.04779, appendix F, by dual ascent. Differs: the weight is
    positive as an exponential, as in the authors' code.
    """
    if log_weight.numel() != 1:
        raise ValueError(f"log_weight has shape {tuple(log_weight.shape)}, expected one entry")
    return -log_weight.reshape(()).exp() * (gap.detach() - target_gap)


def value_scale(q_B: Tensor, *, alpha: float) -> Tensor:
    """TD3+BC's weight of values against imitation, the only mean over a minibatch here.

        lambda = alpha / mean_B |Q(x, pi(x))|

    Args:
        q_B: [B] of the policy's own actions.
        alpha: dimensionless; 0 imitates alone.

    Returns:
        One entry, detached.

    Raises:
        ValueError: q_B is not [B].

    Source: Fujimoto & Gu 2021, arXiv:2106.06860, eq. 5. Differs: the mean is at least 1e-6.
    """
    require_axes(1, q_B=q_B)
    return alpha / q_B.detach().abs().mean().clamp(min=1e-6)


def td3_bc_loss(q_B: Tensor, action_BD: Tensor, logged_BD: Tensor, scale: Tensor) -> Tensor:
    """TD3+BC's policy loss: a scaled value, and the squared distance to the logged action.

        loss = -lambda * Q(x, pi(x)) + mean_D (pi(x) - a)^2

    Args:
        q_B: [B] of `action_BD`, through which the gradient reaches the policy.
        action_BD: [B, D] of the policy, in [-1, 1].
        logged_BD: [B, D] in the same units.
        scale: lambda, one entry, as `value_scale` gives.

    Returns:
        [B].

    Raises:
        ValueError: shapes disagree.

    Source: Fujimoto & Gu 2021, arXiv:2106.06860, eq. 3; the mean over features is the
    authors' code's.
    """
    require_axes(2, action_BD=action_BD)
    require_shapes(tuple(action_BD.shape), logged_BD=logged_BD)
    require_shapes(tuple(action_BD.shape[:1]), q_B=q_B)
    return (action_BD - logged_BD).square().mean(1) - scale * q_B


def constrained_q(q_BA: Tensor, logits_BA: Tensor, *, threshold: Tensor) -> Tensor:
    """Q of the actions that the data's policy would take, and the least there is of the others.

        allowed(a|x) = G(a|x) / max_a' G(a'|x) > threshold

    Args:
        q_BA: [B, A].
        logits_BA: [B, A] of G, a model of the policy that the data came from.
        threshold: one entry in [0, 1): 0 allows all, towards 1 only the likeliest.

    Returns:
        [B, A]; half the dtype's least number where an action is not allowed.

    Raises:
        ValueError: shapes disagree.

    Source: Fujimoto et al. 2019, arXiv:1910.01708, algorithm 1. Differs: none.
    """
    require_axes(2, q_BA=q_BA)
    require_shapes(tuple(q_BA.shape), logits_BA=logits_BA)
    # by logarithms, in which a likelihood that underflows still is above a threshold of 0
    log_ratio_BA = logits_BA - logits_BA.amax(1, keepdim=True)
    # half, so that params of a distribution stay finite once their largest is subtracted
    return q_BA.masked_fill(log_ratio_BA <= threshold.log(), torch.finfo(q_BA.dtype).min / 2)
