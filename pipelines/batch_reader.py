"""Tables of fragments → the tensors that a learner reads."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from pipelines.dataflow import Plan
from rl_ops import columns as c
from rl_ops.batch import Batch, to_batch
from rl_ops.spaces import codec_for


class BatchReader:
    """Reads the module's observations, under the name `obs`, and other columns.

    Args:
        plan: of the run, which knows the spaces.
        device: where tensors go.
        reads: columns beside the observations.
    """

    def __init__(self, plan: Plan, device: torch.device, reads: Sequence[str]) -> None:
        policy = plan.policy
        self._obs_column = plan.rollout.obs_column
        self._codecs: dict[str, Any] = dict.fromkeys(reads)
        if c.ACTION in reads:
            self._codecs[c.ACTION] = codec_for(policy.action_connectors.input_space)
        observations = {c.BOOTSTRAP_OBS, c.FINAL_MODEL_OBS} & set(reads)
        for name in (self._obs_column, *observations):
            self._codecs[name] = codec_for(policy.obs_connectors.output_space)
        self._device = device

    @classmethod
    def of_learner(cls, plan: Plan, device: torch.device) -> "BatchReader":
        """All that the plan's learner consumes."""
        reads = list(plan.dataflow.learner.reads)
        if plan.config.connectors.normalize_reward:
            reads.append(c.RUNNING_RETURN)
        if plan.dataflow.replay is not None and c.PRIORITY in plan.columns:
            reads.append(c.PRIORITY)  # workers that say how surprising their rows are
        return cls(plan, device, reads)

    def __call__(self, tables: Sequence[pa.Table]) -> Batch:
        """The rows of all tables, in order."""
        return to_batch(tables, self._codecs, rename={self._obs_column: c.OBS}, device=self._device)
