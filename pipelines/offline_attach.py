"""Gives a learner its logged rows: all at once where they fit, else as they stream by."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch

from offline.errors import NoRowsError
from offline.validation import ValidationReport
from pipelines.offline_data import DataTask, load_rows
from pipelines.offline_stream import ReadFiles, is_too_large, stream_rows
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.row_memory import available_bytes

log = logging.getLogger(__name__)


def attach(learner: Any, task: DataTask, *, read: ReadFiles) -> ValidationReport | None:
    """Give a learner its logged rows, and the statistics of all of them.

    Args:
        learner: of rows that are logged, a `ReplayLearner`.
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
    # Sequences are always loaded at once.
    is_sequence = c.STEP_MASK in learner.reads
    streams = not is_sequence and is_too_large(task, config.offline, policy, free)
    learner.held_out = held_out(learner, task, read=read, streams=streams)
    if streams:
        learner.data, moments = stream_rows(task, config, policy, learner.reads, world, read=read)
    else:
        learner.data, moments, report = load_rows(task, config, policy, learner.reads, world)
    modules: Any = learner.modules
    for name in ("obs_moments", "reward_moments"):
        own, found = getattr(modules, name), getattr(moments, name)
        if own is not None and found is not None and found.count:
            own.merge(found)
    return report


def held_out(learner: Any, task: DataTask, *, read: ReadFiles, streams: bool) -> Sequence[Batch]:
    """Minibatches of the episodes that `offline.split` leaves out, the same in every run.

    Args:
        learner: of the other episodes.
        task: which ones those are.
        read: who reads files that stream.
        streams: whether the rows are too many to be loaded at once.

    Returns:
        As many as `offline.validation_minibatches`; none where nothing is left out.

    Raises:
        LakeError: rows cannot be read.
    """
    config = learner.config
    count, rows = config.offline.validation_minibatches, config.minibatch_rows
    if task.spec.split == 1.0 or not count:
        return ()
    rest = dataclasses.replace(task, spec=dataclasses.replace(task.spec, part="rest"))
    generator = torch.Generator().manual_seed(0)
    data: Any
    try:
        if streams:
            one_window = config.with_overrides({"offline.shuffle_rows": count * rows})
            data, _ = stream_rows(
                rest, one_window, learner.policy, learner.reads, learner.world, read=read
            )
        else:
            data, _, _ = load_rows(rest, config, learner.policy, learner.reads, learner.world)
        return list(data.minibatches(count, rows, generator=generator))
    except NoRowsError:
        log.warning(
            "offline.split=%g leaves out none of these episodes: there is nothing to validate on",
            task.spec.split,
        )
        return ()
