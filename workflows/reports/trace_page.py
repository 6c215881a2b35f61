"""One episode as a page: the trace browser with it alone."""

from typing import TYPE_CHECKING

from workflows.reports.blocks import Report, Section, text
from workflows.reports.episodes import Budget, one_trace

if TYPE_CHECKING:
    from offline.traces import Trace

_NUMBERS = 20_000_000
_FRAME_BYTES = 50_000_000
"""Of an episode that was asked for by itself."""


def trace_report(trace: "Trace", *, storage: str) -> Report:
    """The page of `millrace traces show --plot`.

    Args:
        trace: of the episode.
        storage: as commands are given it.
    """
    budget = Budget(numbers=_NUMBERS, frame_bytes=_FRAME_BYTES, steps=len(trace))
    name, env = trace.episode.episode_id, trace.episode.env or "an unknown environment"
    return Report(
        f"Episode {text(name, limit=120)}",
        f"of run {text(trace.episode.run_id)} in {text(env)}",
        [Section("traces", "Steps", [one_trace(trace, budget, storage=storage)])],
    )
