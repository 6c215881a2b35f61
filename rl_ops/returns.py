"""Returns, advantages and off-policy targets from one linear recurrence, in numpy or torch.

Legend: T time, B rows.

Axis 0 is time: [T] flat env-major rows (many episodes end to end, cut where `is_last`) or [T, B].
The last row of axis 0 is always a cut. Results are detached.
"""

import math
from functools import reduce
from typing import Any, Generic, NamedTuple

import numpy as np

from rl_ops.arrays import ArrayT, array_namespace


class Gae(NamedTuple, Generic[ArrayT]):
    """Advantages and the value targets they imply."""

    advantage: ArrayT
    value_target: ArrayT


class NStepReturn(NamedTuple, Generic[ArrayT]):
    """`return_n + bootstrap_discount * V(next observation of row bootstrap_index)`."""

    return_n: ArrayT
    bootstrap_index: ArrayT
    bootstrap_discount: ArrayT


class VTrace(NamedTuple, Generic[ArrayT]):
    """Value targets and policy-gradient advantages."""

    target: ArrayT
    advantage: ArrayT


def linear_recurrence(a: ArrayT, b: ArrayT) -> ArrayT:
    """Solve a first-order linear recurrence backwards along axis 0.

        x_t = a_t + b_t x_t+1,    x_T = 0

    Recursive doubling: after k passes x_t covers 2^k rows, so the cost is log2 of the longest
    run without b = 0 (or without underflow), whatever the number of runs. A NaN or infinity does
    not pass a row where b = 0.

    Args:
        a: [T, ...] float.
        b: [T, ...] float; 0 cuts.

    Returns:
        x [T, ...], a new array.

    Source: Kogge & Stone 1973, IEEE Transactions on Computers C-22(8).
    """
    xp = array_namespace(a)
    x = _copy(a)
    product = _detach(b)[:-1]
    reach = 1
    while (live := product != 0).any():
        head = x[:-reach]
        # where, because 0 * inf is NaN and would leak one episode into the one before it
        head += product * xp.where(live, x[reach:], 0.0)
        product = product[:-reach] * xp.where(live[:-reach], product[reach:], 0.0)
        reach *= 2
    return x


def discounted_sum(reward: ArrayT, discount: ArrayT, is_last: ArrayT) -> ArrayT:
    """Discounted sum of rewards to the end of the segment, without a bootstrap.

        G_t = r_t + d_t * (1 - is_last_t) * G_t+1

    Args:
        reward: [T] or [T, B].
        discount: as reward; gamma * (1 - terminated).
        is_last: as reward, bool; terminated | truncated | end of fragment.

    Returns:
        G, as reward.

    Raises:
        ValueError: shapes disagree; the message names both arguments.
        TypeError: kinds of array are mixed, or is_last is not bool.
    """
    dtype, carry, (r, d) = _prepare(is_last, reward=reward, discount=discount)
    return _cast(linear_recurrence(r, d * carry), dtype)


def gae(
    reward: ArrayT,
    discount: ArrayT,
    value: ArrayT,
    next_value: ArrayT,
    is_last: ArrayT,
    *,
    gae_lambda: float,
) -> Gae[ArrayT]:
    """Generalised advantage estimates.

        delta_t = r_t + d_t V(x_t+1) - V(x_t)
        A_t     = delta_t + d_t * gae_lambda * (1 - is_last_t) * A_t+1

    Args:
        reward: [T] or [T, B] after connectors, in the units the learner sees.
        discount: as reward; gamma * (1 - terminated), a truncated step keeps gamma.
        value: as reward; V(x_t).
        next_value: as reward; V(x_t+1), V(final_obs) where is_last.
        is_last: as reward, bool; terminated | truncated | end of fragment, cuts the recursion.
        gae_lambda: in [0, 1]; 0 is the one-step TD error, 1 Monte-Carlo with bootstrap.

    Returns:
        Gae(advantage, value_target = advantage + value), in the inputs' float dtype.

    Raises:
        ValueError: shapes disagree (the message names both arguments), or gae_lambda is not
            in [0, 1].
        TypeError: kinds of array are mixed, or is_last is not bool.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16. Differs: none.
    """
    _check_lambda(gae_lambda)
    dtype, carry, (r, d, v, v_next) = _prepare(
        is_last, reward=reward, discount=discount, value=value, next_value=next_value
    )
    advantage = linear_recurrence(r + d * v_next - v, gae_lambda * d * carry)
    return Gae(_cast(advantage, dtype), _cast(advantage + v, dtype))


def lambda_returns(
    reward: ArrayT, discount: ArrayT, next_value: ArrayT, is_last: ArrayT, *, gae_lambda: float
) -> ArrayT:
    """TD(lambda) returns.

        G_t = r_t + d_t * ((1 - gae_lambda) * V(x_t+1) + gae_lambda * G_t+1)
        G_t = r_t + d_t * V(x_t+1)                                      where is_last_t

    Args:
        reward: [T] or [T, B].
        discount: as reward; gamma * (1 - terminated).
        next_value: as reward; V(x_t+1), V(final_obs) where is_last.
        is_last: as reward, bool; terminated | truncated | end of fragment.
        gae_lambda: in [0, 1].

    Returns:
        G, as reward.

    Raises:
        ValueError: shapes disagree (the message names both arguments), or gae_lambda is not
            in [0, 1].
        TypeError: kinds of array are mixed, or is_last is not bool.

    Source: Sutton & Barto 2018, eq. 12.18, in its recursive form (exercise 12.1).
    """
    _check_lambda(gae_lambda)
    dtype, carry, (r, d, v_next) = _prepare(
        is_last, reward=reward, discount=discount, next_value=next_value
    )
    decay = gae_lambda * d * carry
    return _cast(linear_recurrence(r + (d - decay) * v_next, decay), dtype)


def n_step(reward: ArrayT, discount: ArrayT, is_last: ArrayT, *, n: int) -> NStepReturn[ArrayT]:
    """Sums of up to n rewards, and where and how much to bootstrap after them.

        m_t                  = min(n, rows from t to the next is_last, itself included)
        return_n_t           = sum_{k < m_t} (prod_{j < k} d_t+j) r_t+k
        bootstrap_index_t    = t + m_t - 1
        bootstrap_discount_t = prod_{j < m_t} d_t+j

    Args:
        reward: [T] or [T, B].
        discount: as reward; gamma * (1 - terminated), so a terminated window does not bootstrap.
        is_last: as reward, bool; terminated | truncated | end of fragment.
        n: steps, at least 1.

    Returns:
        NStepReturn; bootstrap_index is int64 along axis 0 and names the row whose *next*
        observation (final_obs where that row is_last) is bootstrapped from.

    Raises:
        ValueError: shapes disagree (the message names both arguments) or n < 1.
        TypeError: kinds of array are mixed, or is_last is not bool.

    Source: Sutton & Barto 2018, eq. 7.1; Hessel et al. 2018, arXiv:1710.02298.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 step, got {n}")
    dtype, carry, (r, d) = _prepare(is_last, reward=reward, discount=discount)
    xp = array_namespace(r)
    one = xp.ones_like(is_last, dtype=xp.int64)
    bootstrap_index = one.cumsum(0) - 1
    return_n, product = _copy(r), _copy(d)
    grows = carry[:-1]
    for k in range(1, n):
        if not grows.any():
            break
        head_return, head_product, head_index = return_n[:-k], product[:-k], bootstrap_index[:-k]
        head_return += head_product * xp.where(grows, r[k:], 0.0)
        head_product *= xp.where(grows, d[k:], 1.0)
        head_index += grows
        grows = grows[:-1] & carry[k:-1]
    return NStepReturn(_cast(return_n, dtype), bootstrap_index, _cast(product, dtype))


def vtrace(
    log_rho: ArrayT,
    reward: ArrayT,
    discount: ArrayT,
    value: ArrayT,
    next_value: ArrayT,
    is_last: ArrayT,
    *,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    gae_lambda: float = 1.0,
) -> VTrace[ArrayT]:
    """Off-policy corrected value targets and policy-gradient advantages.

        delta_t     = min(rho_bar, rho_t) * (r_t + d_t V(x_t+1) - V(x_t))
        a_t         = delta_t + d_t * gae_lambda * min(c_bar, rho_t) * (1 - is_last_t) * a_t+1
        target_t    = V(x_t) + a_t
        advantage_t = min(rho_bar, rho_t) * (r_t + d_t target_t+1 - V(x_t)),
                      with V(x_t+1) for target_t+1 where is_last_t

    Args:
        log_rho: [T] or [T, B] log pi(a|x) - log mu(a|x), in nats.
        reward: as log_rho, after connectors, in the units the learner sees.
        discount: as log_rho; gamma * (1 - terminated), a truncated step keeps gamma.
        value: as log_rho; V(x_t).
        next_value: as log_rho; V(x_t+1), V(final_obs) where is_last.
        is_last: as log_rho, bool; terminated | truncated | end of fragment, cuts the recursion.
        rho_bar: clip of rho in delta and in the advantage; sets the fixed point.
        c_bar: clip of the trace coefficients; sets the contraction's speed.
        gae_lambda: in [0, 1]; decays the traces.

    Returns:
        VTrace(target, advantage), detached.

    Raises:
        ValueError: shapes disagree (the message names both arguments), a clip is not positive
            or gae_lambda is out of range.
        TypeError: kinds of array are mixed, or is_last is not bool.

    Source: Espeholt et al. 2018, arXiv:1802.01561, eq. 1 and remarks 1, 2. Differs: none.
    """
    _check_lambda(gae_lambda)
    if rho_bar <= 0 or c_bar <= 0:
        raise ValueError(f"rho_bar and c_bar must be positive, got {rho_bar} and {c_bar}")
    dtype, carry, (log_ratio, r, d, v, v_next) = _prepare(
        is_last,
        log_rho=log_rho,
        reward=reward,
        discount=discount,
        value=value,
        next_value=next_value,
    )
    xp = array_namespace(r)
    # clipped in log space: exp of a large log_rho would overflow before it is clipped
    rho = xp.exp(log_ratio.clip(None, math.log(rho_bar)))
    c = gae_lambda * xp.exp(log_ratio.clip(None, math.log(c_bar)))
    correction = linear_recurrence(rho * (r + d * v_next - v), d * c * carry)
    target = v + correction
    target_next = _copy(v_next)
    target_next[:-1] = xp.where(carry[:-1], target[1:], target_next[:-1])
    return VTrace(_cast(target, dtype), _cast(rho * (r + d * target_next - v), dtype))


def _prepare(is_last: ArrayT, **inputs: ArrayT) -> tuple[Any, ArrayT, list[ArrayT]]:
    """Check the arguments; give the result's dtype, ~is_last (last row cut), the inputs to sum."""
    first, reference = next(iter(inputs.items()))
    xp = array_namespace(reference)
    if reference.ndim == 0:
        raise ValueError(f"{first} is a scalar; expected [T] or [T, B]")
    for name, array in {**inputs, "is_last": is_last}.items():
        if array_namespace(array) is not xp:
            raise TypeError(
                f"{name} is {type(array).__qualname__}, {first} is {type(reference).__qualname__}; "
                "pass all arrays as numpy or all as torch"
            )
        if array.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)}, {first} has {tuple(reference.shape)}; "
                "expected one entry per row in each"
            )
    if is_last.dtype != xp.bool:
        raise TypeError(f"is_last has dtype {is_last.dtype}, expected bool")
    carry = ~is_last
    carry[-1:] = False
    dtype = reduce(xp.promote_types, (array.dtype for array in inputs.values()), xp.float32)
    # numpy sums in float64, for nothing on these sizes; not every torch device has float64
    working = np.float64 if xp is np else dtype
    return dtype, carry, [_cast(array, working) for array in inputs.values()]


def _detach(array: ArrayT) -> ArrayT:
    return array if isinstance(array, np.ndarray) else array.detach()


def _copy(array: ArrayT) -> ArrayT:
    return array.copy() if isinstance(array, np.ndarray) else array.detach().clone()


def _cast(array: ArrayT, dtype: Any) -> ArrayT:
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    return array.detach().to(dtype)


def _check_lambda(gae_lambda: float) -> None:
    if not 0.0 <= gae_lambda <= 1.0:
        raise ValueError(f"gae_lambda must be in [0, 1], got {gae_lambda}")
