"""Off-policy estimators of a policy's discounted return, as functions of arrays.

Legend: N steps in all, E episodes, T steps of the longest episode.

Arrays [E, T] are padded behind an episode's end with zeros (`by_episode`). So an episode that ended
keeps its last weight and earns nothing, as in an absorbing state where both policies do the same.

What an episode earned beyond the last step that was logged nobody knows: the estimators without a
model (IS, WIS, PDIS, CWPDIS) are of the return up to there, which for a time limit that belongs to
the task is the return. DR and WDR take the model's value of what follows a truncated step.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from offline.ope.terms import Floats, Terms

_MAX_LOG_WEIGHT: Final = 600.0
"""Weights that nothing normalises stop here: e^600, whose sums are still numbers."""


def by_episode(values: npt.NDArray[Any], episode: npt.NDArray[np.int64]) -> Floats:
    """Steps as one row for each episode, 0 behind its end.

    Args:
        values: [N] numbers.
        episode: [N] 0..E-1, ascending.

    Returns:
        [E, T] float64.
    """
    starts = np.flatnonzero(np.diff(episode, prepend=-1))
    lengths = np.diff(starts, append=len(episode))
    padded = np.zeros((len(starts), int(lengths.max(initial=0))))
    padded[episode, np.arange(len(episode)) - np.repeat(starts, lengths)] = values
    return padded


def log_weights(log_ratio: Floats, *, max_weight: float | None = None) -> Floats:
    """Importance of each episode up to each step, in nats.

        L_t = min(log max_weight, sum_{k <= t} log pi(a_k|x_k) - log mu(a_k|x_k))

    Args:
        log_ratio: [E, T]; -inf where the target never acts so.
        max_weight: bound of the weights, as in truncated importance sampling: less variance for
            some bias; None for none.

    Returns:
        [E, T]; behind an episode's end its last.

    Raises:
        ValueError: the bound is not positive, or a ratio is NaN or infinite.

    Source: Precup, Sutton & Singh 2000, eq. 3; the bound: Ionides 2008, eq. 3.
    """
    if np.isnan(log_ratio).any() or (log_ratio == np.inf).any():
        raise ValueError("log_ratio has NaN or +inf: a logged action had no probability to log")
    total: Floats = log_ratio.cumsum(1)
    if max_weight is None:
        return total
    if not max_weight > 0:
        raise ValueError(f"max_weight is {max_weight}; weights are positive")
    return np.minimum(total, np.log(max_weight))


def effective_sample_size(log_weight: Floats) -> Any:
    """How many equally weighted episodes would be worth as much.

        ESS = (sum_e w_e)^2 / sum_e w_e^2

    Args:
        log_weight: [E] or [E, T] in nats.

    Returns:
        A number from 1 to E, or [T]; 0 where no episode has any weight.

    Source: Kish 1965, Survey Sampling, section 11.7.
    """
    weight = _normalisable(log_weight)
    square = np.square(weight).sum(0)
    return np.divide(weight.sum(0) ** 2, square, out=np.zeros_like(square), where=square > 0)


def mean_return(reward: Floats, *, gamma: float) -> Terms:
    """The return of whoever acted: sum_t gamma^t r_t, averaged over episodes.

    Args:
        reward: [E, T].
        gamma: per step.
    """
    return Terms.mean(reward @ _discounts(reward, gamma))


def importance_sampling(
    log_ratio: Floats, reward: Floats, *, gamma: float, max_weight: float | None = None
) -> Terms:
    """Ordinary importance sampling (IS), by trajectory. Unbiased; its variance is the largest.

        V = 1/E sum_e rho_{0:T-1} sum_t gamma^t r_t

    Args:
        log_ratio: [E, T] log pi(a|x) - log mu(a|x), in nats.
        reward: [E, T] as the environment gave it.
        gamma: discount per step.
        max_weight: see `log_weights`; None is unbiased.

    Source: Precup, Sutton & Singh 2000, eq. 3.
    """
    weight = np.exp(_last(log_ratio, max_weight).clip(max=_MAX_LOG_WEIGHT))
    return Terms.mean(weight * (reward @ _discounts(reward, gamma)))


def weighted_importance_sampling(
    log_ratio: Floats, reward: Floats, *, gamma: float, max_weight: float | None = None
) -> Terms:
    """Weighted importance sampling (WIS), by trajectory. Biased, consistent, within the returns.

        V = sum_e rho^e_{0:T-1} sum_t gamma^t r^e_t / sum_e rho^e_{0:T-1}

    Arguments as for `importance_sampling`.

    Source: Precup, Sutton & Singh 2000, eq. 5.
    """
    weight = _normalisable(_last(log_ratio, max_weight))[:, None]
    returns = (reward @ _discounts(reward, gamma))[:, None]
    return Terms(weight * returns, weight)


def per_decision(
    log_ratio: Floats, reward: Floats, *, gamma: float, max_weight: float | None = None
) -> Terms:
    """Per-decision importance sampling (PDIS): a reward is weighted by what led to it only.

        V = 1/E sum_e sum_t gamma^t rho_{0:t} r_t

    Arguments as for `importance_sampling`.

    Source: Precup, Sutton & Singh 2000, eq. 7.
    """
    weight = np.exp(log_weights(log_ratio, max_weight=max_weight).clip(max=_MAX_LOG_WEIGHT))
    return Terms.mean((weight * reward) @ _discounts(reward, gamma))


def weighted_per_decision(
    log_ratio: Floats, reward: Floats, *, gamma: float, max_weight: float | None = None
) -> Terms:
    """Consistent weighted per-decision importance sampling (CWPDIS).

        V = sum_t gamma^t (sum_e rho^e_{0:t} r^e_t) / (sum_e rho^e_{0:t})

    Arguments as for `importance_sampling`.

    Source: Thomas 2015, PhD thesis, section 3.9.
    """
    weight = _normalisable(log_weights(log_ratio, max_weight=max_weight))
    return Terms(weight * reward * _discounts(reward, gamma), weight)


def direct_method(value_first: Floats) -> Terms:
    """The direct method (DM): what a model says of the first observations.

        V = 1/E sum_e V(x^e_0)

    The value of what follows a truncation is in the model, which was bootstrapped there.

    Args:
        value_first: [E] V(x_0) = sum_a pi(a|x_0) Q(x_0, a).
    """
    return Terms.mean(value_first)


def doubly_robust(
    log_ratio: Floats,
    reward: Floats,
    q: Floats,
    value: Floats,
    next_value: Floats,
    *,
    gamma: float,
    max_weight: float | None = None,
) -> Terms:
    """Doubly robust (DR): the model's value, and the weighted errors of the model on top.

        V_t = V(x_t) + rho_t (r_t + gamma V_t+1 - Q(x_t, a_t))

    written as V(x_0) + sum_t gamma^t rho_{0:t} (r_t + gamma V(x_t+1) - Q(x_t, a_t)). Unbiased with
    logged probabilities, whatever the model, as long as that was not fitted on the same episode.

    Arguments as for `importance_sampling`.
        q: [E, T] Q(x_t, a_t) of the logged actions.
        value: [E, T] V(x_t) of the target policy.
        next_value: [E, T] V(x_t+1): 0 where the step terminated, V(final_obs) where it was
            truncated. A termination is no bootstrap and a truncation is one.
        gamma: discount per step.
        max_weight: see `log_weights`; None is unbiased.

    Source: Jiang & Li 2016, arXiv:1511.03722, eq. 10. Differs: a truncated episode's recursion
    begins with V(final_obs) instead of 0.
    """
    weight = np.exp(log_weights(log_ratio, max_weight=max_weight).clip(max=_MAX_LOG_WEIGHT))
    error = reward + gamma * next_value - q
    return Terms.mean(value[:, 0] + (weight * error) @ _discounts(reward, gamma))


def weighted_doubly_robust(
    log_ratio: Floats,
    reward: Floats,
    q: Floats,
    value: Floats,
    next_value: Floats,
    *,
    gamma: float,
    max_weight: float | None = None,
) -> Terms:
    """Weighted doubly robust (WDR): DR with the weights of each step normalised.

        V = 1/E sum_e V(x^e_0) + sum_t gamma^t sum_e w^e_t (r_t + gamma V(x_t+1) - Q(x_t, a_t)),
        w^e_t = rho^e_{0:t} / sum_e rho^e_{0:t}

    Arguments as for `doubly_robust`.

    Source: Thomas & Brunskill 2016, arXiv:1604.00923, eq. 2, regrouped by step: its terms
    gamma^t w_t-1 V(x_t) are here gamma^t+1 w_t V(x_t+1). Differs: as `doubly_robust`.
    """
    weight = _normalisable(log_weights(log_ratio, max_weight=max_weight))
    error = reward + gamma * next_value - q
    first = np.ones((len(reward), 1))
    corrections = weight * error * _discounts(reward, gamma)
    return Terms(np.hstack([value[:, :1], corrections]), np.hstack([first, weight]))


def _discounts(reward: Floats, gamma: float) -> Floats:
    powers: Floats = gamma ** np.arange(reward.shape[1], dtype=np.float64)
    return powers


def _last(log_ratio: Floats, max_weight: float | None) -> Floats:
    return log_weights(log_ratio, max_weight=max_weight)[:, -1]


def _normalisable(log_weight: Floats) -> Floats:
    """Weights up to a factor common to their column: the largest is 1."""
    top = log_weight.max(0)
    return np.exp(log_weight - np.where(np.isfinite(top), top, 0.0))
