"""Files that commands write where a user said."""

import os
import tempfile
from pathlib import Path

from workflows.exits import BAD_INPUT, Failure


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, and replaces the one before.

    Raises:
        Failure: it cannot be written.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".partial-{path.name}.")
        partial = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise Failure(f"Error: cannot write {path}: {error.strerror}", code=BAD_INPUT) from error
