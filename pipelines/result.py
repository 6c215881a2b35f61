"""The result of an iteration: a dict that prints well."""

from typing import Any

_FIRST = (
    "training_iteration",
    "env_steps",
    "env_steps_per_s",
    "episodes",
    "episode_return_mean",
    "policy_version",
    "policy_lag_max",
    "time_s",
)


class Result(dict[str, Any]):
    """Figures by name, as in result.json; `print` lays them out in lines."""

    def __str__(self) -> str:
        names = [*(n for n in _FIRST if n in self), *(n for n in self if n not in _FIRST)]
        width = max(map(len, names), default=0)
        return "\n".join(f"{name:<{width}}  {_text(self[name])}" for name in names)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
