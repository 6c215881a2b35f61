"""Replaying logged actions in environments made and seeded as they were, with frames of one.

Legend: R rows of a fragment, N sub-environments.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rl_ops import columns as c
from rl_ops.action_connectors import ActionConnectors
from rl_ops.env_step import EnvStep
from rl_ops.envs import VectorSlots
from rl_ops.spaces import codec_for
from rl_ops.tree import Tree, tree_map, tree_set, tree_take

Array = npt.NDArray[Any]


class ReplayError(ValueError):
    """An environment does not do again what was logged, or what was logged has gaps."""


@dataclass(frozen=True)
class LoggedRows:
    """The rows of one fragment of a rollout worker, in any order.

    Attributes:
        env: [R] sub-environment, 0 to N - 1.
        episode: [R] how many its sub-environment had ended before.
        t: [R] steps of the episode before this one.
        obs, action: trees [R, ...] of the environment's and of the module's space.
        reward, terminated, truncated: [R] what the step gave.
        seeds: with which the environments were reset before these rows; None where the episodes
            of the fragment before went on.
        is_complete: the rows are of whole episodes, of some sub-environments more than of others;
            see `EpisodeSlots`.
    """

    env: Array
    episode: Array
    t: Array
    obs: Tree
    action: Tree
    reward: Array
    terminated: Array
    truncated: Array
    seeds: Sequence[int] | None = None
    is_complete: bool = False


@dataclass(frozen=True)
class Wanted:
    """The episode to show: number `episode` of sub-environment `env`, `length` steps long."""

    env: int
    episode: int
    length: int


def replay(
    slots: VectorSlots,
    connectors: ActionConnectors,
    fragments: Iterable[LoggedRows],
    *,
    wanted: Wanted,
) -> Iterator[Array]:
    """Yield what `wanted` shows at each of its steps, before the step is made.

    All sub-environments take all of their logged actions, because native vector environments
    share one random generator. Steps spent on a reset have no rows; the action they get is the
    one before, of which autoreset makes nothing.

    Args:
        slots: environments like those logged, made with render_mode="rgb_array".
        connectors: from logged actions to the environment's.
        fragments: those of one rollout worker in order, from one with seeds on.
        wanted: which episode.

    Raises:
        ReplayError: an observation, reward or flag differs from what was logged in any bit; rows
            are missing; or the environment renders no frames.
    """
    state = _State(slots, connectors)
    left = wanted.length
    for rows in fragments:
        queue = _Queue(rows, slots.num_envs)
        if rows.seeds is not None:
            state.reset(rows, queue)
        while queue.has_rows:
            due = state.due(rows, queue)
            index = queue.take(due)
            state.check(rows, due, index)
            is_shown = wanted.env in due and state.episode[wanted.env] == wanted.episode
            if is_shown:
                yield _frame(slots, wanted.env)
            state.step(rows, due, index)
            left -= int(is_shown)
            if left == 0:
                return
    raise ReplayError(
        f"steps are missing: the last {left} of episode {wanted.episode} of sub-environment "
        f"{wanted.env}"
    )


class _State:
    """The environments, and where each of them is: what the rollout that was logged counted."""

    def __init__(self, slots: VectorSlots, connectors: ActionConnectors) -> None:
        n = slots.num_envs
        self.slots, self.connectors = slots, connectors
        self.obs: Tree = None
        self.action = codec_for(connectors.input_space).empty(n)
        self.is_due = np.zeros(n, dtype=bool)
        self.episode = np.zeros(n, dtype=np.int64)
        self.t = np.zeros(n, dtype=np.int64)

    def reset(self, rows: LoggedRows, queue: "_Queue") -> None:
        """Start where `rows` begin."""
        assert rows.seeds is not None
        self.obs = self.slots.reset(list(rows.seeds))
        self.is_due[:] = True
        self.t[:], self.episode[:] = 0, 0
        if rows.is_complete:  # any fragment can be the first
            self.episode[:] = rows.episode[queue.first(np.arange(len(self.episode)))]

    def due(self, rows: LoggedRows, queue: "_Queue") -> Array:
        """Sub-environments whose next step has a row."""
        if self.obs is None:
            raise ReplayError("steps are missing: those since the environments were seeded")
        # Who is through with its whole episodes is stepped on, and what it does is dropped.
        through = rows.is_complete & (queue.left == 0) & (self.t == 0)
        return np.flatnonzero(self.is_due & ~through)

    def check(self, rows: LoggedRows, due: Array, index: Array) -> None:
        """Refuse rows `index` unless they follow the last ones, and show what is here."""
        places = zip(due.tolist(), rows.episode[index], rows.t[index], strict=True)
        for env, episode, t in places:
            if (episode, t) != (self.episode[env], self.t[env]):
                raise ReplayError(
                    f"steps are missing: of sub-environment {env}, episode {self.episode[env]} at "
                    f"t={self.t[env]} is expected and episode {episode} at t={t} is next; only "
                    "traces that hold every step since the worker started can be replayed"
                )

        def compare(logged: Array, here: Array) -> None:
            # Whole batches first: the search for the row is for the message alone.
            if logged[index].tobytes() == here[due].tobytes():
                return
            for env, row in zip(due.tolist(), index.tolist(), strict=True):
                if logged[row].tobytes() != here[env].tobytes():
                    self._differs(env, c.OBS, logged[row], here[env])

        tree_map(compare, rows.obs, self.obs)

    def step(self, rows: LoggedRows, due: Array, index: Array) -> None:
        """Take the actions of rows `index`, and refuse an outcome other than theirs."""
        tree_set(self.action, due, tree_take(rows.action, index))
        step = self.slots.step(self.connectors(self.action))
        outcome = (
            (c.REWARD, rows.reward, step.reward),
            (c.TERMINATED, rows.terminated, step.terminated),
            (c.TRUNCATED, rows.truncated, step.truncated),
        )
        for name, logged, here in outcome:
            wrong = np.flatnonzero(logged[index] != here[due])
            if wrong.size:
                env, row = int(due[wrong[0]]), index[wrong[0]]
                self._differs(env, name, logged[row], here[env])
        self._advance(step, due)

    def _advance(self, step: EnvStep, due: Array) -> None:
        self.obs = step.obs
        # With NEXT_STEP the step after an end is a reset; with SAME_STEP it was made already.
        self.is_due = ~(step.ended & ~step.is_first)
        ended = due[step.ended[due]]
        self.t[due] += 1
        self.t[ended] = 0
        self.episode[ended] += 1

    def _differs(self, env: int, name: str, logged: Any, here: Any) -> None:
        raise ReplayError(
            f"the environment cannot be re-seeded: step t={self.t[env]} of episode "
            f"{self.episode[env]} of sub-environment {env} differs: {name} was {_brief(logged)}, "
            f"now it is {_brief(here)}"
        )


class _Queue:
    """Hands out a fragment's rows, each sub-environment's in the order in which it made them."""

    def __init__(self, rows: LoggedRows, num_envs: int) -> None:
        self._order = np.lexsort((rows.t, rows.episode, rows.env))
        ends = np.cumsum(np.bincount(rows.env, minlength=num_envs))
        if len(ends) > num_envs:
            raise ReplayError(
                f"the fragment has rows of sub-environment {len(ends) - 1}; the worker's "
                f"configuration has {num_envs}"
            )
        if rows.is_complete and not np.diff(ends, prepend=0).all():
            raise ReplayError("steps are missing: all those of a sub-environment in a fragment")
        self._ends = ends
        self._next = np.concatenate([[0], ends[:-1]])

    @property
    def left(self) -> Array:
        """[N] rows not taken."""
        left: Array = self._ends - self._next
        return left

    @property
    def has_rows(self) -> bool:
        return bool((self._next < self._ends).any())

    def first(self, envs: Array) -> Array:
        """The next row of each of `envs`, which stays there."""
        index: Array = self._order[self._next[envs]]
        return index

    def take(self, envs: Array) -> Array:
        """The next row of each of `envs`."""
        empty = envs[self._next[envs] >= self._ends[envs]]
        if empty.size:
            raise ReplayError(
                f"steps are missing: sub-environment {empty[0]} has fewer rows in a fragment than "
                "those beside it; only traces that hold every step can be replayed"
            )
        index = self.first(envs)
        self._next[envs] += 1
        return index


def _frame(slots: VectorSlots, env: int) -> Array:
    frame = slots.frame(env)
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.dtype != np.uint8:
        what = getattr(frame, "shape", type(frame).__name__)
        raise ReplayError(
            f"{slots.spec.id} renders {what}; expected an image, uint8 [height, width, 3]"
        )
    return np.ascontiguousarray(frame[..., :3])


def _brief(value: Any) -> str:
    array = np.asarray(value)
    if array.size > 8:
        return f"an array {list(array.shape)} of mean {array.mean():.9g}"
    return np.array2string(array, floatmode="unique", max_line_width=200)
