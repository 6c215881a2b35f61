"""Losses of learning from logged actions: pure functions, one entry per row.

Legend: B rows, A actions, K critics, M actions sampled of a row.

Nothing here is reduced over rows; weights and means are applied once, in the learner.
"""

import torch
from torch import Tensor

from rl_ops.q_losses import require_shapes


def expectile_loss(difference: Tensor, *, expectile: float) -> Tensor:
    """The asymmetric square whose minimiser is an expectile.

        L(u) = |expectile - 1(u < 0)| u^2

    Args:
        difference: [B] what is to be fitted minus the fit, with gradient.
        expectile: 0.5 weighs both signs alike, more leans on positive differences.

    Returns:
        [B].

    Raises:
        ValueError: expectile lies outside (0, 1).

    Source: Kostrikov et al. 2021, arXiv:2110.06169, eq. 4. Differs: none.
    """
    if not 0.0 < expectile < 1.0:
        raise ValueError(f"expectile must lie between 0 and 1, got {expectile}")
    weight = torch.where(difference < 0, 1.0 - expectile, expectile)
    return weight * difference.square()


def advantage_weight(
    advantage: Tensor, *, temperature: float, max_weight: float = float("inf")
) -> Tensor:
    """How much a logged action is to be imitated.

        w = min(exp(temperature * A), max_weight)

    Args:
        advantage: [B] of the logged actions, in units of the return.
        temperature: inverse; 0 imitates all alike.
        max_weight: limit.

    Returns:
        [B], detached.

    Source: Nair et al. 2020, arXiv:2006.09359, eq. 8 (without the normaliser Z, as in its code);
    the limit as in Kostrikov et al. 2021.
    """
    # Limited before exp, which would be inf and, times a row's weight of 0, NaN.
    limit = float("inf") if max_weight == float("inf") else torch.tensor(max_weight).log().item()
    return (temperature * advantage.detach()).clamp(max=limit).exp()


def normalized_advantage_weight(
    advantage: Tensor, *, temperature: float, is_weight: Tensor | None = None
) -> Tensor:
    """How much a logged action is to be imitated, beside the others of its minibatch.

        w_i = exp(temperature * A_i) / Z,    Z = sum_j u_j exp(temperature * A_j) / sum_j u_j

    Args:
        advantage: [B] of the logged actions, in units of the return.
        temperature: inverse; 0 imitates all alike.
        is_weight: [B] u, what each row counts in the loss; None counts all alike.

    Returns:
        [B], detached, of mean 1 under `is_weight`.

    Raises:
        ValueError: shapes disagree.

    Source: Nair et al. 2020, arXiv:2006.09359, algorithm 1, with the Z of their code (awac_trainer
    of rlkit), B * softmax(A / lambda). Differs: Z counts rows by their weight in the loss.
    """
    logit = temperature * advantage.detach()
    if is_weight is None:
        return logit.softmax(0) * len(logit)
    require_shapes(tuple(advantage.shape), is_weight=is_weight)
    # exp of what is above the largest would overflow; the shift cancels in Z.
    weight = (logit - logit.max()).exp()
    return weight * (is_weight.sum() / (is_weight * weight).sum())


def moving_square(average: Tensor, advantage: Tensor, *, rate: float) -> Tensor:
    """The next moving average of squared advantages, of which MARWIL's scale is the root.

        c^2 <- c^2 + rate * (mean A^2 - c^2)

    Args:
        average: c^2, a scalar in squared units of the return.
        advantage: [B] of a minibatch.
        rate: share of the newest minibatch.

    Returns:
        A scalar, detached.

    Source: Wang et al. 2018, "Exponentially Weighted Imitation Learning for Batched Historical
    Data", NeurIPS, experiments; RLlib's defaults are 100 to start with and a rate of 1e-8, with
    which c stays 10. Differs: none.
    """
    return torch.lerp(average, advantage.detach().square().mean(), rate)


def scaled_advantage_weight(advantage: Tensor, average: Tensor, *, beta: float) -> Tensor:
    """How much a logged action is to be imitated, by its advantage in units of a usual one.

        w = exp(beta * A / c)

    Args:
        advantage: [B] of the logged actions, in units of the return.
        average: c^2 as `moving_square` gives it.
        beta: 0 imitates all alike.

    Returns:
        [B], detached.

    Source: Wang et al. 2018, algorithm 1, with c as in their experiments. Differs: none.
    """
    return (beta * advantage.detach() / (average.sqrt() + 1e-8)).exp()
