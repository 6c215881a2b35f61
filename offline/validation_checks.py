"""What can be wrong with logged steps in memory, found column by column.

Legend: N rows, E episodes, F final observations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Space

from offline.trajectories import Ints, Mask, Trajectories
from rl_ops import columns as c
from rl_ops.spaces import leaf_bounds
from rl_ops.tree import Tree, brief, space_leaves, zip_spaces

Array = npt.NDArray[Any]

DOUBLED: Final = "doubled_rows"
LATE_START: Final = "late_start"
END_INSIDE: Final = "end_inside"
GAP: Final = "gap"
NO_FINAL_OBS: Final = "no_final_obs"
NOT_FINITE: Final = "not_finite"
OUT_OF_BOUNDS: Final = "out_of_bounds"
NO_LOGP: Final = "no_logp"
POSITIVE_LOGP: Final = "positive_logp"

ROUNDING: Final = 1e-5
"""How far a float may lie outside of a Box, of the bound or of 1: simulators clip in float64."""
_LOGP_ROUNDING: Final = 1e-4
"""A float32 softmax of many logits gives the log of slightly more than 1."""


@dataclass(frozen=True, eq=False)
class Fault:
    """Rows that have one thing wrong.

    Attributes:
        kind: one of the constants of this module.
        column: which values are meant; empty where it is the rows' order.
        rows: indices of the rows, ascending.
        found: what is there in a row, in words.
    """

    kind: str
    column: str
    rows: Ints
    found: Callable[[int], str]


def faults_of(found: Trajectories, *, needs_logp: bool, contiguous: bool) -> Iterator[Fault]:
    """Each kind of fault that there is, with its rows.

    Args:
        found: the steps, which stay as they are.
        needs_logp: whether a missing log-probability is a fault.
        contiguous: whether steps that are missing are a fault where the observation before them
            is known: late starts, and gaps behind a fragment's end.
    """
    for fault in (
        *_order(found, contiguous=contiguous),
        *_values(found),
        *_log_probabilities(found, is_needed=needs_logp),
    ):
        if fault.rows.size:
            yield fault


def _order(found: Trajectories, *, contiguous: bool) -> Iterator[Fault]:
    t, episode = found.t, found.episode
    end_t = _first_end(found)
    goes_on = episode[1:] == episode[:-1]
    stride = np.diff(t)
    yield Fault(DOUBLED, "", np.flatnonzero(goes_on & (stride == 0)) + 1, _doubled)
    is_after = t > end_t[episode]
    yield Fault(
        END_INSIDE, "", np.flatnonzero(is_after), lambda i: f"it ended at t={end_t[episode[i]]}"
    )
    is_gap = goes_on & (stride > 1) & (t[:-1] < end_t[episode[:-1]])
    has_final = found.final_index >= 0
    if contiguous:
        starts = found.starts
        late = starts[t[starts] != 0]
        yield Fault(LATE_START, "", late, lambda i: f"it begins at t={t[i]}")
    else:
        is_gap &= ~has_final[:-1]
    yield Fault(GAP, "", np.flatnonzero(is_gap), lambda i: f"t={t[i + 1]} comes next")
    lasts = np.append(found.starts[1:], found.rows) - 1 if found.rows else found.starts
    unknown = ~found.terminated[lasts] & ~has_final[lasts] & ~is_after[lasts]
    yield Fault(NO_FINAL_OBS, "", lasts[unknown], lambda i: _how_cut(found, i))


def _first_end(found: Trajectories) -> Ints:
    """[E] the first t at which an episode ended; more than any t where it did not."""
    end_t = np.full(found.num_episodes, np.iinfo(np.int64).max)
    ends = np.flatnonzero(found.terminated | found.truncated)[::-1]
    # Of several assignments to one place the last stays: backwards, that is the first end.
    end_t[found.episode[ends]] = found.t[ends]
    return end_t


def _doubled(_: int) -> str:
    return "there is another row of this step"


def _how_cut(found: Trajectories, i: int) -> str:
    return "truncated" if found.truncated[i] else "the log ends"


def _values(found: Trajectories) -> Iterator[Fault]:
    with_final = np.flatnonzero(found.final_index >= 0)
    finals = found.final_index[with_final]
    for column, space, tree in (
        (c.OBS, found.obs_space, found.obs),
        (c.ACTION, found.action_space, found.action),
        (c.FINAL_OBS, found.obs_space, found.final_obs),
    ):
        for kind, test in ((NOT_FINITE, _not_finite), (OUT_OF_BOUNDS, _outside)):
            wrong = _rows_where(test, space, tree)
            if wrong is None:
                continue
            if column == c.FINAL_OBS:
                rows, place = with_final[wrong[finals]], found.final_index
            else:
                rows, place = np.flatnonzero(wrong), np.arange(found.rows)
            yield Fault(kind, column, rows, _named(test, space, tree, place))
    reward = found.reward
    rows = np.flatnonzero(~np.isfinite(reward))
    yield Fault(NOT_FINITE, c.REWARD, rows, lambda i: f"{reward[i]}")


_Test = Callable[[Space[Any], Array], Mask | None]


def _not_finite(_: Space[Any], leaf: Array) -> Mask | None:
    if leaf.dtype.kind != "f":
        return None
    finite = np.isfinite(leaf)
    return None if finite.all() else ~finite


def _outside(space: Space[Any], leaf: Array) -> Mask | None:
    low, high = leaf_bounds(space)
    if leaf.dtype.kind == "f":
        if np.isneginf(low).all() and np.isposinf(high).all():
            return None
        low, high = (bound.astype(np.float64) for bound in (low, high))
        low = (low - ROUNDING * np.maximum(1, np.abs(low))).astype(leaf.dtype)
        high = (high + ROUNDING * np.maximum(1, np.abs(high))).astype(leaf.dtype)
        # What is infinite is no value at all, and counted as that.
        outside = ((leaf < low) | (leaf > high)) & np.isfinite(leaf)
    elif leaf.dtype.kind == "b" or _is_full_range(space, leaf.dtype):
        return None
    else:
        outside = (leaf < low) | (leaf > high)
    return outside if outside.any() else None


def _is_full_range(space: Space[Any], dtype: np.dtype[Any]) -> bool:
    low, high = leaf_bounds(space)
    limits = np.iinfo(dtype)
    return isinstance(space, Box) and bool((low == limits.min).all() and (high == limits.max).all())


def _rows_where(test: _Test, space: Space[Any], tree: Tree) -> Mask | None:
    """[B] where any number of any leaf is wrong; None where nothing is."""
    wrong: Mask | None = None
    for leaf_space, leaf in zip_spaces(space, tree):
        mask = test(leaf_space, leaf)
        if mask is not None:
            rows: Mask = np.logical_or.reduce(mask.reshape(len(mask), -1), axis=1)
            wrong = rows if wrong is None else np.logical_or(wrong, rows)
    return wrong


def _named(test: _Test, space: Space[Any], tree: Tree, place: Ints) -> Callable[[int], str]:
    """Says the first wrong number of a row, and of a leaf of which space."""

    def found(i: int) -> str:
        at = slice(int(place[i]), int(place[i]) + 1)
        for leaf_space, leaf in zip_spaces(space, tree):
            mask = test(leaf_space, leaf[at])
            if mask is not None:
                item = np.unravel_index(int(mask[0].argmax()), leaf.shape[1:])
                index = f"[{', '.join(map(str, item))}]" if item else ""
                return f"{index} {leaf[at][0][item]} in {brief(leaf_space)}".strip()
        raise AssertionError("the row has nothing wrong")

    return found


def _log_probabilities(found: Trajectories, *, is_needed: bool) -> Iterator[Fault]:
    if c.LOGP not in found.columns:
        return
    logp = found.columns[c.LOGP]

    def value(i: int) -> str:
        return f"{logp[i]}"

    if is_needed:
        yield Fault(NO_LOGP, c.LOGP, np.flatnonzero(np.isnan(logp)), lambda _: "null, or no number")
    yield Fault(NOT_FINITE, c.LOGP, np.flatnonzero(np.isinf(logp)), value)
    # A density may exceed 1, a probability does not.
    if not any(isinstance(leaf, Box) for leaf in space_leaves(found.action_space)):
        above = (logp > _LOGP_ROUNDING) & np.isfinite(logp)
        yield Fault(POSITIVE_LOGP, c.LOGP, np.flatnonzero(above), value)
