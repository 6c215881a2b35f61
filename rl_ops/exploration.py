"""How actions are chosen while data is gathered: part of the policy, and logged row by row.

Legend: N sub-environments, B rows, A actions, D features.

An act is a frozen value. All its randomness comes in as noise that each sub-environment's own
generator draws, so that rows do not depend on how many environments share a process.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rl_ops import columns as c
from rl_ops.categorical import Categorical, MultiCategorical
from rl_ops.deterministic import Deterministic
from rl_ops.distributions import Distribution
from rl_ops.errors import SpecError
from rl_ops.gaussian import SquashedGaussian
from rl_ops.schedules import Schedule, value_at

Array = npt.NDArray[Any]
Levels = Mapping[str, Array]
"""Column of the log → its value for each sub-environment [N], or for each row [B]."""


class Moment(NamedTuple):
    """What an act knows of a step beside the policy's output.

    Attributes:
        noise: [N, ...] as `Act.noise` drew it.
        levels: as `Act.levels` gave them.
        is_first: [N] bool; an episode begins here.
        carry: as `Act.start` gave it; written in place.
    """

    noise: Array
    levels: Levels
    is_first: Array
    carry: Any


class Act:
    """Chooses actions from a policy's distribution; by itself it samples it."""

    kind: ClassVar[str] = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """What `levels` gives."""
        return ()

    @property
    def has_logp(self) -> bool:
        """Whether the probability of what it chose is known."""
        return True

    def check(self, distribution: Distribution) -> None:
        """Raise SpecError where it cannot act by this distribution."""

    def levels(self, env_steps: int, env_ids: Array) -> dict[str, Array]:  # noqa: ARG002
        """How much it explores in each environment after `env_steps`: float32 [N] a column."""
        return {}

    def noise(self, distribution: Distribution, rng: np.random.Generator, rows: int) -> Array:
        """All the randomness of `rows` choices: float32 [rows, ...]."""
        return distribution.noise(rng, rows)

    def start(self, distribution: Distribution, rows: int) -> Any:  # noqa: ARG002
        """What is carried from step to step of `rows` environments; None for nothing."""
        return None

    def choose(self, distribution: Distribution, params: Array, now: Moment) -> Any:
        """Actions [N, ...] for distribution parameters [N, P]."""
        return distribution.sample(params, now.noise)

    def logp(
        self,
        distribution: Distribution,
        params: Array,
        action: Any,
        levels: Levels,  # noqa: ARG002
    ) -> Array:
        """Log-probability [B], in nats, with which `choose` chooses `action`; if `has_logp`."""
        logp_B: Array = distribution.logp(params, action)
        return logp_B


@dataclass(frozen=True)
class Sample(Act):
    """Act by sampling the policy's distribution."""

    kind: ClassVar[str] = "sample"

    def check(self, distribution: Distribution) -> None:
        """See `Act.check`."""
        if isinstance(distribution, Deterministic):
            raise SpecError("Sample: a deterministic policy has nothing to sample; use AddNoise")


@dataclass(frozen=True)
class Greedy(Act):
    """Act by the mode of the policy's distribution; logp is what the distribution gives it."""

    kind: ClassVar[str] = "greedy"

    def check(self, distribution: Distribution) -> None:
        """See `Act.check`."""
        if isinstance(distribution, Deterministic):
            raise SpecError("Greedy: a deterministic policy's mode has no logp; use AddNoise(0.0)")

    def choose(self, distribution: Distribution, params: Array, now: Moment) -> Any:  # noqa: ARG002
        """See `Act.choose`."""
        return distribution.mode(params)


@dataclass(frozen=True)
class EpsilonGreedy(Act):
    """Act greedily, but with probability epsilon uniformly.

        pi(a|x) = epsilon / A + (1 - epsilon) [a = argmax_a Q(x, a)]

    Args:
        epsilon: a number, or points (env_steps, value).
        ladder_alpha: environments explore by different amounts, from epsilon down to
            epsilon^(1 + ladder_alpha): epsilon_i = epsilon^(1 + ladder_alpha i / (N - 1)).
            None is the same epsilon for all.
        num_envs: N of the ladder: environments of the whole run.

    Source: Mnih et al. 2015, Nature 518; the ladder: Horgan et al. 2018, arXiv:1803.00933, 4.1.
    """

    epsilon: Schedule
    ladder_alpha: float | None = None
    num_envs: int = 1

    kind: ClassVar[str] = "epsilon_greedy"

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Act.columns`."""
        return (c.EPSILON,)

    def check(self, distribution: Distribution) -> None:
        """See `Act.check`."""
        if not isinstance(distribution, Categorical):
            raise SpecError(
                f"EpsilonGreedy chooses one of some actions; the policy's are {distribution}. "
                "Use an algorithm for such actions, or a Discrete action space"
            )

    def levels(self, env_steps: int, env_ids: Array) -> dict[str, Array]:
        """See `Act.levels`."""
        epsilon, power = value_at(self.epsilon, env_steps), np.ones(len(env_ids))
        if self.ladder_alpha is not None and self.num_envs > 1:
            power += self.ladder_alpha * (env_ids % self.num_envs) / (self.num_envs - 1)
        return {c.EPSILON: np.power(epsilon, power).astype(np.float32)}

    def noise(
        self,
        distribution: Distribution,  # noqa: ARG002
        rng: np.random.Generator,
        rows: int,
    ) -> Array:
        """See `Act.noise`: whether to explore, and which action then."""
        return rng.random((rows, 2), dtype=np.float32)

    def choose(self, distribution: Distribution, params: Array, now: Moment) -> Any:  # noqa: ARG002
        """See `Act.choose`; params are Q values."""
        # the largest float32 below 1, times A, stays below A
        random_N = (now.noise[:, 1] * params.shape[1]).astype(np.int64)
        explores_N = now.noise[:, 0] < now.levels[c.EPSILON]
        return np.where(explores_N, random_N, params.argmax(1))

    def logp(
        self,
        distribution: Distribution,  # noqa: ARG002
        params: Array,
        action: Any,
        levels: Levels,
    ) -> Array:
        """See `Act.logp`."""
        epsilon_B = levels[c.EPSILON]
        probability_B = epsilon_B / params.shape[1]
        probability_B = probability_B + (1.0 - epsilon_B) * (params.argmax(1) == action)
        # epsilon 0 never chooses another action; who asks for its logp gets the least there is
        logp_B: Array = np.log(np.maximum(probability_B, np.finfo(np.float32).tiny))
        return logp_B.astype(np.float32)


@dataclass(frozen=True)
class AddNoise(Act):
    """Act by the policy's mode with noise added, within [-1, 1].

        gaussian    a = clip(mode + scale e_t, -1, 1),  e_t ~ N(0, 1)
        ou          x_t = x_t-1 - theta x_t-1 dt + sqrt(dt) e_t,  a = clip(mode + scale x_t, -1, 1)

    x is 0 before an episode's first step.

    Args:
        scale: where actions fill [-1, 1]; a number, or points (env_steps, value).
        process: "gaussian", or "ou" for Ornstein-Uhlenbeck, whose noise is correlated in time.
        theta, dt: of that process, per step.

    Source: Fujimoto et al. 2018, arXiv:1802.09477, 6.1; Lillicrap et al. 2016, arXiv:1509.02971, 7.
    """

    scale: Schedule
    process: Literal["gaussian", "ou"] = "gaussian"
    theta: float = 0.15
    dt: float = 0.01

    kind: ClassVar[str] = "add_noise"

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Act.columns`."""
        return (c.NOISE_SCALE,)

    @property
    def has_logp(self) -> bool:
        """See `Act.has_logp`: what is clipped to the bounds has no density."""
        return False

    def check(self, distribution: Distribution) -> None:
        """See `Act.check`."""
        if not isinstance(distribution, Deterministic | SquashedGaussian):
            raise SpecError(f"AddNoise needs actions in [-1, 1]; the policy's are {distribution}")

    def levels(self, env_steps: int, env_ids: Array) -> dict[str, Array]:
        """See `Act.levels`."""
        scale = value_at(self.scale, env_steps)
        return {c.NOISE_SCALE: np.full(len(env_ids), scale, np.float32)}

    def noise(self, distribution: Distribution, rng: np.random.Generator, rows: int) -> Array:
        """See `Act.noise`."""
        return rng.standard_normal((rows, _size(distribution)), dtype=np.float32)

    def start(self, distribution: Distribution, rows: int) -> Any:
        """See `Act.start`: x."""
        return np.zeros((rows, _size(distribution)), np.float32)

    def choose(self, distribution: Distribution, params: Array, now: Moment) -> Any:
        """See `Act.choose`."""
        added_ND = now.noise
        if self.process == "ou":
            x_ND = now.carry
            x_ND[now.is_first] = 0.0
            x_ND += np.float32(self.dt**0.5) * added_ND - np.float32(self.theta * self.dt) * x_ND
            added_ND = x_ND
        mode = distribution.mode(params)
        scaled_ND = added_ND * now.levels[c.NOISE_SCALE][:, None]
        return (mode + scaled_ND.reshape(mode.shape)).clip(-1.0, 1.0)


@dataclass(frozen=True)
class RandomFirst(Act):
    """Act uniformly until the learner has consumed `env_steps`, and by another act afterwards.

    Source: the warm-up of SAC's and TD3's published runs (Haarnoja et al. 2018, Fujimoto et al.
    2018, section 6.1).
    """

    env_steps: int
    then: Act

    kind: ClassVar[str] = "random_first"

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Act.columns`."""
        return (c.EPSILON, *self.then.columns)

    @property
    def has_logp(self) -> bool:
        """See `Act.has_logp`."""
        return self.then.has_logp

    def check(self, distribution: Distribution) -> None:
        """See `Act.check`."""
        self.then.check(distribution)
        _uniform_size(distribution)
        if c.EPSILON in self.then.columns:
            raise SpecError(f"RandomFirst: {self.then} has an epsilon of its own; put it there")

    def levels(self, env_steps: int, env_ids: Array) -> dict[str, Array]:
        """See `Act.levels`."""
        epsilon = np.full(len(env_ids), float(env_steps < self.env_steps), np.float32)
        return {c.EPSILON: epsilon, **self.then.levels(env_steps, env_ids)}

    def noise(self, distribution: Distribution, rng: np.random.Generator, rows: int) -> Array:
        """See `Act.noise`: the other act's, and a uniform action's after it."""
        uniform = rng.random((rows, _uniform_size(distribution)), dtype=np.float32)
        return np.concatenate([self.then.noise(distribution, rng, rows), uniform], axis=1)

    def start(self, distribution: Distribution, rows: int) -> Any:
        """See `Act.start`."""
        return self.then.start(distribution, rows)

    def choose(self, distribution: Distribution, params: Array, now: Moment) -> Any:
        """See `Act.choose`."""
        size = now.noise.shape[1] - _uniform_size(distribution)
        if now.levels[c.EPSILON][0] == 1.0:
            return _uniform_action(distribution, now.noise[:, size:])
        return self.then.choose(distribution, params, now._replace(noise=now.noise[:, :size]))

    def logp(self, distribution: Distribution, params: Array, action: Any, levels: Levels) -> Array:
        """See `Act.logp`."""
        if (levels[c.EPSILON] == 1.0).all():  # of a fragment that holds no row, too
            return np.full(len(params), _uniform_logp(distribution), np.float32)
        return self.then.logp(distribution, params, action, levels)


def _size(distribution: Distribution) -> int:
    assert isinstance(distribution, Deterministic | SquashedGaussian)  # check
    return distribution.size


def _uniform_size(distribution: Distribution) -> int:
    """Random numbers that a uniform action takes."""
    if isinstance(distribution, Categorical | MultiCategorical):
        return distribution.noise_size
    if isinstance(distribution, Deterministic | SquashedGaussian):
        return distribution.size
    raise SpecError(f"RandomFirst: there is no uniform action of {distribution}")


def _uniform_action(distribution: Distribution, noise: Array) -> Any:
    if isinstance(distribution, Categorical | MultiCategorical):
        even = np.zeros((len(noise), distribution.param_size), np.float32)
        return distribution.sample(even, noise)
    assert isinstance(distribution, Deterministic | SquashedGaussian)  # _uniform_size
    shape = (distribution.size,) if distribution.shape is None else distribution.shape
    return (2.0 * noise - 1.0).reshape(len(noise), *shape)


def _uniform_logp(distribution: Distribution) -> float:
    if isinstance(distribution, Categorical):
        return -log(distribution.num_actions)
    if isinstance(distribution, MultiCategorical):
        return -sum(log(n) for n in distribution.nvec)
    return -_size(distribution) * log(2.0)


_ACTS: Final[Mapping[str, type[Any]]] = {
    kind.kind: kind for kind in (Sample, Greedy, EpsilonGreedy, AddNoise, RandomFirst)
}


def act_to_json(act: Act) -> dict[str, Any]:
    """An act as JSON-able values."""
    fields = {f.name: getattr(act, f.name) for f in dataclasses.fields(act)}  # type: ignore[arg-type]
    nested = {k: act_to_json(v) for k, v in fields.items() if isinstance(v, Act)}
    return {"kind": act.kind, **fields, **nested}


def act_from_json(data: Mapping[str, Any]) -> Act:
    """The inverse of `act_to_json`.

    Raises:
        SpecError: an unknown kind, or fields that are not its own.
    """
    values = dict(data)
    kind = _ACTS.get(values.pop("kind", ""))
    if kind is None:
        raise SpecError(f"act {data!r}: kinds are {', '.join(_ACTS)}")
    for name, value in values.items():
        if isinstance(value, Mapping):
            values[name] = act_from_json(value)
        elif isinstance(value, list | tuple):
            values[name] = tuple((int(steps), float(level)) for steps, level in value)
    try:
        act: Act = kind(**values)
    except TypeError as error:
        raise SpecError(f"act {data!r}: {error}") from error
    return act
