"""D4RL-style HDF5: one array per column, all episodes behind each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from offline.errors import ImportDataError
from offline.exchange import Record, Spaces
from offline.import_rows import RowGrouper, Rows
from offline.import_spaces import spaces_beside

Array = npt.NDArray[Any]
Timeouts = Literal["refuse", "none"] | int

_BATCH_ROWS: Final = 16_384
_NAMES: Final = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "terminated": "terminals",
    "truncated": "timeouts",
    "next_obs": "next_observations",
    "logp": "infos/action_log_probs",
}
_REQUIRED: Final = ("obs", "action", "reward", "terminated")


@contextmanager
def open_hdf5(file: str) -> Iterator[Any]:
    """An HDF5 file to read.

    Raises:
        ImportDataError: h5py is not installed, or the file is none.
    """
    try:
        import h5py  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ImportDataError(
            f"{file} needs h5py, which is not installed: pip install h5py"
        ) from error
    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise ImportDataError(f"{file} is no HDF5 that can be read: {error}") from error
    with opened:
        yield opened


def dataset(group: Any, name: str, where: str) -> Any:
    """A dataset of numbers that lies in this very file; None where there is none.

    Raises:
        ImportDataError: it holds objects, or lies in another file that this one links to.
    """
    import h5py

    if name not in group:
        return None
    for depth in range(len(name.split("/"))):
        link = group.get("/".join(name.split("/")[: depth + 1]), getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ImportDataError(f"{where}: {name} is a link to {link.filename}; copy it in")
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        return None
    if found.external:
        raise ImportDataError(f"{where}: {name} lies in another file; copy it in")
    if found.dtype.kind not in "biuf":
        raise ImportDataError(f"{where}: {name} is {found.dtype}, expected numbers")
    return found


@dataclass
class Hdf5Source:
    """HDF5 files as D4RL's.

    Args:
        files: read in this order; each begins with a new episode.
        timeouts: what ends an episode beside `terminals` in a file without `timeouts`: nothing
            is decided ("refuse"), nothing does ("none"), or a number of steps does.
    """

    files: tuple[str, ...]
    timeouts: Timeouts = "refuse"
    ignored: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    kind: str = "hdf5"
    untyped: bool = False

    def stated_spaces(self) -> Spaces | None:
        """The spaces of spaces.json beside the files."""
        return spaces_beside(self.files)

    def records(self, spaces: Spaces | None) -> Iterator[Record]:  # noqa: ARG002 - see Source
        """See Source."""
        grouper = RowGrouper()
        for file in self.files:
            with open_hdf5(file) as opened:
                for rows in self._rows(file, opened):
                    yield from grouper.add(rows)
            yield from grouper.finish()

    def _rows(self, file: str, opened: Any) -> Iterator[Rows]:
        columns = {name: dataset(opened, path, file) for name, path in _NAMES.items()}
        columns = {name: column for name, column in columns.items() if column is not None}
        self._check(file, opened, columns)
        total = len(columns["reward"])
        steps_open = 0
        for first in range(0, total, _BATCH_ROWS):
            part = slice(first, min(first + _BATCH_ROWS, total))
            read: dict[str, Any] = {n: np.asarray(column[part]) for n, column in columns.items()}
            for name in {"reward", "terminated", "truncated", "logp"} & read.keys():
                read[name] = read[name].reshape(len(read[name]), -1)
                if read[name].shape[1] != 1:
                    raise ImportDataError(f"{file}: {_NAMES[name]} is not one number per row")
                read[name] = read[name][:, 0]
            if "truncated" not in read and isinstance(self.timeouts, int):
                cut, steps_open = _cut_every(self.timeouts, read["terminated"], steps_open)
                read["truncated"] = cut
            yield Rows(file=file, numbers=np.arange(part.start, part.stop), **read)

    def _check(self, file: str, opened: Any, columns: dict[str, Any]) -> None:
        there = _paths(opened)
        missing = [_NAMES[name] for name in _REQUIRED if name not in columns]
        if missing:
            raise ImportDataError(
                f"{file} has no {', '.join(missing)}; it is not laid out as D4RL's files are. It "
                f"has {', '.join(sorted(there)[:20])}"
            )
        lengths = {_NAMES[name]: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            text = ", ".join(f"{name} {rows}" for name, rows in lengths.items())
            raise ImportDataError(
                f"{file}: arrays of different lengths: {text}. Row i of each belongs to step i, "
                "so which rows belong together is not known; cut them to one length where the "
                "file was made"
            )
        self.ignored |= there - {column.name.strip("/") for column in columns.values()}
        if "truncated" not in columns and self.timeouts == "refuse":
            raise ImportDataError(
                f"{file} has no `timeouts`. Episodes that a time limit ended then look as if they "
                "went on into the next one, and values are learned across that seam. Say what "
                "ends an episode: --timeouts N truncates after N steps (D4RL's own reading, N "
                "is the environment's max_episode_steps); --timeouts none means terminals alone"
            )


def _paths(group: Any, prefix: str = "") -> set[str]:
    """Names of all entries, links not followed."""
    import h5py

    found: set[str] = set()
    for name in group:
        link = group.get(name, getlink=True)
        entry = group[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(entry, h5py.Group):
            found |= _paths(entry, f"{prefix}{name}/")
        else:
            found.add(f"{prefix}{name}")
    return found


def _cut_every(limit: int, terminated: Array, steps_open: int) -> tuple[Array, int]:
    """Truncations after `limit` steps of an episode, and the steps of the one left open."""
    truncated = np.zeros(len(terminated), np.bool_)
    start = -steps_open
    for end in [*np.flatnonzero(terminated == 1).tolist(), len(terminated)]:
        stop = min(end + 1, len(terminated))
        truncated[start + limit - 1 : stop : limit] = True
        cuts = (stop - start) // limit
        if end < len(terminated):
            truncated[end] = False
            start = end + 1
        else:
            start += cuts * limit
    return truncated, len(terminated) - start
