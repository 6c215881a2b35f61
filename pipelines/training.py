"""A plan's learner and its loop, from nothing or from a checkpoint; used with Ray and without."""

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offline.validation import rejected_rows
from pipelines import ALGORITHMS
from pipelines.batch_reader import BatchReader
from pipelines.callbacks import CallbackSpec, observers
from pipelines.checkpoint import Checkpoint, write_checkpoint
from pipelines.config import AlgorithmConfig, OffPolicyConfig
from pipelines.config_errors import ConfigError, Problem
from pipelines.dataflow import Dataflow, LakeSource, Plan, make_plan, with_then
from pipelines.errors import CheckpointError
from pipelines.learn import EpisodeWindow, Flow, LearnLoop, Reached
from pipelines.memory_state import Origins, load_memory, save_memory
from pipelines.offline_attach import attach
from pipelines.offline_data import DataTask
from pipelines.offline_stream import ReadFiles, read_here
from pipelines.specs import Spaces, policy_spec, rollout_spec
from pipelines.tracing import Trace, make_sink
from rl_ops.learner import Learner, World


@dataclass(frozen=True)
class TrainTask:
    """What a learner rank is told.

    Attributes:
        plan: the run's plan.
        started_at: epoch seconds at which the driver's process started.
        train_storage: where Ray Train keeps its own files.
        resume: checkpoint to go on from.
        incarnation: the run's session; part of seeds and episode ids.
        trace: where steps are logged; None nowhere.
        data: logged rows to learn from; None for none.
    """

    plan: Plan
    started_at: float
    train_storage: str = ""
    resume: str | None = None
    incarnation: int = 0
    trace: Trace | None = None
    data: DataTask | None = None


def plan_for(config: AlgorithmConfig, *, run_id: str, spaces: Spaces | None = None) -> Plan:
    """Bind a configuration to its environment and check every column, starting nothing.

    Args:
        config: of the run.
        run_id: its name.
        spaces: where they are known without making the environment.

    Raises:
        UnknownEnvError, SpecError, ColumnError: what does not fit.
        ConfigError: callbacks that cannot be made.
    """
    dataflow = importlib.import_module(ALGORITHMS[config.algo][0]).dataflow(config)
    dataflow = observed(dataflow, callback_specs(config))
    policy = policy_spec(config, dataflow.policy, dataflow.source.act, spaces)
    return make_plan(config, dataflow, rollout_spec(config, policy, run_id=run_id))


def callback_specs(config: AlgorithmConfig) -> tuple[CallbackSpec, ...]:
    """The callbacks that a configuration names."""
    named = ({"path": x} if isinstance(x, str) else x.model_dump() for x in config.callbacks)
    return tuple(CallbackSpec(**x, where=f"callbacks.{i}") for i, x in enumerate(named))


def observed(dataflow: Dataflow, specs: Sequence[CallbackSpec]) -> Dataflow:
    """The dataflow with the operator that tells callbacks of fragments, where some want to know."""
    observe, source = observers(specs), dataflow.source
    if not observe or isinstance(source, LakeSource):
        return dataflow
    return dataclasses.replace(dataflow, source=with_then(source, (*source.then, *observe)))


def pick_device(plan: Plan) -> torch.device:
    """The learner's device outside a worker group.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    wanted = plan.config.learner.device
    if wanted == "cuda" and not torch.cuda.is_available():
        what = "got cuda, but torch sees no CUDA device"
        raise ConfigError(Problem("learner.device", what, "set cpu or auto"))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def logged_updates(config: AlgorithmConfig) -> int | None:
    """Gradient steps of an iteration on logged rows alone; None where something rolls out."""
    if not config.is_offline:
        return None
    assert isinstance(config, OffPolicyConfig)
    assert config.offline is not None
    return config.offline.updates_per_iteration


def pick_threads(config: AlgorithmConfig) -> int:
    """Torch threads of each learner process; see `LearnerConfig.num_threads`."""
    return config.learner.num_threads or 1


def make_loop(
    task: TrainTask, flow: Flow, world: World, *, read: ReadFiles = read_here
) -> LearnLoop:
    """The learner's loop, restored when the task resumes a checkpoint.

    Args:
        task: what is to run.
        flow: to the rest of the run.
        world: this learner's place.
        read: who reads logged steps that stream.
    """
    plan, config = task.plan, task.plan.config
    torch.set_num_threads(pick_threads(config))
    learner = plan.dataflow.learner(config, plan.policy, world=world)
    learner.seed(config.seed)
    loop = LearnLoop(
        learner=learner,
        flow=flow,
        to_batch=BatchReader.of_learner(plan, world.device),
        ids=FragmentIds(plan, rank=world.rank, ranks=world.size),
        reached=Reached(config.stop),
        window=EpisodeWindow(config.reporting.window_episodes),
        save=Saver(plan, task.trace),
        sink=make_sink(plan, task.trace, rank=world.rank),
        origins=_origins(plan),
        origin=(
            None if task.trace is None else task.trace.storage.uri,
            plan.rollout.run_id,
            task.incarnation,
        ),
        incarnation=task.incarnation,
        started_at=task.started_at,
    )
    if task.data is not None:
        report = attach(learner, task.data, read=read)
        if report is not None and report.problems and loop.sink is not None and not world.rank:
            run_id, session = plan.rollout.run_id, task.incarnation
            loop.sink.rejected(rejected_rows(report, run_id=run_id, session=session))
    if task.resume is not None:
        restore(loop, plan, Checkpoint(task.resume))
    return loop


def _origins(plan: Plan) -> Origins | None:
    replay = plan.dataflow.replay
    return None if replay is None else Origins(replay.memory.capacity_rows)


@dataclass(frozen=True)
class FragmentIds:
    """Which fragments a rank consumes for a version: those of its own rollout workers."""

    plan: Plan
    rank: int = 0
    ranks: int = 1

    def __call__(self, version: int) -> Sequence[int]:
        """Ascending ids."""
        per_version = self.plan.dataflow.fragments_per_version
        first = version * per_version
        # Lanes are a multiple of ranks, and a worker's rank is that of its lane.
        return [k for k in range(first, first + per_version) if k % self.ranks == self.rank]


@dataclass(frozen=True)
class Saver:
    """Writes checkpoints of a loop."""

    plan: Plan
    trace: Trace | None = None

    def __call__(self, loop: LearnLoop, folder: str) -> str:
        """Write everything that going on exactly needs; all ranks call it, and rank 0 writes."""
        learner = loop.learner
        # Before the checkpoint, so that one that is there names versions that hold its rows.
        versions = loop.logged()
        generators = learner.world.gather_objects(learner.state()["generator"])
        memory = save_memory(learner, loop.origins, self.plan, self.trace)
        if learner.world.rank:
            return folder
        weights = learner.weights()
        state: dict[str, Any] = {
            "learner": learner.state(),
            "generators": generators,
            "loop": loop.state(),
            "policy": self.plan.policy.to_json(),
            "run_id": self.plan.rollout.run_id,
            "acts_with": "model",
            "statistics": {
                "obs_mean": None if weights.obs_mean is None else weights.obs_mean.tolist(),
                "obs_std": None if weights.obs_std is None else weights.obs_std.tolist(),
                "reward_std": weights.reward_std,
            },
        }
        if self.trace is not None:
            state["lake"] = {
                "uri": self.trace.storage.uri,
                "session": self.trace.session,
                "versions": versions,
                "fragments": learner.version * self.plan.dataflow.fragments_per_version,
            }
        tensors: dict[str, Any] = learner.modules.state()
        if memory is not None:
            tensors["memory"], state["memory"] = memory
        write_checkpoint(
            Path(folder),
            tensors=tensors,
            state=state,
            config=self.plan.config.model_dump(mode="json"),
        )
        return folder


def restore(loop: LearnLoop, plan: Plan, checkpoint: Checkpoint) -> None:
    """Put a loop where the checkpoint's was.

    Raises:
        CheckpointError: the checkpoint is of another architecture or optimiser; lists the keys
            that differ.
    """
    learner: Learner[Any] = loop.learner
    saved, here = checkpoint.config["optim"]["kind"], learner.config.optim.kind
    if saved != here:  # adam's and rmsprop's tensors have the same names and shapes
        raise CheckpointError(f"{checkpoint.path}: optim.kind: checkpoint {saved}, here {here}")
    try:
        learner.modules.load(checkpoint.tensors())
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    state, generators = checkpoint.state["learner"], checkpoint.state["generators"]
    if learner.world.rank < len(generators):
        state = {**state, "generator": generators[learner.world.rank]}
    learner.load_state(state)
    loop.load_state(checkpoint.state["loop"])
    load_memory(learner, loop.origins, plan, checkpoint)
