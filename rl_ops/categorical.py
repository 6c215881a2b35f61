"""Distributions over finite choices: categorical, and several categoricals at once.

Legend: B rows, N choices, K factors.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rl_ops.arrays import ArrayT, array_namespace, require_shape


class _Choices(ABC):
    """K independent choices whose logits lie end to end in params [B, sum of factors].

    Inside, logits are [K, N, B]: to reduce over a short last axis costs 2 to 8 times more, in
    numpy and in torch (log-softmax of [4096, 6]: 232 against 28 us, and 297 against 70).
    """

    @property
    @abstractmethod
    def _factors(self) -> tuple[int, ...]:
        """Number of choices of each factor."""

    @abstractmethod
    def _to_action(self, index_KB: ArrayT) -> ArrayT: ...

    @abstractmethod
    def _to_index(self, action: ArrayT, rows: int) -> ArrayT: ...

    @cached_property
    def param_size(self) -> int:
        return sum(self._factors)

    @property
    def noise_size(self) -> int:
        return len(self._factors)

    def noise(self, rng: np.random.Generator, rows: int) -> npt.NDArray[np.float32]:
        return rng.random((rows, self.noise_size), dtype=np.float32)

    def sample(self, params: ArrayT, noise: ArrayT) -> ArrayT:
        return self._to_action(self._draw(self._logits(params), noise))

    def sample_logp(self, params: ArrayT, noise: ArrayT) -> tuple[ArrayT, ArrayT]:
        logits_KNB = self._logits(params)
        index_KB = self._draw(logits_KNB, noise)
        logp_KB = _pick(_log_softmax(logits_KNB), index_KB)
        return self._to_action(index_KB), _sum_factors(logp_KB)

    def mode(self, params: ArrayT) -> ArrayT:
        index_KB: ArrayT = self._logits(params).argmax(1)
        return self._to_action(index_KB)

    def logp(self, params: ArrayT, action: ArrayT) -> ArrayT:
        logp_KNB = _log_softmax(self._logits(params))
        return _sum_factors(_pick(logp_KNB, self._to_index(action, len(params))))

    def entropy(self, params: ArrayT) -> ArrayT:
        return _sum_factors(_entropy(_log_softmax(self._logits(params))))

    def logp_entropy(self, params: ArrayT, action: ArrayT) -> tuple[ArrayT, ArrayT]:
        logp_KNB = _log_softmax(self._logits(params))
        logp_KB = _pick(logp_KNB, self._to_index(action, len(params)))
        return _sum_factors(logp_KB), _sum_factors(_entropy(logp_KNB))

    def kl(self, params: ArrayT, other: ArrayT) -> ArrayT:
        logp_KNB = _log_softmax(self._logits(params))
        log_ratio_KNB = logp_KNB - _log_softmax(self._logits(other))
        kl_KB: ArrayT = (array_namespace(params).exp(logp_KNB) * log_ratio_KNB).sum(1)
        return _sum_factors(kl_KB)

    def mask_logits(self, params: ArrayT, mask: ArrayT) -> ArrayT:
        """Params that give probability 0 to the choices where `mask` is 0.

        Args:
            params: [B, param_size] logits.
            mask: [B, param_size], bool or 0/1. A factor left without a choice becomes uniform
                (rows that pad a sequence may be so); whoever makes the mask checks for that.
        """
        require_shape("params", params, (len(params), self.param_size))
        require_shape("mask", mask, (len(params), self.param_size))
        # half of the min, so that a factor all masked still leaves no probability to its padding
        return _fill(mask != 0, params, array_namespace(params).finfo(params.dtype).min / 2)

    def _draw(self, logits_KNB: ArrayT, noise: ArrayT) -> ArrayT:
        """Invert the cumulative distribution: the first choice where it exceeds the uniform.

        In float64, uniform * total < total for any float32 uniform below 1, so there is one; and
        a choice of probability 0 is never drawn, because the cumulative does not rise there.
        """
        require_shape("noise", noise, (logits_KNB.shape[-1], self.noise_size))
        xp = array_namespace(logits_KNB)
        top_K1B = xp.amax(logits_KNB, 1, keepdims=True)
        cumulative_KNB = xp.exp(logits_KNB - top_K1B).cumsum(1, dtype=xp.float64)
        threshold_KB = noise.T * cumulative_KNB[:, -1]
        index_KB: ArrayT = (cumulative_KNB <= threshold_KB[:, None]).sum(1)
        return index_KB

    def _logits(self, params: ArrayT) -> ArrayT:
        """[K, N, B], contiguous in numpy; a factor of fewer choices is padded."""
        require_shape("params", params, (params.shape[0], self.param_size))
        factors, xp = self._factors, array_namespace(params)
        if min(factors) == max(factors):
            logits_KNB = params.T.reshape(len(factors), factors[0], params.shape[0])
        else:
            source_KN, exists_KN1 = (xp.asarray(x, device=params.device) for x in self._padding)
            logits_KNB = _fill(exists_KN1, params.T[source_KN], xp.finfo(params.dtype).min)
        if isinstance(logits_KNB, np.ndarray):
            return np.ascontiguousarray(logits_KNB)
        return logits_KNB

    @cached_property
    def _padding(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Which parameter is choice n of factor k, [K, N], and whether there is one, [K, N, 1]."""
        size_K1 = np.asarray(self._factors)[:, None]
        choice_N = np.arange(max(self._factors))
        exists_KN = choice_N < size_K1
        return np.where(exists_KN, size_K1.cumsum(0) - size_K1 + choice_N, 0), exists_KN[..., None]


@dataclass(frozen=True)
class Categorical(_Choices):
    """One of `num_actions` choices; params are logits, actions int64 [B] counted from 0."""

    num_actions: int

    def __post_init__(self) -> None:
        if self.num_actions < 1:
            raise ValueError(f"num_actions must be at least 1, got {self.num_actions}")

    @property
    def _factors(self) -> tuple[int, ...]:
        return (self.num_actions,)

    def logp(self, params: ArrayT, action: ArrayT) -> ArrayT:
        """See `Distribution.logp`; in torch one fused kernel, a third cheaper with its gradient."""
        if isinstance(params, np.ndarray):
            return _Choices.logp(self, params, action)
        require_shape("params", params, (len(params), self.num_actions))
        require_shape("action", action, (len(params),))
        cross_entropy = array_namespace(params).nn.functional.cross_entropy
        minus_logp: ArrayT = cross_entropy(params, action, reduction="none")
        return -minus_logp

    def _to_action(self, index_KB: ArrayT) -> ArrayT:
        return index_KB.reshape(-1)

    def _to_index(self, action: ArrayT, rows: int) -> ArrayT:
        require_shape("action", action, (rows,))
        return action.reshape(1, rows)


@dataclass(frozen=True)
class MultiCategorical(_Choices):
    """Independent choices: MultiDiscrete, and MultiBinary with every entry of `nvec` 2.

    Params are the factors' logits end to end, [B, sum(nvec)]; actions are [B, *shape] of `dtype`,
    counted from 0; `shape` defaults to (len(nvec),).
    """

    nvec: tuple[int, ...]
    shape: tuple[int, ...] | None = None
    dtype: str = "int64"

    def __post_init__(self) -> None:
        if min(self.nvec, default=0) < 1:
            raise ValueError(f"nvec must hold numbers of at least 1, got {self.nvec}")
        if prod(self._action_shape) != len(self.nvec):
            raise ValueError(f"shape {self.shape} does not hold the {len(self.nvec)} of nvec")

    @property
    def _factors(self) -> tuple[int, ...]:
        return self.nvec

    @property
    def _action_shape(self) -> tuple[int, ...]:
        return (len(self.nvec),) if self.shape is None else self.shape

    def _to_action(self, index_KB: ArrayT) -> ArrayT:
        xp = array_namespace(index_KB)
        # the flat reshape is what lays the transposed actions out row by row
        flat: ArrayT = xp.asarray(index_KB.T.reshape(-1), dtype=getattr(xp, self.dtype))
        return flat.reshape(index_KB.shape[1], *self._action_shape)

    def _to_index(self, action: ArrayT, rows: int) -> ArrayT:
        require_shape("action", action, (rows, *self._action_shape))
        xp = array_namespace(action)
        index_KB: ArrayT = xp.asarray(action.reshape(rows, len(self.nvec)).T, dtype=xp.int64)
        return index_KB


def _log_softmax(logits_KNB: ArrayT) -> ArrayT:
    if not isinstance(logits_KNB, np.ndarray):
        return logits_KNB.log_softmax(1)
    logp_KNB: npt.NDArray[Any] = logits_KNB - logits_KNB.max(axis=1, keepdims=True)
    logp_KNB -= np.log(np.exp(logp_KNB).sum(axis=1, keepdims=True))
    return logp_KNB


def _pick(logp_KNB: ArrayT, index_KB: ArrayT) -> ArrayT:
    if not isinstance(logp_KNB, np.ndarray):
        return logp_KNB.gather(1, index_KB.unsqueeze(1)).squeeze(1)
    return np.take_along_axis(logp_KNB, index_KB[:, None], 1)[:, 0]


def _entropy(logp_KNB: ArrayT) -> ArrayT:
    minus_entropy: ArrayT = (array_namespace(logp_KNB).exp(logp_KNB) * logp_KNB).sum(1)
    return -minus_entropy


def _sum_factors(x_KB: ArrayT) -> ArrayT:
    total_B: ArrayT = x_KB.sum(0) if len(x_KB) > 1 else x_KB.reshape(-1)
    return total_B


def _fill(keep: ArrayT, logits: ArrayT, otherwise: float) -> ArrayT:
    # finite, because the 0 * log 0 of -inf is NaN in the entropy and in its gradient
    filled: ArrayT = array_namespace(logits).where(keep, logits, otherwise)
    return filled
