"""A step's attempt as processes of its own, which end with the scheduler and within their time."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

GRACE_S: Final = 120.0
"""From SIGTERM, at which a training saves a checkpoint, to SIGKILL."""
_POLL_S: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1
_TAIL: Final = 65_536
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        how: by itself, because its time was over, or because the scheduler was asked to stop.
        exit_code: of the process; below 0 the signal that ended it.
    """

    how: Literal["itself", "timeout", "stopped"]
    exit_code: int


@dataclass(frozen=True)
class Attempt:
    """What is to be run.

    Attributes:
        words: the command and its arguments.
        cwd: where.
        out: file that gets stdout.
        log: file that gets stderr.
        timeout_s: how long it may take.
        lock_fd: of a lock that is held as long as a process of the attempt lives.
        grace_s: from being asked to end until it is ended.
    """

    words: Sequence[str]
    cwd: Path
    out: Path
    log: Path
    timeout_s: float
    lock_fd: int
    grace_s: float = GRACE_S

    def run(
        self,
        *,
        began: Callable[[int], None] = lambda _pid: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Ended:
        """Run to the end.

        Args:
            began: told the process id.
            should_stop: asked many times a second.

        Raises:
            OSError: the command cannot be started.
        """
        with self.out.open("wb") as out, self.log.open("wb") as log:
            process = subprocess.Popen(
                list(self.words),
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                pass_fds=(self.lock_fd,),
                preexec_fn=_end_with_parent,
            )
        try:
            began(process.pid)
            return self._watched(process, should_stop)
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()

    def _watched(
        self, process: "subprocess.Popen[bytes]", should_stop: Callable[[], bool]
    ) -> Ended:
        deadline = time.monotonic() + self.timeout_s
        while process.poll() is None:
            if should_stop():
                return Ended("stopped", self._asked_to_end(process))
            if time.monotonic() > deadline:
                return Ended("timeout", self._asked_to_end(process))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
        return Ended("itself", process.returncode)

    def _asked_to_end(self, process: "subprocess.Popen[bytes]") -> int:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.grace_s)
        _signal_group(process.pid, signal.SIGKILL)
        return process.wait()


def _end_with_parent() -> None:
    """Runs in the child: nobody would note what a step did whose scheduler was killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def tail_of(path: Path, *, lines: int = 20) -> str:
    """The end of a text file; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])
