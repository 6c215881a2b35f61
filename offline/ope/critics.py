"""Critics of the policy for all who need one, fitted at once: by fold, and on resampled episodes.

Legend: N rows, F final observations, M = N + F, E episodes, K members, R refits.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offline.ope.errors import OpeError
from offline.ope.fqe import Backups, FQEFit, fit_fqe
from offline.ope.problem import Problem
from offline.ope.settings import CROSS_FITTED
from offline.ope.terms import draw_counts

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Critics:
    """What they say of the rows.

    Attributes:
        fit: of all members: the first on all rows, then one without each fold, then the refits.
        q, value: [N] of the logged actions and of observations, by a critic that did not see the
            episode; None where nobody asked.
        next_value: [N] of what each step led to; 0 where it terminated.
        counts: [R, E] how often each refit had each episode; None where nobody asked.
    """

    fit: FQEFit
    q: Array | None
    value: Array | None
    next_value: Array | None
    counts: Floats | None


def fit_critics(problem: Problem, estimators: Collection[str]) -> Critics:
    """Fit the members that some estimators need.

    Raises:
        OpeError: a fold is left without steps of which it is known what followed.
    """
    settings, episode = problem.settings, problem.data.episode
    weight = [np.ones((1, problem.data.rows))]
    folds = int(problem.fold.max()) + 1 if CROSS_FITTED.intersection(estimators) else 0
    if folds:
        weight.append((np.arange(folds)[:, None] != problem.fold[episode]).astype(np.float64))
    counts = None
    if "fqe" in estimators:
        rng = np.random.default_rng([settings.seed, 1])
        drawn = draw_counts(rng, problem.data.num_episodes, settings.refits)
        counts = np.concatenate(list(drawn))
        weight.append(counts[:, episode])
    backups = backups_of(problem)
    try:
        fit = fit_fqe(
            backups,
            np.concatenate(weight),
            problem.target.model,
            settings=settings.fqe,
            seed=settings.seed,
        )
    except ValueError as error:
        raise OpeError(f"fitted Q evaluation: {error}") from error
    if not folds:
        return Critics(fit, None, None, None, counts)
    member, rows = 1 + problem.fold[episode], np.arange(problem.data.rows)
    following = fit.value[member, backups.next_row]
    return Critics(
        fit=fit,
        q=fit.q[member, rows],
        value=fit.value[member, rows],
        next_value=np.where(problem.data.terminated, 0.0, following).astype(np.float32),
        counts=counts,
    )


def backups_of(problem: Problem) -> Backups:
    """The logged steps for fitted Q evaluation; truncations bootstrap, terminations do not."""
    data, target, params = problem.data, problem.target, problem.params
    probabilities = target.probabilities(params)
    rng = np.random.default_rng([problem.settings.seed, 2])

    def sample(rows: npt.NDArray[np.int64]) -> Array:
        encoded: Array = target.encoded(target.sample(params[rows], rng))
        return encoded

    return Backups(
        obs=problem.features,
        action=target.encoded(problem.action.action),
        reward=data.reward,
        discount=problem.settings.gamma * (1.0 - data.terminated),
        next_row=problem.used.next_row,
        is_usable=problem.used.is_usable,
        start=data.starts,
        probabilities=probabilities,
        sample=None if probabilities is not None else sample,
    )
