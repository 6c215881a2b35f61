"""A small Markov decision process of known values, episodes of it, and a policy of it by table.

States come in layers, one for each step, so an episode ends after `STEPS` steps at the latest and
the value is that of linear algebra whatever is truncated: nothing is. Legend: L layers, S states of
a layer, A actions, E episodes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium.spaces import Box, Discrete

from offline.ope.actions import Converted
from offline.trajectories import EPISODE_KEY, Trajectories
from rl_ops.distributions import Categorical
from rl_ops.model_spec import ModelSpec

STEPS, STATES, ACTIONS, GAMMA = 4, 2, 2, 0.9
"""L, S, A."""


@dataclass(frozen=True)
class Process:
    """Transitions [L, S, A, S], of which the rest to 1 terminates, and mean rewards [L, S, A]."""

    transition: Any
    reward: Any

    @classmethod
    def random(cls, seed: int) -> "Process":
        rng = np.random.default_rng(seed)
        transition = rng.dirichlet(np.ones(STATES + 1), size=(STEPS, STATES, ACTIONS))[..., :-1]
        transition[-1] = 0.0
        return cls(transition, rng.normal(1.0, 1.0, (STEPS, STATES, ACTIONS)))

    def values(self, policy: Any) -> tuple[Any, Any]:
        """Q [L * S, A] and V [L * S] of a policy [L * S, A], by solving (I - gamma P) V = r."""
        size = STEPS * STATES
        matrix = np.zeros((size, ACTIONS, size))
        for t in range(STEPS - 1):
            rows = slice(t * STATES, (t + 1) * STATES)
            matrix[rows, :, (t + 1) * STATES : (t + 2) * STATES] = self.transition[t]
        reward = self.reward.reshape(size, ACTIONS)
        mean_matrix = (policy[:, :, None] * matrix).sum(1)
        value = np.linalg.solve(np.eye(size) - GAMMA * mean_matrix, (policy * reward).sum(1))
        return reward + GAMMA * matrix @ value, value

    def value(self, policy: Any) -> float:
        """Of an episode that begins in each state of the first layer alike."""
        return float(self.values(policy)[1][:STATES].mean())

    def episodes(self, behavior: Any, count: int, rng: np.random.Generator) -> Trajectories:
        """Episodes of a behaviour [L * S, A], with noise of deviation 0.5 on rewards."""
        state, alive = rng.integers(STATES, size=count), np.ones(count, bool)
        found = []
        for t in range(STEPS):
            e = np.flatnonzero(alive)
            probabilities = behavior[t * STATES + state[e]]
            action = (rng.random(len(e))[:, None] > probabilities.cumsum(1)).sum(1)
            reward = self.reward[t, state[e], action] + rng.normal(0, 0.5, len(e))
            share = self.transition[t, state[e], action].cumsum(1)
            following = (rng.random(len(e))[:, None] > share).sum(1)
            ends = following == STATES
            logp = np.log(probabilities[np.arange(len(e)), action])
            found.append((e, np.full(len(e), t), t * STATES + state[e], action, reward, ends, logp))
            state[e] = np.where(ends, 0, following)
            alive[e] = ~ends
        e, t, states, action, reward, ends, logp = map(np.concatenate, zip(*found, strict=True))
        order = np.lexsort((t, e))
        columns = (a[order] for a in (e, t, states, action, reward, ends, logp))
        return trajectories(*columns)


def policy_of(seed: int, *, sharpness: float = 1.0) -> Any:
    """Probabilities [L * S, A]."""
    logits = np.random.default_rng(seed).normal(0, sharpness, (STEPS * STATES, ACTIONS))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def trajectories(
    episode: Any,
    t: Any,
    states: Any,
    action: Any,
    reward: Any,
    terminated: Any,
    logp: Any,
    *,
    num_states: int = STEPS * STATES,
    final: Any = (),
) -> Trajectories:
    """Rows of discrete states as one-hot observations; `final` holds (row, state) pairs.

    The last row of an episode with a final state is truncated.
    """
    episode, rows = np.asarray(episode, np.int64), len(episode)
    one_hot = np.eye(num_states, dtype=np.float32)
    final_index, truncated = np.full(rows, -1, np.int64), np.zeros(rows, bool)
    for i, (row, _) in enumerate(final):
        final_index[row], truncated[row] = i, True
    names = [f"e{i}" for i in range(int(episode.max()) + 1)]
    key = dict(zip(EPISODE_KEY, (["run"] * len(names), [0] * len(names), names), strict=False))
    return Trajectories(
        obs=one_hot[np.asarray(states)],
        action=np.asarray(action, np.int64),
        reward=np.asarray(reward, np.float64),
        terminated=np.asarray(terminated, bool),
        truncated=truncated,
        t=np.asarray(t, np.int64),
        episode=episode,
        final_obs=one_hot[[state for _, state in final]],
        final_index=final_index,
        columns={"logp": np.asarray(logp, np.float32)},
        names=pa.table(key | {EPISODE_KEY[3]: pa.nulls(len(names), pa.string())}),
        obs_space=Box(0.0, 1.0, (num_states,), np.float32),
        action_space=Discrete(ACTIONS),
        version=0,
        uri="memory",
    )


def with_logp(data: Trajectories, logp: Any) -> Trajectories:
    return replace(data, columns={"logp": np.asarray(logp, np.float32)})


class TableTarget:
    """A policy [states, A] as `offline.ope.Target`; params are its probabilities."""

    no_density = ""
    is_deterministic = False
    distribution = Categorical(ACTIONS)

    def __init__(self, policy: Any, *, lists: bool = True) -> None:
        self.policy, self._lists = np.asarray(policy, np.float64), lists

    @property
    def model(self) -> ModelSpec:
        return ModelSpec("mlp", (len(self.policy),), ACTIONS)

    def features(self, data: Trajectories) -> Any:
        return np.concatenate([data.obs, data.final_obs])

    def params(self, features: Any) -> Any:
        return self.policy[features.argmax(1)]

    def actions(self, data: Trajectories) -> Converted:
        return Converted(data.action)

    def logp(self, params: Any, action: Any) -> Any:
        with np.errstate(divide="ignore"):
            return np.log(params[np.arange(len(action)), action])

    def probabilities(self, params: Any) -> Any:
        return params if self._lists else None

    def sample(self, params: Any, rng: np.random.Generator) -> Any:
        return (rng.random(len(params))[:, None] > params.cumsum(1)).sum(1).clip(max=ACTIONS - 1)

    def encoded(self, action: Any) -> Any:
        """Where actions are not listed, as numbers that a critic takes beside the observation."""
        return action if self._lists else np.eye(ACTIONS, dtype=np.float32)[action]
