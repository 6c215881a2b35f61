"""Action distributions over flat parameters, in numpy (acting) or torch (learning).

Legend: B rows.

A distribution is a frozen description of an action space; its parameters are passed in. All
randomness comes in as `noise`, so acting is a pure function and the generator stays outside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod
from operator import add
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from rl_ops.arrays import ArrayT, require_shape, split_columns
from rl_ops.categorical import Categorical as Categorical
from rl_ops.categorical import MultiCategorical as MultiCategorical
from rl_ops.deterministic import Deterministic as Deterministic
from rl_ops.errors import SpecError
from rl_ops.gaussian import Gaussian as Gaussian
from rl_ops.gaussian import SquashedGaussian as SquashedGaussian
from rl_ops.tree import Tree, brief


class Distribution(Protocol):
    """What every action distribution offers, to numpy arrays and to torch tensors alike.

    `params` is [B, param_size]; `noise` is [B, noise_size] as `noise()` draws it, in the same
    kind of array as `params`. `logp`, `entropy` and `kl` are [B], in nats, summed over the
    action's factors, and differentiable in torch. A wrong shape raises ValueError.
    """

    @property
    def param_size(self) -> int:
        """Numbers that a policy head emits per row."""

    @property
    def noise_size(self) -> int:
        """Random numbers that one sample consumes."""

    def noise(self, rng: np.random.Generator, rows: int) -> npt.NDArray[np.float32]:
        """Draw all the randomness that `sample` needs: float32 [rows, noise_size]."""

    def sample(self, params: ArrayT, noise: ArrayT) -> Tree:
        """The action that `noise` selects; a continuous one is differentiable in `params`."""

    def sample_logp(self, params: ArrayT, noise: ArrayT) -> tuple[Tree, ArrayT]:
        """`sample` and its logp; of a continuous one both follow the reparametrised path."""

    def mode(self, params: ArrayT) -> Tree:
        """The greedy action."""

    def logp(self, params: ArrayT, action: Tree) -> ArrayT:
        """Log-probability or log-density of `action`."""

    def entropy(self, params: ArrayT) -> ArrayT:
        """Entropy; differential for continuous actions."""

    def logp_entropy(self, params: ArrayT, action: Tree) -> tuple[ArrayT, ArrayT]:
        """`logp` and `entropy`, for less than the price of both."""

    def kl(self, params: ArrayT, other: ArrayT) -> ArrayT:
        """KL(params || other)."""


@dataclass(frozen=True)
class Joint:
    """Independent parts of a Dict or Tuple action; params and noise are the parts' end to end."""

    parts: Mapping[str, Distribution] | tuple[Distribution, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("Joint needs at least one part, got none")

    @cached_property
    def leaves(self) -> tuple[Distribution, ...]:
        """The parts, in the order of their params."""
        return self.parts if isinstance(self.parts, tuple) else tuple(self.parts.values())

    @cached_property
    def param_size(self) -> int:
        return sum(part.param_size for part in self.leaves)

    @cached_property
    def noise_size(self) -> int:
        return sum(part.noise_size for part in self.leaves)

    def noise(self, rng: np.random.Generator, rows: int) -> npt.NDArray[np.float32]:
        return np.concatenate([part.noise(rng, rows) for part in self.leaves], axis=1)

    def sample(self, params: ArrayT, noise: ArrayT) -> Tree:
        each = zip(self.leaves, self._params(params), self._noise(noise, len(params)), strict=True)
        return self._tree([part.sample(p, n) for part, p, n in each])

    def sample_logp(self, params: ArrayT, noise: ArrayT) -> tuple[Tree, ArrayT]:
        each = zip(self.leaves, self._params(params), self._noise(noise, len(params)), strict=True)
        samples = [part.sample_logp(p, n) for part, p, n in each]
        return self._tree([a for a, _ in samples]), _total([logp for _, logp in samples])

    def mode(self, params: ArrayT) -> Tree:
        each = zip(self.leaves, self._params(params), strict=True)
        return self._tree([part.mode(p) for part, p in each])

    def logp(self, params: ArrayT, action: Tree) -> ArrayT:
        each = zip(self.leaves, self._params(params), self._actions(action), strict=True)
        return _total([part.logp(p, a) for part, p, a in each])

    def entropy(self, params: ArrayT) -> ArrayT:
        each = zip(self.leaves, self._params(params), strict=True)
        return _total([part.entropy(p) for part, p in each])

    def logp_entropy(self, params: ArrayT, action: Tree) -> tuple[ArrayT, ArrayT]:
        each = zip(self.leaves, self._params(params), self._actions(action), strict=True)
        pairs = [part.logp_entropy(p, a) for part, p, a in each]
        return _total([logp for logp, _ in pairs]), _total([entropy for _, entropy in pairs])

    def kl(self, params: ArrayT, other: ArrayT) -> ArrayT:
        each = zip(self.leaves, self._params(params), self._params(other), strict=True)
        return _total([part.kl(p, q) for part, p, q in each])

    def _params(self, params: ArrayT) -> Sequence[ArrayT]:
        require_shape("params", params, (params.shape[0], self.param_size))
        return split_columns(params, [part.param_size for part in self.leaves])

    def _noise(self, noise: ArrayT, rows: int) -> Sequence[ArrayT]:
        require_shape("noise", noise, (rows, self.noise_size))
        return split_columns(noise, [part.noise_size for part in self.leaves])

    def _actions(self, action: Tree) -> Sequence[Tree]:
        return action if isinstance(self.parts, tuple) else [action[key] for key in self.parts]

    def _tree(self, actions: list[Tree]) -> Tree:
        if isinstance(self.parts, tuple):
            return tuple(actions)
        return dict(zip(self.parts, actions, strict=True))


def distribution_for(
    space: Space[Any], *, squash: bool = False, deterministic: bool = False
) -> Distribution:
    """Choose the distribution of an action space.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, a Box of floats, or a Dict or Tuple of these.
            Choices count from 0 here; their `start` is a connector's business.
        squash: for Box, a SquashedGaussian in (-1, 1) instead of an unbounded Gaussian.
        deterministic: for Box, one action in [-1, 1] and no distribution; no other space has one.

    Raises:
        SpecError: the space is none of these, is empty, or is squashed without finite bounds.
    """
    if deterministic:
        if not isinstance(space, Box) or space.dtype.kind != "f" or not prod(space.shape):
            raise SpecError(f"a deterministic policy needs a Box of floats, got {brief(space)}")
        return Deterministic(prod(space.shape), space.shape)
    match space:
        case Discrete():
            return Categorical(int(space.n))
        case MultiDiscrete() if space.nvec.size:
            return MultiCategorical(tuple(space.nvec.ravel().tolist()), space.shape)
        case MultiBinary() if size := prod(space.shape):
            return MultiCategorical((2,) * size, space.shape, "int8")
        case Box(dtype=dtype) if dtype.kind == "f" and (size := prod(space.shape)):
            if squash and not space.is_bounded():
                raise SpecError(f"squash needs finite bounds, got {brief(space)}; clip instead.")
            return SquashedGaussian(size, space.shape) if squash else Gaussian(size, space.shape)
        case Dict() if space.spaces:
            return Joint({k: distribution_for(s, squash=squash) for k, s in space.spaces.items()})
        case Tuple() if space.spaces:
            return Joint(tuple(distribution_for(s, squash=squash) for s in space.spaces))
    raise SpecError(
        f"no action distribution for {brief(space)}; expected a Discrete, MultiDiscrete, "
        "MultiBinary, Box of floats, or a Dict or Tuple of these, and not an empty one."
    )


def _total(terms: Sequence[ArrayT]) -> ArrayT:
    return reduce(add, terms)
