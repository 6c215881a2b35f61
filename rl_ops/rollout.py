"""The rollout operator: steps vector environments with a policy and emits Arrow rows.

Legend: N sub-environments, T steps of a fragment.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rl_ops import columns as c
from rl_ops.complete_episodes import EpisodeSlots
from rl_ops.envs import EnvSpec, EnvStep, VectorSlots, env_seeds, seed_words
from rl_ops.errors import SpecError
from rl_ops.exploration import Moment
from rl_ops.policy import Policy, PolicySpec, Weights
from rl_ops.recorder import Recorder
from rl_ops.spaces import codec_for
from rl_ops.tree import tree_take

Array = npt.NDArray[Any]


BatchMode = Literal["truncate", "complete_episodes"]

_PART_STEPS = 256
"""Steps recorded at a time, at least, when nobody knows how many there will be."""


@dataclass(frozen=True)
class RolloutSpec:
    """Everything a rollout worker needs beside weights; picklable and small.

    Attributes:
        env: which environment.
        policy: which policy.
        num_envs: N, sub-environments that step together.
        fragment_steps: T, steps of each sub-environment in a fragment.
        batch_mode: "truncate" ends a fragment after T steps, and episodes go on in the next;
            "complete_episodes" makes fragments of whole episodes, T rows or more of each
            sub-environment.
        keep: columns to emit that are optional: obs (always there when connectors change
            nothing), final_obs, final_model_obs, q_value.
        gamma: discount of running returns, whose spread normalises rewards.
        normalize_reward: add scaled_reward = reward / std of running returns.
        run_id: prefix of episode ids.
        seed: of environments and of sampling.
    """

    env: EnvSpec
    policy: PolicySpec
    num_envs: int
    fragment_steps: int
    batch_mode: BatchMode = "truncate"
    keep: frozenset[str] = frozenset()
    gamma: float = 0.99
    normalize_reward: bool = False
    run_id: str = "run"
    seed: int = 0

    @property
    def obs_column(self) -> str:
        """The column that the module is fed from."""
        return c.OBS if self.policy.obs_connectors.is_identity else c.MODEL_OBS

    @property
    def adds(self) -> tuple[str, ...]:
        """The columns of an emitted table, in order."""
        columns = [self.obs_column, c.ACTION, c.REWARD, c.TERMINATED, c.TRUNCATED, c.IS_LAST]
        columns += [c.ABORTED, *[c.LOGP] * self.policy.act.has_logp]
        columns += [c.VALUE, c.FINAL_VALUE] * self.policy.model.has_value
        columns += [*self.policy.act.columns, c.EPISODE_ID, c.T, c.ENV_ID]
        columns += [c.EPISODE_RETURN, c.EPISODE_LENGTH]
        columns += [c.FRAGMENT_ID, c.POLICY_VERSION, c.WORKER_ID, c.SAMPLED_AT]
        if self.normalize_reward:
            columns += [c.SCALED_REWARD, c.RUNNING_RETURN]
        optional = (c.OBS, c.FINAL_OBS, c.FINAL_MODEL_OBS, c.Q_VALUE)
        columns += [name for name in optional if name in self.keep]
        return tuple(dict.fromkeys(columns))


@dataclass
class RolloutCounters:
    """What a worker has counted since it started; times in seconds."""

    env_steps: int = 0
    episodes: int = 0
    aborted_episodes: int = 0
    rollout_s: float = 0.0
    env_s: float = 0.0


class EnvFailure(NamedTuple):
    """An exception of an environment that aborted an episode."""

    env_id: int
    episode_id: str
    message: str


class Rollout:
    """Steps N sub-environments, fragment by fragment.

    Args:
        spec: what to run.
        worker_id: index of this worker. Sub-environment i is environment worker_id * N + i of
            the run, which seeds it: the same environments exist for any number of workers.
        incarnation: how often this worker was started before; part of seeds and episode ids.
    """

    def __init__(self, spec: RolloutSpec, *, worker_id: int = 0, incarnation: int = 0) -> None:
        self.spec = spec
        self.worker_id = worker_id
        self.incarnation = incarnation
        self.policy = Policy(spec.policy)
        self.version = -1
        self.counters = RolloutCounters()
        self._failures: list[EnvFailure] = []
        n = spec.num_envs
        if spec.batch_mode == "truncate":
            self.slots = VectorSlots(spec.env, n)
        else:
            self.slots = EpisodeSlots(spec.env, n, min_rows=spec.fragment_steps)
        self._check_spaces()
        self.env_ids = np.arange(worker_id * n, (worker_id + 1) * n, dtype=np.int32)
        self.obs_codec = codec_for(self.slots.obs_space)
        self.model_codec = codec_for(spec.policy.obs_connectors.output_space)
        self.action_codec = codec_for(spec.policy.action_connectors.input_space)
        self.episode = np.zeros(n, dtype=np.int64)
        self._starts = 0
        self._start_episodes()

    def _start_episodes(self) -> None:
        """Seed every sub-environment, and the sampling for it, and begin an episode there."""
        n, env_ids = self.spec.num_envs, self.env_ids.tolist()
        words = seed_words(self.spec.seed, self.incarnation, env_ids, start=self._starts)
        self._starts += 1
        self._rngs = [np.random.Generator(np.random.Philox(key=w[1:])) for w in words]
        self._obs = self.slots.reset(env_seeds(words))
        self.obs_codec.check(self._obs, where=f"{self.spec.env.id}.reset: obs")
        self._connectors = self.spec.policy.obs_connectors.start(n)
        self._carry = self.spec.policy.act.start(self.policy.distribution, n)
        self._memory, self._reward = self.policy.memory(n), np.zeros(n)
        self._is_first = np.ones(n, dtype=bool)
        self.t = np.zeros(n, dtype=np.int32)
        self.returns = np.zeros(n)
        self.running = np.zeros(n)

    def _check_spaces(self) -> None:
        pairs = [("observation", self.slots.obs_space, self.spec.policy.obs_space)]
        pairs += [("action", self.slots.action_space, self.spec.policy.action_space)]
        for name, got, expected in pairs:
            if got != expected:
                raise SpecError(
                    f"{self.spec.env.id}: the {name} space is {got}; "
                    f"the policy was made for {expected}"
                )

    def load(self, weights: Weights, version: int) -> None:
        """Act with `weights`, policy version `version`, from the next fragment on."""
        self.policy.set_weights(weights)
        self.levels = self.spec.policy.act.levels(weights.env_steps, self.env_ids)
        self.version = version

    def fragment(self, fragment_id: int) -> pa.Table:
        """Step every sub-environment T times, or through whole episodes; the rows, env-major.

        Steps that an environment spent on a reset (NEXT_STEP autoreset) are no rows.

        Raises:
            SpecError: the environment broke its space, or gave NaN or Inf.
            EnvError: an environment failed too often, or ends no episode to wait for.
            ValueError: `load` was never called.
        """
        self.policy.get_weights()  # raises while there are none
        start = time.perf_counter()
        self.policy.draw_noise(self._rngs[0])
        record = self._record if self.spec.batch_mode == "truncate" else self._record_episodes
        table = record(fragment_id)
        while table.num_rows == 0:  # resets alone; without a row there is no fragment_id either
            table = record(fragment_id)
        self.counters.env_steps += table.num_rows
        self.counters.rollout_s += time.perf_counter() - start
        return table

    def _record(self, fragment_id: int) -> pa.Table:
        recorder = Recorder(self, self.spec.fragment_steps, cut=True)
        noise = self._noise(recorder.steps)
        for i in range(recorder.steps):
            self._step(recorder, i, noise[i])
        return recorder.table(fragment_id)

    def _record_episodes(self, fragment_id: int) -> pa.Table:
        """Whole episodes: all begin one here, and who has its rows waits for the slowest.

        Environments and sampling are seeded anew, so that the rows do not depend on how long the
        others in the worker took in the fragment before.
        """
        slots = self.slots
        assert isinstance(slots, EpisodeSlots)
        if slots.is_complete:  # of the fragment before; the first begins as it was made
            self._start_episodes()
        parts: list[Recorder] = []
        steps = 0
        while not slots.is_complete:
            slots.check_length(self.t)
            parts.append(Recorder(self, max(self.spec.fragment_steps, _PART_STEPS), cut=False))
            noise = self._noise(parts[-1].steps)
            for i in range(parts[-1].steps):
                self._step(parts[-1], i, noise[i])
                steps += 1
                if slots.is_complete:
                    break
        return Recorder.joined(parts, steps).table(fragment_id)

    def _noise(self, steps: int) -> Array:
        """[steps, N, ...] of the sub-environments' own generators."""
        draw, distribution = self.spec.policy.act.noise, self.policy.distribution
        return np.stack([draw(distribution, rng, steps) for rng in self._rngs], axis=1)

    def _step(self, recorder: Recorder, i: int, noise: Array) -> None:
        policy, spec = self.policy, self.spec.policy
        module_obs = spec.obs_connectors.step(self._obs, self._is_first, self._connectors)
        params, value = policy.next_params(
            module_obs, self._memory, is_first=self._is_first, reward=self._reward
        )
        now = Moment(noise, self.levels, self._is_first, self._carry)
        action = spec.act.choose(policy.distribution, params, now)
        if self._memory is not None:
            self._memory.acted(action)
        recorder.act(i, self._obs, module_obs, action, params)
        if value is not None:
            recorder.value[:, i] = value
        start = time.perf_counter()
        step = self.slots.step(spec.action_connectors(action))
        self.counters.env_s += time.perf_counter() - start
        self._reward = step.reward
        self.returns += step.reward
        if self.spec.normalize_reward:
            self.running = self.running * self.spec.gamma + step.reward
        recorder.outcome(i, step)
        self._advance(step)

    def _advance(self, step: EnvStep) -> None:
        self._obs = step.obs
        self._is_first = step.is_first
        self.t += step.is_transition
        if step.aborted:
            self.counters.aborted_episodes += len(step.aborted)
            envs = np.array(list(step.aborted))
            names = self.episode_names(envs, self.episode[envs])
            failed = zip(self.env_ids[envs].tolist(), names, step.aborted.values(), strict=True)
            self._failures += [EnvFailure(*each) for each in failed]
        ended = step.ended
        if np.count_nonzero(ended):  # a fifth of the price of any()
            self.counters.episodes += int(ended.sum())
            self.t[ended] = 0
            self.episode[ended] += 1
            self.returns[ended] = 0.0
            self.running[ended] = 0.0

    def take_failures(self) -> list[EnvFailure]:
        """Failures of environments since this was last asked."""
        failures, self._failures = self._failures, []
        return failures

    def peek(self, obs: Any, rows: Array) -> Any:
        """Module observations of sub-environments `rows`, leaving connector state as it is."""
        return self.spec.policy.obs_connectors.peek(tree_take(obs, rows), self._connectors, rows)

    def episode_names(self, index: Array, episode: Array) -> list[str]:
        """Ids, unique in a lake, of (sub-environment, episode number) pairs."""
        run, n = self.spec.run_id, self.incarnation
        pairs = zip(self.env_ids[index].tolist(), episode.tolist(), strict=True)
        return [f"{run}/{env:05d}.{n}/{number:07d}" for env, number in pairs]

    def fail_on_reward(self, flat: dict[str, Any]) -> None:
        """Raise the error for a reward that is not finite."""
        row = int(np.flatnonzero(~np.isfinite(flat[c.REWARD]))[0])
        raise SpecError(
            f"{self.spec.env.id}.step: reward is {flat[c.REWARD][row]} in environment "
            f"{flat[c.ENV_ID][row]} at t={flat[c.T][row]} (seed {self.spec.seed}); "
            "expected a finite number"
        )

    def close(self) -> None:
        """Close the environments and their processes."""
        self.slots.close()
