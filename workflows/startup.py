"""When this process started, and what may start before the command's imports are done."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_MAX_AGE_S = 3600.0


@dataclass(frozen=True)
class Start:
    """The start of a command.

    Attributes:
        at: epoch seconds from which time_s counts.
        command: words of a shell that start `millrace` again.
    """

    at: float
    command: tuple[str, ...] = ("millrace",)

    @classmethod
    def of_this_process(cls) -> Self:
        """Of a process that is one command."""
        import sys

        return cls(process_started_at(), command_words(sys.argv[0], sys.executable))

    @classmethod
    def of_a_call(cls) -> Self:
        """Of a command that a longer process calls: now."""
        return cls(time.time())


def process_started_at() -> float:
    """Epoch seconds at which this process started, to 10 ms; now where /proc does not say."""
    now = time.time()
    try:
        # The name, in parentheses, may hold spaces; starttime is field 22 (proc_pid_stat(5)).
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    # Some sandboxes count processes and clocks from different starts.
    return now - age if 0 <= age <= _MAX_AGE_S else now


def command_words(argv0: str, executable: str) -> tuple[str, ...]:
    """What starts this command again, from a shell in the same folder.

    Args:
        argv0: how it was started.
        executable: of Python.
    """
    import shutil

    path = Path(argv0)
    if path.name != "millrace":
        return (executable, "-m", "workflows")
    found = shutil.which("millrace")
    if found is not None and Path(found).resolve() == path.resolve():
        return ("millrace",)
    return (str(path.absolute()),)


def prestart(*, ray_address: str | None, debug: bool) -> None:
    """Called when the options are known to be sound, before torch is imported.

    A local Ray starts beside the imports: two thirds of the time to a first result are either.
    """
    if ray_address is None and not debug:
        from pipelines.ray_session import start_ray_soon

        start_ray_soon()
