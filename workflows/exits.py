"""Exit codes, and how an error becomes a message and one of them."""

import traceback

import click

from workflows.output import safe_text

FAILED = 1
BAD_INPUT = 2
SIGINT_EXIT = 130

_OURS = ("rl_ops", "offline", "pipelines", "workflows")


class Interrupted(KeyboardInterrupt):
    """A signal came while there was nothing yet to save."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit {exit_code}")
        self.exit_code = exit_code


class Failure(click.ClickException):
    """A message for stderr and the exit code to leave with."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """See click."""
        return self.code

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        """Print the message on stderr."""
        click.echo(safe_text(self.message), err=True)


def exit_for(error: BaseException, *, traceback_wanted: bool = False) -> click.ClickException | (
    click.exceptions.Exit
):
    """What click is to raise for an error.

    An error type of this project is something its message explains; any other is a defect, or the
    user's own code, and comes with its traceback.

    Args:
        error: what a command raised.
        traceback_wanted: with the traceback in any case.
    """
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else FAILED
        return click.exceptions.Exit(code if error.code is not None else 0)
    if isinstance(error, KeyboardInterrupt):
        return click.exceptions.Exit(getattr(error, "exit_code", SIGINT_EXIT))
    explained = is_ours(error)
    lines = [f"Error: {error}"] if explained else []
    if traceback_wanted or not explained:
        lines.insert(0, "".join(traceback.format_exception(error)).rstrip())
    bad_input = explained and isinstance(error, ValueError | TypeError)
    return Failure("\n".join(lines), code=BAD_INPUT if bad_input else FAILED)


def is_ours(error: BaseException) -> bool:
    """Whether the error's type is defined by this project."""
    return type(error).__module__.partition(".")[0] in _OURS
