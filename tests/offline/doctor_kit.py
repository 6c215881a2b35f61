"""Small real lakes, and hands that damage them."""

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable

from offline import schemas as s
from offline.commits import live_files
from offline.doctor import doctor
from offline.findings import Finding
from offline.storage import Storage
from offline.tables import create_tables
from offline.writer import LakeWriter
from rl_ops import columns as c

EPISODE_STEPS = 5
ROOT = Path(__file__).parents[2]


def table_of(name: str, rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=s.TABLES[name].schema)


def batch(
    run_id: str, fragments: range, *, session: int = 0, episodes: int = 2
) -> dict[str, pa.Table]:
    """Fragments of whole episodes, their use, and the episodes."""
    steps: list[dict[str, object]] = []
    ended: list[dict[str, object]] = []
    used: list[dict[str, object]] = []
    for fragment in fragments:
        mine = {c.RUN_ID: run_id, s.SESSION: session}
        for e in range(episodes):
            episode = {**mine, c.EPISODE_ID: f"{session}-{fragment}-{e}"}
            ended.append({**episode, s.KIND: "train", s.LENGTH: EPISODE_STEPS, c.ABORTED: False})
            steps += [
                {
                    **episode,
                    c.FRAGMENT_ID: fragment,
                    c.AGENT_ID: "agent",
                    c.T: t,
                    c.OBS: [float(fragment), float(t)],
                    c.ACTION: [0.0],
                    c.REWARD: 1.0,
                    c.IS_LAST: t == EPISODE_STEPS - 1,
                }
                for t in range(EPISODE_STEPS)
            ]
        used.append({**mine, c.FRAGMENT_ID: fragment, s.ROWS: episodes * EPISODE_STEPS})
    found = (("steps", steps), ("episodes", ended), ("consumption", used))
    return {name: table_of(name, rows) for name, rows in found}


def small_lake(folder: Path, *, batches: int = 6, run_id: str = "r0") -> Storage:
    """A lake in which a run logged `batches` batches of two fragments of ten rows."""
    shutil.copytree(_template(batches, run_id), folder, dirs_exist_ok=True)
    return Storage.at(folder)


@functools.cache
def _template(batches: int, run_id: str) -> Path:
    """Such a lake to copy, which takes a tenth of the time of making it; gone with the process."""
    folder = Path(tempfile.mkdtemp(prefix="small-lake-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    storage = Storage.at(folder)
    create_tables(storage)
    append(storage, range(batches), run_id=run_id)
    return folder


def append(
    storage: Storage, batches: range, *, run_id: str = "r0", session: int = 0, writer: str = ""
) -> None:
    with LakeWriter(storage, writer or f"{run_id}/0") as lake:
        for number in batches:
            fragments = range(2 * number, 2 * number + 2)
            lake.write(batch(run_id, fragments, session=session), fragments=list(fragments))


def opened(storage: Storage, table: str = "steps", version: int | None = None) -> DeltaTable:
    return DeltaTable(storage.table_uri(table), version=version)


def rows_of(storage: Storage, table: str = "steps", version: int | None = None) -> list[dict]:
    """Rows in a fixed order."""
    from offline.selection import select

    rows = select(storage, table, version=version).to_arrow().to_pylist()
    return sorted(rows, key=str)


def data_files(storage: Storage, table: str = "steps") -> list[Path]:
    """Of the newest version, in the order of their names."""
    return [
        Path(storage.table_uri(table), path) for path in sorted(live_files(opened(storage, table)))
    ]


def commit_file(storage: Storage, version: int, table: str = "steps") -> Path:
    return Path(storage.table_uri(table), "_delta_log", f"{version:020d}.json")


def last_version(storage: Storage, table: str = "steps") -> int:
    return max(int(path.stem) for path in commit_file(storage, 0, table).parent.glob("*[0-9].json"))


def flip(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path, frac: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * frac)])


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def kinds(found: list[Finding]) -> set[str]:
    return {finding.kind for finding in found}


def examined(storage: Storage, *, deep: bool = False) -> dict[str, Finding]:
    """Kind to the first finding of it."""
    found: dict[str, Finding] = {}
    for finding in doctor(storage, deep=deep):
        found.setdefault(finding.kind, finding)
    return found


KILLED = """
import sys
from pathlib import Path
from offline.storage import Storage
from tests.offline.doctor_kit import append
append(Storage.at(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[2]) + 1))
"""


def killed_writer(storage: Storage, point: str, *, number: int = 6) -> None:
    """A process that writes batch `number` of run r0 and is killed at a fail point."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, storage.uri, str(number)],
        env={**os.environ, "MILLRACE_FAIL_POINT": point},
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
