"""The one artefact: connectors, their statistics, a network and a distribution that act together.

Legend: B rows, P distribution parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from rl_ops.action_connectors import ActionConnectors
from rl_ops.connectors import ObsConnectors
from rl_ops.distributions import Distribution, distribution_for
from rl_ops.errors import SpecError
from rl_ops.exploration import Act, Moment, Sample, act_from_json, act_to_json
from rl_ops.inference import inference_for
from rl_ops.model_spec import ModelSpec, QSpec
from rl_ops.moments import normalize
from rl_ops.spaces import space_from_json, space_to_json
from rl_ops.tree import brief, tree_leaves, tree_map, tree_map_spaces, zip_spaces

Array = npt.NDArray[Any]


class Weights(NamedTuple):
    """What a policy needs beside its spec, as numpy arrays.

    Attributes:
        module: parameter name → array, as in the torch module's state dict.
        obs_mean, obs_std: of module observations, or None when they are not normalised.
        reward_std: of running returns, or None when rewards are not normalised.
        env_steps: that the learner had consumed: where exploration is on its schedule.
    """

    module: Mapping[str, Array]
    obs_mean: Array | None = None
    obs_std: Array | None = None
    reward_std: float | None = None
    env_steps: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of the module's arrays."""
        return sum(array.nbytes for array in self.module.values())


@dataclass(frozen=True)
class PolicySpec:
    """A policy without its weights, as data; JSON-able.

    Attributes:
        obs_space, action_space: of one environment.
        obs_connectors: env observation → module observation.
        action_connectors: sampled action → what the environment receives.
        model: the network, fed `obs_connectors.output_space`.
        act: how it explores: in rollouts, and wherever `explore` is asked for.
        squash: Box actions come from a tanh-squashed Gaussian.
        deterministic: Box actions are the tanh of what the network gives.
        obs_clip: normalised observations are limited to [-obs_clip, obs_clip].
    """

    obs_space: gym.Space[Any]
    action_space: gym.Space[Any]
    obs_connectors: ObsConnectors
    action_connectors: ActionConnectors
    model: ModelSpec
    act: Act = field(default_factory=Sample)
    squash: bool = False
    deterministic: bool = False
    obs_clip: float = 10.0

    @property
    def distribution(self) -> Distribution:
        """The family of distributions over what the action connectors take."""
        return distribution_for(
            self.action_connectors.input_space,
            squash=self.squash,
            deterministic=self.deterministic,
        )

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON-able values, without pickle."""
        return {
            "obs_space": space_to_json(self.obs_space),
            "action_space": space_to_json(self.action_space),
            "obs_connectors": self.obs_connectors.to_json(),
            "action_connectors": self.action_connectors.to_json(),
            "model": self.model.to_json(),
            "act": act_to_json(self.act),
            "squash": self.squash,
            "deterministic": self.deterministic,
            "obs_clip": self.obs_clip,
        }

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> "PolicySpec":
        """The inverse of `to_json`."""
        return cls(
            obs_space=space_from_json(spec["obs_space"]),
            action_space=space_from_json(spec["action_space"]),
            obs_connectors=ObsConnectors.from_json(spec["obs_connectors"]),
            action_connectors=ActionConnectors.from_json(spec["action_connectors"]),
            model=ModelSpec.from_json(spec["model"]),
            # Checkpoints of 0.1 knew no act but sampling, and no policy but actor-critics.
            act=act_from_json(spec["act"]) if "act" in spec else Sample(),
            squash=spec["squash"],
            deterministic=spec.get("deterministic", False),
            obs_clip=spec["obs_clip"],
        )


@dataclass
class PolicyState:
    """What a policy carries from step to step; each step writes to it.

    Attributes:
        connectors: the connectors' state.
        rng: of its own noise.
        carry: of the act that explores.
        memory: of the network; None where it acts by one observation.
        is_new: nothing was acted on yet, so the next observations are their episodes' first.
    """

    connectors: Any
    rng: np.random.Generator = field(repr=False)
    carry: Any = None
    memory: Any = None
    is_new: bool = True


class Policy:
    """Acts: in rollouts, in evaluation, when served. The same code everywhere, bit for bit.

    Args:
        spec: what the policy is.
        weights: its parameters and statistics; may be given later by `set_weights`.
    """

    def __init__(self, spec: PolicySpec, weights: Weights | None = None) -> None:
        self.spec = spec
        self.distribution = spec.distribution
        spec.act.check(self.distribution)
        self.inference = inference_for(spec.model)
        self._weights: Weights | None = None
        if weights is not None:
            self.set_weights(weights)

    def get_weights(self) -> Weights:
        """The weights it acts with.

        Raises:
            ValueError: it has none yet.
        """
        if self._weights is None:
            raise ValueError("the policy has no weights yet; call set_weights first")
        return self._weights

    def set_weights(self, weights: Weights) -> None:
        """Act with `weights` from now on."""
        self.inference.load(weights.module)
        self._weights = weights

    def module_input(self, module_obs: Any) -> Any:
        """Normalise observations that connectors made, with the weights' statistics."""
        weights = self._weights
        if weights is None or weights.obs_mean is None or weights.obs_std is None:
            return module_obs
        clip = self.spec.obs_clip
        return normalize(module_obs, mean=weights.obs_mean, std=weights.obs_std, clip=clip)

    def forward(self, module_obs: Any) -> tuple[Array, Array | None]:
        """Module observations [B, ...] → params [B, P], value [B] where there is one."""
        fed = self.module_input(module_obs)
        params, value = self.inference.forward(fed)
        if value is None and self.spec.model.has_value:
            value = self.inference.value(fed)
        return params, value

    def memory(self, num_envs: int) -> Any:
        """What the network knows of `num_envs` environments before their first step.

        None where it acts by one observation, which `next_params` takes for such.
        """
        if self.spec.model.sequence is None:
            return None
        return self.inference.start(num_envs)  # type: ignore[attr-defined]

    def next_params(
        self, module_obs: Any, memory: Any, *, is_first: Array, reward: Array
    ) -> tuple[Array, Array | None]:
        """Params [B, P] of the next actions, and values [B] if they come at no cost.

        Args:
            module_obs: [B, ...] what connectors made of observations.
            memory: as `memory` gave it; written in place.
            is_first: [B] bool, where an episode begins here.
            reward: [B] of the step before.
        """
        fed = self.module_input(module_obs)
        if memory is None:
            return self.inference.forward(fed)
        found: tuple[Array, None] = self.inference.forward_next(  # type: ignore[attr-defined]
            fed, memory, is_first=is_first, reward=reward
        )
        return found

    def dist(self, obs: Any) -> tuple[Distribution, Array]:
        """Environment observations [B, ...] → the distribution family and its parameters [B, P]."""
        return self.distribution, self.forward(self._connect(obs))[0]

    def value(self, obs: Any) -> Array:
        """Environment observations [B, ...] → V(obs) [B]; of Q values the largest.

        Raises:
            ValueError: the policy is an actor alone, which knows no values.
        """
        value = self.forward(self._connect(obs))[1]
        if value is None:
            raise ValueError("this policy is an actor alone: it knows no values")
        return value

    def logp(self, obs: Any, action: Any) -> Array:
        """Log-probability [B] with which exploring gives module actions, in nats.

        Raises:
            ValueError: the policy explores by what has no density.
        """
        params, act = self.dist(obs)[1], self.spec.act
        if not act.has_logp:
            raise ValueError(f"{act} has no density, so its actions have no logp")
        return act.logp(self.distribution, params, action, self.levels(len(params)))

    def levels(self, rows: int) -> dict[str, Array]:
        """How much environments 0 to `rows` - 1 explore with these weights."""
        return self.spec.act.levels(self.get_weights().env_steps, np.arange(rows))

    def q_values(self, obs: Any) -> Array:
        """Environment observations [B, ...] → Q of every action [B, A].

        Raises:
            ValueError: the policy has no Q network; so for the next three.
        """
        self._require_q()
        return self.forward(self._connect(obs))[0]

    def q_distribution(self, obs: Any) -> tuple[Array, Array]:
        """Environment observations [B, ...] → values and their probabilities, [B, A, N] each.

        A network of means gives one value of probability 1.
        """
        q = self._require_q()
        outputs = self.inference.outputs(self.module_input(self._connect(obs)))  # type: ignore[attr-defined]
        if q.atoms != "categorical":
            return outputs, np.full_like(outputs, 1 / q.num_atoms)
        p = np.exp(outputs - outputs.max(2, keepdims=True))
        support = np.linspace(q.v_min, q.v_max, q.num_atoms, dtype=np.float32)
        return np.broadcast_to(support, p.shape).copy(), p / p.sum(2, keepdims=True)

    def state_value(self, obs: Any) -> Array:
        """Environment observations [B, ...] → V [B]: a dueling network's, else the largest Q."""
        return self._streams(obs)[0]

    def advantage(self, obs: Any) -> Array:
        """Environment observations [B, ...] → Q - V [B, A], with V of `state_value`."""
        return self._streams(obs)[1]

    def _streams(self, obs: Any) -> tuple[Array, Array]:
        self._require_q()
        fed = self.module_input(self._connect(obs))
        streams: tuple[Array, Array] = self.inference.streams(fed)  # type: ignore[attr-defined]
        return streams

    def _require_q(self) -> QSpec:
        q = self.spec.model.q
        if q is None:
            raise ValueError("this policy has no Q network; the DQN family has")
        return q

    def summary(self) -> str:
        """A few lines: spaces, connectors, layers, number of parameters."""
        count = sum(array.size for array in self.get_weights().module.values())
        lines = [
            f"obs      {self.spec.obs_space}",
            f"module   {self.spec.obs_connectors.output_space}",
            f"model    {self.spec.model.kind} {self.spec.model.conv or ''}{self.spec.model.hidden}",
            f"action   {self.spec.action_space} by {type(self.distribution).__name__}",
            f"params   {count:,}",
        ]
        lines += [f"  {k:<24}{v.shape}" for k, v in self.get_weights().module.items()]
        return "\n".join(lines)

    def start(self, num_envs: int, *, seed: int | None = None) -> PolicyState:
        """The state before the first step of `num_envs` environments."""
        connectors = self.spec.obs_connectors.start(num_envs)
        carry = self.spec.act.start(self.distribution, num_envs)
        memory = self.memory(num_envs)
        return PolicyState(connectors, np.random.default_rng(seed), carry, memory)

    def act(
        self,
        obs: Any,
        state: PolicyState | None = None,
        *,
        explore: bool = False,
        reward: Any = None,
    ) -> tuple[Any, PolicyState, dict[str, Array]]:
        """Choose actions for one observation or a batch of them.

        Args:
            obs: of `obs_space`, or the same with a leading batch dimension.
            state: what the previous call returned; None at an episode's start, or what
                `start` gives, whose seed makes exploring repeatable.
            explore: act as rollouts do at these weights, instead of taking the mode.
            reward: what the action before earned, a number or [B]; a policy that aims at a
                return must be told.

        Returns:
            The action for the environment, the next state, and extras: `action` as the policy
            gave it, before action connectors, and, where they are known, `logp` and `value`.

        Raises:
            SpecError: the observation fits neither the space nor a batch of it.
            ValueError: the reward is missing.
        """
        single = self._leaf_axes(obs) == 0
        batch = self._batch(obs, add_axis=single)
        rows = _num_rows(batch)
        state = self.start(rows) if state is None else state
        if reward is None and state.memory is not None and not state.is_new:
            raise ValueError("this policy aims at a return: tell act the reward of the step before")
        is_first, state.is_new = np.full(rows, state.is_new), False
        module_obs = self.spec.obs_connectors.step(batch, is_first, state.connectors)
        self.draw_noise(state.rng if explore else None)
        if state.memory is None:
            params, value = self.forward(module_obs)
        else:
            earned = np.broadcast_to(0.0 if reward is None else reward, rows)
            params, value = self.next_params(
                module_obs, state.memory, is_first=is_first, reward=earned
            )
        action = self.choose(params, state, is_first if explore else None)
        extras = {"action": action}
        if self.spec.act.has_logp:
            levels = self.levels(rows)
            extras["logp"] = self.spec.act.logp(self.distribution, params, action, levels)
        if value is not None:
            extras["value"] = value
        env_action = self.spec.action_connectors(action)
        if single:
            return _first(env_action), state, {k: _first(v) for k, v in extras.items()}
        return env_action, state, extras

    def choose(self, params: Array, state: PolicyState, is_first: Array | None) -> Any:
        """Actions for params [B, P]: the act's where `is_first` [B] is given, else the mode.

        The state remembers them.
        """
        act, rows = self.spec.act, len(params)
        if is_first is None:
            action = self.distribution.mode(params)
        else:
            noise = act.noise(self.distribution, state.rng, rows)
            now = Moment(noise, self.levels(rows), is_first, state.carry)
            action = act.choose(self.distribution, params, now)
        if state.memory is not None:
            state.memory.acted(action)
        return action

    def draw_noise(self, rng: np.random.Generator | None) -> None:
        """New noise for a noisy network, and none where `rng` is None."""
        q = self.spec.model.q
        if q is not None and q.noisy:
            self.inference.draw_noise(rng)

    def _connect(self, obs: Any) -> Any:
        rows = _num_rows(obs)
        connectors = self.spec.obs_connectors
        return connectors.step(obs, np.ones(rows, dtype=bool), connectors.start(rows))

    def _leaf_axes(self, obs: Any) -> int:
        """How many batch axes, 0 or 1, the leaves of `obs` have in front."""
        space = self.spec.obs_space
        try:
            leaves = list(zip_spaces(space, obs))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SpecError(
                f"observation {type(obs).__name__} does not fit {brief(space)}"
            ) from error
        axes = set()
        for child, leaf in leaves:
            got, shape = np.shape(leaf), child.shape
            axes.add(len(got) - len(shape))
            if got not in (shape, (*got[:1], *shape)):
                raise SpecError(
                    f"observation of shape {got}; expected {shape}, or a batch "
                    f"({', '.join(map(str, ('rows', *shape)))}) of {brief(child)}"
                )
        if len(axes) > 1:
            raise SpecError(f"some parts of the observation of {brief(space)} are batches")
        return axes.pop()

    def _batch(self, obs: Any, *, add_axis: bool) -> Any:
        """Arrays [B, ...] of the space's dtypes, as rollouts have them."""

        def cast(space: gym.Space[Any], leaf: Any) -> Array:
            array = np.asarray(leaf)
            batch = array.astype(space.dtype, copy=False)
            if not np.can_cast(array.dtype, batch.dtype, "same_kind") and (batch != array).any():
                raise SpecError(
                    f"observation of dtype {array.dtype} holds what {brief(space)} cannot"
                )
            return batch[None] if add_axis else batch

        return tree_map_spaces(cast, self.spec.obs_space, obs)


def _first(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf[0], tree)


def _num_rows(tree: Any) -> int:
    return len(next(tree_leaves(tree)))
