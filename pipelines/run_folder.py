"""The files of a run: params, results, progress, TensorBoard events, plan, checkpoints."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any, TextIO

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
        resume: append to the files of an earlier session instead of starting them.

    Raises:
        StorageError: the folder cannot be written.
        RunExistsError: a run of that name is there and `resume` is not set, or is running.
    """

    def __init__(self, storage: Path, run_id: str, *, resume: bool = False) -> None:
        self.path = storage / check_run_id(run_id)
        try:
            storage.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(exist_ok=resume)
        except FileExistsError:
            raise RunExistsError(
                f"{self.path} exists already: another run has that name. Choose another --name, "
                f"or go on with it by --resume {run_id}"
            ) from None
        except OSError as error:
            raise StorageError(
                f"cannot write to {storage}: {error.strerror}. Choose another --storage, or give "
                "this user write permission there"
            ) from error
        self._lock = _lock(self.path)
        self._results = (self.path / "result.json").open("a", buffering=1)
        self._csv_file: TextIO | None = None
        self._csv: csv.DictWriter[str] | None = None
        self._events: Any = None

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def write_start(self, params: dict[str, Any], plan: str) -> None:
        """Write params.json and plan.txt."""
        (self.path / "params.json").write_text(json.dumps(params, indent=2) + "\n")
        (self.path / "plan.txt").write_text(plan + "\n")

    def write_result(self, result: dict[str, Any], *, tensorboard: bool) -> None:
        """Append one iteration to result.json, progress.csv and, if wanted, TensorBoard."""
        self._results.write(json.dumps(result) + "\n")
        self._write_csv(result)
        if tensorboard:
            self._write_events(result)

    def _write_csv(self, result: dict[str, Any]) -> None:
        if self._csv is None:
            path = self.path / "progress.csv"
            names = list(result)
            if path.exists() and path.stat().st_size:
                with path.open(newline="") as old:
                    names = next(csv.reader(old))
            self._csv_file = path.open("a", newline="", buffering=1)
            self._csv = csv.DictWriter(self._csv_file, names, extrasaction="ignore")
            if not path.stat().st_size:
                self._csv.writeheader()
        self._csv.writerow(result)

    def _write_events(self, result: dict[str, Any]) -> None:
        if self._events is None:
            from tensorboardX import SummaryWriter  # half a second: not before the first result

            self._events = SummaryWriter(str(self.path), flush_secs=10)
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
