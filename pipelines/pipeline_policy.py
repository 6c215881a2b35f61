"""The policy of a running pipeline."""

from typing import Any

from pipelines.backend import Backend
from rl_ops.policy import Policy, Weights


class PipelinePolicy(Policy):
    """A run's policy; setting its weights publishes a new version to learner and rollouts."""

    def __init__(self, spec: Any, backend: Backend) -> None:
        super().__init__(spec, backend.weights())
        self._backend = backend

    def set_weights(self, weights: Weights) -> None:
        """Act with `weights`, here and in the run."""
        if hasattr(self, "_backend"):  # not yet, when the base class is made
            self._backend.command_learner("set_weights", weights)
        super().set_weights(weights)
