"""The policy that is evaluated: what off-policy evaluation asks of it.

Legend: N rows, F final observations, M = N + F, A actions, P numbers that say how a policy acts.
"""

from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from offline.module_obs import module_obs
from offline.ope.actions import Converted, converted
from offline.ope.errors import OpeError
from offline.trajectories import Trajectories
from rl_ops.categorical import Categorical, MultiCategorical
from rl_ops.connectors import FlattenObs
from rl_ops.distributions import Distribution, Joint
from rl_ops.exploration import Act, AddNoise, Greedy, Moment, RandomFirst
from rl_ops.model_spec import ModelSpec
from rl_ops.policy import Policy
from rl_ops.tree import Tree, tree_leaves

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_ROWS: Final = 8192


class Target(Protocol):
    """A policy as the estimators need it; `PolicyTarget` is that of a checkpoint."""

    @property
    def no_density(self) -> str:
        """Why its actions have no probabilities to compare; empty where they have."""

    @property
    def is_deterministic(self) -> bool:
        """Whether it always acts the same on an observation."""

    @property
    def distribution(self) -> Distribution:
        """Family of distributions over its actions, for a policy that is cloned from data."""

    @property
    def model(self) -> ModelSpec:
        """Its network: how observations look to a critic."""

    def features(self, data: Trajectories) -> Array:
        """What its network is fed: [M, *S] at every row, and then at every final observation."""

    def params(self, features: Array) -> Array:
        """How it acts on each of these: [M, P], for the methods below."""

    def actions(self, data: Trajectories) -> Converted:
        """The logged actions as it would have chosen them."""

    def logp(self, params: Array, action: Tree) -> Floats:
        """Log-probability or log-density of actions, in nats: [rows]; -inf for never."""

    def probabilities(self, params: Array) -> Floats | None:
        """Of every action [rows, A]; None where they cannot be listed."""

    def sample(self, params: Array, rng: np.random.Generator) -> Tree:
        """An action for each row."""

    def encoded(self, action: Tree) -> Array:
        """Actions as a critic is fed them: float32 [rows, D], or int64 [rows] of those listed."""


class PolicyTarget:
    """A checkpoint's policy, as it explores or greedily.

    Exploring on a schedule is as far along as the weights are, and as in environment 0.

    Args:
        policy: with its weights.
        greedy: the mode of its distribution, instead of what rollouts do.

    Raises:
        OpeError: it explores by what cannot be evaluated row by row.
    """

    def __init__(self, policy: Policy, *, greedy: bool) -> None:
        self._policy, self._distribution = policy, policy.distribution
        self._act: Act = policy.spec.act
        self._greedy = greedy or isinstance(self._act, Greedy)
        if policy.spec.model.sequence is not None:
            raise OpeError(
                "the policy acts by the steps before and a return to aim at; off-policy "
                "evaluation is of policies that act by one observation"
            )
        if not self._greedy:
            _require_memoryless(policy)
        space = policy.spec.action_connectors.output_space
        self._flatten, self._env_space = FlattenObs(), space

    @property
    def no_density(self) -> str:
        """See `Target.no_density`."""
        if self._greedy and not _is_finite(self._distribution):
            return "its greedy action is one point of a continuous space, which has no density"
        if not self._greedy and not self._act.has_logp:
            return f"{type(self._act).__name__} clips its noise to the bounds: it has no density"
        return ""

    @property
    def is_deterministic(self) -> bool:
        """See `Target.is_deterministic`."""
        return self._greedy

    @property
    def distribution(self) -> Distribution:
        """See `Target.distribution`."""
        return self._distribution

    @property
    def model(self) -> ModelSpec:
        """See `Target.model`."""
        return self._policy.spec.model

    def features(self, data: Trajectories) -> Array:
        """See `Target.features`; normalised by the policy's own statistics."""
        fed = module_obs(data, self._policy.spec.obs_connectors)
        features: Array = self._policy.module_input(fed)
        return features

    def params(self, features: Array) -> Array:
        """See `Target.params`."""
        self._policy.draw_noise(None)
        spans = range(0, len(features), _ROWS)
        forward = self._policy.inference.forward
        return np.concatenate([forward(features[low : low + _ROWS])[0] for low in spans])

    def actions(self, data: Trajectories) -> Converted:
        """See `Target.actions`."""
        return converted(data, self._policy.spec.action_connectors)

    def logp(self, params: Array, action: Tree) -> Floats:
        """See `Target.logp`."""
        if self._greedy:
            same = np.ones(len(params), np.bool_)
            mode = self._distribution.mode(params)
            for one, other in zip(tree_leaves(mode), tree_leaves(action), strict=True):
                same &= (one == other).reshape(len(params), -1).all(1)
            return np.where(same, 0.0, -np.inf)
        found = self._act.logp(self._distribution, params, action, self._levels(len(params)))
        return np.asarray(found, np.float64)

    def probabilities(self, params: Array) -> Floats | None:
        """See `Target.probabilities`."""
        if not isinstance(self._distribution, Categorical):
            return None
        actions = range(self._distribution.num_actions)
        logps = [self.logp(params, np.full(len(params), a, np.int64)) for a in actions]
        return np.exp(np.stack(logps, axis=1))

    def sample(self, params: Array, rng: np.random.Generator) -> Tree:
        """See `Target.sample`."""
        if self._greedy:
            return self._distribution.mode(params)
        rows, act = len(params), self._act
        noise = act.noise(self._distribution, rng, rows)
        carry = act.start(self._distribution, rows)
        now = Moment(noise, self._levels(rows), np.ones(rows, np.bool_), carry)
        return act.choose(self._distribution, params, now)

    def encoded(self, action: Tree) -> Array:
        """See `Target.encoded`; as the environment gets them, so what is clipped is the same."""
        if isinstance(self._distribution, Categorical):
            return np.asarray(action, np.int64)
        env_action = self._policy.spec.action_connectors(action)
        return self._flatten(env_action, self._env_space)

    def _levels(self, rows: int) -> dict[str, Array]:
        return self._act.levels(self._policy.get_weights().env_steps, np.zeros(rows, np.int64))


def _require_memoryless(policy: Policy) -> None:
    q, act = policy.spec.model.q, policy.spec.act
    inner = act.then if isinstance(act, RandomFirst) else act
    if q is not None and q.noisy:
        raise OpeError(
            "the policy explores by noise on its weights, whose probabilities are not known; "
            "evaluate it with --greedy"
        )
    if isinstance(inner, AddNoise) and inner.process == "ou":
        raise OpeError(
            "the policy explores by noise that depends on the steps before; evaluate it with "
            "--greedy"
        )


def _is_finite(distribution: Distribution) -> bool:
    if isinstance(distribution, Joint):
        return all(map(_is_finite, distribution.leaves))
    return isinstance(distribution, Categorical | MultiCategorical)
