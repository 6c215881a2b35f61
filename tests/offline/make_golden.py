"""Makes the golden lake of a schema version: `python -m tests.offline.make_golden`.

Once for each version, by the code of that version, and then committed: later code must read the
same rows from the same bytes. What is in it is told by formulas here, of names and numbers only.
"""

import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space

from offline import schemas as s
from offline.spaces import SpaceCodec, register_space
from offline.storage import Storage
from offline.tables import create_tables
from offline.writer import LakeWriter
from rl_ops import columns as c
from rl_ops.tree import Tree

GOLDEN: Final = Path(__file__).parent / "golden"
COLUMNS: Final = "columns.json"
"""Beside the tables: table to column to type, as the version had them."""
WRITER: Final = "golden/0"
ROWS: Final = 8
RUNS: Final = ("vector-1", "dict-1")
SESSION: Final = 0

ODD: Final = np.array([-0.0, np.inf, -np.inf, np.nan, 1e-45, 1e38, 0.1, -1.5], np.float32)

SPACES: Final[dict[str, tuple[Space[Any], Space[Any]]]] = {
    "vector-1": (
        Box(-np.inf, np.inf, (4,), np.float32),
        Discrete(2),
    ),
    "dict-1": (
        Dict(
            [
                ("speed", Box(-1.0, 1.0, (2,), np.float64)),
                ("frame", Box(0, 255, (3, 2, 1), np.uint8)),
                ("gear", Discrete(5, start=-1)),
                ("tick", Box(0, 2**64 - 1, (1,), np.uint64)),
                ("half", Box(-np.inf, np.inf, (), np.float16)),
            ]
        ),
        Dict([("steer", Box(-1, 1, (1,), np.float32)), ("keys", MultiDiscrete([3, 2]))]),
    ),
}


def trees(run: str, shift: int = 0) -> tuple[Tree, Tree]:
    """Observations and actions of a run's rows; shifted, its final observations."""
    n = np.arange(ROWS) + shift
    if run == "vector-1":
        return ODD[(n[:, None] + np.arange(4)) % len(ODD)], n % 2
    obs = {
        "speed": np.stack([n / 7 - 0.5, -n / 11], axis=1),
        "frame": (n[:, None] * 6 + np.arange(6)).astype(np.uint8).reshape(ROWS, 3, 2, 1),
        "gear": n % 5 - 1,
        "tick": (np.uint64(2**64 - 1) - n.astype(np.uint64))[:, None],
        "half": (n / 3).astype(np.float16),
    }
    return obs, {
        "steer": (n[:, None] / 13).astype(np.float32),
        "keys": np.stack([n % 3, n % 2], axis=1),
    }


def runs_of(table: str) -> tuple[str, ...]:
    """The runs that a table has rows of: both only where they differ, for the files are kept."""
    return RUNS if table == s.STEPS.name else RUNS[:1]


def is_last() -> Any:
    return np.arange(ROWS) % 4 == 3


def value_of(run: str, column: str, kind: str, row: int) -> Any:
    """What a column of a run's row holds, where it is no observation and no action."""
    letters = sum(map(ord, column))
    if column == c.RUN_ID:
        return run
    if kind == "string":
        return ("ü'\n", "", None)[row % 3]
    if kind == "bool":
        return (True, False, None)[(row + letters) % 3]
    if kind in ("int32", "int64"):
        limit = 2**31 - 1 if kind == "int32" else 2**63 - 1
        return (letters + row, -row, limit, -limit - 1, None)[row % 5]
    if kind == "float":
        return (float(ODD[(row + letters) % len(ODD)]), None)[row % 5 == 4]
    if kind == "double":
        return (0.1 * row, -0.0, 5e-324, float("nan"), None)[row % 5]
    if kind.startswith("timestamp"):
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=letters + row)
    if kind.startswith("list<"):
        return ([], [row, letters], None)[row % 3]
    raise TypeError(f"{column} is {kind}, of which there are no golden values")


def golden_rows(run: str, table: str, columns: dict[str, str]) -> dict[str, list[Any]]:
    """Columns of a run's rows but for observations and actions."""
    trees_ = {c.OBS, c.ACTION, c.FINAL_OBS, s.OBS_BYTES, s.ACTION_BYTES, s.FINAL_OBS_BYTES}
    skipped = trees_ | {s.SPACE} if table == s.STEPS.name else set()
    rows = {
        name: [value_of(run, name, kind, row) for row in range(ROWS)]
        for name, kind in columns.items()
        if name not in skipped
    }
    if table == s.STEPS.name:
        rows[c.IS_LAST] = is_last().tolist()
        rows[s.SESSION] = [SESSION] * ROWS
        rows[c.FRAGMENT_ID] = list(range(ROWS))
    return rows


def steps_of(run: str, key: str) -> dict[str, Any]:
    """The columns of steps that hold observations and actions."""
    obs_codec, action_codec = (SpaceCodec(space) for space in SPACES[run])
    obs, action = trees(run)
    final, _ = trees(run, shift=1)
    arrays: dict[str, Any] = {s.SPACE: [key] * ROWS}
    for name, columns in (
        (c.OBS, obs_codec.columns(obs)),
        (c.ACTION, action_codec.columns(action)),
        (c.FINAL_OBS, obs_codec.columns(final, is_last())),
    ):
        arrays |= {name: columns.values, f"{name}_bytes": columns.bytes_}
    return {name: array for name, array in arrays.items() if array is not None}


def rows_of(run: str, table: s.TableSchema, key: str) -> pa.Table:
    """A run's rows of a table, with every column."""
    kinds = {field.name: str(field.type) for field in table.schema}
    arrays: dict[str, Any] = golden_rows(run, table.name, kinds)
    if table.name == s.STEPS.name:
        arrays |= steps_of(run, key)
    columns = []
    for field in table.schema:
        values = arrays.get(field.name, [None] * ROWS)
        is_array = isinstance(values, pa.Array)
        columns.append(values if is_array else pa.array(values, field.type))
    return pa.table(columns, schema=table.schema)


def make(folder: Path) -> None:
    """Write the golden lake of today's schema version."""
    storage = Storage.at(folder)
    create_tables(storage)
    keys = {run: register_space(storage, *SPACES[run]) for run in RUNS}
    batch = {
        name: pa.concat_tables([rows_of(run, table, keys[run]) for run in runs_of(name)])
        for name, table in s.TABLES.items()
        if name != s.LEDGER.name
    }
    with LakeWriter(storage, WRITER, run_id=RUNS[0], session=SESSION) as writer:
        writer.write(batch, fragments=range(ROWS))
    shutil.rmtree(folder / "_millrace")
    noted = {n: {f.name: str(f.type) for f in t.schema} for n, t in s.TABLES.items()}
    (folder / COLUMNS).write_text(json.dumps(noted) + "\n")


if __name__ == "__main__":
    target = GOLDEN / f"v{s.SCHEMA_VERSION}"
    if target.exists():
        sys.exit(f"{target} is there; a golden lake is made once")
    make(target)
