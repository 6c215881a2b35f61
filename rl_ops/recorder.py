"""The buffers of one fragment, and how they become an Arrow table.

Legend: N sub-environments, T steps recorded, P distribution parameters.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rl_ops import columns as c
from rl_ops.envs import EnvStep
from rl_ops.tree import tree_concat, tree_map, tree_take

if TYPE_CHECKING:
    from rl_ops.rollout import Rollout

Array = npt.NDArray[Any]

_UTC = pa.timestamp("us", tz="UTC")

REWARD_CLIP = 10.0
"""Normalised rewards are limited to it, in standard deviations, as in Baselines' VecNormalize."""


class Recorder:
    """Collects steps in [N, T] buffers, whose flat view is env-major rows.

    Args:
        rollout: whose steps.
        steps: T.
        cut: whether the last of them ends the fragment, in the middle of episodes.
    """

    def __init__(self, rollout: "Rollout", steps: int, *, cut: bool) -> None:
        spec, n, t = rollout.spec, rollout.spec.num_envs, steps
        self.rollout = rollout
        self.cut_at = t - 1 if cut else -1
        self.num_envs, self.steps = n, t
        self.keep_raw = c.OBS in spec.keep and spec.obs_column != c.OBS
        self.keep_final = c.FINAL_OBS in spec.keep
        self.keep_model_final = c.FINAL_MODEL_OBS in spec.keep
        self.obs = rollout.model_codec.empty(n * t)
        self.raw = rollout.obs_codec.empty(n * t) if self.keep_raw else None
        self.action = rollout.action_codec.empty(n * t)
        self.params = np.empty((n, t, rollout.policy.distribution.param_size), np.float32)
        self.value = np.zeros((n, t), np.float32)
        self.reward, self.returns, self.running = (np.empty((n, t)) for _ in range(3))
        self.terminated, self.truncated, self.valid = (np.empty((n, t), bool) for _ in range(3))
        self.aborted = np.zeros((n, t), bool)
        self.t = np.empty((n, t), np.int32)
        self.episode = np.empty((n, t), np.int64)
        self._final_rows: list[Array] = []
        self._final_obs: list[Any] = []
        self._final_raw: list[Any] = []

    def act(self, i: int, obs: Any, module_obs: Any, action: Any, params: Array) -> None:
        """Record what step `i` saw and did, before the environments are stepped."""
        self._store(self.obs, i, module_obs)
        if self.keep_raw:
            self._store(self.raw, i, obs)
        self._store(self.action, i, action)
        self.params[:, i] = params
        self.t[:, i] = self.rollout.t
        self.episode[:, i] = self.rollout.episode

    def outcome(self, i: int, step: EnvStep) -> None:
        """Record what the environments gave at step `i`."""
        self.reward[:, i] = step.reward
        self.terminated[:, i] = step.terminated
        self.truncated[:, i] = step.truncated
        self.valid[:, i] = step.is_transition
        self.returns[:, i] = self.rollout.returns
        self.running[:, i] = self.rollout.running
        for env in step.aborted:
            self.aborted[env, i] = True
        wanted = step.is_transition if i == self.cut_at else step.ended
        if not self.keep_final:  # V(final_obs) of a terminated row is 0, whatever it is
            wanted = wanted & ~step.terminated
        rows = wanted.nonzero()[0]
        if rows.size:
            self._final_rows.append(rows * self.steps + i)
            self._final_obs.append(self.rollout.peek(step.successor, rows))
            if self.keep_final:
                self._final_raw.append(tree_take(step.successor, rows))

    @classmethod
    def joined(cls, parts: Sequence["Recorder"], steps: int) -> "Recorder":
        """The first `steps` steps of recorders without a cut that follow each other in time."""
        whole, start = cls(parts[0].rollout, steps, cut=False), 0
        for part in parts:
            whole._take(part, start)
            start += part.steps
        return whole

    def _take(self, part: "Recorder", start: int) -> None:
        """Copy what `part` recorded to the steps from `start` on, as far as there are any."""
        n, count = self.num_envs, min(part.steps, self.steps - start)

        def put(buffer: Array, x: Array) -> None:
            ours, theirs = buffer.reshape(n, self.steps, -1), x.reshape(n, part.steps, -1)
            ours[:, start : start + count] = theirs[:, :count]

        tree_map(put, self._buffers(), part._buffers())
        for rows in part._final_rows:
            env, i = np.divmod(rows, part.steps)
            self._final_rows.append(env * self.steps + start + i)
        self._final_obs += part._final_obs
        self._final_raw += part._final_raw

    def _buffers(self) -> tuple[Any, ...]:
        raw = self.raw if self.keep_raw else ()
        acted = (self.obs, raw, self.action, self.params, self.value, self.t, self.episode)
        flags = (self.terminated, self.truncated, self.valid, self.aborted)
        return (*acted, self.reward, self.returns, self.running, *flags)

    def _store(self, tree: Any, i: int, values: Any) -> None:
        n, t = self.num_envs, self.steps

        def put(buffer: Array, x: Array) -> None:
            buffer.reshape(n, t, *buffer.shape[1:])[:, i] = x

        tree_map(put, tree, values)

    def table(self, fragment_id: int) -> pa.Table:
        """The rows recorded, without steps that were no transitions."""
        spec, rollout = self.rollout.spec, self.rollout
        is_last = self.terminated | self.truncated
        if self.cut_at >= 0:
            is_last[:, self.cut_at] = True
        scalars = {
            c.REWARD: self.reward,
            c.TERMINATED: self.terminated,
            c.TRUNCATED: self.truncated,
            c.IS_LAST: is_last,
            c.ABORTED: self.aborted,
            c.T: self.t,
            c.RUNNING_RETURN: self.running,
        }
        columns: dict[str, Any] = {name: x.reshape(-1) for name, x in scalars.items()}
        columns |= {c.ACTION: self.action, spec.obs_column: self.obs}
        columns[c.ENV_ID] = np.repeat(rollout.env_ids, self.steps)
        if self.keep_raw:
            columns[c.OBS] = self.raw
        flat = {name: tree_map(self._rows, tree) for name, tree in columns.items()}
        self._check(flat)
        if spec.policy.model.has_value:
            flat[c.FINAL_VALUE] = self._rows(self._values())
            flat[c.VALUE] = self._rows(self.value.reshape(-1))
        flat |= self._chosen(flat[c.ACTION])
        if spec.normalize_reward:
            scale = rollout.policy.get_weights().reward_std or 1.0
            flat[c.SCALED_REWARD] = np.clip(flat[c.REWARD] / scale, -REWARD_CLIP, REWARD_CLIP)
        arrays = self._encode(flat) | self._episode_columns(flat) | self._constants(fragment_id)
        return pa.table({name: arrays[name] for name in spec.adds})

    def _chosen(self, action: Any) -> dict[str, Any]:
        """What is known of how the rows' actions were chosen."""
        rollout, act = self.rollout, self.rollout.spec.policy.act
        params = self._rows(self.params.reshape(-1, self.params.shape[-1]))
        columns: dict[str, Any] = {
            name: self._rows(np.repeat(level, self.steps)) for name, level in rollout.levels.items()
        }
        if act.has_logp:
            logp = act.logp(rollout.policy.distribution, params, action, columns)
            columns[c.LOGP] = logp
        if c.Q_VALUE in rollout.spec.keep:
            columns[c.Q_VALUE] = np.take_along_axis(params, action[:, None], 1)[:, 0]
        return columns

    def _rows(self, buffer: Array) -> Array:
        """[N * T, ...] → [rows, ...] of transitions; the buffer itself where all steps are."""
        valid = self.valid.reshape(-1)
        return buffer if valid.all() else buffer[valid]

    def _values(self) -> Array:
        """Fill `value` where acting did not, and return V(final_obs) for every row, 0 elsewhere."""
        policy, rows = self.rollout.policy, self.num_envs * self.steps
        finals = np.concatenate(self._final_rows) if self._final_rows else np.empty(0, np.intp)
        batches = list(self._final_obs)
        fill = not policy.inference.computes_value
        if fill:
            batches.append(self.obs)
        final_value = np.zeros(rows, np.float32)
        if not batches:
            return final_value
        joined = batches[0] if len(batches) == 1 else tree_concat(batches)
        value = policy.inference.value(policy.module_input(joined))
        final_value[finals] = value[: finals.size]
        final_value[self.terminated.reshape(-1)] = 0.0
        if fill:
            self.value[:] = value[finals.size :].reshape(self.num_envs, self.steps)
        return final_value

    def _check(self, flat: dict[str, Any]) -> None:
        """Refuse what would poison training; final observations do by V of them in targets."""
        rollout, spec = self.rollout, self.rollout.spec
        where = f"{spec.env.id}.step (seed {spec.seed}): "
        if self.keep_raw:
            rollout.obs_codec.check(flat[c.OBS], where=where + "obs")
        rollout.model_codec.check(flat[spec.obs_column], where=where + "obs")
        for codec, finals in (
            (rollout.model_codec, self._final_obs),
            (rollout.obs_codec, self._final_raw),
        ):
            if finals:
                codec.check(tree_concat(finals), where=where + "final obs")
        if not np.isfinite(flat[c.REWARD]).all():
            rollout.fail_on_reward(flat)

    def _encode(self, flat: dict[str, Any]) -> dict[str, pa.Array]:
        rollout, spec = self.rollout, self.rollout.spec
        codecs = {c.OBS: rollout.obs_codec, c.ACTION: rollout.action_codec}
        codecs[spec.obs_column] = rollout.model_codec
        adds = spec.adds
        arrays = {
            name: codecs[name].encode(tree) if name in codecs else pa.array(tree)
            for name, tree in flat.items()
            if name in adds
        }
        if self.keep_final:
            arrays[c.FINAL_OBS] = self._final_obs_column()
        if self.keep_model_final:
            arrays[c.FINAL_MODEL_OBS] = self._final_model_obs_column()
        return arrays

    def _final_model_obs_column(self) -> pa.Array:
        codec, terminated = self.rollout.model_codec, self.terminated.reshape(-1)
        buffers = codec.empty(self.num_envs * self.steps)
        if self._final_rows:
            rows = np.concatenate(self._final_rows)
            # Nobody bootstraps from what lies behind a termination.
            open_ends = ~terminated[rows]
            found = tree_map(lambda x: x[open_ends], tree_concat(self._final_obs))
            rows = rows[open_ends]
            tree_map(lambda b, x: b.__setitem__(rows, x), buffers, found)
        return codec.encode(tree_map(self._rows, buffers))

    def _final_obs_column(self) -> pa.Array:
        buffers = self.rollout.obs_codec.empty(self.num_envs * self.steps)
        present = np.zeros(self.num_envs * self.steps, dtype=bool)
        if self._final_rows:
            rows = np.concatenate(self._final_rows)
            present[rows] = True
            tree_map(lambda b, x: b.__setitem__(rows, x), buffers, tree_concat(self._final_raw))
        flat = tree_map(self._rows, buffers)
        return self.rollout.obs_codec.encode(flat, valid=self._rows(present))

    def _episode_columns(self, flat: dict[str, Any]) -> dict[str, pa.Array]:
        rollout = self.rollout
        env = np.repeat(np.arange(self.num_envs), self.steps)
        env, episode = self._rows(env), self._rows(self.episode.reshape(-1))
        first = np.ones(len(episode), dtype=bool)
        first[1:] = (env[1:] != env[:-1]) | (episode[1:] != episode[:-1])
        codes = np.cumsum(first, dtype=np.int32) - 1
        names = pa.array(rollout.episode_names(env[first], episode[first]), pa.string())
        is_whole = (flat[c.TERMINATED] | flat[c.TRUNCATED]) & ~flat[c.ABORTED]
        returns = self._rows(self.returns.reshape(-1))
        return {
            c.EPISODE_ID: pa.DictionaryArray.from_arrays(pa.array(codes), names),
            c.EPISODE_RETURN: pa.array(returns, mask=~is_whole),
            c.EPISODE_LENGTH: pa.array(flat[c.T] + 1, mask=~is_whole),
        }

    def _constants(self, fragment_id: int) -> dict[str, pa.Array]:
        rollout, rows = self.rollout, int(self.valid.sum())
        return {
            c.FRAGMENT_ID: pa.array(np.full(rows, fragment_id, np.int64)),
            c.POLICY_VERSION: pa.array(np.full(rows, rollout.version, np.int64)),
            c.WORKER_ID: pa.array(np.full(rows, rollout.worker_id, np.int32)),
            c.SAMPLED_AT: pa.array(np.full(rows, time.time_ns() // 1000)).cast(_UTC),
        }
