"""A local Ray without the processes that one machine does not need. Private Ray APIs live here.

A fresh `ray.init` starts a dashboard, an autoscaler monitor, a log monitor and two agents, and the
first Ray Data execution three more actors: 5.4 of the 10.8 CPU-seconds before a first result on two
cores (measured, docs/decisions.md). On one machine that nothing can be added to they have no work.
A cluster (`--ray-address`) is used as it is. Written for Ray 2.60, which pyproject.toml pins.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

_AGENT = "--dashboard_agent_command="
_undo: contextlib.ExitStack | None = None


@contextlib.contextmanager
def lean_head() -> Iterator[None]:
    """While it is active, starting a head node starts only GCS, raylet and workers."""
    from ray._private import node, services

    def start_nothing(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG001
        return None

    def start_process(command: list[str], *args: Any, **kwargs: Any) -> Any:
        return original([_minimal(part) for part in command], *args, **kwargs)

    original = services.start_ray_process
    replaced: list[tuple[Any, str, Any]] = [
        (node.Node, "start_monitor", start_nothing),
        (node.Node, "start_log_monitor", start_nothing),
        (node.Node, "start_api_server", start_nothing),
        (services, "start_ray_process", start_process),
    ]
    with _replaced(replaced):
        yield


def _minimal(part: str) -> str:
    return f"{part} --minimal" if part.startswith(_AGENT) else part


@contextlib.contextmanager
def _replaced(names: list[tuple[Any, str, Any]]) -> Iterator[None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in names]
    for owner, name, value in names:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


class _Method:
    """`method.remote(...)` that does nothing, or gives what it was made with."""

    def __init__(self, result: Callable[[], Any] | None = None) -> None:
        self._result = result

    def remote(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        return None if self._result is None else self._result()


class _NoActor:
    """Stands in for a Ray Data service actor: takes every call, keeps nothing."""

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Method()


class _FixedResources(_NoActor):
    """Stands in for the autoscaling coordinator: all of this machine is this execution's."""

    def __init__(self) -> None:
        import ray

        resources = {
            node["NodeID"]: {
                name: value for name, value in node["Resources"].items() if ":" not in name
            }
            for node in ray.nodes()
            if node["Alive"]
        }
        reserved = ray.put(resources)
        self.get_reserved_resources = _Method(lambda: reserved)


class _RandomIds(_NoActor):
    """Stands in for the statistics actor, whose one answer is a new dataset's id."""

    def __init__(self) -> None:
        import uuid

        import ray

        self.gen_dataset_id = _Method(lambda: ray.put(uuid.uuid4().hex))


def lean_data() -> None:
    """Spare Ray Data in this process its service actors, until `plain_data`."""
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as autoscaling
    from ray.data._internal.execution.operators import actor_pool_map_operator as pool

    global _undo
    plain_data()
    fixed, ids, nothing = _FixedResources(), _RandomIds(), _NoActor()
    replaced: list[tuple[Any, str, Any]] = [
        (autoscaling, "get_or_create_autoscaling_coordinator", lambda: fixed),
        (stats, "get_or_create_stats_actor", lambda: ids),
        (pool, "get_or_create_actor_location_tracker", lambda: nothing),
        # Without news the pool takes an actor to be where it started.
        (pool, "get_actor_locations", lambda logical_ids: {}),  # noqa: ARG005
    ]
    _undo = contextlib.ExitStack()
    _undo.enter_context(_replaced(replaced))


def plain_data() -> None:
    """Give Ray Data its service actors back: the Ray that did without them has ended."""
    global _undo
    if _undo is not None:
        _undo.close()
        _undo = None


def lean_train() -> None:
    """Spare Ray Train the actor that watches its controller, where `lean_data` is in force.

    It asks the dashboard, which is not there: each question lasts 10 s, and so does the end of
    every run with a worker group. What it would clean up ends with the driver's own Ray.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2.api import data_parallel_trainer

    if _undo is not None:
        bases = ControllerCallback, WorkerGroupCallback
        cleaner = type("NoCleaner", bases, {})
        replaced = [(data_parallel_trainer, "PlacementGroupCleanerCallback", cleaner)]
        _undo.enter_context(_replaced(replaced))
