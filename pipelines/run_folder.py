"""The files of a run: params, results, progress, TensorBoard events, plan, checkpoints."""

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipelines.checkpoint import PARTIAL, numbered
from pipelines.errors import RunExistsError, StorageError

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_run_id(run_id: str) -> str:
    """`run_id` if it can name a folder, which rules out '..', separators and control characters.

    Raises:
        ValueError: it cannot.
    """
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(
            f"run name {run_id!r} cannot name a folder; use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit, at most 128"
        )
    return run_id


class RunFolder:
    """Writes a run's files; one process at a time.

    Args:
        storage: where runs live.
        run_id: this run.
        resume_at: iteration of the checkpoint that the run goes on from; what an earlier session
            wrote of later ones is cut off or, checkpoints, set aside. None for a new run.

    Attributes:
        set_aside: checkpoints of later iterations, under their new names.
        session: how often the run was started before, in this folder.

    Raises:
        StorageError: the folder cannot be written.
        RunExistsError: a run of that name is there and `resume_at` is None, or is running.
    """

    def __init__(self, storage: Path, run_id: str, *, resume_at: int | None = None) -> None:
        self.path = storage / check_run_id(run_id)
        self.set_aside: list[Path] = []
        self._csv_file: TextIO | None = None
        self._csv: csv.DictWriter[str] | None = None
        self._events: Any = None
        self._purge_step: int | None = None  # TensorBoard forgets what it was told from there on
        try:
            storage.mkdir(parents=True, exist_ok=True)
            self._make(run_id, exist_ok=resume_at is not None)
            self._lock = _lock(self.path)
            self.session = self._next_session()
            if resume_at is not None:
                self._cut(resume_at)
            self._results = (self.path / "result.json").open("a", buffering=1)
        except OSError as error:
            raise StorageError(
                f"cannot write to {storage}: {error.strerror}. Choose another --storage, or give "
                "this user write permission there"
            ) from error

    def _make(self, run_id: str, *, exist_ok: bool) -> None:
        try:
            self.path.mkdir(exist_ok=exist_ok)
        except FileExistsError:
            raise RunExistsError(
                f"{self.path} exists already: another run has that name. Choose another --name, "
                f"or go on with it by --resume {run_id}"
            ) from None

    def _next_session(self) -> int:
        """Count the starts: two resumes of one checkpoint must not name their episodes alike."""
        path = self.path / "sessions.json"
        started = json.loads(path.read_text())["started"] if path.exists() else 0
        _rewrite(path, [json.dumps({"started": started + 1}) + "\n"])
        return int(started)

    def _cut(self, iteration: int) -> None:
        """Undo what was written after `iteration`, and lines that a kill cut short."""
        results, progress = self.path / "result.json", self.path / "progress.csv"
        if results.exists():
            kept = list(read_results(results, iteration))
            self._purge_step = kept[-1]["env_steps"] + 1 if kept else 0
            _rewrite(results, [f"{json.dumps(result)}\n" for result in kept])
        if progress.exists():
            with progress.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
                names = list(reader.fieldnames or [])
            self._write_table(names, [row for row in rows if _iteration(row) <= iteration])
        for partial in self.checkpoints.glob(f"{PARTIAL}*"):
            shutil.rmtree(partial)
        for later in numbered(self.checkpoints):
            if int(later.name) > iteration:
                self.set_aside.append(_free(later.with_name(f"set-aside-{later.name}")))
                later.rename(self.set_aside[-1])

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def write_start(self, params: dict[str, Any], plan: str) -> None:
        """Write params.json and plan.txt."""
        _rewrite(self.path / "params.json", [json.dumps(params, indent=2) + "\n"])
        _rewrite(self.path / "plan.txt", [plan + "\n"])

    def write_result(self, result: Mapping[str, Any], *, tensorboard: bool) -> None:
        """Append one iteration to result.json, progress.csv and, if wanted, TensorBoard."""
        # NaN and Inf are no JSON; a reader in another language would stop at the line.
        self._results.write(json.dumps({k: _finite(v) for k, v in result.items()}) + "\n")
        self._write_csv(result)
        if tensorboard:
            self._write_events(result)

    def _write_csv(self, result: Mapping[str, Any]) -> None:
        if self._csv is None or not result.keys() <= set(self._csv.fieldnames):
            self._widen(result)
        assert self._csv is not None
        self._csv.writerow(result)

    def _widen(self, result: Mapping[str, Any]) -> None:
        """Open progress.csv, with a column for each key: evaluations bring theirs later."""
        path = self.path / "progress.csv"
        names, rows = list(result), list[dict[str, Any]]()
        if path.exists() and path.stat().st_size:
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                old = list(reader.fieldnames or [])
                rows = list(reader)
            names = old + [name for name in names if name not in old]
        self._write_table(names, rows)
        self._csv_file = path.open("a", newline="", buffering=1)
        self._csv = csv.DictWriter(self._csv_file, names)

    def _write_table(self, names: list[str], rows: list[dict[str, Any]]) -> None:
        if self._csv_file is not None:
            self._csv_file.close()
        path = self.path / "progress.csv"
        with path.with_suffix(".new").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        path.with_suffix(".new").replace(path)

    def _write_events(self, result: Mapping[str, Any]) -> None:
        if self._events is None:
            from tensorboardX import SummaryWriter  # half a second: not before the first result

            self._events = SummaryWriter(str(self.path), flush_secs=10, purge_step=self._purge_step)
        for key, value in result.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._events.add_scalar(key, value, result["env_steps"])

    def close(self) -> None:
        """Flush and close the files, and give up the run's lock."""
        self._results.close()
        if self._csv_file is not None:
            self._csv_file.close()
        if self._events is not None:
            self._events.close()
        os.close(self._lock)

    def discard(self) -> None:
        """Close, and remove the folder of a run that could not be started."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)


def read_results(path: Path, until: float = math.inf) -> Iterator[dict[str, Any]]:
    """The results in a result.json up to iteration `until`, but for lines that are not whole."""
    with path.open() as file:
        for line in file:
            try:
                result = json.loads(line)
            except ValueError:
                continue
            if isinstance(result, dict) and result.get("training_iteration", math.inf) <= until:
                yield result


def _iteration(row: Mapping[str, Any]) -> float:
    value = row.get("training_iteration") or ""
    return int(value) if value.isdecimal() and None not in row.values() else math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rewrite(path: Path, parts: list[str]) -> None:
    """Replace a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text("".join(parts))
    temporary.replace(path)


def _free(path: Path) -> Path:
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}-{count}")
    return candidate


def check_unlocked(path: Path) -> None:
    """See that nobody writes a run.

    Raises:
        RunExistsError: a process does.
    """
    if path.is_dir():
        os.close(_lock(path))


def _lock(path: Path) -> int:
    """Hold `path`/.lock until the process ends, however it ends."""
    import fcntl

    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RunExistsError(
            f"{path} is running in another process; wait for it, or stop it"
        ) from None
    return handle
