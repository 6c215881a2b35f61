"""Gymnasium vector environments behind one step function, whatever their autoreset mode.

Legend: N sub-environments.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rl_ops.env_id import NO_ENV
from rl_ops.env_step import EnvStep as EnvStep
from rl_ops.env_step import aborted_episodes, with_final
from rl_ops.guarded_env import Failures, GuardedEnv, GuardPolicy
from rl_ops.obs_check import ObsCheck

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
    if spec.id == NO_ENV:
        raise UnknownEnvError(
            f"env is {NO_ENV!r}: there is nothing to step, because all that is known is logged. "
            "Evaluate off-policy (`millrace ope`), or name an environment of these spaces."
        )
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
        # Its checker warns, and costs a step 5 %; ours (ObsCheck, Codec.check) refuse.
        return gym.make(spec.id, disable_env_checker=True, **kwargs)
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
    if _factory(spec.id) is not None:
        return False
    registered = gym.registry.get(spec.id.rpartition(":")[2])
    return registered is not None and registered.vector_entry_point is not None


def seed_words(
    seed: int, incarnation: int, env_ids: Sequence[int], *, start: int = 0
) -> list[Array]:
    """Three uint64 for each environment of a run: of its reset, and the key of its sampling.

    Args:
        seed: of the run.
        incarnation: how often the worker that has the environments was started before.
        env_ids: of the environments within the run.
        start: how often the worker seeded its environments before.
    """
    again = (start,) if start else ()
    entropy = [(seed, incarnation, i, *again) for i in env_ids]
    return [np.random.SeedSequence(e).generate_state(3, np.uint64) for e in entropy]


def env_seeds(words: Sequence[Array]) -> list[int]:
    """What `VectorSlots.reset` takes, of `seed_words`."""
    # Below 2**31, because some environments refuse larger seeds.
    return [int(w[0] % 2**31) for w in words]


def _make_vector(spec: EnvSpec, num_envs: int, render_mode: str | None) -> VectorEnv[Any, Any, Any]:
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
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        return gym.make_vec(
            spec.id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs
        )

    def guarded() -> gym.Env[Any, Any]:
        build = partial(make_env, spec, render_mode=render_mode)
        return GuardedEnv(build, spec.guard, name=spec.id)

    functions = [guarded] * num_envs
    if mode == "async":
        return AsyncVectorEnv(functions, autoreset_mode=AutoresetMode.SAME_STEP)
    return SyncVectorEnv(functions, autoreset_mode=AutoresetMode.SAME_STEP)


class VectorSlots:
    """N sub-environments that reset themselves, and are built again when they raise.

    Args:
        spec: which environment.
        num_envs: N.
        render_mode: as Gymnasium has it; "rgb_array" for `frame`.

    Raises:
        EnvError: from `reset` and `step`, when the environment failed too often in a row.
        SpecError: from both, when an observation is not of the space's structure, shape or dtype.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, *, render_mode: str | None = None) -> None:
        self.spec = spec
        self._render_mode = render_mode
        self.env = _make_vector(spec, num_envs, render_mode)
        self.num_envs = num_envs
        self.obs_space: gym.Space[Any] = self.env.single_observation_space
        self.action_space: gym.Space[Any] = self.env.single_action_space
        mode = self.env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise UnknownEnvError(
                f"environment {spec.id!r} resets by {mode}; supported are NEXT_STEP and SAME_STEP"
            )
        self._same_step = mode == AutoresetMode.SAME_STEP
        # The others' sub-environments are each guarded and checked where they are stepped.
        self._is_native = not isinstance(self.env, SyncVectorEnv | AsyncVectorEnv)
        self._failures = Failures(spec.id, spec.guard)
        self._check = ObsCheck(self.obs_space, name=spec.id, batch=(num_envs,))
        self._ended = np.zeros(num_envs, dtype=bool)
        self._all = np.ones(num_envs, dtype=bool)
        self._obs: Any = None

    def reset(self, seeds: list[int]) -> Any:
        """Start an episode everywhere; sub-environment i with seeds[i].

        A native vector environment takes one seed for all: the first.
        """
        self._ended = np.zeros(self.num_envs, dtype=bool)
        if self._is_native:
            self._failures.seed = seeds[0]
            return self._reset_native(seeds[0], is_broken=False)
        return self.env.reset(seed=seeds)[0]

    def step(self, action: Any) -> EnvStep:
        """Step every sub-environment once."""
        try:
            obs, reward, terminated, truncated, infos = self.env.step(action)
        except Exception as error:
            if not self._is_native:
                raise
            return self._abort_all(error)
        was_reset, ended, successor = self._ended, terminated | truncated, obs
        aborted: Mapping[int, str] = {}
        if self._is_native:
            self._check(obs, "step")
            self._obs = obs
            if self._failures.in_a_row:
                self._failures.add_good_step(ended=bool(ended.any()))
        else:
            aborted = aborted_episodes(infos)
        if self._same_step:
            is_transition, is_first = self._all, ended
            if np.count_nonzero(ended):
                final = infos.get("final_obs")
                successor = with_final(obs, final, np.flatnonzero(ended), env_id=self.spec.id)
        else:
            is_transition, is_first = ~was_reset, was_reset
            # What an environment says of the step it spent on a reset is about no transition.
            reward = np.where(was_reset, 0.0, reward)
            terminated, truncated = terminated & is_transition, truncated & is_transition
            self._ended = ended = ended & is_transition
        return EnvStep(
            obs=obs,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            ended=ended,
            is_transition=is_transition,
            is_first=is_first,
            successor=successor,
            aborted=aborted,
        )

    def frame(self, index: int) -> Any:
        """What sub-environment `index` renders now: for "rgb_array" uint8 [H, W, 3]."""
        if isinstance(self.env, SyncVectorEnv):
            return self.env.envs[index].render()
        frames = self.env.render()
        return None if frames is None else frames[index]

    def close(self) -> None:
        """Close the environments and their processes."""
        self.env.close()

    def _abort_all(self, error: Exception) -> EnvStep:
        """What `GuardedEnv` does, for a native environment, all of whose episodes end at once."""
        text = self._failures.add("step", error)
        is_transition, last_obs = ~self._ended, self._obs
        self._ended = np.zeros(self.num_envs, dtype=bool)
        return EnvStep(
            obs=self._reset_native(None, is_broken=True),
            reward=np.zeros(self.num_envs),
            terminated=np.zeros(self.num_envs, dtype=bool),
            truncated=is_transition,
            ended=is_transition,
            is_transition=is_transition,
            is_first=self._all,
            successor=last_obs,
            aborted=dict.fromkeys(np.flatnonzero(is_transition).tolist(), text),
        )

    def _reset_native(self, seed: int | None, *, is_broken: bool) -> Any:
        while True:
            try:
                if is_broken:
                    with suppress(Exception):  # it failed already; what it holds should still go
                        self.env.close()
                    self.env = _make_vector(self.spec, self.num_envs, self._render_mode)
                    seed = self._failures.next_seed() if seed is None else seed
                obs = self.env.reset(seed=seed)[0]
            except Exception as error:  # noqa: BLE001 - an env may raise anything; `add` decides
                is_broken = True
                self._failures.add("reset", error)
                self._failures.wait()
            else:
                self._check(obs, "reset")
                self._obs = obs
                return obs
