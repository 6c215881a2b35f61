"""Starting Ray so that the closed loop is fast: settings that have to be there before it starts."""

import contextlib
import logging
import os
import threading
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

# Read by Ray's processes when they start; docs/decisions.md says what each was measured to save.
_SETTINGS = {
    "RAY_DATA_METADATA_PREFETCH_ON_THREAD": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Niced workers starve whenever anything else wants their core.
    "RAY_worker_niceness": "0",
    # Errors of its core that Ray recovers from go to its log files, not to the user's terminal.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}

_NOT_SHIPPED = (".git", ".venv", "venv", "**/__pycache__", "ray_results", "lake")
"""Of a working directory, beside what its .gitignore leaves out."""

_started: Future[bool] | None = None


def start_ray_soon() -> None:
    """Begin to start a local Ray in a thread; `start_ray` then waits for it."""
    global _started
    if _started is not None:
        return
    _started = future = Future[bool]()

    def start() -> None:
        try:
            future.set_result(_start(None))
        except BaseException as error:  # noqa: BLE001 - raised by start_ray, in the thread that waits
            future.set_exception(error)
        # Ray's processes are told by the kernel to die with the thread that started them.
        threading.Event().wait()

    threading.Thread(target=start, name="ray", daemon=True).start()


def ray_is_up() -> bool:
    """Whether this process is connected to a Ray; one that is being started is not up yet."""
    if _started is not None:
        return False
    import ray

    return bool(ray.is_initialized())


def start_ray(*, address: str | None = None, ships: Path | None = None) -> bool:
    """Connect to Ray, starting a local one where none is.

    A local one has as many logical CPUs as the machine has cores, and none of the service processes
    that one machine does without; see `lean_ray`.

    Args:
        address: of a cluster; None starts or joins a local one.
        ships: folder with code of the user's own, which the cluster's nodes are to have.

    Returns:
        Whether this call (or `start_ray_soon`) started or joined it, and so should shut it down.
    """
    global _started
    if _started is None or address is not None:
        return _start(address, ships)
    future, _started = _started, None
    return future.result()


def _start(address: str | None, ships: Path | None = None) -> bool:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    from pipelines.lean_ray import lean_data, lean_head

    if ray.is_initialized():
        return False
    if address is not None:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env=None if ships is None else runtime_env(ships),
        )
        return True
    with warnings.catch_warnings(), lean_head():
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(
            # "local" means a new one: never by chance another user's on this machine.
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    _mute_task_errors()
    lean_data()
    _hide_token()
    return True


def runtime_env(folder: Path) -> dict[str, Any] | None:
    """What starts workers in a copy of a folder; None where a Ray job has done so already."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    return {"working_dir": str(folder), "excludes": list(_NOT_SHIPPED)}


def _hide_token() -> None:
    """Ray 2.60 leaves the token that opens its ports readable by every user of the machine."""
    with contextlib.suppress(OSError):  # none was made, or it is another user's
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def stop_ray() -> None:
    """Disconnect from Ray, ending it where `start_ray` started it."""
    import ray

    from pipelines.lean_ray import plain_data

    ray.shutdown()
    plain_data()


def _mute_task_errors() -> None:
    """Keep Ray from printing to stdout that tasks it retries failed; what matters is raised."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher

    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def tune_ray_data() -> None:
    """Set this process's Ray Data context for gated streams of small blocks."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None
    context.enable_stats_summary_collection = False
    context.execution_no_progress_timeout_s = 10 * 365 * 86400.0  # a paused run makes no progress
    logging.getLogger("ray.data").setLevel(logging.ERROR)
