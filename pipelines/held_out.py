"""Losses on episodes that are not learned from: a learner's own steps on them, taken back."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from rl_ops.batch import Batch
from rl_ops.learner import Averages, Metrics

if TYPE_CHECKING:
    from pipelines.off_policy import ReplayLearner


def held_out_losses(learner: "ReplayLearner[Any]", batches: Iterator[Batch]) -> Metrics:
    """What `learn` notes of each minibatch, with the learner afterwards as it was.

    Every step is taken back before the next, so that all are of the same policy; what an algorithm
    counts as its loss is not asked for a second time in another way.

    Args:
        learner: as it is now.
        batches: as `learn` takes them.
    """
    averages = Averages()
    grad_steps, random = learner.grad_steps, learner.generator.get_state()
    saved = {
        group: {name: tensor.clone() for name, tensor in tensors.items()}
        for group, tensors in learner.modules.state().items()
    }
    devices = [learner.world.device] if learner.world.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for batch in batches:
            averages.add(learner.learn(batch).metrics)
            learner.modules.load(saved)
    learner.grad_steps = grad_steps
    learner.generator.set_state(random)
    means = averages.means()
    return {
        f"validation/{name}": value
        for name, value in means.items()
        if name != "skipped" and not name.endswith("grad_norm")
    }
