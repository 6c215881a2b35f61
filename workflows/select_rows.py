"""What is known of checkpoints side by side: their order, and how far two ways agree."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from offline.ope.settings import Estimate
from pipelines.checkpoint import Checkpoint
from pipelines.evaluation import Evaluation
from rl_ops.env_id import NO_ENV
from workflows.ope import Answer

AUTO: Final = "auto"
RETURN: Final = "return"
MIN_RANKED: Final = 3
"""Checkpoints below which a rank correlation says nothing: of two it is 1 or -1."""
_PREFERRED: Final = ("dr", "fqe")


@dataclass(frozen=True)
class Row:
    """A checkpoint and what was found of it.

    Attributes:
        checkpoint: which one.
        simulated: episodes in its environment; None where there were none.
        answer: off-policy estimates; None where none were asked for.
    """

    checkpoint: Checkpoint
    simulated: Evaluation | None
    answer: Answer | None

    @property
    def label(self) -> str:
        """RUN/CHECKPOINT."""
        return f"{self.checkpoint.state['run_id']}/{self.checkpoint.path.name}"

    @property
    def iteration(self) -> int:
        """Of the run, after which it was written."""
        return int(self.checkpoint.state["loop"]["iteration"])

    @property
    def has_env(self) -> bool:
        """Whether it can act anywhere."""
        return has_env(self.checkpoint)

    def estimate(self, name: str) -> Estimate | None:
        """An estimator's answer; None where it gave no number."""
        estimates = () if self.answer is None else self.answer.found.estimates
        found = next((e for e in estimates if e.estimator == name), None)
        return found if found is not None and math.isfinite(found.value) else None

    def warnings(self, name: str) -> list[str]:
        """What an estimator is to be doubted for."""
        given = () if self.answer is None else self.answer.found.warnings
        return [text for text in given if text.startswith(f"{name}: ")]

    def score(self, by: str) -> float | None:
        """What it is ranked by; None where that is not known."""
        if by == RETURN:
            return None if self.simulated is None else mean_return(self.simulated)
        found = self.estimate(by)
        return found.low if found is not None and math.isfinite(found.low) else None


def has_env(checkpoint: Checkpoint) -> bool:
    """Whether there is an environment; rows of a lake are none."""
    return bool(checkpoint.config["env"]["id"] != NO_ENV)


def mean_return(simulated: Evaluation) -> float:
    """Undiscounted, over whole episodes."""
    return float(simulated.figures()["episode_return_mean"])


def criterion(rows: Sequence[Row], by: str, estimators: Sequence[str]) -> str | None:
    """What the rows are ranked by; None where what was asked for is known of none.

    By itself it is one for all rows, because a simulated return is not discounted and an estimate
    is: the simulated one where every row has it, else the lower end of an interval, dr's first.

    Args:
        rows: of the table.
        by: AUTO, RETURN, or an estimator.
        estimators: that were asked for.
    """
    names = [*(n for n in _PREFERRED if n in estimators), *estimators]
    candidates = [RETURN, *names] if by == AUTO else [by]
    known = {name: sum(row.score(name) is not None for row in rows) for name in candidates}
    # max takes the first of equals, so that a criterion is passed over only for a fuller one.
    best = max(candidates, key=lambda name: known[name])
    return best if known[best] else None


def ranked(rows: Iterable[Row], by: str) -> list[Row]:
    """The best first; those of which the criterion is not known last, equals as they were."""

    def key(row: Row) -> float:
        score = row.score(by)
        return math.inf if score is None else -score

    return sorted(rows, key=key)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation; None where all of one side are equal.

        rho = cov(rank(x), rank(y)) / (std(rank(x)) std(rank(y)))

    Args:
        x: numbers to compare.
        y: as many; equal numbers get the mean of their ranks.

    Source: Spearman 1904, "The Proof and Measurement of Association between Two Things".
    """
    ranks = np.stack([_ranks(x), _ranks(y)])
    if (np.ptp(ranks, axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    given = np.asarray(values, np.float64)
    below = (given[None, :] < given[:, None]).sum(1)
    equal = (given[None, :] == given[:, None]).sum(1)
    ranks: np.ndarray = below + (equal + 1) / 2
    return ranks


def agreement(
    rows: Sequence[Row], estimators: Sequence[str]
) -> dict[str, tuple[float | None, int]]:
    """Estimator → its rank correlation with simulated returns, and over how many checkpoints."""
    found: dict[str, tuple[float | None, int]] = {}
    for name in estimators:
        pairs = [
            (mean_return(row.simulated), estimate.value)
            for row in rows
            if row.simulated is not None and (estimate := row.estimate(name)) is not None
        ]
        if len(pairs) >= MIN_RANKED:
            found[name] = (spearman(*zip(*pairs, strict=True)), len(pairs))
    return found
