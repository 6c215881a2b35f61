"""Parquet as RLlib's new API stack writes it: a row per step, per SampleBatch, or per episode."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from offline.errors import ImportDataError
from offline.exchange import BadRecord, Fault, Spaces
from offline.import_arrow import read_column
from offline.import_rows import Rows
from offline.rllib_columns import KNOWN, NAMES, refuse_packed
from rl_ops.tree import Tree

Array = npt.NDArray[Any]

_BATCH_ROWS: Final = 8_192
_EPISODES: Final = "item"
_NDARRAY: Final = b"nd"


def parquet_rows(file: str, spaces: Spaces | None, ignored: set[str]) -> Iterator[Rows | BadRecord]:
    """The rows of a file, whichever of the three layouts it has.

    Raises:
        ImportDataError: it is none of them, or holds pickles.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as reader:
            names = reader.schema_arrow.names
            is_episodes = names == [_EPISODES]
            wanted = [name for name in names if name in KNOWN or is_episodes]
            ignored |= set(names) - set(wanted)
            needed = {NAMES[name] for name in ("obs", "action", "reward")}
            if not is_episodes and not needed <= set(names):
                raise ImportDataError(
                    f"{file} is no recording of RLlib: it has columns {', '.join(names)}, expected "
                    "obs, actions, rewards, or item. For other parquet: millrace import parquet"
                )
            first = 0
            size = 64 if is_episodes else _BATCH_ROWS
            for batch in reader.iter_batches(size, columns=wanted):
                if is_episodes:
                    yield from _episodes(file, batch, first)
                else:
                    yield from _steps(file, batch, first, spaces)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ImportDataError(f"{file} is no parquet that can be read: {error}") from error


def _steps(file: str, batch: pa.RecordBatch, first: int, spaces: Spaces | None) -> Iterator[Rows]:
    for name in batch.schema.names:
        kind = batch.schema.field(name).type
        if name != NAMES["episode_id"] and _is_text(kind):
            refuse_packed(file, f"row {first}", name)
    reward = batch.schema.field(NAMES["reward"]).type
    if not (pa.types.is_list(reward) or pa.types.is_large_list(reward)):
        yield _rows(file, batch, np.arange(first, first + len(batch)), spaces)
        return
    for index in range(len(batch)):
        # A row is a whole SampleBatch: its columns are lists of one entry per step.
        row = batch.slice(index, 1)
        columns = [column.flatten() if _is_list(column.type) else column for column in row.columns]
        if len({len(column) for column in columns}) != 1:
            rows = {name: len(c) for name, c in zip(row.schema.names, columns, strict=True)}
            what = f"row {first + index} of {file} has columns of different lengths: {rows}"
            raise ImportDataError(what)
        flat = pa.RecordBatch.from_arrays(columns, names=row.schema.names)
        yield _rows(file, flat, np.full(len(flat), first + index), spaces)


def _rows(file: str, batch: pa.RecordBatch, numbers: Array, spaces: Spaces | None) -> Rows:
    from offline.import_tabular import episode_names

    trees: dict[str, Tree] = {}
    faults: list[Fault] = []
    for name, column in NAMES.items():
        index = batch.schema.get_field_index(column)
        if index < 0 or name == "episode_id":
            continue
        space = None
        if spaces is not None and name in ("obs", "next_obs", "action"):
            space = spaces.action if name == "action" else spaces.obs
        found = read_column(batch.column(index), batch.schema.field(index), space, column)
        faults += (found if name == "logp" else found.required(column)).faults
        trees[name] = found.tree if name != "logp" else np.where(found.valid, found.tree, np.nan)
    ids = batch.schema.get_field_index(NAMES["episode_id"])
    names = episode_names(batch.column(ids)) if ids >= 0 else None
    return Rows(file=file, numbers=numbers, episode_ids=names, faults=tuple(faults), **trees)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _episodes(file: str, batch: pa.RecordBatch, first: int) -> Iterator[Rows | BadRecord]:
    """`SingleAgentEpisode.get_state()`, packed with msgpack_numpy."""
    for index, cell in enumerate(batch.column(0).to_pylist()):
        row = first + index
        try:
            state = _unpacked(file, cell)
            yield _chunk(file, row, state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ImportDataError):
                raise
            what = f"no episode of RLlib that can be read: {type(error).__name__}: {error}"
            yield BadRecord(file, row, what)


def _unpacked(file: str, cell: Any) -> Any:
    try:
        import msgpack  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ImportDataError(
            f"{file} needs msgpack, which Ray installs: pip install msgpack"
        ) from (error)
    if not isinstance(cell, bytes):
        raise TypeError(f"expected bytes, got {type(cell).__name__}")
    return msgpack.unpackb(cell, object_hook=_array, strict_map_key=False)


class _Pickled:
    """Stands for an array of Python objects, which msgpack_numpy pickles; infos are such."""


def _array(data: dict[Any, Any]) -> Any:
    if _NDARRAY not in data:
        return data
    kind = data[b"type"]
    if data.get(b"kind") == b"O" or not isinstance(kind, str | bytes):
        return _Pickled()
    dtype = np.dtype(kind if isinstance(kind, str) else kind.decode("ascii"))
    if dtype.hasobject:
        return _Pickled()
    values = np.frombuffer(data[b"data"], dtype)
    return values.reshape(data[b"shape"]) if data[_NDARRAY] else values[0]


def _chunk(file: str, row: int, state: Mapping[str, Any]) -> Rows:
    rewards = np.asarray(_buffer(state["rewards"], file, row), np.float64)
    steps = len(rewards)
    obs = _stacked(_buffer(state["observations"], file, row), steps + 1)
    outputs = state.get("extra_model_outputs") or {}
    logp = outputs.get(NAMES["logp"])
    ends = np.zeros((2, steps), np.bool_)
    if steps:
        ends[:, -1] = state["is_terminated"], state["is_truncated"]
    names = np.full(steps, str(state["id_"]), dtype=object)
    started = int(state["t_started"])
    return Rows(
        file=file,
        numbers=np.full(steps, row),
        obs=_part(obs, slice(0, steps)),
        next_obs=_part(obs, slice(1, steps + 1)),
        action=_stacked(_buffer(state["actions"], file, row), steps),
        reward=rewards,
        terminated=ends[0],
        truncated=ends[1],
        episode_ids=names,
        t=np.arange(started, started + steps),
        logp=None if logp is None else _stacked(_buffer(logp, file, row), steps),
    )


def _buffer(state: Mapping[str, Any], file: str, row: int) -> Any:
    """What an InfiniteLookbackBuffer holds, without the end of the chunk before it."""
    data, lookback = state["data"], int(state["lookback"])
    if isinstance(data, _Pickled):
        raise ImportDataError(
            f"{file}, row {row} holds pickled objects where numbers should be; reading them can "
            "run code of whoever wrote it, so they are never read"
        )
    if isinstance(data, list):
        return data[lookback:]
    return _part(data, slice(lookback, None))


def _part(tree: Tree, part: slice) -> Tree:
    if isinstance(tree, dict):
        return {key: _part(child, part) for key, child in tree.items()}
    return tuple(_part(child, part) for child in tree) if isinstance(tree, tuple) else tree[part]


def _stacked(data: Any, rows: int) -> Tree:
    """A list of steps, each a tree, as a tree of arrays."""
    if not isinstance(data, list):
        return data
    if len(data) != rows:
        raise ValueError(f"{len(data)} entries, expected {rows}")
    if data and isinstance(data[0], dict):
        return {key: _stacked([step[key] for step in data], rows) for key in data[0]}
    if data and isinstance(data[0], list | tuple) and isinstance(data[0][0], np.ndarray):
        return tuple(_stacked([step[i] for step in data], rows) for i in range(len(data[0])))
    return np.asarray(data)
