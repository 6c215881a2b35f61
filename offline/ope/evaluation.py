"""Off-policy evaluation of one policy on logged episodes: from trajectories to estimates.

Legend: N rows, E episodes, T steps of the longest, R refits.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from offline.ope import estimators as est
from offline.ope.critics import Critics, fit_critics
from offline.ope.errors import OpeError
from offline.ope.intervals import Interval, interval, t_quantile
from offline.ope.problem import Problem, problem_of
from offline.ope.settings import (
    CROSS_FITTED,
    ESTIMATORS,
    WEIGHTED,
    Estimate,
    Evaluation,
    OpeSettings,
)
from offline.ope.target import Target
from offline.ope.terms import Floats, Terms
from offline.ope.weights import LogRatios, log_ratios
from offline.trajectories import Trajectories

_BY_TRAJECTORY: Final = frozenset({"is", "wis"})
_OPEN_FRAC: Final = 0.01


def evaluate(data: Trajectories, target: Target, settings: OpeSettings) -> Evaluation:
    """Estimate the discounted return of a policy from episodes that others acted in.

    Args:
        data: with the column `logp`, unless that is estimated or no estimator needs it.
        target: the policy.
        settings: which estimates, and how.

    Raises:
        OpeError: none of the estimates can be given, or logged probabilities are missing; says
            why, where and what to do.
    """
    problem = problem_of(data, target, settings)
    why = problem.no_density
    refused = {name: why for name in settings.estimators if why and name in WEIGHTED}
    asked = [name for name in ESTIMATORS if name in set(settings.estimators) - refused.keys()]
    if not asked:
        raise OpeError(f"importance weights cannot be had: {why}. Ask for --estimators dm,fqe.")
    ratios = log_ratios(problem) if WEIGHTED.intersection(asked) else None
    needs_critic = (CROSS_FITTED | {"fqe"}).intersection(asked)
    critics = fit_critics(problem, asked) if needs_critic else None
    answers = _Answers(problem, ratios, critics)
    estimates = tuple(answers.estimate(name) for name in asked)
    return Evaluation(
        estimates=estimates,
        behavior=answers.behavior(),
        episodes=problem.data.num_episodes,
        rows=problem.data.rows,
        warnings=tuple(_warnings(problem, data.num_episodes, ratios, critics, estimates)),
        refused=refused,
        details=_details(ratios, critics),
    )


class _Answers:
    """Estimates of one problem, from its log-ratios and critics."""

    def __init__(self, problem: Problem, ratios: LogRatios | None, critics: Critics | None) -> None:
        self._settings, self._critics = problem.settings, critics
        self._episode, self._starts = problem.data.episode, problem.data.starts
        self._reward = est.by_episode(problem.data.reward, self._episode)
        self._is_usable = problem.used.is_usable
        self._log_ratio = None if ratios is None else est.by_episode(ratios.rows, self._episode)

    def behavior(self) -> Estimate:
        """The mean of the logged returns."""
        terms = est.mean_return(self._reward, gamma=self._settings.gamma)
        low, high = self._interval(terms, len(ESTIMATORS))
        return Estimate("behavior", terms.estimate, low, high, self._settings.method)

    def estimate(self, name: str) -> Estimate:
        """One estimator's value and interval."""
        if name == "fqe":
            return self._fqe()
        terms = self._terms(name)
        low, high = self._interval(terms, ESTIMATORS.index(name))
        ess = self._ess(name) if name in WEIGHTED else None
        return Estimate(name, terms.estimate, low, high, self._settings.method, ess)

    def _interval(self, terms: Terms, stream: int) -> Interval:
        settings = self._settings
        rng = np.random.default_rng([settings.seed, 3, stream])
        return interval(
            terms, settings.method, level=settings.level, resamples=settings.resamples, rng=rng
        )

    def _terms(self, name: str) -> Terms:
        if name == "dm":
            return est.direct_method(self._of_critic("value")[self._starts])
        assert self._log_ratio is not None  # evaluate asked for it
        gamma, bound = self._settings.gamma, self._settings.max_weight
        simple = {
            "is": est.importance_sampling,
            "wis": est.weighted_importance_sampling,
            "pdis": est.per_decision,
            "cwpdis": est.weighted_per_decision,
        }
        if name in simple:
            return simple[name](self._log_ratio, self._reward, gamma=gamma, max_weight=bound)
        of = {"dr": est.doubly_robust, "wdr": est.weighted_doubly_robust}[name]
        q, value, following = (self._of_critic(x) for x in ("q", "value", "next_value"))
        # Where the log ends without an observation, the recursion ends with V of the step before.
        unknown = (q - self._rewards()) / gamma
        following = np.where(self._is_usable, following, unknown)
        padded = (est.by_episode(x, self._episode) for x in (q, value, following))
        return of(self._log_ratio, self._reward, *padded, gamma=gamma, max_weight=bound)

    def _rewards(self) -> Floats:
        t = np.arange(len(self._episode)) - self._starts[self._episode]
        rewards: Floats = self._reward[self._episode, t]
        return rewards

    def _of_critic(self, name: str) -> Floats:
        assert self._critics is not None  # evaluate asked for it
        return np.asarray(getattr(self._critics, name), np.float64)

    def _fqe(self) -> Estimate:
        """By the critic on all episodes; the interval by those on resampled ones.

        Source: Hao et al. 2021, arXiv:2102.03607: bootstrapping FQE by episodes.
        """
        assert self._critics is not None  # evaluate asked for it
        counts = self._critics.counts
        assert counts is not None
        first = self._critics.fit.value[:, self._starts].astype(np.float64)
        value, refits = float(first[0].mean()), len(counts)
        replicates = (counts * first[-refits:]).sum(1) / counts.sum(1)
        quantile = t_quantile((1 + self._settings.level) / 2, refits - 1)
        half = quantile * float(replicates.std(ddof=1))
        return Estimate("fqe", value, value - half, value + half, f"refit{refits}")

    def _ess(self, name: str) -> float:
        """Effective episodes: by their whole weights, or a mean over discounted steps."""
        assert self._log_ratio is not None  # evaluate asked for it
        log_weight = est.log_weights(self._log_ratio, max_weight=self._settings.max_weight)
        if name in _BY_TRAJECTORY:
            return float(est.effective_sample_size(log_weight[:, -1]))
        lengths = np.bincount(self._episode)
        alive = (lengths[:, None] > np.arange(log_weight.shape[1])).sum(0)
        share = alive * self._settings.gamma ** np.arange(len(alive))
        return float((est.effective_sample_size(log_weight) * share).sum() / share.sum())


def _warnings(
    problem: Problem,
    chosen: int,
    ratios: LogRatios | None,
    critics: Critics | None,
    estimates: Sequence[Estimate],
) -> Iterator[str]:
    settings, episodes = problem.settings, problem.data.num_episodes
    if problem.used.dropped:
        yield (
            f"{problem.used.dropped:,} of {chosen:,} episodes lack their first step and are left "
            "out"
        )
    if problem.used.open > _OPEN_FRAC * episodes:
        yield (
            f"{problem.used.open:,} of {episodes:,} episodes go on where the log ends: is, wis, "
            "pdis, cwpdis and the behaviour's mean count nothing after that"
        )
    if ratios is not None:
        yield from ratios.oddities(problem.data.episode)
    for estimate in estimates:
        ess = estimate.ess
        if not math.isfinite(estimate.value):
            yield f"{estimate.estimator}: no episode has any weight, so there is no estimate"
        elif ess is not None and ess < max(settings.min_ess, settings.min_ess_frac * episodes):
            yield (
                f"{estimate.estimator}: {episodes:,} episodes are worth {ess:.1f} "
                f"({ess / episodes:.1%}): too few to trust the estimate or its interval"
            )
    if critics is not None and not critics.fit.converged:
        yield (
            f"fqe: not converged after {critics.fit.renewals} renewals of the targets: the last "
            f"two averages differ by {critics.fit.change:.2%}"
        )


def _details(ratios: LogRatios | None, critics: Critics | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if critics is not None:
        fit = critics.fit
        found["fqe"] = {
            "renewals": fit.renewals,
            "change": fit.change,
            "converged": fit.converged,
            "members": len(fit.q),
        }
    if ratios is not None and ratios.clone is not None:
        clone = ratios.clone
        found["behavior"] = {"epochs": clone.epochs, "held_out_logp": clone.held_out}
    return found
