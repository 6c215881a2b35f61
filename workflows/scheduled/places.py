"""Where a workflow's runs keep their logs, and the lock that one process of a machine holds."""

import fcntl
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from offline.workflow_log import ClaimError
from workflows.scheduled.spec import Workflow, stamp

if TYPE_CHECKING:
    from offline.storage import Storage


@dataclass(frozen=True)
class Places:
    """Of one workflow.

    Attributes:
        workflow: which.
        storage: folder of runs.
    """

    workflow: Workflow
    storage: Path

    @property
    def lake(self) -> "Storage":
        """Of the history, and of what the steps log."""
        from offline.storage import Storage

        return Storage.at(f"{self.workflow.spec.lake or self.storage}/lake")

    @property
    def base(self) -> Path:
        """Folder of the workflow's runs."""
        return self.storage / "workflows" / self.workflow.name

    def folder(self, logical_time: datetime) -> Path:
        """Of one run: its logs and its lock."""
        return self.base / stamp(logical_time)

    def run_id(self, logical_time: datetime, step: str) -> str:
        """Of what a step trains, collects or evaluates: the same at each attempt."""
        return f"{self.workflow.name}-{stamp(logical_time)}-{step}"


class RunLock:
    """Held by the process that executes a run, and by the processes of its steps.

    Freed by the kernel when the last of them is gone, however it went.

    Args:
        folder: of the run; made where it is missing.

    Raises:
        ClaimError: a living process of this machine has it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.fd)
            raise ClaimError(f"{folder} is locked: another process executes that run") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)
