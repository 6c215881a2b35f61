"""Policies that gather data: a checkpoint's, as it explores or otherwise, or uniform actions.

Legend: N sub-environments, B rows.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log, prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space

from pipelines.checkpoint import Checkpoint
from rl_ops import columns as c
from rl_ops.action_connectors import ActionConnectors, ClipAction, default_action_connectors
from rl_ops.connectors import default_obs_connectors
from rl_ops.distributions import Categorical, Distribution, distribution_for
from rl_ops.envs import EnvSpec, make_env
from rl_ops.errors import SpecError
from rl_ops.exploration import Act, EpsilonGreedy, Levels, Moment, RandomFirst, Sample
from rl_ops.model_spec import ModelSpec
from rl_ops.policy import PolicySpec, Weights
from rl_ops.tree import Tree, brief, space_leaves, space_map, tree_map, tree_map_spaces, zip_spaces

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Behaviour:
    """Who acts, and where.

    Attributes:
        env: which environment.
        policy: how actions are chosen.
        weights: what the policy acts with.
        version: of the weights, as rows note it; 0 where nobody learned them.
        about: JSON-able: what tells this behaviour from another, for the table `runs`.
    """

    env: EnvSpec
    policy: PolicySpec
    weights: Weights = field(repr=False)
    version: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays that it acts with."""
        statistics = {"mean": self.weights.obs_mean, "std": self.weights.obs_std}
        arrays = {k: x for k, x in statistics.items() if x is not None} | dict(self.weights.module)
        found = hashlib.sha256()
        for name in sorted(arrays):
            found.update(f"{name} {arrays[name].shape} ".encode())
            found.update(np.ascontiguousarray(arrays[name]).tobytes())
        return found.hexdigest()

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: Checkpoint,
        env: EnvSpec,
        *,
        greedy: bool = False,
        epsilon: float | None = None,
    ) -> "Behaviour":
        """A checkpoint's policy: as it explores in training, unless one of the two says otherwise.

        Args:
            checkpoint: whose policy.
            env: where it acts.
            greedy: take the mode. Its logp is 0 for a Discrete choice and null otherwise: it has
                no density.
            epsilon: probability of a uniform action instead; a Q network's others are greedy.

        Raises:
            SpecError: there is no uniform action in the policy's action space.
        """
        spec = checkpoint.policy
        act = _act(spec, greedy=greedy, epsilon=epsilon)
        about = {
            "checkpoint": str(checkpoint.path.absolute()),
            "sha256": hashlib.sha256((checkpoint.path / "manifest.json").read_bytes()).hexdigest(),
            "source_run": checkpoint.state["run_id"],
            "greedy": greedy,
            c.EPSILON: epsilon,
        }
        version = int(checkpoint.state["learner"]["version"])
        policy = dataclasses.replace(spec, act=act)
        return cls(env, policy, checkpoint.weights(), version, about)

    @classmethod
    def uniform(cls, env: EnvSpec, *, like: PolicySpec | None = None) -> "Behaviour":
        """Uniform actions, whose logp is that of the choices and of the density over the Boxes.

        Args:
            env: where.
            like: a policy in whose action space they are stored, so that a learner can take both
                together; by default in the environment's own, choices counted from 0.

        Raises:
            UnknownEnvError: there is no such environment.
            SpecError: the action space has a Box without finite bounds, or of integers.
        """
        made = make_env(env)
        try:
            obs_space, action_space = made.observation_space, made.action_space
        finally:
            made.close()
        actions = own_actions(action_space) if like is None else like.action_connectors
        distribution = distribution_for(actions.input_space)
        obs = default_obs_connectors(obs_space)
        size = distribution.param_size
        # Uniform actions are asked nothing: the smallest network there is stands in for one.
        model = ModelSpec("mlp", obs.output_space.shape, size, hidden=(), head="actor")
        weight = np.zeros((size, prod(model.obs_shape)), np.float32)
        weights = Weights({"actor_head.weight": weight, "actor_head.bias": weight[:, 0].copy()})
        act = UniformMix(Sample(), 1.0, Uniform.of(actions))
        spec = PolicySpec(obs_space, action_space, obs, actions, model, act)
        return cls(env, spec, weights, about={c.EPSILON: 1.0})


def own_actions(space: Space[Any]) -> ActionConnectors:
    """Connectors that leave actions in the environment's units and bounds; choices count from 0."""
    steps = default_action_connectors(space, squash=False).steps
    return ActionConnectors(tuple(x for x in steps if not isinstance(x, ClipAction)), space)


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution over an action space of choices and bounded Boxes.

    Attributes:
        space: with bounds; a tree of leaves.
    """

    space: Space[Any]

    @classmethod
    def of(cls, connectors: ActionConnectors) -> "Uniform":
        """Over what a policy's actions may be: an unbounded Box has the environment's bounds.

        Raises:
            SpecError: those are not finite either, or a leaf has no uniform action.
        """
        env_leaves = iter(space_leaves(connectors.output_space))

        def bounded(leaf: Space[Any]) -> Space[Any]:
            env_leaf = next(env_leaves)
            if not isinstance(leaf, Box):
                return leaf
            found = leaf if leaf.is_bounded() else env_leaf
            if leaf.dtype.kind != "f" or not found.is_bounded():
                raise SpecError(
                    f"there is no uniform action of {brief(env_leaf)}; a Box needs floats and "
                    "finite bounds (gymnasium.wrappers.RescaleAction gives it some)"
                )
            return Box(found.low, found.high, leaf.shape, leaf.dtype.type)

        return cls(space_map(bounded, connectors.input_space))

    @property
    def noise_size(self) -> int:
        """Random numbers that a sample takes."""
        return sum(_size(leaf) for leaf in space_leaves(self.space))

    def sample(self, noise_NX: Array) -> Tree:
        """The actions [N, ...] that numbers in [0, 1), [N, noise_size], select."""
        ends = np.cumsum([_size(leaf) for leaf in space_leaves(self.space)])
        parts = iter(np.split(noise_NX, ends[:-1], axis=1))
        # Only the structure of the second argument counts: each leaf is given its numbers.
        return tree_map_spaces(lambda leaf, _: _drawn(leaf, next(parts)), self.space, self._shape())

    def logp(self, action: Tree) -> npt.NDArray[np.float64]:
        """Log-probability, and log-density of Boxes, [B] in nats; -inf outside of their bounds.

        A dimension of a Box with low == high has one value, and counts nothing.
        """
        return sum(_logp(leaf, part) for leaf, part in zip_spaces(self.space, action))  # type: ignore[return-value]

    def _shape(self) -> Tree:
        return self.space.sample()


@dataclass(frozen=True)
class UniformMix(Act):
    """Act uniformly with probability epsilon, and by another act otherwise.

        pi(a|x) = epsilon u(a) + (1 - epsilon) pi_then(a|x)

    Args:
        then: the other act, which has no epsilon of its own.
        epsilon: in [0, 1].
        over: u.
    """

    then: Act
    epsilon: float
    over: Uniform

    kind: ClassVar[str] = "uniform_mix"

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Act.columns`."""
        return (c.EPSILON, *self.then.columns)

    @property
    def has_logp(self) -> bool:
        """See `Act.has_logp`."""
        return self.epsilon == 1.0 or self.then.has_logp

    def check(self, distribution: Distribution) -> None:
        """See `Act.check`."""
        self.then.check(distribution)

    def levels(self, env_steps: int, env_ids: Array) -> dict[str, Array]:
        """See `Act.levels`."""
        epsilon = np.full(len(env_ids), self.epsilon, np.float32)
        return {c.EPSILON: epsilon, **self.then.levels(env_steps, env_ids)}

    def noise(self, distribution: Distribution, rng: np.random.Generator, rows: int) -> Array:
        """See `Act.noise`: whether to act uniformly, a uniform action's, then the other act's."""
        uniform = rng.random((rows, 1 + self.over.noise_size), dtype=np.float32)
        return np.concatenate([uniform, self.then.noise(distribution, rng, rows)], axis=1)

    def start(self, distribution: Distribution, rows: int) -> Any:
        """See `Act.start`."""
        return self.then.start(distribution, rows)

    def choose(self, distribution: Distribution, params: Array, now: Moment) -> Any:
        """See `Act.choose`."""
        size = 1 + self.over.noise_size
        uniform = self.over.sample(now.noise[:, 1:size])
        other = self.then.choose(distribution, params, now._replace(noise=now.noise[:, size:]))
        explores_N = now.noise[:, 0] < now.levels[c.EPSILON]

        def mixed(u: Array, a: Array) -> Array:
            return np.where(explores_N.reshape(-1, *[1] * (u.ndim - 1)), u, a).astype(u.dtype)

        return tree_map(mixed, uniform, other)

    def logp(self, distribution: Distribution, params: Array, action: Any, levels: Levels) -> Array:
        """See `Act.logp`."""
        uniform_B = self.over.logp(action)
        if self.epsilon == 1.0:
            return uniform_B.astype(np.float32)
        other_B = self.then.logp(distribution, params, action, levels).astype(np.float64)
        if self.epsilon > 0.0:
            other_B = np.logaddexp(log(self.epsilon) + uniform_B, log(1 - self.epsilon) + other_B)
        return other_B.astype(np.float32)


@dataclass(frozen=True)
class Mode(Act):
    """Act by the mode of the policy's distribution, which has no density."""

    kind: ClassVar[str] = "mode"

    @property
    def has_logp(self) -> bool:
        """See `Act.has_logp`."""
        return False

    def choose(self, distribution: Distribution, params: Array, now: Moment) -> Any:  # noqa: ARG002
        """See `Act.choose`."""
        return distribution.mode(params)


def _act(spec: PolicySpec, *, greedy: bool, epsilon: float | None) -> Act:
    if epsilon is not None and not 0.0 <= epsilon <= 1.0:
        raise SpecError(f"epsilon is {epsilon:g}; expected a probability, 0 to 1")
    if not greedy and epsilon is None:
        return spec.act
    if isinstance(spec.distribution, Categorical) and (greedy or spec.model.q is not None):
        return EpsilonGreedy(epsilon or 0.0)
    own = spec.act.then if isinstance(spec.act, RandomFirst) else spec.act
    then = Mode() if greedy else own
    if epsilon is None:
        return then
    return UniformMix(then, epsilon, Uniform.of(spec.action_connectors))


def _size(leaf: Space[Any]) -> int:
    return 1 if isinstance(leaf, Discrete) else prod(leaf.shape or ())


def _counts(leaf: Space[Any]) -> Array:
    """How many choices each factor of a discrete leaf has."""
    match leaf:
        case Discrete():
            return np.array(int(leaf.n))
        case MultiDiscrete():
            return np.asarray(leaf.nvec)
        case MultiBinary():
            return np.full(leaf.shape, 2)
    raise SpecError(f"there is no uniform action of {brief(leaf)}")


def _drawn(leaf: Space[Any], noise: Array) -> Array:
    shaped = noise.reshape(len(noise), *(leaf.shape or ()))
    if isinstance(leaf, Box):
        low, high = leaf.low.astype(np.float64), leaf.high.astype(np.float64)
        drawn: Array = (low + (high - low) * shaped).astype(leaf.dtype)
        return drawn.clip(leaf.low, leaf.high)  # the cast may round up
    # The largest float32 below 1, times a count, stays below it.
    drawn = (shaped * _counts(leaf)).astype(np.int64)
    return drawn.astype(leaf.dtype, copy=False)


def _logp(leaf: Space[Any], action: Array) -> npt.NDArray[np.float64]:
    rows = len(action)
    if not isinstance(leaf, Box):
        return np.full(rows, -np.log(_counts(leaf).astype(np.float64)).sum())
    width = leaf.high.astype(np.float64) - leaf.low.astype(np.float64)
    inside = ((action >= leaf.low) & (action <= leaf.high)).reshape(rows, -1).all(axis=1)
    return np.where(inside, -np.log(width[width > 0]).sum(), -np.inf)
