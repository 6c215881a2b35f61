"""Gives a learner its logged rows: all at once where they fit, else as they stream by."""

from typing import Any

import torch

from offline.validation import ValidationReport
from pipelines.offline_data import DataTask, load_rows
from pipelines.offline_stream import ReadFiles, is_too_large, stream_rows
from rl_ops import columns as c
from rl_ops.learner import Learner
from rl_ops.row_memory import available_bytes


def attach(learner: Learner[Any], task: DataTask, *, read: ReadFiles) -> ValidationReport | None:
    """Give a learner its logged rows, and the statistics of all of them.

    Args:
        learner: of rows that are logged.
        task: which ones.
        read: who reads files that stream.

    Returns:
        What was wrong with rows that were loaded at once; None of a stream.

    Raises:
        LakeError: there are no such rows, or they cannot be read.
    """
    config, policy, world = learner.config, learner.policy, learner.world
    # Rows pass through the host's memory on their way to a device's.
    known = [available_bytes(d) for d in {torch.device("cpu"), world.device}]
    free = min(number for number in known if number is not None)
    report = None
    streams = c.STEP_MASK not in learner.reads  # sequences do not
    if streams and is_too_large(task, config.offline, policy, free):
        learner.data, moments = stream_rows(task, config, policy, learner.reads, world, read=read)
    else:
        learner.data, moments, report = load_rows(task, config, policy, learner.reads, world)
    modules: Any = learner.modules
    for name in ("obs_moments", "reward_moments"):
        own, found = getattr(modules, name), getattr(moments, name)
        if own is not None and found is not None and found.count:
            own.merge(found)
    return report
