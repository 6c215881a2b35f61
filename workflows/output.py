"""What commands print: JSON that is JSON, text that a terminal can be trusted with."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from pipelines.config_errors import printable

_MAX_CHARS = 2000


def json_line(value: Any) -> str:
    """A value as JSON on one line; NaN and infinities, which JSON has not, as null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def stdout_alone() -> Iterator[TextIO]:
    """Stdout for the caller only: what environments and libraries print goes to stderr."""
    public = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            number, errors = public.fileno(), sys.stderr.fileno()
        except OSError:  # stdout is no file, as in tests
            yield public
            return
        public.flush()
        with os.fdopen(os.dup(number), "w", encoding="utf-8") as private:
            os.dup2(errors, number)  # child processes inherit it
            try:
                yield private
            finally:
                private.flush()
                os.dup2(private.fileno(), number)


def safe_text(text: str, *, max_lines: int = 400) -> str:
    """Text of unknown origin for a terminal: control characters escaped, long lines cut."""
    lines = text.splitlines()
    shown = [printable(line.replace("\t", "    "), limit=_MAX_CHARS) for line in lines[-max_lines:]]
    return "\n".join(shown)


def bytes_text(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def is_terminal() -> bool:
    """Whether stdout shows colours and moves the cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
