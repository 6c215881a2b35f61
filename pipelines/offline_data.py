"""Logged steps of a pinned version as the rows that a learner draws: loaded once, on its device.

Legend: N rows, F final observations, P observations.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from offline.errors import LakeError
from offline.lake import Lake
from offline.module_obs import module_obs, policy_actions
from offline.storage import Storage
from offline.trajectories import DataSpec, Trajectories, no_rows, selection_of, spaces_in
from offline.validation import Needs, OnInvalid, ValidationReport
from offline.validation_reading import load_valid
from pipelines.config import AlgorithmConfig, DataConfig, OffPolicyConfig
from pipelines.config_errors import ConfigError, Problem
from pipelines.specs import Spaces
from pipelines.statistics import new_moments
from rl_ops import columns as c
from rl_ops.learner import World
from rl_ops.moments import RunningMoments
from rl_ops.policy import PolicySpec
from rl_ops.returns import discounted_sum, linear_recurrence, n_step
from rl_ops.row_data import RowData
from rl_ops.sequence_data import SequenceData
from rl_ops.spaces import space_from_json
from rl_ops.tree import brief

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

_RETURNS: Final = {c.RETURN_N, c.BOOTSTRAP_OBS, c.BOOTSTRAP_DISCOUNT}


@dataclass(frozen=True)
class DataTask:
    """Which logged rows a learner rank learns from, as it is told.

    Attributes:
        storage: of the lake.
        spec: with a version.
        on_invalid: what is done with episodes that are not as they should be.
    """

    storage: Storage
    spec: DataSpec
    on_invalid: OnInvalid = "skip"


def data_of(config: AlgorithmConfig) -> DataConfig | None:
    """Which logged rows a configuration learns from; None for none."""
    return config.offline if isinstance(config, OffPolicyConfig) else None


def pinned(data: DataConfig, lake: Storage) -> DataTask:
    """The task of a configuration, with the version that its run is pinned to.

    Raises:
        ConfigError: the lake has no such version, or no longer its files.
    """
    spec = DataSpec(
        version=data.version,
        timestamp=data.timestamp,
        where=[*data.where] or None,
        columns=data.columns,
        split=data.split,
    )
    try:
        selection = selection_of(Lake(lake), spec)
        selection.require_files()
    except LakeError as error:
        raise ConfigError(Problem("offline", str(error), "choose another version")) from error
    spec = dataclasses.replace(spec, version=selection.version, timestamp=None)
    return DataTask(lake, spec, data.on_invalid)


def logged_spaces(task: DataTask) -> Spaces:
    """The spaces of the environment that a task's rows are of.

    The environment's action space is noted by the run that logged them; where it is not, as of
    imports, it is that of the logged actions.

    Raises:
        LakeError: there are no rows.
    """
    lake, spec = Lake(task.storage), task.spec
    selection = selection_of(lake, dataclasses.replace(spec, columns=()))
    first = selection.first()
    if first is None:
        raise no_rows(lake, selection.version)
    obs, action = spaces_in(lake, first, selection.version)
    run = first.column(c.RUN_ID)[0].as_py()
    told = lake.runs(where=[(c.RUN_ID, "=", run)], columns=["spaces"]).to_arrow()
    for text in told.column("spaces").drop_null().to_pylist():
        if "env_action" in (noted := json.loads(text)):
            return Spaces(obs.space, space_from_json(noted["env_action"]))
    return Spaces(obs.space, action.space)


def load_rows(
    task: DataTask,
    config: AlgorithmConfig,
    policy: PolicySpec,
    reads: tuple[str, ...],
    world: World,
) -> tuple[RowData | SequenceData, "DataMoments", ValidationReport]:
    """All rows of a task on the learner's device.

    Args:
        task: which rows.
        config: of the run.
        policy: whose connectors and spaces they go through.
        reads: columns of a minibatch beside obs.
        world: of the learner; of several ranks each has every size-th row.

    Raises:
        LakeError: there are none, or they are not what the policy takes.
    """
    began = time.perf_counter()
    spec = task.spec if c.LOGP not in reads else _also(task.spec, c.LOGP)
    # Whose returns look ahead needs the rows ahead.
    ahead = getattr(config, "n_step", 1) != 1 or c.RETURN_TO_GO in reads
    needs = Needs(logp=c.LOGP in reads, contiguous=ahead)
    data, report = load_valid(Lake(task.storage), spec, needs, on_invalid=task.on_invalid)
    rows: RowData | SequenceData
    if c.STEP_MASK in reads:
        from pipelines.sequence_view import sequences_of  # which needs this module's views

        rows, moments = sequences_of(data, config, policy, reads, world)
    else:
        rows, moments = rows_of(data, config, policy, reads, world)
    log.info(
        "offline: %d rows of %d episodes, version %d of steps, %.1f MB in memory after %.1f s",
        rows.rows,
        data.num_episodes,
        data.version,
        rows.num_bytes / 1e6,
        time.perf_counter() - began,
    )
    return rows, moments, report


def _also(spec: DataSpec, column: str) -> DataSpec:
    return dataclasses.replace(spec, columns=tuple(dict.fromkeys((*spec.columns, column))))


@dataclass(frozen=True)
class DataMoments:
    """Statistics of all ranks' rows, as `connectors` ask for them; None for not.

    Attributes:
        obs_moments: of observations.
        reward_moments: of running discounted returns, by whose deviation rewards are divided.
    """

    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None

    @classmethod
    def new(cls, config: AlgorithmConfig, policy: PolicySpec) -> Self:
        """Of no rows yet."""
        return cls(*new_moments(config, policy))

    def update(self, data: Trajectories, obs: Array, *, gamma: float) -> None:
        """Learn from rows and what the module is fed there."""
        if self.obs_moments is not None:
            self.obs_moments.update(obs[: data.rows])
        if self.reward_moments is not None:
            # Forwards, so the recurrence runs over the rows turned round; episodes begin anew.
            begins = np.append(True, data.is_last[:-1])[::-1]
            running = linear_recurrence(data.reward[::-1].copy(), gamma * (1.0 - begins))
            self.reward_moments.update(running)


def rows_of(
    data: Trajectories,
    config: AlgorithmConfig,
    policy: PolicySpec,
    reads: tuple[str, ...],
    world: World,
) -> tuple[RowData, DataMoments]:
    """Trajectories as rows for a learner; see `load_rows`."""
    obs = module_obs(data, policy.obs_connectors)
    moments = DataMoments.new(config, policy)
    moments.update(data, obs, gamma=config.gamma)
    drawn = drawn_rows(data, config, policy, reads, obs=obs, moments=moments)
    mine = slice(world.rank, None, world.size)
    rows = RowData(
        torch.from_numpy(np.ascontiguousarray(obs)),
        torch.from_numpy(drawn.obs_row[mine].copy()),
        {name: _tensor(column[mine]) for name, column in drawn.columns.items()},
        bootstrap_row=None
        if drawn.bootstrap_row is None
        else torch.from_numpy(drawn.bootstrap_row[mine].copy()),
        device=world.device,
    )
    return rows, moments


class DrawnRows(NamedTuple):
    """The rows of some trajectories that can be learned from.

    Attributes:
        obs_row: [N] which observation is each row's, of the P there are.
        bootstrap_row: [N] which one it bootstraps from; None where nobody does.
        columns: name → [N, ...].
    """

    obs_row: Array
    bootstrap_row: Array | None
    columns: dict[str, Array]


def drawn_rows(
    data: Trajectories,
    config: AlgorithmConfig,
    policy: PolicySpec,
    reads: tuple[str, ...],
    *,
    obs: Array,
    moments: DataMoments,
) -> DrawnRows:
    """What a learner reads of trajectories, but for observations.

    Args:
        data: rows of whole episodes, or of parts whose last observation is there.
        config: gamma, steps of a return, how rewards are scaled.
        policy: whose actions these are to be.
        reads: columns of a minibatch beside obs.
        obs: [P, ...] as `module_obs` gave them.
        moments: of all the data.
    """
    assert len(obs) == data.rows + int((data.final_index >= 0).sum())
    index = np.arange(data.rows)
    columns: dict[str, Array] = {}
    bootstrap: Array | None = None
    if _RETURNS & set(reads):
        reward = _learner_reward(data, config, moments)
        discount = config.gamma * (1.0 - data.terminated)
        steps = getattr(config, "n_step", 1)
        end, returns, factor = _returns(reward, discount, data.is_last, steps=steps)
        columns |= {c.RETURN_N: returns, c.BOOTSTRAP_DISCOUNT: factor}
        # Beyond a cut lies the final observation; a terminated row's is never looked at.
        after = np.where(data.is_last[end], data.rows + data.final_index[end], end + 1)
        bootstrap = np.where(data.terminated[end], end, after)
        index = np.flatnonzero(data.is_usable[end])
    if c.RETURN_TO_GO in reads:
        columns[c.RETURN_TO_GO] = discounted_sum(data.reward, np.ones(data.rows), data.is_last)
    if c.ACTION in reads:
        action = policy_actions(data, policy.action_connectors, policy.action_space)
        if not isinstance(action, np.ndarray):
            raise LakeError(
                f"actions of {brief(policy.action_space)} are trees; logged rows can be learned "
                "from where actions are one array."
            )
        columns[c.ACTION] = action
    columns |= {name: data.columns[name] for name in reads if name in data.columns}
    kept = {name: columns[name][index] for name in columns if name in reads}
    return DrawnRows(index, None if bootstrap is None else bootstrap[index], kept)


def _returns(
    reward: Array, discount: Array, is_last: Array, *, steps: int | None
) -> tuple[Array, Array, Array]:
    """[N] row whose next observation is bootstrapped from, return before it, and its factor."""
    if steps is not None:
        found = n_step(reward, discount, is_last, n=steps)
        return found.bootstrap_index, found.return_n, found.bootstrap_discount
    ends = np.flatnonzero(is_last)
    end = ends[np.searchsorted(ends, np.arange(len(reward)))]
    log_factor = np.where(discount > 0, np.log(np.maximum(discount, 1e-300)), 0.0)
    total = linear_recurrence(log_factor, (~is_last).astype(np.float64))
    factor = np.exp(total) * (discount[end] > 0)
    return end, discounted_sum(reward, discount, is_last), factor


def _learner_reward(data: Trajectories, config: AlgorithmConfig, moments: DataMoments) -> Array:
    """Rewards scaled and clipped as `dataflow.learner_reward` has them for rollouts."""
    reward, clip = data.reward, config.connectors.clip_reward
    if moments.reward_moments is not None:
        reward = reward / float(moments.reward_moments.std())
    scaled: Array = reward if clip is None else reward.clip(-clip, clip)
    return scaled


def _tensor(array: Array) -> torch.Tensor:
    """Numbers as learners take them: floats of four bytes."""
    narrow = array.astype(np.float32) if array.dtype == np.float64 else array
    return torch.from_numpy(np.ascontiguousarray(narrow))


def input_versions(task: DataTask) -> Mapping[str, Any]:
    """What the log says of the rows that a run learns from."""
    where = None if task.spec.where is None else [list(x) for x in task.spec.where]
    found = {"lake": task.storage.uri, "steps": task.spec.version, "where": where}
    return {**found, "split": task.spec.split}
