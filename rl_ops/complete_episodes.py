"""Sub-environments that run whole episodes until they have enough rows, and then give none.

Legend: N sub-environments.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rl_ops.env_step import EnvStep
from rl_ops.envs import EnvSpec, VectorSlots
from rl_ops.errors import EnvError

Array = npt.NDArray[Any]

LONGEST_EPISODE = 27_000
"""In steps: half an hour of Atari, 4 frames a step (Hessel et al. 2018, arXiv:1710.02298)."""


class EpisodeSlots(VectorSlots):
    """`VectorSlots` that each run whole episodes, from `reset` on, until they have their steps.

    Each is through at an end of its own episodes, the first with `min_rows` steps behind it, so
    every episode begun before is finished however long it takes, and sums over episodes are
    unbiased (Wald 1944: their number is a stopping time). Taking whichever episodes end in a
    given time would favour short ones.

    A vector environment steps together, so who is through is stepped on until the slowest is;
    those steps are no transitions, and the next `reset` drops the episode they are of.

    Args:
        spec: which environment.
        num_envs: N.
        min_rows: steps of each sub-environment, at least.

    Attributes:
        is_open: [N] bool; False where a sub-environment is through.
        max_episode_steps: of an episode, before it is taken for one that never ends.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, *, min_rows: int) -> None:
        super().__init__(spec, num_envs)
        self.min_rows = min_rows
        self.max_episode_steps = max(LONGEST_EPISODE, 100 * min_rows, spec.max_episode_steps or 0)
        self.is_open = np.ones(num_envs, dtype=bool)
        self._rows = np.zeros(num_envs, dtype=np.int64)

    @property
    def is_complete(self) -> bool:
        """Whether all are through."""
        return not self.is_open.any()

    def reset(self, seeds: list[int]) -> Any:
        """See `VectorSlots.reset`; all are open again."""
        self.is_open = np.ones(self.num_envs, dtype=bool)
        self._rows = np.zeros(self.num_envs, dtype=np.int64)
        return super().reset(seeds)

    def step(self, action: Any) -> EnvStep:
        """See `VectorSlots.step`; who is through makes no transition and ends nothing."""
        step = super().step(action)
        if not self.is_open.all():
            step = only(step, self.is_open)
        self._rows += step.is_transition
        self.is_open = self.is_open & ~(step.ended & (self._rows >= self.min_rows))
        return step

    def check_length(self, t: Array) -> None:
        """Refuse an episode that shows no sign of ending.

        Args:
            t: [N] steps of the episodes in progress.

        Raises:
            EnvError: one is longer than `max_episode_steps`.
        """
        i = int(t.argmax())
        if t[i] > self.max_episode_steps:
            raise EnvError(
                f"{self.spec.id}: an episode goes on after {t[i]} steps (sub-environment {i}), and "
                "rollout.batch_mode=complete_episodes waits for its end; set "
                "env.max_episode_steps, or rollout.batch_mode=truncate"
            )


def only(step: EnvStep, is_open: Array) -> EnvStep:
    """`step` without the transitions of sub-environments where `is_open` [N] is False."""
    return replace(
        step,
        reward=np.where(is_open, step.reward, 0.0),
        terminated=step.terminated & is_open,
        truncated=step.truncated & is_open,
        ended=step.ended & is_open,
        is_transition=step.is_transition & is_open,
        aborted={i: message for i, message in step.aborted.items() if is_open[i]},
    )
