"""The ledger's rows of a batch: what its data files are, by their writer's own account."""

import time
from collections.abc import Mapping, Sequence

import pyarrow as pa

from offline import schemas as s
from offline.parts import Part
from rl_ops import columns as c


def ledger_rows(
    parts: Mapping[str, Sequence[Part]],
    *,
    writer: str,
    seq: int,
    fragments: Sequence[int],
    run_id: str | None = None,
    session: int | None = None,
) -> pa.Table:
    """One row for each data file.

    Args:
        parts: table to its data files.
        writer: of the batch.
        seq: of the batch.
        fragments: in the batch.
        run_id: of files whose rows name none, or several.
        session: as run_id.
    """
    at_us = time.time_ns() // 1000
    rows = [
        {
            "writer": writer,
            "seq": seq,
            s.TABLE: name,
            s.PATH: part.path,
            s.SHA256: part.sha256,
            s.BYTES: part.size,
            s.ROWS: part.rows,
            c.RUN_ID: run_id if part.run_id is None else part.run_id,
            s.SESSION: session if part.session is None else part.session,
            "fragments": list(fragments),
            "replaces": None,
            s.AT: at_us,
        }
        for name, some in parts.items()
        for part in some
    ]
    return pa.Table.from_pylist(rows, schema=s.LEDGER.schema)
