"""Logged steps file by file, in tables of whole fragments: for data larger than the memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offline import schemas as s
from offline.errors import LakeError
from offline.lake import Lake
from offline.selection import damage
from offline.space_codec import SpaceCodec
from offline.storage import Storage, explain
from offline.trajectories import (
    DataSpec,
    Trajectories,
    in_part,
    no_rows,
    selection_of,
    spaces_in,
    trajectories_of,
)
from rl_ops import columns as c

if TYPE_CHECKING:
    import pyarrow.dataset as pds

_BATCH_ROWS: Final = 16_384


@dataclass(frozen=True, eq=False)
class StepFiles:
    """The data files that a spec's rows are in; travels to processes that read them.

    Attributes:
        storage: of the lake.
        spec: which rows, with a version.
        version: of table `steps`.
        files: in the order of their names.
        schema: of the table.
        columns: that are read.
        where: which rows.
        space: key of the rows' spaces.
        obs, action: codecs of the rows' spaces.
    """

    storage: Storage
    spec: DataSpec
    version: int
    files: "Sequence[pds.ParquetFileFragment]"
    schema: pa.Schema
    columns: tuple[str, ...]
    where: pc.Expression | None
    space: str
    obs: SpaceCodec
    action: SpaceCodec

    @classmethod
    def of(cls, lake: Lake, spec: DataSpec) -> "StepFiles":
        """The files of a spec's version that may hold such rows.

        Raises:
            LakeError: there is no such version, or its rows are of several spaces.
        """
        selection = selection_of(lake, spec)
        assert selection.columns is not None  # selection_of names them
        files = selection.files()
        first = selection.first()
        if first is None:
            raise no_rows(lake, selection.version)
        obs, action = spaces_in(lake, first, selection.version)
        return cls(
            storage=lake.storage,
            spec=spec,
            version=selection.version,
            files=files,
            schema=selection.dataset().schema,
            columns=(*selection.columns, c.IS_LAST),
            where=selection.where,
            space=first.column(s.SPACE)[0].as_py(),
            obs=obs,
            action=action,
        )

    def trajectories(self, file: int) -> Iterator[Trajectories]:
        """The rows of a file, some whole fragments at a time.

        Raises:
            LakeError: the file cannot be read, or holds what is not of its spaces.
        """
        for rows in self._tables(self.files[file]):
            self._require_space(rows)
            kept = rows
            if self.spec.split < 1.0:
                chosen = in_part(rows.column(c.EPISODE_ID), self.spec.split, self.spec.part)
                kept = rows.filter(chosen)
            if kept.num_rows:
                yield trajectories_of(
                    kept, self.obs, self.action, version=self.version, uri=self.storage.uri
                )

    def _tables(self, file: "pds.ParquetFileFragment") -> Iterator[pa.Table]:
        """Cut behind rows that end an episode or fragment: those have the observation after."""
        held: list[pa.RecordBatch] = []
        for batch in self._batches(file):
            end = _last_end(batch)
            if end:
                yield pa.Table.from_batches([*held, batch.slice(0, end)])
                held = []
            if end < batch.num_rows:
                held.append(batch.slice(end))
        if held:
            yield pa.Table.from_batches(held)

    def _require_space(self, rows: pa.Table) -> None:
        others = set(pc.unique(rows.column(s.SPACE)).to_pylist()) - {self.space}
        if others:
            raise LakeError(
                f"version {self.version} of steps has rows of several spaces where offline.where "
                f"holds ({self.space}, {', '.join(sorted(map(str, others)))}); a learner takes "
                "one. Choose by run_id or space."
            )

    def _batches(self, file: "pds.ParquetFileFragment") -> Iterator[pa.RecordBatch]:
        columns = list(self.columns)
        try:
            for batch in file.to_batches(
                schema=self.schema,
                columns=columns,
                filter=self.where,
                batch_size=_BATCH_ROWS,
                batch_readahead=2,
            ):
                if batch.num_rows:
                    yield batch
        except (OSError, pa.ArrowException) as error:
            found = damage(
                self.storage,
                s.STEPS.name,
                version=self.version,
                files=[file],
                schema=self.schema,
                columns=columns,
                where=self.where,
            )
            raise found or explain(error, self.storage, f"reading {file.path}") from None


def _last_end(batch: pa.RecordBatch) -> int:
    """How many rows there are up to the last one that ends an episode or fragment."""
    ends = np.zeros(batch.num_rows, np.bool_)
    for name in (c.IS_LAST, c.TERMINATED, c.TRUNCATED):
        ends |= batch.column(name).fill_null(False).to_numpy(zero_copy_only=False)
    return int(np.flatnonzero(ends)[-1]) + 1 if ends.any() else 0
