"""A dataflow: where rows come from, what is added to them, and which learner consumes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.config import AlgorithmConfig
from rl_ops.learner import Learner
from rl_ops.operators import Operator, fold_columns
from rl_ops.policy import PolicySpec
from rl_ops.rollout import Act, RolloutSpec, Sample


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
class Dataflow:
    """One algorithm's dataflow.

    Attributes:
        source: where rows come from.
        learner: consumes them.
        fragments_per_version: F, how many fragments one update consumes.
        max_policy_lag: versions between acting and consuming, at most.
    """

    source: Rollouts
    learner: type[Learner[Any]]
    fragments_per_version: int
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
        config, flow, rollout = self.config, self.dataflow, self.rollout
        is_whole = rollout.batch_mode == "complete_episodes"
        rows = f"{rollout.num_envs * rollout.fragment_steps} rows{' or more' * is_whole}"
        steps = f"{rollout.fragment_steps} steps{' or more in whole episodes' * is_whole}"
        source = (
            f"Rollouts({config.env.id}, {config.rollout.num_workers} workers x "
            f"{rollout.num_envs} envs x {steps}, act={rollout.act.kind})"
        )
        lines = [f"{config.algo} on {config.env.id}", "", source]
        lines.append(f"  adds   {', '.join(rollout.adds)}")
        for operator in flow.source.then:
            lines += [f"-> {operator!r}", f"  reads  {', '.join(operator.reads)}"]
            lines.append(f"  adds   {', '.join(operator.adds)}")
        lines.append(
            f"-> Fragments({flow.fragments_per_version} x {rows} a version, "
            f"max_policy_lag={flow.max_policy_lag}, "
            f"window={flow.fragments_per_version * (1 + flow.max_policy_lag)})"
        )
        ranks = config.learner.num_workers
        where = f"{ranks} Ray Train workers" if ranks else "the driver (Ray Train local mode)"
        lines += [f"-> {flow.learner.__name__} in {where}"]
        reads = (rollout.obs_column, *flow.learner.reads)
        lines += [f"  reads  {', '.join(reads)}", "-> weights, by version, to Rollouts"]
        return "\n".join(lines)


def make_plan(config: AlgorithmConfig, dataflow: Dataflow, rollout: RolloutSpec) -> Plan:
    """Fold the columns of a dataflow before any process starts.

    Raises:
        ColumnError: an operator or the learner reads what nobody adds.
    """
    columns = fold_columns(rollout.adds, dataflow.source.then)
    learner = LearnerReads(dataflow.learner.__name__, (rollout.obs_column, *dataflow.learner.reads))
    fold_columns(columns, [learner])
    return Plan(config=config, dataflow=dataflow, rollout=rollout, columns=columns)


class LearnerReads:
    """The learner as the last operator of a plan: it only reads."""

    adds: tuple[str, ...] = ()

    def __init__(self, name: str, reads: Sequence[str]) -> None:
        self.reads = tuple(reads)
        self.name = name

    def __call__(self, table: Any) -> Any:
        """The learner consumes the table; nothing comes after it."""
        return table
