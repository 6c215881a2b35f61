"""-v, -vv and --log-level: how much our own loggers say, on stderr."""

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from workflows.output import safe_text

F = TypeVar("F", bound=Callable[..., Any])

LOGGERS = ("rl_ops", "offline", "pipelines", "workflows")
LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}
_BY_COUNT = (logging.WARNING, logging.INFO, logging.DEBUG)


class StderrHandler(logging.Handler):
    """Writes to what stderr is now, which a live table replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        sys.stderr.write(f"{record.levelname} {record.name}: {safe_text(text)}\n")


def set_level(level: int) -> None:
    """Have our loggers say what is at least as grave as `level`."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
            logger.addHandler(StderrHandler())


def verbosity_options(command: F) -> F:
    """Add -v and --log-level to a command and act on them; the command does not see them."""
    verbose = click.option(
        "-v",
        "--verbose",
        count=True,
        is_eager=True,
        expose_value=False,
        callback=_on_verbose,
        help="-v says what happens (INFO), -vv everything, and tracebacks (DEBUG).",
    )
    by_name = click.option(
        "--log-level",
        type=click.Choice(list(LEVELS), case_sensitive=False),
        metavar="LEVEL",
        expose_value=False,
        callback=_on_level,
        help="DEBUG, INFO, WARN or ERROR; wins over -v.",
    )
    return verbose(by_name(command))


def _on_verbose(ctx: click.Context, _: click.Parameter, count: int) -> None:
    ctx.meta["verbosity"] = min(count, 2)
    set_level(_BY_COUNT[min(count, 2)])


def _on_level(ctx: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is not None:
        level = LEVELS[name.upper()]
        ctx.meta["verbosity"] = _BY_COUNT.index(level) if level in _BY_COUNT else 0
        set_level(level)
