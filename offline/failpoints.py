"""Named points at which a test kills the process, as `kill -9` would; nothing happens otherwise.

`MILLRACE_FAIL_POINT=commit.before:3` ends the process when that point is passed a third time.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "MILLRACE_FAIL_POINT"

WRITER_POINTS: Final = (
    "part.partial",  # a data file's bytes are written, under another name
    "part.written",  # one data file is in its place
    "parts.written",  # all data files of a batch are
    "journal.partial",
    "journal.written",
    "commit.before",  # passed once a table, the ledger's included
    "commit.partial",  # the commit's bytes are written, under another name
    "commit.linked",  # committed, and still under the other name, too
    "commit.written",  # committed, and not noticed yet
    "commit.after",
    "log_checkpoint.before",
    "log_checkpoint.after",
    "journal.before_removal",
    "journal.removed",
)
"""Those that a batch of LakeWriter passes; finishing a batch passes those from the commit on."""

WORKFLOW_POINTS: Final = (
    "workflow.claimed",
    "workflow.step_started",  # logged, its process not begun
    "workflow.step_running",  # its process has begun
    "workflow.step_ended",  # its process is done, and that is not logged
    "workflow.step_logged",
    "workflow.steps_done",  # all of them, and the run's end is not logged
)
"""Those that a scheduled run passes, beside the writer's."""

NAMES: Final = (
    *WRITER_POINTS,
    "sink.queued",
    "checkpoint.before",
    "checkpoint.files_written",
    "checkpoint.renamed",
    "checkpoint.logged",
    *WORKFLOW_POINTS,
)
_KNOWN: Final = frozenset(NAMES)


def parse(text: str | None) -> tuple[str, int] | None:
    """The point and the hit that a value of the variable names.

    Raises:
        ValueError: it names no point.
    """
    if not text:
        return None
    name, _, hit = text.partition(":")
    if name not in _KNOWN or (hit and not (hit.isdecimal() and int(hit) > 0)):
        raise ValueError(
            f"{VARIABLE}={text!r} is no fail point; give NAME or NAME:n, n from 1, with NAME one "
            f"of {', '.join(NAMES)}."
        )
    return name, int(hit or 1)


_ARMED: Final = parse(os.environ.get(VARIABLE))
_hits = 0


def fail_point(name: str) -> None:
    """End this process here if the environment variable says so.

    Raises:
        ValueError: there is no such point.
    """
    global _hits
    if name not in _KNOWN:
        raise ValueError(f"there is no fail point {name!r}; add it to NAMES in {__name__}.")
    if _ARMED is None or _ARMED[0] != name:
        return
    _hits += 1
    if _hits == _ARMED[1]:
        os.kill(os.getpid(), signal.SIGKILL)
