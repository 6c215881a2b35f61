"""Progress of a run as it is printed: a live table on a terminal, else lines, or JSON."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from workflows.output import is_terminal, json_line

LINE_PERIOD_S = 0.5
MAX_LINE_PERIOD_S = 10.0
TABLE_PERIOD_S = 0.25

Figures = Mapping[str, Any]
Clock = Callable[[], float]


class Reporter(Protocol):
    """Shows a run's results as they come."""

    def show(self, result: Figures) -> None:
        """One iteration; cheap when it is not time to print."""

    def close(self) -> None:
        """Print the last iteration, if it was not, and leave the terminal as it was."""


class Json:
    """Every iteration as one JSON object on a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, result: Figures) -> None:
        """See `Reporter`."""
        self._stream.write(json_line(result) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """See `Reporter`."""


class Sparse:
    """Passes on the first, then at most one iteration per period, and always the last.

    Args:
        draw: prints an iteration.
        end: gives back what drawing holds.
        period_s: between two drawings, at first.
        max_period_s: a hundredth of the time since the first, within these two; the same if None.
        clock: seconds.
    """

    def __init__(
        self,
        draw: Callable[[Figures], None],
        *,
        end: Callable[[], None] = lambda: None,
        period_s: float,
        max_period_s: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._draw = draw
        self._end = end
        self._period_s = period_s
        self._max_period_s = period_s if max_period_s is None else max_period_s
        self._first: float | None = None
        self._clock = clock
        self._due = float("-inf")
        self._held: Figures | None = None

    def show(self, result: Figures) -> None:
        """See `Reporter`."""
        now = self._clock()
        if now < self._due:
            self._held = result
            return
        self._first = now if self._first is None else self._first
        elapsed = now - self._first
        self._due = now + max(self._period_s, min(self._max_period_s, elapsed / 100))
        self._held = None
        self._draw(result)

    def close(self) -> None:
        """See `Reporter`."""
        held, self._held = self._held, None
        if held is not None:
            self._draw(held)
        self._end()


def lines(stream: TextIO, *, clock: Clock = time.monotonic) -> Reporter:
    """One line an iteration: at most two a second, in long runs one in ten seconds."""

    def draw(result: Figures) -> None:
        stream.write(line_of(result) + "\n")
        stream.flush()

    return Sparse(draw, period_s=LINE_PERIOD_S, max_period_s=MAX_LINE_PERIOD_S, clock=clock)


def reporter_for(stream: TextIO, *, as_json: bool, title: str) -> Reporter:
    """What fits the stream.

    Args:
        stream: where to print.
        as_json: for programs.
        title: of the live table.
    """
    if as_json:
        return Json(stream)
    if not is_terminal():
        return lines(stream)
    from workflows.live_table import LiveTable  # imports rich

    table = LiveTable(title)
    return Sparse(table.draw, end=table.close, period_s=TABLE_PERIOD_S)


def line_of(result: Figures) -> str:
    """An iteration's most telling figures."""
    parts = [
        f"iteration {result['training_iteration']:,}",
        f"env_steps {result['env_steps']:,}",
        f"{result['env_steps_per_s']:,.0f}/s",
        f"return {number(result.get('episode_return_mean'))}",
        f"length {number(result.get('episode_length_mean'))}",
    ]
    parts += [f"{name} {number(value)}" for name, value in loss_terms(result).items()]
    parts.append(f"lag {result.get('policy_lag_max', 0)}")
    parts += [f"{name} {value:,}" for name, value in faults(result).items()]
    if (evaluated := result.get("evaluation/episode_return_mean")) is not None:
        parts.append(f"evaluated {number(evaluated)}")
    return "  ".join([*parts, f"{result['time_s']:.1f} s"])


def loss_terms(result: Figures) -> dict[str, Any]:
    """The learner's loss terms by their names."""
    prefix = "learner/"
    return {k[len(prefix) :]: v for k, v in result.items() if k.startswith(prefix) and "loss" in k}


def faults(result: Figures) -> dict[str, Any]:
    """The counters of faults that are not 0."""
    prefix = "faults/"
    return {k[len(prefix) :]: v for k, v in result.items() if k.startswith(prefix) and v}


def time_split(result: Figures) -> dict[str, float]:
    """Stage → share of the iteration's time; stages overlap where policies may lag."""
    total = result.get("time/iteration_s")
    if not total:
        return {}
    stages = {k[len("time/") : -len("_s")]: v for k, v in result.items() if k.startswith("time/")}
    return {name: value / total for name, value in stages.items() if name != "iteration"}


def number(value: Any) -> str:
    """A figure with four significant digits; a dash where there is none yet."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.4g}"
