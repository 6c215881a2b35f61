"""Running a plan on Ray: tickets → rollout actors (Ray Data) → learner (Ray Train)."""

import warnings
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.data.block import BlockMetadataWithSchema
from ray.train import DataConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.coordinator import Coordinator
from pipelines.dataflow import Plan
from pipelines.flow import FlowControl
from pipelines.lean_ray import lean_train
from pipelines.ray_session import tune_ray_data
from pipelines.rollout_worker import RolloutWorker
from pipelines.train_function import train_function
from pipelines.training import TrainTask

_MAX_PAUSE_S = 365 * 86400
MAX_TICKETS = 50_000
"""Of one execution of Ray Data; then a new one follows, with new rollout workers."""


def start_coordinator(plan: Plan, *, name: str, start_version: int, incarnation: int) -> Any:
    """Start the run's named coordinator actor and return its handle."""
    config = plan.config
    flow = FlowControl(
        fragments_per_version=plan.dataflow.fragments_per_version,
        max_policy_lag=plan.dataflow.max_policy_lag,
        num_workers=config.num_rollouts,
        num_lanes=config.num_lanes,
        start_version=start_version,
        budget=start_version,
    )
    # Beside the driver, whose end is the run's: elsewhere a lost node would be the end of it, too.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=10_000)(Coordinator)
    return actor.options(name=f"millrace/{name}", scheduling_strategy=here).remote(
        flow, ranks=max(1, config.learner.num_workers), incarnation=incarnation
    )


def rollout_dataset(plan: Plan, coordinator: Any, *, rank: int) -> Dataset:
    """The stream of fragments for one learner rank."""
    with warnings.catch_warnings():
        # max_restarts has no named parameter yet in Ray 2.60, and is warned about all the same.
        warnings.filterwarnings("ignore", ".*ray_remote_args.*", DeprecationWarning)
        return _rollouts(plan, coordinator, rank=rank)


def _rollouts(plan: Plan, coordinator: Any, *, rank: int) -> Dataset:
    config = plan.config
    ranks = max(1, config.learner.num_workers)
    resources = config.resources
    # Ray Data would otherwise restart workers for ever.
    restarts = config.faults.max_worker_restarts
    return tickets(MAX_TICKETS).map_batches(
        RolloutWorker,
        fn_constructor_args=(coordinator, plan.rollout, plan.dataflow.source.then, rank),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=resources.rollout_cpus,
        num_gpus=resources.rollout_gpus,
        # One task in flight: a queued second one makes every scheduling step last 100 ms. "True
        # multi-threading" is how Ray Data calls the worker in the task's own thread, where its
        # task id can be asked for; with one task in flight there is only one thread.
        compute=ActorPoolStrategy(
            size=config.rollout.num_workers // ranks,
            max_tasks_in_flight_per_actor=1,
            enable_true_multi_threading=True,
        ),
        resources=resources.rollout_custom or None,
        max_restarts=restarts,
        # As often as it takes: while a lost node is not yet known to be lost, retries go by in
        # milliseconds. What bounds them is that a worker is restarted so often and no more.
        max_task_retries=-1,
    )


def tickets(count: int) -> Dataset:
    """`count` one-row blocks, all the same object: a ticket is anonymous, and costs no put."""
    from ray.data._internal.execution.interfaces import RefBundle
    from ray.data._internal.execution.interfaces.ref_bundle import BlockEntry
    from ray.data._internal.logical.interfaces import LogicalPlan
    from ray.data._internal.logical.operators import InputData
    from ray.data._internal.stats import DatasetStats
    from ray.data.dataset import MaterializedDataset

    block = pa.table({"ticket": pa.array([0], pa.int8())})
    metadata = BlockMetadataWithSchema.from_block(block)
    entry = BlockEntry(ref=ray.put(block), metadata=metadata.metadata)
    bundle = RefBundle((entry,), schema=metadata.schema, owns_blocks=False)
    operator = InputData([bundle] * count)
    context = ray.data.DataContext.get_current().copy()
    stats = DatasetStats(metadata={"Tickets": [metadata]}, parent=None)
    return MaterializedDataset(LogicalPlan(operator, context), context, stats)


def make_trainer(plan: Plan, coordinator: Any, task: TrainTask, *, name: str) -> TorchTrainer:
    """The learner stage; `fit` blocks until the coordinator tells it to stop."""
    tune_ray_data()
    config = plan.config
    ranks = config.learner.num_workers
    rolls_out = config.rollout.num_workers > 0 and not config.is_offline
    streams = range(max(1, ranks)) if rolls_out else ()
    datasets = {
        f"rollouts_{rank}": rollout_dataset(plan, coordinator, rank=rank) for rank in streams
    }
    if ranks:
        lean_train()
    resources = {"CPU": config.resources.learner_cpus, **config.resources.learner_custom}
    if config.resources.learner_gpus:
        resources["GPU"] = config.resources.learner_gpus
    return TorchTrainer(
        train_function,
        train_loop_config={"task": task, "coordinator": coordinator},
        datasets=datasets,
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=bool(config.resources.learner_gpus),
            resources_per_worker=resources if ranks else None,
        ),
        # While a run is paused, rank 0 waits for the driver and the others for rank 0.
        torch_config=TorchConfig(timeout_s=_MAX_PAUSE_S),
        run_config=RunConfig(name=name, storage_path=task.train_storage),
        # Every rank iterates a stream of its own, so nothing has to be split between them.
        dataset_config=DataConfig(datasets_to_split=[], enable_shard_locality=False),
    )
