"""Gymnasium vector environments behind one step function, whatever their autoreset mode.

Legend: N sub-environments.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rl_ops.guarded_env import GuardedEnv, GuardPolicy

Array = npt.NDArray[Any]
Vectorization = Literal["auto", "native", "sync", "async"]


@dataclass(frozen=True)
class EnvSpec:
    """Which environment, and how many copies step together.

    Attributes:
        id: a Gymnasium id ("CartPole-v1", "module:Name-v0") or "module:function" of a factory.
        kwargs: keyword arguments of the environment.
        vectorization: "native" uses the environment's own vector implementation, "sync" steps
            copies in this process, "async" each in a process of its own; "auto" takes native
            where there is one, else sync.
        max_episode_steps: time limit that replaces the registered one.
        guard: what happens when the environment raises.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    vectorization: Vectorization = "auto"
    max_episode_steps: int | None = None
    guard: GuardPolicy = field(default_factory=GuardPolicy)


class UnknownEnvError(ValueError):
    """No environment of that name can be made; the message says what is meant and how to fix it."""


def make_env(spec: EnvSpec, *, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One environment, unguarded.

    Raises:
        UnknownEnvError: no such id, or its package is not installed.
    """
    kwargs = dict(spec.kwargs)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    factory = _factory(spec.id)
    if factory is not None:
        env = factory(**kwargs)
        if not isinstance(env, gym.Env):
            raise UnknownEnvError(
                f"{spec.id} returned {type(env).__name__}, expected a gymnasium.Env"
            )
        if spec.max_episode_steps is not None:
            env = gym.wrappers.TimeLimit(env, spec.max_episode_steps)
        return env
    if spec.max_episode_steps is not None:
        kwargs["max_episode_steps"] = spec.max_episode_steps
    try:
        return gym.make(spec.id, **kwargs)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise UnknownEnvError(_explain(spec.id, error)) from error


def _factory(env_id: str) -> Callable[..., Any] | None:
    """The callable at "module:name"; None when the id is Gymnasium's own "module:Name-v0"."""
    module_name, _, name = env_id.partition(":")
    if not name:
        return None
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UnknownEnvError(
            f"environment {env_id!r}: no module {error.name!r}; is its folder on PYTHONPATH?"
        ) from error
    factory = getattr(module, name, None)
    if factory is None and name not in gym.registry:
        raise UnknownEnvError(
            f"environment {env_id!r}: module {module_name!r} has no {name!r} and registers no "
            "environment of that name"
        )
    return factory


def _explain(env_id: str, error: Exception) -> str:
    # difflib only here: it is not needed on the way that works.
    import difflib

    close = difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.6)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return f"environment {env_id!r}: {error}{hint}"


def _has_native(spec: EnvSpec) -> bool:
    registered = gym.registry.get(spec.id)
    return registered is not None and registered.vector_entry_point is not None


def _make_vector(spec: EnvSpec, num_envs: int) -> VectorEnv[Any, Any, Any]:
    mode = spec.vectorization
    if mode == "auto":
        mode = "native" if _has_native(spec) else "sync"
    if mode == "native":
        if not _has_native(spec):
            raise UnknownEnvError(
                f"environment {spec.id!r} has no vector entry point; "
                "set env.vectorization to sync or async"
            )
        kwargs = dict(spec.kwargs)
        if spec.max_episode_steps is not None:
            kwargs["max_episode_steps"] = spec.max_episode_steps
        return gym.make_vec(
            spec.id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs
        )

    def guarded() -> gym.Env[Any, Any]:
        return GuardedEnv(lambda: make_env(spec), spec.guard)

    functions = [guarded] * num_envs
    if mode == "async":
        return AsyncVectorEnv(functions, autoreset_mode=AutoresetMode.SAME_STEP)
    return SyncVectorEnv(functions, autoreset_mode=AutoresetMode.SAME_STEP)


@dataclass(frozen=True)
class EnvStep:
    """What one step of all sub-environments gave.

    Attributes:
        obs: [N] what to act on next; where an episode ended, of the new one or (NEXT_STEP) of
            the old one, whose next row is then not a transition.
        reward: [N] float64.
        terminated, truncated: [N] bool.
        is_transition: [N] bool; False where the environment spent the step on a reset.
        is_first: [N] bool; obs is the first of an episode.
        successor: obs tree [N] whose rows where an episode ended hold its final observation.
        aborted: {sub-environment: message} of episodes that an exception ended.
    """

    obs: Any
    reward: Array
    terminated: Array
    truncated: Array
    is_transition: Array
    is_first: Array
    successor: Any
    aborted: Mapping[int, str]


class VectorSlots:
    """N sub-environments that reset themselves.

    Args:
        spec: which environment.
        num_envs: N.
    """

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self.env = _make_vector(spec, num_envs)
        self.num_envs = num_envs
        self.obs_space: gym.Space[Any] = self.env.single_observation_space
        self.action_space: gym.Space[Any] = self.env.single_action_space
        mode = self.env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise UnknownEnvError(
                f"environment {spec.id!r} resets by {mode}; supported are NEXT_STEP and SAME_STEP"
            )
        self._same_step = mode == AutoresetMode.SAME_STEP
        self._ended = np.zeros(num_envs, dtype=bool)
        self._all = np.ones(num_envs, dtype=bool)

    def reset(self, seeds: list[int]) -> Any:
        """Start an episode everywhere; sub-environment i with seeds[i].

        A native vector environment takes one seed for all: the first.
        """
        seed: Any = seeds if isinstance(self.env, SyncVectorEnv | AsyncVectorEnv) else seeds[0]
        obs, _ = self.env.reset(seed=seed)
        self._ended[:] = False
        return obs

    def step(self, action: Any) -> EnvStep:
        """Step every sub-environment once."""
        obs, reward, terminated, truncated, infos = self.env.step(action)
        was_reset = self._ended
        ended = terminated | truncated
        successor = obs
        if self._same_step:
            is_transition, is_first = self._all, ended
            if ended.any():
                successor = _with_final(obs, infos["final_obs"], np.flatnonzero(ended))
        else:
            is_transition, is_first = ~was_reset, was_reset
            self._ended = ended
        return EnvStep(
            obs=obs,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            is_transition=is_transition,
            is_first=is_first,
            successor=successor,
            aborted=_aborted(infos),
        )

    def close(self) -> None:
        """Close the environments and their processes."""
        self.env.close()


def _with_final(obs: Any, final: Any, ended: Array) -> Any:
    """`obs` with the rows `ended` replaced by the final observations (an object array of them)."""
    if isinstance(obs, dict):
        parts = {key: [final[i][key] for i in ended] for key in obs}
        return {key: _replaced(obs[key], ended, parts[key]) for key in obs}
    if isinstance(obs, tuple):
        columns = zip(*(final[i] for i in ended), strict=True)
        return tuple(_replaced(o, ended, list(c)) for o, c in zip(obs, columns, strict=True))
    return _replaced(obs, ended, [final[i] for i in ended])


def _replaced(leaf: Any, rows: Array, values: list[Any]) -> Any:
    if isinstance(leaf, dict | tuple):
        final = dict(zip(rows.tolist(), values, strict=True))
        return _with_final(leaf, final, rows)
    result = leaf.copy()
    result[rows] = np.stack(values)
    return result


def _aborted(infos: Mapping[str, Any]) -> Mapping[int, str]:
    """Messages of episodes that `GuardedEnv` ended, from wherever autoreset put their info."""
    found: dict[int, str] = {}
    for source in (infos, infos.get("final_info", {})):
        messages = source.get("aborted")
        if messages is not None:
            found.update({i: str(m) for i, m in enumerate(messages) if m})
    return found
