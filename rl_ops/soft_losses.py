"""Targets and losses of SAC, TD3 and TQC: pure functions of torch tensors, one entry per row.

Legend: B rows, A actions, D features, K critics, N quantiles of a critic.

Nothing here is reduced over rows: importance weights and means are applied once, in the learner.
What a critic learns from is detached and feeds `q_losses.td_target`. `alpha`, the temperature in
units of reward per nat, is a constant everywhere but in `temperature_loss`.
"""

import torch
from torch import Tensor
from torch.linalg import vecdot

from rl_ops.q_losses import require_axes, require_shapes


@torch.no_grad()
def clipped_double_q(next_q_KB: Tensor) -> Tensor:
    """The smallest of the target critics' values.

        min_k Q_k(x', a')

    Args:
        next_q_KB: [K, B].

    Returns:
        [B], detached.

    Raises:
        ValueError: it is not [K, B].

    Source: Fujimoto et al. 2018, arXiv:1802.09477, eq. 10.
    """
    require_axes(2, next_q_KB=next_q_KB)
    return next_q_KB.amin(0)


@torch.no_grad()
def soft_next_value(next_q_KB: Tensor, next_logp_B: Tensor, alpha: Tensor | float) -> Tensor:
    """SAC's value of the next observation, from one action sampled there.

        min_k Q_k(x', a') - alpha * log pi(a'|x')

    Args:
        next_q_KB: [K, B] of the target critics.
        next_logp_B: [B] of the sampled a', in nats.
        alpha: temperature, one entry.

    Returns:
        [B], detached.

    Raises:
        ValueError: shapes disagree, or alpha has not one entry.

    Source: Haarnoja et al. 2018, arXiv:1812.05905, eq. 3; the minimum is Fujimoto et al.'s 2018,
    arXiv:1802.09477, eq. 10.
    """
    require_axes(2, next_q_KB=next_q_KB)
    require_shapes(next_q_KB.shape[1:], next_logp_B=next_logp_B)
    return next_q_KB.amin(0) - _constant(alpha) * next_logp_B


def soft_policy_loss(q_KB: Tensor, logp_B: Tensor, alpha: Tensor | float) -> Tensor:
    """SAC's policy loss for a reparameterised action, a = f(noise; x).

        loss = alpha * log pi(a|x) - min_k Q_k(x, a)

    The gradient reaches the policy through `logp_B` and, by the action, through `q_KB`; the caller
    keeps it out of the critics' parameters.

    Args:
        q_KB: [K, B] of the action; TQC gives the mean of all quantiles as one critic, [1, B].
        logp_B: [B] of the action, in nats.
        alpha: temperature, one entry.

    Returns:
        [B].

    Raises:
        ValueError: shapes disagree, or alpha has not one entry.

    Source: Haarnoja et al. 2018, arXiv:1812.05905, eq. 9.
    """
    require_axes(2, q_KB=q_KB)
    require_shapes(q_KB.shape[1:], logp_B=logp_B)
    # not amin, whose backward looks for ties to share the gradient among
    return _constant(alpha) * logp_B - q_KB.min(0).values


@torch.no_grad()
def soft_next_value_discrete(
    next_q_KBA: Tensor, next_logits_BA: Tensor, alpha: Tensor | float
) -> Tensor:
    """SAC's value of the next observation in expectation over all actions.

        sum_a pi(a|x') * (min_k Q_k(x', a) - alpha * log pi(a|x'))

    Args:
        next_q_KBA: [K, B, A] of the target critics.
        next_logits_BA: [B, A] of the policy; -inf or the dtype's min where an action is masked.
        alpha: temperature, one entry.

    Returns:
        [B], detached.

    Raises:
        ValueError: shapes disagree, or alpha has not one entry.

    Source: Christodoulou 2019, arXiv:1910.07207, eq. 10, with the minimum of Fujimoto et al.
    """
    return -_expected_soft_loss(next_q_KBA, next_logits_BA, alpha)


def soft_policy_loss_discrete(q_KBA: Tensor, logits_BA: Tensor, alpha: Tensor | float) -> Tensor:
    """SAC's policy loss in expectation over all actions.

        loss = sum_a pi(a|x) * (alpha * log pi(a|x) - min_k Q_k(x, a))

    Args:
        q_KBA: [K, B, A]; no gradient flows into it.
        logits_BA: [B, A] being trained; -inf or the dtype's min where an action is masked.
        alpha: temperature, one entry.

    Returns:
        [B]. The entropy for `temperature_loss` is `Categorical.entropy`.

    Raises:
        ValueError: shapes disagree, or alpha has not one entry.

    Source: Christodoulou 2019, arXiv:1910.07207, eq. 12.
    """
    return _expected_soft_loss(q_KBA.detach(), logits_BA, alpha)


def temperature_loss(log_alpha: Tensor, entropy_B: Tensor, target_entropy: float) -> Tensor:
    """Raises the temperature where the policy has less entropy than wanted, else lowers it.

        loss = log_alpha * (H - target_entropy)

    Args:
        log_alpha: one entry, being trained.
        entropy_B: [B] H in nats; -log pi(a|x) of a sampled action estimates it.
        target_entropy: in nats; -D is usual of continuous actions.

    Returns:
        [B], with gradient into log_alpha alone.

    Raises:
        ValueError: log_alpha has not one entry, or entropy_B is not [B].

    Source: Haarnoja et al. 2018, arXiv:1812.05905, eq. 18. Differs: log_alpha in alpha's place, as
    the authors' code and Stable-Baselines3 have it. Descent on alpha * (H - target_entropy) by
    log_alpha would slow down in proportion to alpha, and a small alpha could hardly grow again.
    """
    require_axes(1, entropy_B=entropy_B)
    return _one_entry("log_alpha", log_alpha) * (entropy_B.detach() - target_entropy)


@torch.no_grad()
def smoothed_action(
    action_BD: Tensor, noise_BD: Tensor, *, noise_scale: float, noise_clip: float
) -> Tensor:
    """TD3's target action: the target policy's, with clipped noise, within [-1, 1].

        clip(a + clip(noise_scale * noise, -noise_clip, noise_clip), -1, 1)

    Args:
        action_BD: [B, D] of the target policy, in [-1, 1].
        noise_BD: [B, D] of a standard normal.
        noise_scale: deviation of the noise, in the units of actions.
        noise_clip: its largest size.

    Returns:
        [B, D], detached.

    Raises:
        ValueError: shapes disagree; the message names the argument and what was expected.

    Source: Fujimoto et al. 2018, arXiv:1802.09477, eq. 14. Differs: the action's own clip is
    from the authors' code.
    """
    require_shapes(action_BD.shape, noise_BD=noise_BD)
    clipped_BD = (noise_scale * noise_BD).clamp_(-noise_clip, noise_clip)
    return clipped_BD.add_(action_BD).clamp_(-1.0, 1.0)


@torch.no_grad()
def truncated_quantiles(next_quantiles_KBN: Tensor, drop_per_net: int) -> Tensor:
    """All critics' quantiles in one pool, without the largest K * drop_per_net of each row.

    Args:
        next_quantiles_KBN: [K, B, N] of the target critics.
        drop_per_net: in [0, N).

    Returns:
        [B, K * (N - drop_per_net)] in no order, detached.

    Raises:
        ValueError: drop_per_net is out of range, or the quantiles have not 3 axes.

    Source: Kuznetsov et al. 2020, arXiv:2005.04269, section 4.
    """
    require_axes(3, next_quantiles_KBN=next_quantiles_KBN)
    num_critics, rows, num_quantiles = next_quantiles_KBN.shape
    if not 0 <= drop_per_net < num_quantiles:
        raise ValueError(f"drop_per_net must be in [0, {num_quantiles}), got {drop_per_net}")
    pool = next_quantiles_KBN.transpose(0, 1).reshape(rows, num_critics * num_quantiles)
    if drop_per_net == 0:
        return pool
    kept = num_critics * (num_quantiles - drop_per_net)
    # the loss needs no order: sorted, [256, 125] takes 1.3 ms instead of 0.4
    return pool.topk(kept, largest=False, sorted=False).values


@torch.no_grad()
def tqc_targets(
    next_quantiles_KBN: Tensor,
    next_logp_B: Tensor,
    return_n: Tensor,
    bootstrap_discount: Tensor,
    *,
    alpha: Tensor | float,
    drop_per_net: int,
) -> Tensor:
    """What each of TQC's critics learns from, by `q_losses.quantile_huber_loss`.

        y_i = return_n + bootstrap_discount * (z_(i) - alpha * log pi(a'|x'))

    with z_(i) the smallest K * (N - drop_per_net) of the pooled quantiles.

    Args:
        next_quantiles_KBN: [K, B, N] of the target critics, at the sampled a'.
        next_logp_B: [B] of a', in nats.
        return_n: [B], as in `q_losses.td_target`.
        bootstrap_discount: [B], as in `q_losses.td_target`.
        alpha: temperature, one entry.
        drop_per_net: as in `truncated_quantiles`.

    Returns:
        [B, K * (N - drop_per_net)] in no order, detached; all critics share it.

    Raises:
        ValueError: shapes disagree, drop_per_net is out of range, or alpha has not one entry.

    Source: Kuznetsov et al. 2020, arXiv:2005.04269, eq. 8-10.
    """
    require_shapes(
        next_quantiles_KBN.shape[1:2],
        next_logp_B=next_logp_B,
        return_n=return_n,
        bootstrap_discount=bootstrap_discount,
    )
    kept = truncated_quantiles(next_quantiles_KBN, drop_per_net)
    offset_B = return_n - bootstrap_discount * _constant(alpha) * next_logp_B
    return torch.addcmul(offset_B[:, None], bootstrap_discount[:, None], kept)


def _expected_soft_loss(q_KBA: Tensor, logits_BA: Tensor, alpha: Tensor | float) -> Tensor:
    require_axes(3, q_KBA=q_KBA)
    require_shapes(q_KBA.shape[1:], logits_BA=logits_BA)
    # p is 0 long before the clamp; without it a masked action is 0 * -inf, here or in the gradient
    logp_BA = logits_BA.log_softmax(1).clamp(min=-1e4)
    loss_B: Tensor = vecdot(logp_BA.exp(), _constant(alpha) * logp_BA - q_KBA.amin(0))
    return loss_B


def _constant(alpha: Tensor | float) -> Tensor | float:
    return _one_entry("alpha", alpha.detach()) if isinstance(alpha, Tensor) else alpha


def _one_entry(name: str, tensor: Tensor) -> Tensor:
    """As a scalar: a [1, 1] would broadcast a [B] to [1, B]."""
    if tensor.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected one entry")
    return tensor.reshape(())
