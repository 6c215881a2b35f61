"""Which logged rows off-policy evaluation uses, and what followed each.

Legend: N rows, F final observations, M = N + F, E episodes.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from offline.ope.errors import OpeError
from offline.trajectories import Trajectories

Array = npt.NDArray[Any]

_MAX_CELLS: Final = 2**26
"""Episodes times steps of the longest: arrays of half a gigabyte."""


@dataclass(frozen=True, eq=False)
class Beginnings:
    """Episodes from their first step to their end, a gap, or the end of what was logged.

    Attributes:
        data: the rows that are left.
        next_row: [N] into the M observations: what the step led to; its own row where that is
            nothing or unknown.
        is_usable: [N] whether that is known, or the step terminated.
        dropped: episodes of which the first step is not there.
        open: episodes whose end is not there.
    """

    data: Trajectories
    next_row: npt.NDArray[np.int64]
    is_usable: npt.NDArray[np.bool_]
    dropped: int
    open: int


def beginnings(data: Trajectories) -> Beginnings:
    """The part of each episode that was logged without a gap from its first step on.

    Raises:
        OpeError: fewer than two such episodes, or too many of too different lengths.
    """
    starts, is_last = data.starts, data.is_last
    # Rows behind an episode's first cut are those with an earlier cut of the same episode.
    cuts: npt.NDArray[np.int64] = np.cumsum(is_last) - is_last
    keep = (cuts == cuts[starts][data.episode]) & (data.t[starts] == 0)[data.episode]
    kept = data.take(keep)
    if kept.num_episodes < 2:
        raise OpeError(
            f"{kept.num_episodes} of the {data.num_episodes} episodes chosen "
            "is there from its first step on; off-policy evaluation needs two or more. Choose "
            "others with --where."
        )
    lengths = np.diff(kept.starts, append=kept.rows)
    if kept.num_episodes * int(lengths.max()) > _MAX_CELLS:
        raise OpeError(
            f"{kept.num_episodes:,} episodes, the longest of {int(lengths.max()):,} steps, are too "
            "many at once; choose some with --where."
        )
    lasts = kept.is_last
    ended = (kept.terminated | kept.truncated)[lasts]
    rows = np.arange(kept.rows)
    followed = np.where(kept.has_next, rows + 1, rows)
    has_final = (kept.final_index >= 0) & ~kept.has_next & ~kept.terminated
    next_row = np.where(has_final, kept.rows + kept.final_index, followed)
    dropped = data.num_episodes - kept.num_episodes
    return Beginnings(kept, next_row, kept.is_usable, dropped, int((~ended).sum()))
