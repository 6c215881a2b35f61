"""The policy that has one action to an observation, in the distributions' clothes.

Legend: B rows.
"""

# ruff: noqa: ARG002 - methods that only refuse take what a distribution's take

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from rl_ops.arrays import ArrayT, array_namespace, require_shape


@dataclass(frozen=True)
class Deterministic:
    """tanh of the params, [B, size]: actions [B, *shape] in [-1, 1], for a connector to scale.

    It has neither a density nor an entropy: asking for one is an error.

    Source: Silver et al. 2014; as bounded in Lillicrap et al. 2016, arXiv:1509.02971.
    """

    size: int
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or prod(self._action_shape) != self.size:
            raise ValueError(f"shape {self.shape} does not hold size {self.size}")

    @property
    def _action_shape(self) -> tuple[int, ...]:
        return (self.size,) if self.shape is None else self.shape

    @property
    def param_size(self) -> int:
        """See `Distribution.param_size`."""
        return self.size

    @property
    def noise_size(self) -> int:
        """See `Distribution.noise_size`."""
        return 0

    def noise(self, rng: np.random.Generator, rows: int) -> npt.NDArray[np.float32]:
        """See `Distribution.noise`."""
        return np.empty((rows, 0), np.float32)

    def sample(self, params: ArrayT, noise: ArrayT) -> ArrayT:
        """The action: `mode`."""
        return self.mode(params)

    def sample_logp(self, params: ArrayT, noise: ArrayT) -> tuple[ArrayT, ArrayT]:
        """There is no logp."""
        raise self._no("logp")

    def mode(self, params: ArrayT) -> ArrayT:
        """See `Distribution.mode`."""
        require_shape("params", params, (params.shape[0], self.size))
        action: ArrayT = array_namespace(params).tanh(params)
        return action.reshape(params.shape[0], *self._action_shape)

    def logp(self, params: ArrayT, action: ArrayT) -> ArrayT:
        """There is none."""
        raise self._no("logp")

    def entropy(self, params: ArrayT) -> ArrayT:
        """There is none."""
        raise self._no("entropy")

    def logp_entropy(self, params: ArrayT, action: ArrayT) -> tuple[ArrayT, ArrayT]:
        """There is neither."""
        raise self._no("logp")

    def kl(self, params: ArrayT, other: ArrayT) -> ArrayT:
        """There is none."""
        raise self._no("divergence")

    def _no(self, what: str) -> ValueError:
        return ValueError(f"a deterministic policy has no {what}: its actions have no density")
