"""The form in which episodes are exchanged: importers yield it, exporters take it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt
from gymnasium.spaces import Space

from rl_ops.tree import Tree

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Spaces:
    """What observations and actions are, and who said so."""

    obs: Space
    action: Space
    origin: str


@dataclass(frozen=True)
class Origin:
    """Where the steps of an episode were read: the record of each in its file."""

    file: str
    rows: Array
    unit: str = "row"

    def at(self, index: int) -> int:
        """The record's number of a step; -1 when there is none."""
        return int(self.rows[min(index, len(self.rows) - 1)]) if len(self.rows) else -1


@dataclass(frozen=True)
class Fault:
    """Something an importer could not read at a step, for which it put a zero or a NaN."""

    index: int
    reason: str
    message: str


@dataclass(frozen=True)
class RawEpisode:
    """An episode as a file has it: structure, dtypes and lengths are not checked yet.

    Attributes:
        obs, action: trees [T, ...].
        reward: [T].
        terminated, truncated: [T], or None where the format has no such column.
        next_obs: tree [T, ...], or None.
        final_obs: tree [1, ...] after the last step, or None.
        t: [T], or None.
        logp: [T], NaN where unknown, or None.
    """

    episode_id: str
    origin: Origin
    obs: Tree
    action: Tree
    reward: Any
    terminated: Any = None
    truncated: Any = None
    next_obs: Tree = None
    final_obs: Tree = None
    t: Any = None
    logp: Any = None
    seed: int | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class BadRecord:
    """A record of which nothing could be read."""

    file: str
    row: int
    message: str
    content: str = ""
    unit: str = "row"


Record: TypeAlias = RawEpisode | BadRecord


class Source(Protocol):
    """A format's files: read from the start each time `records` is called.

    Attributes:
        kind: the format's name.
        files: all files, in the order in which they are read.
        untyped: whether numbers have no dtypes in the format, so that 1.0 may be an integer.
        ignored: columns that are not taken; complete after `records` has ended.
        notes: what the user should know of how the files were read; complete then too.
    """

    @property
    def kind(self) -> str: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def untyped(self) -> bool: ...
    @property
    def ignored(self) -> set[str]: ...
    @property
    def notes(self) -> set[str]: ...
    def stated_spaces(self) -> Spaces | None:
        """The spaces that the files themselves state."""
        ...

    def records(self, spaces: Spaces | None) -> Iterator[Record]:
        """Every episode and every record that is none; spaces say how to read nested values."""
        ...


@dataclass(frozen=True)
class Episode:
    """An episode that keeps the contract; its one end is at its last row.

    Attributes:
        obs, action: trees [T, ...] of the spaces' dtypes.
        reward: [T] float64.
        terminated, truncated: how it ended; one of them holds, or both.
        final_obs: tree [1, ...]; None only where it is unknown and the episode terminated.
        logp: [T] float64, or None.
    """

    episode_id: str
    obs: Tree
    action: Tree
    reward: Array
    terminated: bool
    truncated: bool
    final_obs: Tree = None
    logp: Array | None = None
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.reward)
