"""May a checkpoint take the champion's place: by simulation or from logged episodes."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from offline.ope.intervals import interval
from offline.ope.terms import Terms
from pipelines.checkpoint import Checkpoint
from workflows.evaluate import task_of

if TYPE_CHECKING:
    from offline.storage import Storage


@dataclass(frozen=True)
class Question:
    """Two checkpoints, and when the candidate passes.

    Attributes:
        candidate: that is to take the place.
        champion: that has it; None for nobody.
        episodes: of each in simulation, on the same seeds.
        seed: of environments and sampling.
        level: of the interval, which is two-sided.
        min_gain: that the interval's lower end has to be above.
        first: whether a candidate passes where there is no champion.
    """

    candidate: Checkpoint
    champion: Checkpoint | None
    episodes: int
    seed: int
    level: float
    min_gain: float
    first: Literal["pass", "hold"]

    def against(self, champion: Checkpoint) -> "Question":
        """The same with a champion."""
        return dataclasses.replace(self, champion=champion)


@dataclass(frozen=True)
class LoggedRows:
    """Logged episodes from which returns are estimated.

    Attributes:
        storage: of the lake.
        version, timestamp: of table steps.
        conditions: that hold of its rows.
        estimator: whose estimates are compared.
    """

    storage: "Storage"
    version: int | None
    timestamp: str | None
    conditions: tuple[tuple[str, str, Any], ...]
    estimator: str


def compared(question: Question, rows: LoggedRows | None) -> dict[str, Any]:
    """The answer, JSON-able: `passed`, the figures that say so, and `why`.

    Args:
        question: who is compared.
        rows: by which both are estimated; None for simulation.

    Raises:
        OpeError: the rows are not such that they can be.
    """
    return _simulated(question) if rows is None else _estimated(question, rows)


def _simulated(question: Question) -> dict[str, Any]:
    candidate = _returns(question.candidate, question)
    if question.champion is None:
        return _answer(question, float(candidate.mean()), None, (None, None, None))
    if question.champion.path == question.candidate.path:
        champion = candidate
    else:
        champion = _returns(question.champion, question)
    # One environment's episodes are seeded alike for both, so luck in them cancels.
    terms = Terms.mean(candidate - champion)
    rng = np.random.default_rng(question.seed)
    low, high = interval(terms, "bca", level=question.level, rng=rng)
    means = float(candidate.mean()), float(champion.mean())
    return _answer(question, *means, (terms.estimate, low, high))


def _returns(checkpoint: Checkpoint, question: Question) -> Any:
    task = task_of(checkpoint, episodes=question.episodes, seed=question.seed, explore=False)
    return np.asarray(task.run(checkpoint.weights()).returns)


def _estimated(question: Question, rows: LoggedRows) -> dict[str, Any]:
    from offline.ope import OpeError, OpeSettings
    from workflows.ope import ask, load_rows, policy_of

    data = load_rows(
        rows.storage,
        version=rows.version,
        timestamp=rows.timestamp,
        conditions=rows.conditions,
    )
    gamma = float(question.candidate.config.get("gamma", 0.99))
    settings = OpeSettings(
        gamma=gamma, estimators=(rows.estimator,), level=question.level, seed=question.seed
    )

    def estimate(checkpoint: Checkpoint) -> Any:
        answer = ask(policy_of(checkpoint, greedy=False), data, settings, rows.conditions)
        if not answer.found.estimates:
            raise OpeError(f"{rows.estimator} is refused: {answer.found.refused[rows.estimator]}")
        return answer.found.estimates[0]

    candidate = estimate(question.candidate)
    if question.champion is None:
        return _answer(question, candidate.value, None, (None, None, None))
    champion = estimate(question.champion)
    gain = tuple(x - champion.value for x in (candidate.value, candidate.low, candidate.high))
    return _answer(question, candidate.value, champion.value, gain)


def _answer(
    question: Question,
    candidate: float,
    champion: float | None,
    gain: tuple[Any, ...],
) -> dict[str, Any]:
    value, low, high = gain
    if champion is None:
        passed = question.first == "pass"
        why = f"there is no champion, and the first is to {question.first}"
    else:
        # A champion is no better than itself, and of equal policies no interval says so.
        passed = bool(low > question.min_gain)
        than = "above" if passed else "not above"
        why = (
            f"the gain is {value:.4g}, {question.level:.4g} interval {low:.4g} to {high:.4g}: "
            f"its lower end is {than} {question.min_gain:g}"
        )
    return {
        "passed": passed,
        "candidate": str(question.candidate.path),
        "champion": None if question.champion is None else str(question.champion.path),
        "candidate_return": candidate,
        "champion_return": champion,
        "gain": value,
        "low": low,
        "high": high,
        "why": why,
    }
