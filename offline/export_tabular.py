"""Episodes as parquet, nested columns in it, or as CSV with a column for each number."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from gymnasium.spaces import Space

from offline.errors import LakeError
from offline.exchange import Episode, Spaces
from offline.exporting import Exported
from offline.tabular_columns import leaf_names
from rl_ops.spaces import codec_for
from rl_ops.tree import Tree, tree_map, tree_set, zip_spaces

_BATCH_ROWS: Final = 65_536
_FILE_ROWS: Final = 1_000_000
_MAX_COLUMNS: Final = 4_096


def write_parquet(
    episodes: Iterator[Episode], folder: Path, spaces: Spaces, *, file_rows: int = _FILE_ROWS
) -> Exported:
    """Write part-00000.parquet and so on; frames are bytes, other arrays lists.

    Args:
        episodes: what to write.
        folder: where to.
        spaces: of the episodes.
        file_rows: after which another file begins.
    """
    import pyarrow.parquet as pq

    def begin(path: Path, schema: pa.Schema) -> Any:
        return pq.ParquetWriter(path, schema, compression="zstd")

    tables = (_table(group, spaces, flat=False) for group in _groups(episodes))
    return _write(tables, folder, "parquet", begin, file_rows=file_rows)


def write_csv(
    episodes: Iterator[Episode], folder: Path, spaces: Spaces, *, file_rows: int = _FILE_ROWS
) -> Exported:
    """Write part-00000.csv and so on: obs_0, obs_1, ..., frames as numbers too.

    Args:
        episodes: what to write.
        folder: where to.
        spaces: of the episodes.
        file_rows: after which another file begins.

    Raises:
        LakeError: a row has more numbers than a table should have columns.
    """
    from pyarrow import csv

    width = len(leaf_names(spaces.obs, "obs"))
    if width > _MAX_COLUMNS:
        raise LakeError(
            f"an observation has {width:,} numbers, more columns than CSV is any use with; export "
            "parquet or rllib"
        )

    def begin(path: Path, schema: pa.Schema) -> Any:
        return csv.CSVWriter(str(path), schema)

    tables = (_table(group, spaces, flat=True) for group in _groups(episodes))
    return _write(tables, folder, "csv", begin, file_rows=file_rows)


def _write(
    tables: Iterator[pa.Table],
    folder: Path,
    suffix: str,
    begin: Callable[[Path, pa.Schema], Any],
    *,
    file_rows: int,
) -> Exported:
    """Write tables one after the other; `begin` opens the next file where one is full."""
    files: list[str] = []
    writer, rows = None, 0
    try:
        for table in tables:
            if writer is None or rows >= file_rows:
                if writer is not None:
                    writer.close()
                files.append(f"part-{len(files):05d}.{suffix}")
                writer, rows = begin(folder / files[-1], table.schema), 0
            writer.write_table(table)
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return Exported(tuple(files))


def _groups(episodes: Iterator[Episode]) -> Iterator[list[Episode]]:
    group: list[Episode] = []
    rows = 0
    for episode in episodes:
        group.append(episode)
        rows += len(episode)
        if rows >= _BATCH_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _table(group: list[Episode], spaces: Spaces, *, flat: bool) -> pa.Table:
    parts = [_episode_table(episode, spaces, flat=flat) for episode in group]
    return pa.concat_tables(parts).combine_chunks()


def _episode_table(episode: Episode, spaces: Spaces, *, flat: bool) -> pa.Table:
    rows = len(episode)
    last = np.zeros(rows, np.bool_)
    last[-1] = True
    encode = _flat if flat else _nested
    logp = pa.nulls(rows, pa.float64()) if episode.logp is None else pa.array(episode.logp)
    columns: dict[str, Any] = {
        "episode_id": pa.repeat(episode.episode_id, rows),
        "t": pa.array(np.arange(rows, dtype=np.int64)),
        **encode("obs", spaces.obs, episode.obs, None),
        **encode("action", spaces.action, episode.action, None),
        "reward": pa.array(episode.reward),
        "terminated": pa.array(last & episode.terminated),
        "truncated": pa.array(last & episode.truncated),
        **_final(episode, spaces.obs, flat=flat),
        "logp": logp,
        "seed": pa.repeat(pa.scalar(episode.seed, pa.int64()), rows),
    }
    return pa.table(columns)


def _final(episode: Episode, space: Space, *, flat: bool) -> dict[str, pa.Array]:
    """The observation after the last row in that row, null in all others."""
    rows = len(episode)
    valid = np.zeros(rows, np.bool_)
    tree = tree_map(np.zeros_like, episode.obs)
    if episode.final_obs is not None:
        valid[-1] = True
        tree_set(tree, slice(rows - 1, rows), episode.final_obs)
    return (_flat if flat else _nested)("final_obs", space, tree, valid)


def _nested(name: str, space: Space, tree: Tree, valid: Any) -> dict[str, pa.Array]:
    array = codec_for(space).encode(tree)
    array = array.cast(_without_sizes(array.type))
    if valid is None:
        return {name: array}
    # Parquet has no null among lists of a fixed size.
    return {name: array.take(pa.array(np.arange(len(array)), mask=~valid))}


def _without_sizes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _without_sizes(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_type)
    return pa.binary() if pa.types.is_fixed_size_binary(kind) else kind


def _flat(name: str, space: Space, tree: Tree, valid: Any) -> dict[str, pa.Array]:
    values: list[pa.Array] = []
    mask = None if valid is None else ~valid
    for _, leaf in zip_spaces(space, tree):
        # A float32 has more digits as a double, and is the same float32 when it is read.
        plain = leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf
        plain = plain.astype(np.int8) if plain.dtype.kind == "b" else plain
        columns = plain.reshape(len(plain), -1)
        values += [pa.array(columns[:, i], mask=mask) for i in range(columns.shape[1])]
    return dict(zip(leaf_names(space, name), values, strict=True))
