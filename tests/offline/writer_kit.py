"""Numbered fragments into a lake, by processes that are killed, and a count of what arrived.

`python -m tests.offline.writer_kit` is a nursery: it has imported what takes long and forks a
child for each line of JSON that it reads, so that a kill costs milliseconds. The child imports
`offline.writer` itself, and with it the fail point that its environment names.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from offline import schemas as s
from offline.commits import list_log, read_commits
from offline.storage import Storage
from offline.tables import create_tables, open_table
from rl_ops import columns as c

WRITER = "run/0"
TABLES = (s.STEPS.name, s.EPISODES.name, s.CONSUMPTION.name)
ROWS = 5
"""Steps of a fragment."""


def fragment_rows(fragment: int, run_id: str = "run") -> dict[str, list[dict[str, Any]]]:
    """Rows of one fragment in three tables, all told by its number."""
    whose = {c.RUN_ID: run_id, s.SESSION: 0}
    steps = [
        {
            **whose,
            c.FRAGMENT_ID: fragment,
            c.EPISODE_ID: f"{run_id}-{fragment}",
            c.T: t,
            c.OBS: [float(fragment), t / 7],
            c.REWARD: fragment + t / 10,
            c.IS_LAST: t == ROWS - 1,
        }
        for t in range(ROWS)
    ]
    episode = {**whose, c.EPISODE_ID: f"{run_id}-{fragment}", s.RETURN: float(fragment)}
    used = {**whose, c.FRAGMENT_ID: fragment, s.ROWS: ROWS, s.LAG: fragment % 3}
    return {s.STEPS.name: steps, s.EPISODES.name: [episode], s.CONSUMPTION.name: [used]}


def batch_of(fragments: Sequence[int], run_id: str = "run") -> dict[str, pa.Table]:
    """The tables of a batch, with every column."""
    rows = [fragment_rows(fragment, run_id) for fragment in fragments]
    return {
        name: pa.Table.from_pylist(
            [row for one in rows for row in one[name]], schema=s.TABLES[name].schema
        )
        for name in TABLES
    }


def new_lake(folder: Path, *, checkpoint_period: int = 20) -> Storage:
    """An empty lake; checkpoints of the logs come as often as said."""
    from offline.tables import set_property

    storage = Storage.at(folder)
    create_tables(storage)
    if checkpoint_period != 20:
        for name in (*TABLES, s.LEDGER.name):
            set_property(storage, name, "delta.checkpointInterval", str(checkpoint_period))
    return storage


def read(storage: Storage, table: str) -> pa.Table:
    opened = open_table(storage, table)
    return opened.to_pyarrow_dataset(filesystem=storage.filesystem(table)).to_table()


def fragments_of(storage: Storage, writer: str = WRITER) -> list[int]:
    """What the ledger says a writer has brought."""
    ledger = read(storage, s.LEDGER.name)
    mine = ledger.filter(pc.equal(ledger["writer"], writer))
    of_steps = mine.filter(pc.equal(mine[s.TABLE], s.STEPS.name))
    return [f for fragments in of_steps["fragments"].to_pylist() for f in fragments]


def check(
    storage: Storage, expected: Mapping[str, Sequence[int]], *, orphans: bool = False
) -> None:
    """Every fragment of every run once, rows equal, the ledger true, nothing left over.

    Args:
        storage: of a lake that nobody writes to now.
        expected: run id to its fragments.
        orphans: data files that no commit names may be there.
    """
    for name in TABLES:
        there = read(storage, name).to_pylist()
        wanted = [
            row
            for run_id, fragments in expected.items()
            for row in pa.concat_tables(
                [s.TABLES[name].schema.empty_table()]
                + [batch_of([f], run_id)[name] for f in fragments]
            ).to_pylist()
        ]
        assert _sorted(there) == _sorted(wanted), name
    check_ledger(storage)
    for name in (*TABLES, s.LEDGER.name):
        check_transactions(storage, name)
    if storage.is_local:
        own = Path(storage.uri, "_millrace")
        left = [p for p in own.rglob("*") if p.is_file()]
        assert not left
        for name in (*TABLES, s.LEDGER.name):
            log = Path(storage.uri, name, "_delta_log")
            assert not [p for p in log.iterdir() if "partial" in p.name]
            data = {str(p) for p in Path(storage.uri, name).rglob("*.parquet")}
            data = {p for p in data if "_delta_log" not in p}
            live = set(open_table(storage, name).file_uris())
            assert live <= data if orphans else live == data


def _sorted(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True, default=str) for row in rows)


def check_ledger(storage: Storage) -> None:
    """One row for each data file that was ever written, with its size, rows and checksum."""
    ledger = read(storage, s.LEDGER.name).to_pylist()
    paths = [(row[s.TABLE], row[s.PATH]) for row in ledger]
    assert len(paths) == len(set(paths))
    for row in ledger:
        content = _bytes(storage, f"{row[s.TABLE]}/{row[s.PATH]}")
        assert len(content) == row[s.BYTES]
        assert hashlib.sha256(content).hexdigest() == row[s.SHA256]
        assert pa.parquet.read_metadata(pa.BufferReader(content)).num_rows == row[s.ROWS]
    for name in TABLES:
        rows = open_table(storage, name).count()
        assert rows == sum(row[s.ROWS] for row in ledger if row[s.TABLE] == name), name


def check_transactions(storage: Storage, table: str) -> None:
    """Each batch is in one commit: a second one would add nothing to see, and hide a mistake."""
    commits = read_commits(storage, table, list_log(storage, table).commits)
    made = [pair for commit in commits for pair in commit.transactions.items()]
    assert len(made) == len(set(made)), table


def _bytes(storage: Storage, path: str) -> bytes:
    with storage.filesystem().open_input_stream(path) as stream:
        return bytes(stream.read())


class Nursery:
    """Starts children that write, and kills them."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.offline.writer_kit"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._answers = threading.Lock()
        self.kills = 0

    def run(
        self,
        storage: Storage,
        *,
        total: int,
        fail_point: str | None = None,
        kill_after_s: float | None = None,
        writer: str = WRITER,
        batch: int = 2,
        delta_rs: bool = False,
    ) -> bool:
        """Let a child write what is missing of `total` fragments; whether it came to its end.

        Args:
            storage: of the lake.
            total: fragments there should be of the writer's run.
            fail_point: where the child is killed, as the variable has it.
            kill_after_s: or when.
            writer: its name; its run is what comes before the slash.
            batch: fragments in one.
            delta_rs: commit through delta-rs, as in an object store.
        """
        task = {
            "uri": storage.uri,
            "total": total,
            "fail_point": fail_point,
            "kill_after_s": kill_after_s,
            "writer": writer,
            "batch": batch,
            "delta_rs": delta_rs,
        }
        with self._answers:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.kills += 1
            return False
        assert status == 0, f"the child ended with status {status}; see stderr"
        return True

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


def _serve() -> None:
    import deltalake  # noqa: F401 - imported for the children, never used before they fork
    import pyarrow.dataset  # noqa: F401

    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            _be_child(task)
        if task["kill_after_s"] is not None:
            time.sleep(task["kill_after_s"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)  # noqa: T201 - the answer


def _be_child(task: Mapping[str, Any]) -> None:
    code = 1
    try:
        signal.alarm(60)
        if task["fail_point"]:
            os.environ["MILLRACE_FAIL_POINT"] = task["fail_point"]
        _write(task)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def _write(task: Mapping[str, Any]) -> None:
    from offline import table_log
    from offline.writer import LakeWriter

    if task["delta_rs"]:
        # Tables of a newer protocol are left to delta-rs; now all are.
        table_log._WRITER_VERSION = 0  # type: ignore[misc]
    storage = Storage.at(task["uri"])
    writer, size = task["writer"], task["batch"]
    with LakeWriter(storage, writer) as lake:
        there = set(fragments_of(storage, writer))
        missing = [fragment for fragment in range(task["total"]) if fragment not in there]
        for first in range(0, len(missing), size):
            some = missing[first : first + size]
            lake.write(batch_of(some, writer.partition("/")[0]), fragments=some)


if __name__ == "__main__":
    _serve()
