"""Runs a command and measures its whole process tree from outside, through /proc.

Daemons count too: the harness asks the kernel to inherit orphans (Ray's raylet and GCS leave their
starter's session), so every descendant stays below the harness, and a process once seen is kept.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PR_SET_CHILD_SUBREAPER = 36
SAMPLE_PERIOD_S = 0.25
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ProcessStat:
    """One line of /proc/<pid>/stat; `started` makes a reused pid another process."""

    pid: int
    parent: int
    state: str
    started: int
    cpu_s: float
    rss_bytes: int

    @property
    def key(self) -> tuple[int, int]:
        return self.pid, self.started


@dataclass(frozen=True)
class Sample:
    """The tree at one moment; wall_s counts from the command's start. Shared pages count twice."""

    wall_s: float
    cpu_s: float
    rss_bytes: int
    num_processes: int


@dataclass(frozen=True)
class Run:
    """What a finished command printed and used."""

    exit_code: int
    timed_out: bool
    wall_s: float
    cpu_s: float
    other_cores: float
    stdout: list[str]
    stderr_tail: str
    samples: list[Sample]


def parse_stat(text: str) -> ProcessStat:
    """Parse /proc/<pid>/stat; the command in parentheses may itself hold spaces and parentheses."""
    head, tail = text.rsplit(")", 1)
    fields = tail.split()
    return ProcessStat(
        pid=int(head.split("(", 1)[0]),
        state=fields[0],
        parent=int(fields[1]),
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_S,
        started=int(fields[19]),
        rss_bytes=int(fields[21]) * PAGE_BYTES,
    )


def all_processes() -> list[ProcessStat]:
    found = []
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            with contextlib.suppress(OSError):
                found.append(parse_stat(Path("/proc", folder, "stat").read_text()))
    return found


def descendants(processes: Iterable[ProcessStat], roots: set[int]) -> list[ProcessStat]:
    """Every process whose chain of parents meets a root; the roots themselves are left out."""
    children: dict[int, list[ProcessStat]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process)
    found, frontier = [], list(roots)
    while frontier:
        for child in children.get(frontier.pop(), []):
            found.append(child)
            frontier.append(child.pid)
    return found


class Tree:
    """Everything started below this process since the tree was made; CPU of the dead is kept."""

    def __init__(self) -> None:
        _adopt_orphans()
        self.started_at = time.monotonic()
        self.before = {p.key for p in descendants(all_processes(), {os.getpid()})}
        self.cpu_s: dict[tuple[int, int], float] = {}

    def alive(self) -> list[ProcessStat]:
        below = descendants(all_processes(), {os.getpid()})
        return [p for p in below if p.key not in self.before]

    def sample(self, root: int) -> Sample:
        """Read the tree once, and collect inherited processes that ended; not the root itself."""
        alive = self.alive()
        self.cpu_s.update((p.key, p.cpu_s) for p in alive)
        for process in alive:
            if process.state == "Z" and process.parent == os.getpid() and process.pid != root:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        running = [p for p in alive if p.state != "Z"]
        return Sample(
            wall_s=time.monotonic() - self.started_at,
            cpu_s=sum(self.cpu_s.values()),
            rss_bytes=sum(p.rss_bytes for p in running),
            num_processes=len(running),
        )

    def end(self, root: int, grace_s: float = 5.0) -> None:
        """End what is left of the tree, politely first."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + grace_s
            left = [p for p in self.alive() if p.state != "Z"]
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, sent)
            while left and time.monotonic() < deadline:
                time.sleep(0.1)
                self.sample(root)
                left = [p for p in self.alive() if p.state != "Z"]


def run_measured(command: Sequence[str], *, cwd: Path, timeout_s: float = 600.0) -> Run:
    """Run a command to its end, sampling its process tree; what it leaves behind is ended.

    For a process that starts nothing else meanwhile: every new descendant is taken for the
    command's.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        tree = Tree()
        busy_before_s = machine_busy_s()
        child = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            samples = _watch(child, tree, timeout_s)
            busy_s = machine_busy_s() - busy_before_s
        finally:
            timed_out = child.poll() is None
            tree.end(child.pid)
        last = samples[-1]
        return Run(
            exit_code=child.wait(),
            timed_out=timed_out,
            wall_s=last.wall_s,
            cpu_s=last.cpu_s,
            other_cores=max(0.0, busy_s - last.cpu_s) / last.wall_s,
            stdout=_lines(out),
            stderr_tail="\n".join(_lines(err)[-40:]),
            samples=samples,
        )


def machine_busy_s() -> float:
    """CPU seconds that all cores together spent busy since boot, time stolen by the host too."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(field) for field in Path("/proc/stat").read_text().split(None, 9)[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def _watch(child: subprocess.Popen[bytes], tree: Tree, timeout_s: float) -> list[Sample]:
    """Sample until the child is a zombie or out of time; a zombie's CPU time can still be read."""
    samples = [tree.sample(child.pid)]
    while samples[-1].wall_s < timeout_s:
        ended = _has_ended(child.pid)
        samples.append(tree.sample(child.pid))
        if ended:
            break
        time.sleep(SAMPLE_PERIOD_S)
    return samples


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().splitlines()


def _has_ended(pid: int) -> bool:
    """Whether a child of ours has exited, left uncollected so that its CPU time stays readable."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _adopt_orphans() -> None:
    """Become the parent of orphaned descendants (Linux)."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
