"""Distributions over the reals: diagonal Gaussians, plain or squashed by tanh.

Legend: B rows, D features, Q quadrature nodes.
"""

from dataclasses import dataclass
from math import log, pi, prod
from typing import Final

import numpy as np
import numpy.typing as npt

from rl_ops.arrays import ArrayT, array_namespace, require_shape, split_columns

_HALF_LOG_2PI: Final = 0.5 * log(2.0 * pi)
_MAX_SQUASHED: Final = 1.0 - 1e-6
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(16)
_WEIGHTS /= _WEIGHTS.sum()


@dataclass(frozen=True)
class _Diagonal:
    """Independent normals, perhaps seen through a bijection."""

    size: int
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if prod(self._action_shape) != self.size:
            raise ValueError(f"shape {self.shape} does not hold size {self.size}")

    @property
    def param_size(self) -> int:
        return 2 * self.size

    @property
    def noise_size(self) -> int:
        return self.size

    def noise(self, rng: np.random.Generator, rows: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal((rows, self.size), dtype=np.float32)

    def kl(self, params: ArrayT, other: ArrayT) -> ArrayT:
        # a bijection such as tanh leaves the divergence of the normals as it is
        (mean, log_std), (mean_q, log_std_q) = self._moments(params), self._moments(other)
        z_BD = _standardise(mean, mean_q, log_std_q)
        log_ratio_BD = log_std - log_std_q
        variance_ratio_BD = array_namespace(params).exp(2.0 * log_ratio_BD)
        kl_BD: ArrayT = 0.5 * (variance_ratio_BD + z_BD * z_BD - 1.0) - log_ratio_BD
        return _sum(kl_BD)

    @property
    def _action_shape(self) -> tuple[int, ...]:
        return (self.size,) if self.shape is None else self.shape

    def _shaped(self, x_BD: ArrayT) -> ArrayT:
        return x_BD.reshape(x_BD.shape[0], *self._action_shape)

    def _flat(self, action: ArrayT, rows: int) -> ArrayT:
        require_shape("action", action, (rows, *self._action_shape))
        return action.reshape(rows, self.size)

    def _moments(self, params: ArrayT) -> tuple[ArrayT, ArrayT]:
        """Mean and log_std, [B, D] each."""
        require_shape("params", params, (params.shape[0], 2 * self.size))
        mean_BD, log_std_BD = split_columns(params, (self.size, self.size))
        return mean_BD, log_std_BD

    def _normal(self, params: ArrayT, noise: ArrayT) -> tuple[ArrayT, ArrayT]:
        """The normals' sample and its log_std, [B, D] each."""
        require_shape("noise", noise, (len(params), self.size))
        mean_BD, log_std_BD = self._moments(params)
        sample_BD: ArrayT = mean_BD + array_namespace(params).exp(log_std_BD) * noise
        return sample_BD, log_std_BD


@dataclass(frozen=True)
class Gaussian(_Diagonal):
    """Independent normals; params are mean and log_std end to end, [B, 2 * size], unclamped.

    Actions are [B, *shape], unbounded; `shape` defaults to (size,).
    """

    def sample(self, params: ArrayT, noise: ArrayT) -> ArrayT:
        return self._shaped(self._normal(params, noise)[0])

    def sample_logp(self, params: ArrayT, noise: ArrayT) -> tuple[ArrayT, ArrayT]:
        x_BD, log_std_BD = self._normal(params, noise)
        return self._shaped(x_BD), _normal_logp(noise, _sum(log_std_BD))

    def mode(self, params: ArrayT) -> ArrayT:
        return self._shaped(self._moments(params)[0])

    def logp(self, params: ArrayT, action: ArrayT) -> ArrayT:
        return self.logp_entropy(params, action)[0]

    def entropy(self, params: ArrayT) -> ArrayT:
        return _normal_entropy(_sum(self._moments(params)[1]), self.size)

    def logp_entropy(self, params: ArrayT, action: ArrayT) -> tuple[ArrayT, ArrayT]:
        x_BD = self._flat(action, len(params))
        mean_BD, log_std_BD = self._moments(params)
        log_volume_B = _sum(log_std_BD)
        logp_B = _normal_logp(_standardise(x_BD, mean_BD, log_std_BD), log_volume_B)
        return logp_B, _normal_entropy(log_volume_B, self.size)


@dataclass(frozen=True)
class SquashedGaussian(_Diagonal):
    """tanh of independent normals, whose mean and log_std lie end to end in params, [B, 2 * size].

        log p(a) = log N(u; mean, std) - sum log(1 - tanh(u)^2),    a = tanh(u)

    Actions are [B, *shape] in (-1, 1), for a connector to scale. log_std is clamped to
    [log_std_min, log_std_max]. Actions stay 1e-6 off the bounds, where float32 still resolves u:
    a clipped action has the `logp` of the clip, but `sample_logp` gives that of the sample before
    it, whose gradient pulls a saturated policy back. `entropy` is a quadrature: off by less than
    1e-3 nats per feature while log_std <= 0.5, by up to 0.25 at 2.

    Source: Haarnoja et al. 2018, arXiv:1801.01290, appendix C; bounds of log_std as in CleanRL.
    """

    log_std_min: float = -5.0
    log_std_max: float = 2.0

    def sample(self, params: ArrayT, noise: ArrayT) -> ArrayT:
        return self._shaped(_squash(self._normal(params, noise)[0]))

    def sample_logp(self, params: ArrayT, noise: ArrayT) -> tuple[ArrayT, ArrayT]:
        u_BD, log_std_BD = self._normal(params, noise)
        logp_B = _normal_logp(noise, _sum(log_std_BD)) - _sum(_log_slope(u_BD))
        return self._shaped(_squash(u_BD)), logp_B

    def mode(self, params: ArrayT) -> ArrayT:
        """tanh(mean): the median, with which SAC is evaluated, not the density's peak."""
        return self._shaped(_squash(self._moments(params)[0]))

    def logp(self, params: ArrayT, action: ArrayT) -> ArrayT:
        action_BD = self._flat(action, len(params))
        mean_BD, log_std_BD = self._moments(params)
        clipped_BD: ArrayT = action_BD.clip(-_MAX_SQUASHED, _MAX_SQUASHED)
        u_BD: ArrayT = array_namespace(action).arctanh(clipped_BD)
        z_BD = _standardise(u_BD, mean_BD, log_std_BD)
        logp_B: ArrayT = _normal_logp(z_BD, _sum(log_std_BD)) - _sum(_log_slope(u_BD))
        return logp_B

    def entropy(self, params: ArrayT) -> ArrayT:
        xp = array_namespace(params)
        mean_BD, log_std_BD = self._moments(params)
        node_Q11, weight_Q11 = (
            xp.asarray(x, dtype=params.dtype, device=params.device)[:, None, None]
            for x in (_NODES, _WEIGHTS)
        )
        slope_QBD = _log_slope(mean_BD + xp.exp(log_std_BD) * node_Q11)
        slope_BD: ArrayT = (weight_Q11 * slope_QBD).sum(0)
        entropy_B: ArrayT = _normal_entropy(_sum(log_std_BD), self.size) + _sum(slope_BD)
        return entropy_B

    def logp_entropy(self, params: ArrayT, action: ArrayT) -> tuple[ArrayT, ArrayT]:
        return self.logp(params, action), self.entropy(params)

    def _moments(self, params: ArrayT) -> tuple[ArrayT, ArrayT]:
        mean_BD, log_std_BD = super()._moments(params)
        return mean_BD, log_std_BD.clip(self.log_std_min, self.log_std_max)


def _sum(x_BD: ArrayT) -> ArrayT:
    total_B: ArrayT = x_BD.sum(-1)
    return total_B


def _normal_logp(z_BD: ArrayT, log_volume_B: ArrayT) -> ArrayT:
    """Log-density at standardised coordinates; the volume is the product of the deviations."""
    logp_B: ArrayT = -0.5 * _sum(z_BD * z_BD) - log_volume_B - z_BD.shape[1] * _HALF_LOG_2PI
    return logp_B


def _normal_entropy(log_volume_B: ArrayT, size: int) -> ArrayT:
    return log_volume_B + size * (0.5 + _HALF_LOG_2PI)


def _standardise(x_BD: ArrayT, mean_BD: ArrayT, log_std_BD: ArrayT) -> ArrayT:
    z_BD: ArrayT = (x_BD - mean_BD) * array_namespace(x_BD).exp(-log_std_BD)
    return z_BD


def _squash(u: ArrayT) -> ArrayT:
    action: ArrayT = array_namespace(u).tanh(u).clip(-_MAX_SQUASHED, _MAX_SQUASHED)
    return action


def _log_slope(u: ArrayT) -> ArrayT:
    """log(1 - tanh(u)^2) as -2 log cosh(u), which neither cancels nor overflows."""
    slope: ArrayT = 2.0 * (log(2.0) - array_namespace(u).logaddexp(u, -u))
    return slope
