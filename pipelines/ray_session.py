"""Starting Ray so that the closed loop is fast: settings that have to be there before it starts."""

import logging
import os
from typing import Any

# Read by Ray's processes when they start; docs/decisions.md says what each was measured to save.
_SETTINGS = {
    "RAY_DATA_METADATA_PREFETCH_ON_THREAD": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
}


def start_ray(*, address: str | None = None, num_cpus: float | None = None) -> bool:
    """Connect to Ray, starting a local one where none is.

    Args:
        address: of a cluster; None starts or joins a local one.
        num_cpus: logical CPUs of a local one; None takes the machine's cores.

    Returns:
        Whether this call started or joined it, and so should shut it down.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"address": address} if address else {"num_cpus": num_cpus}
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING, **options)
    return True


def tune_ray_data() -> None:
    """Set this process's Ray Data context for gated streams of small blocks."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None
    context.enable_stats_summary_collection = False
    context.execution_no_progress_timeout_s = 10 * 365 * 86400.0  # a paused run makes no progress
    logging.getLogger("ray.data").setLevel(logging.WARNING)
