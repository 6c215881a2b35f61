"""What the commits of a writer say of themselves."""

import json
from typing import Any, Final

from offline.commits import Commit
from offline.journal import Batch

INFO: Final = "millrace"
"""Key among a commit's metadata; its value is JSON: writer, seq, token, fragments, rows."""


class VersionTakenError(Exception):
    """Another process's commit came first; the same may succeed after a look at it."""


def token_of(met: Commit) -> str | None:
    """Of the process whose batch a commit holds; None if it is no writer's."""
    try:
        told: Any = json.loads(met.info[INFO])["token"]
    except (ValueError, LookupError, TypeError):
        return None
    return str(told)


def info_of(table: str, batch: Batch) -> str:
    """The JSON that goes into a commit."""
    said = {
        "writer": batch.writer,
        "seq": batch.seq,
        "token": batch.token,
        "fragments": batch.fragments,
        "rows": batch.rows[table],
    }
    return json.dumps(said, separators=(",", ":"))
