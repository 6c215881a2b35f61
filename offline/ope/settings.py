"""What off-policy evaluation is asked to do, and what it answers."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from offline.ope.behavior import CloneSettings
from offline.ope.errors import OpeError
from offline.ope.fqe import FQESettings
from offline.ope.intervals import METHODS, Method

ESTIMATORS: Final = ("is", "wis", "pdis", "cwpdis", "dr", "wdr", "dm", "fqe")
"""In the order in which they are shown."""
WEIGHTED: Final = frozenset({"is", "wis", "pdis", "cwpdis", "dr", "wdr"})
"""Those that need the probabilities of the logged actions."""
CROSS_FITTED: Final = frozenset({"dm", "dr", "wdr"})
"""Those whose critic must not have seen the episode that it is asked about."""


@dataclass(frozen=True)
class OpeSettings:
    """Which estimates, and how.

    Attributes:
        gamma: discount per step.
        estimators: of `ESTIMATORS`.
        level: of confidence.
        method: of the intervals; FQE's is by refits.
        resamples: of the bootstrap.
        folds: of episodes, for cross-fitting.
        refits: critics on resampled episodes, from which FQE's interval is.
        max_weight: bound of importance weights; None for none.
        behavior: "logged" probabilities, or an "estimate" of them.
        min_ess, min_ess_frac: effective episodes, and their share, below which a warning is given.
        seed: of all that is drawn.
        fqe, clone: how networks are fitted.

    Raises:
        OpeError: a value is out of its range; says which.
    """

    gamma: float
    estimators: tuple[str, ...] = ESTIMATORS
    level: float = 0.95
    method: Method = "bca"
    resamples: int = 2000
    folds: int = 5
    refits: int = 10
    max_weight: float | None = None
    behavior: Literal["logged", "estimate"] = "logged"
    min_ess: float = 50.0
    min_ess_frac: float = 0.05
    seed: int = 0
    fqe: FQESettings = field(default_factory=FQESettings)
    clone: CloneSettings = field(default_factory=CloneSettings)

    def __post_init__(self) -> None:
        unknown = [name for name in self.estimators if name not in ESTIMATORS]
        limits = {
            "estimators": (not unknown and bool(self.estimators), f"of {', '.join(ESTIMATORS)}"),
            "gamma": (0 < self.gamma <= 1, "above 0, up to 1"),
            "level": (0 < self.level < 1, "between 0 and 1"),
            "method": (self.method in METHODS, f"one of {', '.join(METHODS)}"),
            "resamples": (self.resamples >= 100, "100 or more"),
            "folds": (self.folds >= 2, "2 or more"),
            "refits": (self.refits >= 2, "2 or more"),
            "max_weight": (self.max_weight is None or self.max_weight > 0, "above 0"),
        }
        for name, (holds, expected) in limits.items():
            if not holds:
                raise OpeError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Estimate:
    """One estimator's answer, in units of the return; NaN where there is none.

    Attributes:
        estimator: of `ESTIMATORS`, or "behavior" for the mean of the logged returns.
        value: the point estimate.
        low, high: of the interval.
        method: of the interval.
        ess: effective episodes; None for those without weights.
    """

    estimator: str
    value: float
    low: float
    high: float
    method: str
    ess: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What logged episodes say of a policy.

    Attributes:
        estimates: in the order of `ESTIMATORS`.
        behavior: the mean of the logged returns.
        episodes, rows: that were used.
        warnings: what to know before trusting the numbers.
        refused: estimator → why it cannot be given.
        details: of the fits: renewals, epochs, held-out likelihood.
    """

    estimates: tuple[Estimate, ...]
    behavior: Estimate
    episodes: int
    rows: int
    warnings: tuple[str, ...]
    refused: dict[str, str]
    details: dict[str, Any]
