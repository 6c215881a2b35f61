"""Loss terms and diagnostics: pure functions of torch tensors, one entry per row.

Legend: B rows.

Nothing here is reduced: importance weights, masks and means are applied once, in the learner.
Gradients flow into what is being trained alone; targets, advantages and old values are constants.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss


def clipped_surrogate(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, *, clip_eps: float
) -> Tensor:
    """PPO's policy loss: the negative of the clipped surrogate objective.

        r    = exp(logp - old_logp)
        loss = -min(r * A, clip(r, 1 - clip_eps, 1 + clip_eps) * A)

    Args:
        logp: [B] log pi(a|x) under the policy being trained, in nats.
        old_logp: [B] of the policy that acted.
        advantage: [B].
        clip_eps: distance of r from 1 beyond which a row that improved gives no gradient.

    Returns:
        [B].

    Raises:
        ValueError: shapes disagree; the message names both arguments.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7. Differs: negated, to be minimised.
    """
    _require_same_shape(logp=logp, old_logp=old_logp)
    _require_same_shape(logp=logp, advantage=advantage)
    loss_B: Tensor = _ClippedSurrogate.apply(  # type: ignore[no-untyped-call]
        logp, old_logp.detach(), advantage.detach(), clip_eps
    )
    return loss_B


@torch.no_grad()
def clipped_surrogate_slope(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, *, clip_eps: float
) -> tuple[Tensor, Tensor]:
    """`clipped_surrogate` and its derivative by logp, [B] each, of the same arguments.

    dloss/dlogp = -r * A   where r * A <= clip(r) * A,   else 0
    """
    ratio_B = (logp - old_logp).exp_()
    free_B = ratio_B * advantage
    clipped_B = ratio_B.clamp_(1 - clip_eps, 1 + clip_eps).mul_(advantage)
    slope_B = free_B.where(free_B <= clipped_B, 0.0).neg_()
    return torch.minimum(free_B, clipped_B).neg_(), slope_B


class _ClippedSurrogate(torch.autograd.Function):
    """With its gradient written out: autograd's takes ten more kernels, 22 us of 256 rows."""

    @staticmethod
    def forward(
        ctx: Any, logp: Tensor, old_logp: Tensor, advantage: Tensor, clip_eps: float
    ) -> Tensor:
        loss_B, slope_B = clipped_surrogate_slope(logp, old_logp, advantage, clip_eps=clip_eps)
        ctx.save_for_backward(slope_B)
        return loss_B

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slope_B,) = ctx.saved_tensors
        return grad * slope_B, None, None, None


def impact_surrogate(
    logp: Tensor,
    behaviour_logp: Tensor,
    target_logp: Tensor,
    advantage: Tensor,
    *,
    clip_eps: float,
    ratio_clip: float,
) -> Tensor:
    """APPO's policy loss: PPO's, against a slow copy of the policy instead of the one that acted.

        is_ratio = min(pi_behaviour / pi_target, ratio_clip)
        r        = is_ratio * pi / pi_behaviour  =  pi / max(pi_target, pi_behaviour / ratio_clip)
        loss     = -min(r * A, clip(r, 1 - clip_eps, 1 + clip_eps) * A)

    Args:
        logp: [B] log pi(a|x) under the policy being trained, in nats.
        behaviour_logp: [B] of the policy that acted, a different version from worker to worker.
        target_logp: [B] of the target net, the copy that all workers' rows are compared with.
        advantage: [B], V-trace's of the target net where the paper is followed.
        clip_eps: distance of r from 1 beyond which a row that improved gives no gradient.
        ratio_clip: largest is_ratio, above 0.

    Returns:
        [B].

    Raises:
        ValueError: shapes disagree (the message names both arguments), or ratio_clip is not
            positive.

    Source: Luo et al. 2020, arXiv:1912.00167, section 3.1. Differs: negated, and computed in the
    second form of r, which has no 0 * inf. RLlib's APPO has the first, with ratio_clip fixed at 2.
    """
    _require_same_shape(logp=logp, behaviour_logp=behaviour_logp)
    _require_same_shape(logp=logp, target_logp=target_logp)
    if ratio_clip <= 0:
        raise ValueError(f"ratio_clip must be positive, got {ratio_clip}")
    old_logp_B = torch.maximum(target_logp, behaviour_logp - math.log(ratio_clip))
    return clipped_surrogate(logp, old_logp_B, advantage, clip_eps=clip_eps)


def policy_gradient(logp: Tensor, advantage: Tensor) -> Tensor:
    """The loss whose gradient is the negative policy gradient.

        loss = -A * log pi(a|x)

    Args:
        logp: [B] log pi(a|x) under the policy being trained, in nats.
        advantage: [B], of V-trace too: it carries its importance weight.

    Returns:
        [B].

    Raises:
        ValueError: shapes disagree; the message names both arguments.

    Source: Mnih et al. 2016, arXiv:1602.01783, section 4; Williams 1992, REINFORCE.
    """
    _require_same_shape(logp=logp, advantage=advantage)
    return -advantage.detach() * logp


def value_loss(
    value: Tensor, target: Tensor, *, old_value: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """Half the squared error of a value, optionally with the value's change clipped as PPO's is.

        loss = 0.5 * (V - target)^2
        loss = 0.5 * max((V - target)^2, (old_V + clip(V - old_V, -clip, clip) - target)^2)

    Args:
        value: [B] V(x) being trained.
        target: [B].
        old_value: [B] V(x) when the rows were gathered; used only with `clip`.
        clip: largest change of a value that still gives gradient, in the units of rewards;
            None clips nothing.

    Returns:
        [B].

    Raises:
        ValueError: shapes disagree (the message names both arguments), or `clip` comes without
            `old_value`.

    Source: openai/baselines ppo2; detail 9 of Huang et al. 2022, "The 37 Implementation Details of
    Proximal Policy Optimization", ICLR blog track. Andrychowicz et al. 2021, arXiv:2006.05990,
    found that it hurts.
    """
    _require_same_shape(value=value, target=target)
    target_B = target.detach()
    loss_B = 0.5 * mse_loss(value, target_B, reduction="none")
    if clip is None:
        return loss_B
    if old_value is None:
        raise ValueError(f"clip={clip} limits the change from old_value; got old_value=None")
    _require_same_shape(value=value, old_value=old_value)
    old_B = old_value.detach()
    clipped_B = old_B + (value - old_B).clamp(-clip, clip)
    return torch.maximum(loss_B, 0.5 * (clipped_B - target_B).square())


def huber(td_error: Tensor, *, delta: float | None = 1.0) -> Tensor:
    """Huber's loss: squared near zero, linear beyond `delta`, where its gradient is +-delta.

        loss = 0.5 * td^2                        where |td| <= delta
        loss = delta * (|td| - 0.5 * delta)      elsewhere

    Args:
        td_error: any shape.
        delta: positive, in the units of td_error; None is half the square everywhere.

    Returns:
        As td_error.

    Source: Huber 1964; with delta 1 the error clipping of Mnih et al. 2015, Nature 518.
    """
    if delta is None:
        return 0.5 * td_error.square()
    return huber_loss(td_error, torch.zeros_like(td_error), reduction="none", delta=delta)


def huber_slope(td_error: Tensor, *, delta: float | None = 1.0) -> Tensor:
    """The derivative of `huber` by td_error.

    dloss/dtd = clip(td, -delta, delta),  or td where delta is None
    """
    return td_error if delta is None else td_error.clamp(-delta, delta)


def approx_kl(logp: Tensor, old_logp: Tensor) -> Tensor:
    """Estimate KL(old || new) from actions of the old policy, unbiased and never negative.

        r  = exp(logp - old_logp)
        k3 = (r - 1) - log r

    Args:
        logp: [B] log pi(a|x) under the new policy, in nats.
        old_logp: [B] under the policy that acted.

    Returns:
        [B] in nats, detached; the estimate is its mean.

    Raises:
        ValueError: shapes disagree; the message names both arguments.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html, estimator k3.
    """
    _require_same_shape(logp=logp, old_logp=old_logp)
    log_ratio_B = logp.detach() - old_logp.detach()
    return torch.expm1(log_ratio_B) - log_ratio_B


def clip_frac(logp: Tensor, old_logp: Tensor, *, clip_eps: float) -> Tensor:
    """Where the probability ratio left [1 - clip_eps, 1 + clip_eps], as 1.0, else 0.0.

    Args:
        logp: [B] log pi(a|x) under the new policy, in nats.
        old_logp: [B] under the policy that acted.
        clip_eps: as in `clipped_surrogate`.

    Returns:
        [B], detached; the fraction is its mean.

    Raises:
        ValueError: shapes disagree; the message names both arguments.
    """
    _require_same_shape(logp=logp, old_logp=old_logp)
    change_B = torch.expm1(logp.detach() - old_logp.detach())
    return (change_B.abs() > clip_eps).to(logp.dtype)


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """Share of the targets' variance that the values explain; 1 is perfect, 0 a constant's.

        1 - Var(target - value) / Var(target)

    Constant targets give 1 where the values are equally constant, else 0: a finite metric.

    Args:
        value: [B] V(x).
        target: [B].

    Returns:
        A scalar, at most 1, detached.

    Raises:
        ValueError: shapes disagree; the message names both arguments.
    """
    _require_same_shape(value=value, target=target)
    target_B = target.detach()
    residual, total = (target_B - value.detach()).var(correction=0), target_B.var(correction=0)
    of_constant = (residual == 0).to(total.dtype)
    return torch.where(total == 0, of_constant, 1 - residual / total)


def _require_same_shape(**pair: Tensor) -> None:
    """Refuse what would broadcast: a [B, 1] beside a [B] makes a [B, B]."""
    (name, x), (other, y) = pair.items()
    if x.shape != y.shape:
        raise ValueError(f"{other} has shape {tuple(y.shape)}, {name} has {tuple(x.shape)}")
