"""Fitted Q evaluation against linear algebra, and where it bootstraps."""

import numpy as np
import pytest

from offline.ope.critics import backups_of
from offline.ope.fqe import FQESettings, fit_fqe
from offline.ope.problem import problem_of
from offline.ope.settings import OpeSettings
from offline.trajectories import Trajectories
from tests.offline.ope_kit import GAMMA, Process, TableTarget, policy_of, trajectories

QUICK = FQESettings(hidden=(32,), batch_rows=64, updates=20, window=10, lr=3e-3)


def fitted(data: Trajectories, target: TableTarget, *, gamma: float = GAMMA, seed: int = 0):
    problem = problem_of(data, target, OpeSettings(gamma=gamma))
    weight = np.ones((1, problem.data.rows))
    return fit_fqe(backups_of(problem), weight, target.model, settings=QUICK, seed=seed)


@pytest.mark.parametrize("lists", [True, False])
def test_it_finds_the_values_of_linear_algebra(lists: bool) -> None:
    process, target = Process.random(1), TableTarget(policy_of(3), lists=lists)
    data = process.episodes(policy_of(2), 3000, np.random.default_rng(0))
    found = fitted(data, target)
    q, value = process.values(target.policy)
    state = data.obs.argmax(1)
    assert found.converged
    often = np.bincount(state, minlength=len(value)) > 300
    assert often.sum() >= 4
    for s in np.flatnonzero(often):
        assert found.value[0][state == s].mean() == pytest.approx(value[s], abs=0.12)
    for s, a in zip(*np.nonzero(often[:, None] & np.ones(2, bool)), strict=True):
        here = (state == s) & (data.action == a)
        assert found.q[0][here].mean() == pytest.approx(q[s, a], abs=0.2)


def ones(*, ends: str) -> Trajectories:
    """20 episodes of one state for 3 steps with rewards of 1, that terminate or are truncated."""
    episode, t = np.repeat(np.arange(20), 3), np.tile(np.arange(3), 20)
    last = t == 2
    final = [(row, 0) for row in np.flatnonzero(last)] if ends == "truncated" else []
    terminated = last & (ends == "terminated")
    states, action = np.zeros(60, np.int64), np.arange(60) % 2
    return trajectories(
        *(episode, t, states, action, np.ones(60), terminated, np.full(60, np.log(0.5))),
        num_states=1,
        final=final,
    )


def test_truncation_bootstraps_but_termination_does_not() -> None:
    target = TableTarget([[0.5, 0.5]])
    # 1 / (1 - 0.9), and where one step in three is the last 1 / (1 - 0.9 * 2 / 3).
    assert fitted(ones(ends="truncated"), target).value[0] == pytest.approx(10.0, rel=0.02)
    assert fitted(ones(ends="terminated"), target).value[0] == pytest.approx(2.5, rel=0.02)


def test_steps_of_which_nobody_knows_what_followed_are_left_out() -> None:
    target = TableTarget([[0.5, 0.5]])
    # The log ends there: only rows whose next is there are left, and those never end.
    assert fitted(ones(ends="open"), target).value[0] == pytest.approx(10.0, rel=0.02)


def test_a_seed_decides_every_number() -> None:
    target = TableTarget(policy_of(3))
    data = Process.random(1).episodes(policy_of(2), 50, np.random.default_rng(0))
    one, same, other = (fitted(data, target, seed=seed) for seed in (0, 0, 1))
    assert (one.q == same.q).all()
    assert (one.value == same.value).all()
    assert (one.value != other.value).any()


def test_a_member_learns_from_its_own_rows_only() -> None:
    target = TableTarget([[0.5, 0.5]])
    problem = problem_of(ones(ends="terminated"), target, OpeSettings(gamma=GAMMA))
    backups = backups_of(problem)
    backups.reward[problem.data.episode >= 10] = 7.0
    mine = np.stack([problem.data.episode < 10, problem.data.episode >= 10]).astype(float)
    found = fit_fqe(backups, mine, target.model, settings=QUICK, seed=0)
    assert found.value[0] == pytest.approx(2.5, rel=0.02)
    assert found.value[1] == pytest.approx(17.5, rel=0.02)


def test_a_member_without_rows_is_refused() -> None:
    problem = problem_of(ones(ends="open"), TableTarget([[0.5, 0.5]]), OpeSettings(gamma=GAMMA))
    nothing = np.zeros((1, problem.data.rows))
    with pytest.raises(ValueError, match="no rows"):
        fit_fqe(backups_of(problem), nothing, problem.target.model, settings=QUICK, seed=0)


def test_it_says_when_it_did_not_converge() -> None:
    target = TableTarget(policy_of(3))
    data = Process.random(1).episodes(policy_of(2), 50, np.random.default_rng(0))
    problem = problem_of(data, target, OpeSettings(gamma=GAMMA))
    short = FQESettings(hidden=(8,), updates=1, max_renewals=3)
    weight = np.ones((1, problem.data.rows))
    found = fit_fqe(backups_of(problem), weight, target.model, settings=short, seed=0)
    assert (found.converged, found.renewals) == (False, 3)
