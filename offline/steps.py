"""Rows of the table `steps`, from the fragments that rollouts emit."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from gymnasium.spaces import Space

from offline import schemas as s
from offline.spaces import SpaceCodec
from rl_ops import columns as c
from rl_ops.spaces import codec_for

OPTIONAL: Final = (c.OBS, c.FINAL_OBS, c.LOGP, c.VALUE)
"""Columns of a step that a log may do without; all others are always there."""


@dataclass(frozen=True)
class StepFormat:
    """Which rows and columns of a stream are stored.

    Attributes:
        run_id, session: of the run.
        space: key of the spaces, as `offline.spaces.register_space` gave it.
        obs_space, action_space: of the columns obs and action.
        columns: which of `OPTIONAL` are kept.
        episode_frac: share of the episodes whose steps are stored; chosen by the episode's id, so
            that an episode is there whole or not at all.
    """

    run_id: str
    session: int
    space: str
    obs_space: Space[Any]
    action_space: Space[Any]
    columns: tuple[str, ...] = OPTIONAL
    episode_frac: float = 1.0


class StepEncoder:
    """Turns fragments into rows of `schemas.STEPS`."""

    def __init__(self, form: StepFormat) -> None:
        self.form = form
        self._trees = {
            name: (SpaceCodec(space), codec_for(space))
            for name, space in (
                (c.OBS, form.obs_space),
                (c.FINAL_OBS, form.obs_space),
                (c.ACTION, form.action_space),
            )
        }

    def encode(self, tables: Sequence[pa.Table]) -> pa.Table:
        """The rows of some fragments, in order, but for episodes that are not sampled."""
        names = [name for name in tables[0].column_names if name in s.STEPS.schema.names]
        rows = pa.concat_tables([table.select(names) for table in tables])
        if self.form.episode_frac < 1.0:
            rows = rows.filter(self._sampled(rows.column(c.EPISODE_ID)))
        count = rows.num_rows
        arrays = {name: rows.column(name) for name in names if name not in self._trees}
        for name, (space, codec) in self._trees.items():
            if name in names and (name in self.form.columns or name == c.ACTION):
                values, raw = space.from_stream(rows.column(name), codec)
                arrays |= {name: values, f"{name}_bytes": raw}
        for name in (c.LOGP, c.VALUE):
            if name not in self.form.columns:
                arrays.pop(name, None)
        arrays[c.RUN_ID] = constant(self.form.run_id, count)
        arrays[s.SPACE] = constant(self.form.space, count)
        arrays[s.SESSION] = pa.array(np.full(count, self.form.session, np.int32))
        return table_of(arrays, s.STEPS.schema, rows=count)

    def _sampled(self, episodes: pa.ChunkedArray) -> pa.ChunkedArray:
        bound = int(self.form.episode_frac * 2**32)

        def of_chunk(chunk: pa.DictionaryArray) -> pa.Array:
            names = chunk.dictionary.to_pylist()
            chosen = pa.array([zlib.crc32(name.encode()) < bound for name in names], pa.bool_())
            return chosen.take(chunk.indices)

        return pa.chunked_array([of_chunk(x) for x in episodes.chunks], pa.bool_())


def constant(value: str, rows: int) -> pa.Array:
    """A string, `rows` times."""
    indices = pa.array(np.zeros(rows, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.string()))


def table_of(arrays: dict[str, Any], schema: pa.Schema, *, rows: int) -> pa.Table:
    """A table of `schema`: missing columns are null, others cast where nothing is lost."""
    columns = []
    for field in schema:
        array = arrays.get(field.name)
        if array is None:
            columns.append(pa.nulls(rows, field.type))
        else:
            columns.append(array if array.type == field.type else pc.cast(array, field.type))
    return pa.table(columns, schema=schema)
