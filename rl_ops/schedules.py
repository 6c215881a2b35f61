"""Hyperparameters that change with the number of env steps."""

from collections.abc import Sequence

Schedule = float | tuple[tuple[int, float], ...]
"""A constant, or (env_steps, value) points that are joined by straight lines."""


def value_at(schedule: Schedule, env_steps: int) -> float:
    """The schedule's value after `env_steps`; constant outside its first and last point."""
    if not isinstance(schedule, Sequence):
        return schedule
    before = schedule[0]
    for point in schedule:
        if env_steps < point[0]:
            span = point[0] - before[0]
            weight = (env_steps - before[0]) / span if span > 0 else 1.0
            return before[1] + max(0.0, weight) * (point[1] - before[1])
        before = point
    return before[1]
