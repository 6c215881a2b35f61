"""A dataflow: where rows come from, what is added to them, and which learner consumes them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipelines.config import AlgorithmConfig, DataConfig, OffPolicyConfig
from pipelines.specs import PolicyKind
from rl_ops import columns as c
from rl_ops.exploration import Act, Sample
from rl_ops.learner import Learner
from rl_ops.operators import ClipReward, Operator, fold_columns
from rl_ops.policy import PolicySpec
from rl_ops.replay import ReplaySpec
from rl_ops.rollout import RolloutSpec


def learner_reward(config: AlgorithmConfig) -> tuple[tuple[Operator, ...], str]:
    """The operators that make the reward which the learner sees, and the column that has it."""
    connectors = config.connectors
    reward = c.SCALED_REWARD if connectors.normalize_reward else c.REWARD
    if connectors.clip_reward is None:
        return (), reward
    return (ClipReward(connectors.clip_reward, reward=reward),), c.CLIPPED_REWARD


@dataclass(frozen=True)
class Rollouts:
    """Rows from environments.

    Attributes:
        act: how actions are chosen.
        then: operators fused into the rollout worker, in order.
    """

    act: Act = field(default_factory=Sample)
    then: tuple[Operator, ...] = ()


@dataclass(frozen=True)
class LakeSource:
    """Rows of a version of the lake's table of steps.

    Attributes:
        data: which, and how they are loaded.
        act: how the policy would explore, which evaluation can ask for.
    """

    data: DataConfig
    act: Act = field(default_factory=Sample)
    then: ClassVar[tuple[Operator, ...]] = ()

    def describe(self) -> str:
        """As a line of the plan."""
        data = self.data
        at = data.timestamp or ("newest version" if data.version is None else data.version)
        where = "".join(f", {' '.join(map(str, condition))}" for condition in data.where)
        part = f", {data.split:g} of the episodes" if data.split < 1 else ""
        return f"LakeSource({data.table}@{at}{where}{part})"


@dataclass(frozen=True)
class Mixed:
    """Rows of rollouts and of a lake, side by side in each minibatch.

    Attributes:
        rollouts: go through the replay memory.
        lake: a share of each minibatch.
    """

    rollouts: Rollouts
    lake: LakeSource

    @property
    def act(self) -> Act:
        """Of the rollouts."""
        return self.rollouts.act

    @property
    def then(self) -> tuple[Operator, ...]:
        """Of the rollouts."""
        return self.rollouts.then


Source = Rollouts | LakeSource | Mixed


def source_of(config: OffPolicyConfig, rollouts: Rollouts) -> Source:
    """Rollouts, logged rows, or both, as `offline` of the configuration says."""
    if config.offline is None:
        return rollouts
    lake = LakeSource(config.offline, rollouts.act)
    return lake if config.is_offline else Mixed(rollouts, lake)


@dataclass(frozen=True)
class Replayed:
    """Rows go through a replay memory, from which the learner draws them.

    Attributes:
        memory: the memory of each learner rank.
        minibatch_rows: rows of a gradient step.
        updates_per_row: gradient steps per row consumed.
        starts_rows: rows consumed before the first gradient step.
    """

    memory: ReplaySpec
    minibatch_rows: int
    updates_per_row: float
    starts_rows: int

    def describe(self) -> str:
        """As a line of the plan."""
        memory = self.memory
        how = f"prioritized ^{memory.priority_alpha:g}" if memory.prioritized else "uniform"
        return (
            f"Replay({memory.capacity_rows} rows, {how}, {self.updates_per_row:g} updates a row of "
            f"{self.minibatch_rows} rows, from {self.starts_rows} rows on)"
        )


@dataclass(frozen=True)
class Dataflow:
    """One algorithm's dataflow.

    Attributes:
        source: where rows come from.
        learner: consumes them.
        policy: what acts.
        replay: the memory between rows and learner; None for none.
        fragments_per_version: F, how many fragments one update consumes.
        max_policy_lag: versions between acting and consuming, at most.
    """

    source: Source
    learner: type[Learner[Any]]
    fragments_per_version: int = 1
    policy: PolicyKind = field(default_factory=PolicyKind)
    replay: Replayed | None = None
    max_policy_lag: int = 0


@dataclass(frozen=True)
class Plan:
    """A dataflow bound to a configuration and an environment's spaces, checked and printable."""

    config: AlgorithmConfig
    dataflow: Dataflow
    rollout: RolloutSpec
    columns: tuple[str, ...]

    @property
    def policy(self) -> PolicySpec:
        """What acts."""
        return self.rollout.policy

    def describe(self) -> str:
        """The plan as text: each stage, what it reads and adds, and the flow control between."""
        config, flow = self.config, self.dataflow
        lines = [f"{config.algo} on {config.env.id}", ""]
        if isinstance(flow.source, LakeSource):
            reads = ", ".join(self.columns)
            lines += [flow.source.describe(), f"  gives  {reads}"]
            lines += [f"-> minibatches of {getattr(config, 'minibatch_rows', 0)} rows"]
        else:
            lines += self._rollout_lines()
        if isinstance(flow.source, Mixed):
            lines += [
                f"+  {flow.source.lake.describe()}, {flow.source.lake.data.frac:g} of the rows"
            ]
        ranks = config.learner.num_workers
        where = f"{ranks} Ray Train workers" if ranks else "the driver (Ray Train local mode)"
        lines += [f"-> {flow.learner.__name__} in {where}"]
        obs = c.OBS if config.is_offline else self.rollout.obs_column
        lines += [f"  reads  {', '.join((obs, *flow.learner.reads))}"]
        lines += [] if config.is_offline else ["-> weights, by version, to Rollouts"]
        return "\n".join(lines)

    def _rollout_lines(self) -> list[str]:
        config, flow, rollout = self.config, self.dataflow, self.rollout
        is_whole = rollout.batch_mode == "complete_episodes"
        rows = f"{rollout.num_envs * rollout.fragment_steps} rows{' or more' * is_whole}"
        steps = f"{rollout.fragment_steps} steps{' or more in whole episodes' * is_whole}"
        workers = config.rollout.num_workers
        who = f"{workers} workers" if workers else f"{config.num_rollouts} learner processes"
        source = f"Rollouts({config.env.id}, {who} x {rollout.num_envs} envs x {steps})"
        lines = [source, f"  acts   {rollout.policy.act!r}"]
        lines.append(f"  adds   {', '.join(rollout.adds)}")
        for operator in flow.source.then:
            lines += [f"-> {operator!r}", f"  reads  {', '.join(operator.reads)}"]
            lines.append(f"  adds   {', '.join(operator.adds)}")
        lines.append(
            f"-> Fragments({flow.fragments_per_version} x {rows} a version, "
            f"max_policy_lag={flow.max_policy_lag}, "
            f"window={flow.fragments_per_version * (1 + flow.max_policy_lag)})"
        )
        lines += [f"-> {flow.replay.describe()}"] if flow.replay else []
        return lines


def make_plan(config: AlgorithmConfig, dataflow: Dataflow, rollout: RolloutSpec) -> Plan:
    """Fold the columns of a dataflow before any process starts.

    Raises:
        ColumnError: an operator or the learner reads what nobody adds.
        SpecError: the policy's actions are not for the act that explores.
    """
    rollout.policy.act.check(rollout.policy.distribution)
    name = dataflow.learner.__name__
    if isinstance(dataflow.source, LakeSource):
        fold_columns(LOGGED, [LearnerReads(name, dataflow.learner.reads)])
        columns = (c.OBS, *dataflow.learner.reads)
        return Plan(config=config, dataflow=dataflow, rollout=rollout, columns=columns)
    then = tuple(_bound(operator, rollout.obs_column) for operator in dataflow.source.then)
    dataflow = dataclasses.replace(dataflow, source=with_then(dataflow.source, then))
    wanted = {column for operator in then for column in operator.reads}
    wanted |= set(dataflow.learner.reads)
    rollout = dataclasses.replace(rollout, keep=rollout.keep | (wanted & _ON_DEMAND))
    columns = fold_columns(rollout.adds, then)
    learner = LearnerReads(name, (rollout.obs_column, *dataflow.learner.reads))
    fold_columns(columns, [learner])
    return Plan(config=config, dataflow=dataflow, rollout=rollout, columns=columns)


_ON_DEMAND = {c.FINAL_MODEL_OBS, c.Q_VALUE}
"""Columns that rollouts emit where something reads them."""


LOGGED = (
    *(c.OBS, c.ACTION, c.RETURN_N, c.BOOTSTRAP_OBS, c.BOOTSTRAP_DISCOUNT, c.LOGP, c.VALUE),
    *(c.RETURN_TO_GO, c.T, c.STEP_MASK),
)
"""Columns that are made of logged rows."""


def with_then(source: Rollouts | Mixed, then: tuple[Operator, ...]) -> Rollouts | Mixed:
    """The source with other operators behind its rollouts."""
    if isinstance(source, Rollouts):
        return dataclasses.replace(source, then=then)
    return dataclasses.replace(source, rollouts=dataclasses.replace(source.rollouts, then=then))


def _bound(operator: Operator, obs_column: str) -> Operator:
    """An operator that names the module's observations, with the column that has them."""
    if not dataclasses.is_dataclass(operator) or isinstance(operator, type):
        return operator
    named = [f.name for f in dataclasses.fields(operator)]
    changed = dict.fromkeys((n for n in named if getattr(operator, n) == c.MODEL_OBS), obs_column)
    return dataclasses.replace(operator, **changed)


class LearnerReads:
    """The learner as the last operator of a plan: it only reads."""

    adds: tuple[str, ...] = ()

    def __init__(self, name: str, reads: Sequence[str]) -> None:
        self.reads = tuple(reads)
        self.name = name

    def __call__(self, table: Any) -> Any:
        """The learner consumes the table; nothing comes after it."""
        return table
