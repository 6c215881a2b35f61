"""The table that a terminal shows while a run goes on."""

import sys
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.config_errors import printable
from workflows.progress import Figures, faults, loss_terms, number, time_split

_MAX_CHARS = 60


class LiveTable:
    """Draws results over each other.

    Args:
        title: above the table; of untrusted names, so it is escaped.
        console: where to draw; stdout when None.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = Text(printable(title, limit=2 * _MAX_CHARS), style="bold")
        self._console = console or Console(file=sys.stdout)
        # No refresh thread: between two results there is nothing new, and it would take time
        # from the learner, which runs in this process.
        self._live = Live(console=self._console, auto_refresh=False)
        self._started = False

    def draw(self, result: Figures) -> None:
        """Show an iteration."""
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(self.render(result), refresh=True)

    def close(self) -> None:
        """Leave the last drawing there and give the cursor back."""
        if self._started:
            self._live.stop()
            self._started = False

    def render(self, result: Figures) -> Table:
        """The table of one iteration."""
        table = Table(title=self._title, title_justify="left", show_header=False)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="ellipsis")
        for name, value in rows(result):
            table.add_row(name, Text(printable(value, limit=4 * _MAX_CHARS)))
        return table


def rows(result: Figures) -> list[tuple[str, str]]:
    """What the table says: (name, text)."""
    low, high = result.get("episode_return_min"), result.get("episode_return_max")
    found = [
        ("iteration", f"{result['training_iteration']:,}"),
        ("env steps", f"{result['env_steps']:,}"),
        ("env steps/s", f"{result['env_steps_per_s']:,.0f}"),
        ("episodes", f"{result.get('episodes', 0):,}"),
        (
            "return mean",
            f"{number(result.get('episode_return_mean'))}  ({number(low)} to {number(high)})",
        ),
        ("length mean", number(result.get("episode_length_mean"))),
        ("loss", _joined({k: number(v) for k, v in loss_terms(result).items()})),
        (
            "policy lag",
            f"mean {number(result.get('policy_lag_mean'))}, max {result.get('policy_lag_max', 0)}",
        ),
    ]
    if (queued := result.get("queue_fragments")) is not None:
        found.append(("queue", f"{queued:,} fragments"))
    split = {name: f"{share:.0%}" for name, share in time_split(result).items()}
    found.append(("time", f"{result['time_s']:.1f} s   {_joined(split)}"))
    if (evaluated := result.get("evaluation/episode_return_mean")) is not None:
        found.append(("evaluation", number(evaluated)))
    if failed := faults(result):
        found.append(("faults", _joined({k: f"{v:,}" for k, v in failed.items()})))
    return found


def _joined(parts: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in parts.items())
