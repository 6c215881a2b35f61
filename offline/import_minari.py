"""Minari 0.5 datasets: the arrow and parquet layouts, and hdf5; minari itself is not needed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from gymnasium.spaces import Space

from offline import minari_layout as m
from offline.errors import ImportDataError
from offline.exchange import BadRecord, Fault, Origin, RawEpisode, Record, Spaces
from offline.import_arrow import read_column
from offline.import_hdf5 import dataset, open_hdf5
from rl_ops.tree import Tree, tree_take

Array = npt.NDArray[Any]

_FORMATS: Final = ("arrow", "parquet", "hdf5")
_KNOWN: Final = frozenset(
    (m.OBSERVATIONS, m.ACTIONS, m.REWARDS, m.TERMINATIONS, m.TRUNCATIONS, "episode_id")
)


@dataclass
class MinariSource:
    """One Minari dataset.

    Args:
        folder: of metadata.json.
        metadata: what is in it.
        files: all files that hold data.
    """

    folder: Path
    metadata: Mapping[str, Any]
    files: tuple[str, ...]
    ignored: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    kind: str = "minari"
    untyped: bool = False

    @classmethod
    def at(cls, sources: Sequence[str]) -> "MinariSource":
        """The dataset of a folder, which may be the dataset's or its `data`.

        Raises:
            ImportDataError: there is no dataset in a layout that can be read.
        """
        if len(sources) != 1 or "\0" in sources[0]:
            raise ImportDataError("give one folder of a Minari dataset: one import is one dataset")
        folder = Path(sources[0]).expanduser().absolute()
        for candidate in (folder / m.DATA, folder):
            if (candidate / m.METADATA).is_file():
                metadata = m.read_json(candidate / m.METADATA)
                return cls(candidate, metadata, _files(candidate, metadata))
        raise ImportDataError(
            f"{folder} is no Minari dataset: there is no {m.DATA}/{m.METADATA}. Minari keeps "
            "datasets in ~/.minari/datasets/<id>; one with a namespace has several beneath it"
        )

    def stated_spaces(self) -> Spaces | None:
        """The spaces of metadata.json; None where only the environment is named."""
        spaces = [self.metadata.get(name) for name in ("observation_space", "action_space")]
        if None in spaces:
            return None
        where = str(self.folder / m.METADATA)
        obs, action = (m.space_from_minari(space, where=where) for space in spaces)
        return Spaces(obs, action, where)

    def records(self, spaces: Spaces | None) -> Iterator[Record]:
        """See Source."""
        if spaces is None:
            raise ImportDataError(
                f"{self.folder / m.METADATA} states no spaces; give --env ID or --spaces FILE. "
                "The environment it names is not made unasked, as that imports its code"
            )
        if self.metadata["data_format"] == "hdf5":
            yield from self._hdf5(spaces)
            return
        for number in self._episodes():
            yield self._episode(number, spaces)

    def _episodes(self) -> list[int]:
        return list(range(_total(self.metadata, self.folder)))

    def _episode(self, number: int, spaces: Spaces) -> Record:
        folder = self.folder / str(number)
        parts = _parts(folder, str(self.metadata["data_format"]))
        if not parts:
            return BadRecord(str(folder), number, "the episode's file is missing")
        try:
            table = _table(parts)
            about = _about(folder)
        except (pa.ArrowException, OSError, ImportDataError) as error:
            return BadRecord(str(parts[0]), number, f"the episode cannot be read: {error}")
        self.ignored |= set(table.schema.names) - _KNOWN
        missing = _KNOWN - {"episode_id"} - set(table.schema.names)
        if missing:
            return BadRecord(str(parts[0]), number, f"there is no {', '.join(sorted(missing))}")
        return self._from_table(number, str(parts[0]), table, spaces, about)

    def _from_table(
        self,
        number: int,
        file: str,
        table: pa.Table,
        spaces: Spaces,
        about: Mapping[str, Any],
    ) -> RawEpisode:
        # One row more than steps: the last has the final observation, and nothing else.
        steps = max(table.num_rows - 1, 0)
        faults: list[Fault] = []

        def read(name: str, rows: int, space: Space | None = None) -> Tree:
            column = table.column(name).combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = pa.concat_arrays(column.chunks)
            self._refuse_jpeg(column.type, name, file)
            found = read_column(column.slice(0, rows), table.schema.field(name), space, name)
            faults.extend(found.required(name).faults)
            return found.tree

        obs = read(m.OBSERVATIONS, table.num_rows, spaces.obs)
        has_final = table.num_rows > 0
        name, seed = about.get("episode_id"), about.get("seed")
        return RawEpisode(
            # Of our own exports; Minari numbers them.
            episode_id=name if isinstance(name, str) else str(number),
            origin=Origin(file, np.arange(steps)),
            obs=tree_take(obs, slice(0, steps)),
            final_obs=tree_take(obs, slice(steps, steps + 1)) if has_final else None,
            action=read(m.ACTIONS, steps, spaces.action),
            reward=read(m.REWARDS, steps),
            terminated=read(m.TERMINATIONS, steps),
            truncated=read(m.TRUNCATIONS, steps),
            seed=seed if isinstance(seed, int) else None,
            faults=tuple(faults),
        )

    def _refuse_jpeg(self, kind: pa.DataType, name: str, file: str) -> None:
        if self.metadata["data_format"] == "parquet" and pa.types.is_binary(kind):
            raise ImportDataError(
                f"{file}: {name} holds frames that Minari's parquet layout packed as JPEG; "
                "convert the dataset to data_format='arrow', which keeps them as they are"
            )

    def _hdf5(self, spaces: Spaces) -> Iterator[Record]:
        file = str(self.folder / m.HDF5_FILE)
        with open_hdf5(file) as opened:
            for number in self._episodes():
                name = f"episode_{number}"
                if name not in opened:
                    yield BadRecord(file, number, f"{name} is missing")
                    continue
                yield self._hdf5_episode(opened[name], number, file, spaces)

    def _hdf5_episode(self, group: Any, number: int, file: str, spaces: Spaces) -> Record:
        self.ignored |= set(group) - _KNOWN
        where = f"{file}, episode_{number}"
        try:
            obs = _hdf5_tree(group, m.OBSERVATIONS, spaces.obs, where)
            columns = {
                "action": _hdf5_tree(group, m.ACTIONS, spaces.action, where),
                "reward": _hdf5_tree(group, m.REWARDS, None, where),
                "terminated": _hdf5_tree(group, m.TERMINATIONS, None, where),
                "truncated": _hdf5_tree(group, m.TRUNCATIONS, None, where),
            }
        except KeyError as error:
            return BadRecord(file, number, f"episode_{number} has no {error}")
        steps = len(columns["reward"])
        seed = group.attrs.get("seed")
        return RawEpisode(
            episode_id=str(number),
            origin=Origin(file, np.full(steps, number), "episode"),
            obs=tree_take(obs, slice(0, steps)),
            final_obs=tree_take(obs, slice(steps, steps + 1)),
            seed=int(seed) if isinstance(seed, int | np.integer) else None,
            **columns,
        )


def _total(metadata: Mapping[str, Any], folder: Path) -> int:
    total = metadata.get("total_episodes")
    if not isinstance(total, int) or total < 0:
        raise ImportDataError(f"{folder / m.METADATA}: total_episodes is {total!r}, no number")
    return total


def _files(folder: Path, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    kind = metadata.get("data_format")
    if kind not in _FORMATS:
        raise ImportDataError(
            f"{folder / m.METADATA}: data_format is {kind!r}; {', '.join(_FORMATS)} can be read"
        )
    found = [folder / m.METADATA]
    if kind == "hdf5":
        found.append(folder / m.HDF5_FILE)
    else:
        for number in range(_total(metadata, folder)):
            found += _parts(folder / str(number), str(kind))
    return tuple(str(path) for path in found)


def _parts(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"*.{suffix}"))


def _table(parts: Sequence[Path]) -> pa.Table:
    import pyarrow.parquet as pq

    tables = []
    for path in parts:
        if path.suffix == ".parquet":
            tables.append(pq.read_table(path, partitioning=None))
        else:
            with pa.OSFile(str(path), "rb") as file:
                tables.append(pa.ipc.open_file(file).read_all())
    return pa.concat_tables(tables)


def _about(folder: Path) -> dict[str, Any]:
    path = folder / m.METADATA
    return m.read_json(path) if path.is_file() else {}


def _hdf5_tree(group: Any, name: str, space: Space | None, where: str) -> Tree:
    children = getattr(space, "spaces", None)
    if children is None:
        found = dataset(group, name, where)
        if found is None:
            raise KeyError(name)
        return np.asarray(found[()])
    inner = group[name]
    if isinstance(children, tuple):
        pairs = enumerate(children)
        return tuple(_hdf5_tree(inner, f"_index_{i}", child, where) for i, child in pairs)
    return {key: _hdf5_tree(inner, key, child, where) for key, child in children.items()}
