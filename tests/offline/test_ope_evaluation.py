"""From trajectories to estimates: what is used, what is refused, and what is warned of."""

import math
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from offline.lake import Lake
from offline.ope import OpeError, OpeSettings, PolicyTarget, evaluate
from offline.ope import estimators as est
from offline.ope.actions import converted
from offline.ope.behavior import CloneSettings
from offline.ope.critics import fit_critics
from offline.ope.episodes import beginnings
from offline.ope.fqe import FQESettings
from offline.ope.problem import problem_of
from offline.ope.results import Subject, log_results, rows_of
from offline.storage import Storage
from rl_ops.action_connectors import ActionConnectors, ClipAction, RescaleAction, ShiftDiscrete
from rl_ops.connectors import ObsConnectors
from rl_ops.exploration import AddNoise, EpsilonGreedy, Sample
from rl_ops.model_spec import ModelSpec, QSpec
from rl_ops.models import build_model
from rl_ops.policy import Policy, PolicySpec, Weights
from tests.offline.ope_kit import (
    GAMMA,
    Process,
    TableTarget,
    policy_of,
    trajectories,
    with_logp,
)

PROCESS, BEHAVIOR, TARGET = Process.random(1), policy_of(2), policy_of(3)
QUICK = FQESettings(hidden=(16,), batch_rows=64, updates=15, window=8, lr=3e-3, max_renewals=60)


def settings(*estimators: str, **more) -> OpeSettings:
    return OpeSettings(gamma=GAMMA, estimators=estimators, resamples=200, fqe=QUICK, **more)


def data_of(episodes: int, seed: int = 0):
    return PROCESS.episodes(BEHAVIOR, episodes, np.random.default_rng(seed))


def values(found) -> dict[str, float]:
    return {each.estimator: each.value for each in found.estimates}


def test_all_estimators_find_the_value() -> None:
    found = evaluate(data_of(2000), TableTarget(TARGET), replace(settings("is"), estimators=ALL))
    truth = PROCESS.value(TARGET)
    assert [each.estimator for each in found.estimates] == list(ALL)
    for each in found.estimates:
        assert each.value == pytest.approx(truth, abs=0.35), each
        assert each.low < each.value < each.high
    best = {each.estimator: each for each in found.estimates}
    for name in ("dr", "wdr", "fqe"):
        assert best[name].value == pytest.approx(truth, abs=0.15)
        assert best[name].low <= truth <= best[name].high
    assert not found.warnings
    assert found.details["fqe"]["converged"]
    assert found.behavior.value == pytest.approx(PROCESS.value(BEHAVIOR), abs=0.15)


ALL = ("is", "wis", "pdis", "cwpdis", "dr", "wdr", "dm", "fqe")


def test_a_seed_decides_every_estimate() -> None:
    asked = replace(settings("is"), estimators=ALL, seed=3)
    one, two = (evaluate(data_of(40), TableTarget(TARGET), asked) for _ in range(2))
    assert one == two


def test_a_critic_of_dr_has_not_seen_the_episode() -> None:
    problem = problem_of(data_of(30), TableTarget(TARGET), settings("dr", folds=3))
    before = fit_critics(problem, ["dr"])
    mine = problem.fold[problem.data.episode] == 1
    problem.data.reward[mine] += 100.0
    after = fit_critics(problem, ["dr"])
    # Scale and so all else changes with the returns, but not by what the fold itself earned.
    assert np.abs(after.q[mine] - before.q[mine]).mean() < 5
    assert np.abs(after.q[~mine] - before.q[~mine]).mean() > 10


def test_doubly_robust_estimates_beat_importance_sampling() -> None:
    truth, errors = PROCESS.value(TARGET), {name: [] for name in ("is", "wis", "dr", "fqe")}
    for seed in range(12):
        found = evaluate(data_of(100, seed), TableTarget(TARGET), settings(*errors))
        for name, value in values(found).items():
            errors[name].append(value - truth)
    rmse = {name: float(np.sqrt(np.mean(np.square(each)))) for name, each in errors.items()}
    assert rmse["wis"] < rmse["is"], rmse
    assert rmse["dr"] < 0.8 * rmse["is"], rmse
    assert rmse["fqe"] < 0.8 * rmse["is"], rmse


def test_rows_without_logged_probabilities_are_named_with_the_fix() -> None:
    data = data_of(5)
    logp = data.columns["logp"].copy()
    logp[[0, -1]] = np.nan
    with pytest.raises(OpeError) as error:
        evaluate(with_logp(data, logp), TableTarget(TARGET), settings("wis", "fqe"))
    text = str(error.value)
    assert f"2 of {data.rows} rows have no logp" in text
    assert "e0 of run, e4 of run" in text
    assert "--behavior estimate" in text
    assert "--estimators dm,fqe" in text
    assert values(evaluate(with_logp(data, logp), TableTarget(TARGET), settings("fqe"))).keys() == {
        "fqe"
    }


def test_a_cloned_behaviour_stands_in_for_missing_probabilities() -> None:
    data = data_of(1500)
    known = values(evaluate(data, TableTarget(TARGET), settings("wis")))["wis"]
    lost = with_logp(data, np.full(data.rows, np.nan))
    clone = CloneSettings(hidden=(32,), lr=3e-3)
    asked = settings("wis", behavior="estimate", clone=clone)
    found = evaluate(lost, TableTarget(TARGET), asked)
    assert values(found)["wis"] == pytest.approx(known, abs=0.15)
    entropy = -float(np.mean(data.columns["logp"]))
    assert -found.details["behavior"]["held_out_logp"] == pytest.approx(entropy, abs=0.05)


def test_few_effective_episodes_are_warned_of() -> None:
    sharp = TableTarget(policy_of(3, sharpness=4.0))
    few = evaluate(data_of(60), sharp, settings("wis"))
    ess = few.estimates[0].ess
    assert ess is not None
    assert ess < 50
    assert any(f"60 episodes are worth {ess:.1f}" in text for text in few.warnings)
    # Many in number, and still a small share.
    share = replace(settings("wis"), min_ess=1.0, min_ess_frac=0.9)
    many = evaluate(data_of(3000), sharp, share)
    assert any("too few" in text for text in many.warnings)
    assert not evaluate(data_of(3000), sharp, replace(share, min_ess_frac=0.0)).warnings


def test_probabilities_of_other_actions_are_noticed() -> None:
    data = data_of(500)
    wrong = with_logp(data, data.columns["logp"] - 0.3)
    found = evaluate(wrong, TableTarget(TARGET), settings("wis"))
    assert any("should be 1" in text for text in found.warnings)


def test_an_estimate_without_any_weight_says_so() -> None:
    never = np.zeros_like(TARGET)
    never[:, 0] = 1.0
    data = data_of(40)
    data = data.take(data.action[data.starts][data.episode] == 1)
    found = evaluate(data, TableTarget(never), settings("wis"))
    assert math.isnan(found.estimates[0].value)
    assert any("no episode has any weight" in text for text in found.warnings)


def gappy():
    """Episode 0 whole; 1 begins at t=1; 2 has a gap after t=0; 3 is open."""
    episode = [0, 0, 1, 1, 2, 2, 3, 3]
    t = [0, 1, 1, 2, 0, 2, 0, 1]
    ends = [False, True, False, True, False, True, False, False]
    reward = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    logp = np.full(8, np.log(0.5))
    return trajectories(episode, t, [0] * 8, [0] * 8, reward, ends, logp, num_states=1)


def test_episodes_count_from_their_first_step_to_their_first_gap() -> None:
    used = beginnings(gappy())
    assert used.data.reward.tolist() == [1.0, 2.0, 16.0, 64.0, 128.0]
    assert (used.dropped, used.open) == (1, 2)
    assert used.is_usable.tolist() == [True, True, False, True, False]
    found = evaluate(gappy(), TableTarget([[0.5, 0.5]]), settings("is"))
    expected = (1 + GAMMA * 2 + 16 + 64 + GAMMA * 128) / 3
    assert values(found)["is"] == pytest.approx(expected)
    assert any("1 of 4 episodes lack their first step" in text for text in found.warnings)
    assert any("2 of 3 episodes go on where the log ends" in text for text in found.warnings)


def test_dr_ends_with_the_value_of_the_last_step_where_the_log_does() -> None:
    problem = problem_of(gappy(), TableTarget([[0.5, 0.5]]), settings("dr"))
    critics = fit_critics(problem, ["dr"])
    found = evaluate(gappy(), TableTarget([[0.5, 0.5]]), settings("dr"))
    q, v = critics.q.astype(float), critics.value.astype(float)
    expected = [
        v[0] + (1 + GAMMA * v[1] - q[0]) + GAMMA * (2 - q[1]),
        v[2],
        v[3] + (64 + GAMMA * v[4] - q[3]),
    ]
    assert values(found)["dr"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_fewer_than_two_episodes_are_refused() -> None:
    data = gappy()
    with pytest.raises(OpeError, match="two or more"):
        evaluate(data.take(data.episode < 2), TableTarget([[0.5, 0.5]]), settings("is"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 0.0}, "gamma is 0.0; expected above 0"),
        ({"level": 95.0}, "level is 95.0; expected between 0 and 1"),
        ({"estimators": ("ips",)}, "expected of is, wis"),
        ({"folds": 1}, "folds is 1"),
        ({"max_weight": 0.0}, "max_weight"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message: str) -> None:
    with pytest.raises(OpeError, match=message):
        OpeSettings(**{"gamma": 0.9, **wrong})


# Policies of checkpoints


def policy(space, *, act=None, squash=False, deterministic=False, q=None, states=3) -> Policy:
    obs = Box(-np.inf, np.inf, (states,), np.float32)
    steps = () if isinstance(space, Discrete) else (RescaleAction() if squash else ClipAction(),)
    if deterministic:
        steps = (RescaleAction(),)
    connectors = ActionConnectors(steps, space)
    spec = PolicySpec(
        obs,
        space,
        ObsConnectors((), obs),
        connectors,
        ModelSpec("mlp", (states,), 1),
        act=act or Sample(),
        squash=squash,
        deterministic=deterministic,
    )
    head = "q" if q else "actor"
    size = spec.distribution.param_size
    spec = replace(spec, model=ModelSpec("mlp", (states,), size, head=head, q=q, hidden=(8,)))
    model = build_model(spec.model)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    mean, std = np.full(states, 0.5, np.float32), np.full(states, 2.0, np.float32)
    return Policy(spec, Weights(weights, mean, std, env_steps=10))


def logged(policy: Policy, *, space=None, count: int = 60):
    """Episodes of two steps in which a policy explored, in its own space."""
    rng = np.random.default_rng(0)
    rows = 2 * count
    states = rng.integers(3, size=rows)
    obs = np.eye(3, dtype=np.float32)[states]
    _, _, extras = policy.act(obs, policy.start(rows, seed=1), explore=True)
    base = trajectories(
        np.repeat(np.arange(count), 2),
        np.tile([0, 1], count),
        states,
        np.zeros(rows, np.int64),
        rng.normal(size=rows),
        np.tile([False, True], count),
        extras.get("logp", np.full(rows, np.nan)),
        num_states=3,
    )
    chosen = policy.spec.action_connectors.input_space
    return replace(
        base,
        action=extras["action"],
        action_space=space or chosen,
        obs_space=policy.spec.obs_space,
    )


SPACES = [
    (Discrete(3), {}),
    (Discrete(3), {"act": EpsilonGreedy(0.3), "q": QSpec(3)}),
    (Box(-2.0, 2.0, (2,), np.float32), {}),
    (Box(-2.0, 2.0, (2,), np.float32), {"squash": True}),
]


@pytest.mark.parametrize(("space", "more"), SPACES)
def test_a_policy_has_weights_of_1_on_what_it_logged_itself(space, more) -> None:
    mine = policy(space, **more)
    data = logged(mine)
    found = evaluate(data, PolicyTarget(mine, greedy=False), settings("is", "wis", "fqe"))
    returns = est.mean_return(est.by_episode(data.reward, data.episode), gamma=GAMMA).estimate
    assert values(found)["is"] == pytest.approx(returns, abs=1e-4)
    assert values(found)["wis"] == pytest.approx(returns, abs=1e-4)
    assert found.estimates[0].ess == pytest.approx(60, rel=1e-3)


@pytest.mark.parametrize(("space", "more"), SPACES[:2])
def test_listed_probabilities_are_those_of_logp(space, more) -> None:
    target = PolicyTarget(policy(space, **more), greedy=False)
    params = target.params(np.eye(3, dtype=np.float32))
    probabilities = target.probabilities(params)
    assert probabilities.sum(1) == pytest.approx(np.ones(3), abs=1e-6)
    drawn = target.sample(np.repeat(params, 4000, 0), np.random.default_rng(0)).reshape(3, -1)
    for row, actions in zip(probabilities, drawn, strict=True):
        assert np.bincount(actions, minlength=3) / 4000 == pytest.approx(row, abs=0.03)


def test_a_greedy_target_is_a_point_of_discrete_actions() -> None:
    mine = policy(Discrete(3))
    target = PolicyTarget(mine, greedy=True)
    data = logged(mine)
    params = target.params(target.features(data))
    assert target.no_density == ""
    probabilities = target.probabilities(params)
    assert (probabilities.max(1) == 1).all()
    env_action, _, _ = mine.act(data.obs)
    assert (probabilities.argmax(1) == env_action).all()


@pytest.mark.parametrize(
    ("more", "greedy"),
    [({}, True), ({"deterministic": True, "act": AddNoise(0.1)}, False)],
)
def test_what_has_no_density_gets_fqe_and_a_reason(more, greedy: bool) -> None:
    space = Box(-2.0, 2.0, (2,), np.float32)
    mine = policy(space, **more)
    data = logged(mine)
    target = PolicyTarget(mine, greedy=greedy)
    found = evaluate(data, target, settings("is", "dr", "dm", "fqe"))
    assert [each.estimator for each in found.estimates] == ["dm", "fqe"]
    assert found.refused.keys() == {"is", "dr"}
    assert "density" in found.refused["is"]
    with pytest.raises(OpeError, match="density.*--estimators dm,fqe"):
        evaluate(data, target, settings("is"))


def test_noise_that_remembers_is_refused() -> None:
    mine = policy(
        Box(-1.0, 1.0, (1,), np.float32), deterministic=True, act=AddNoise(0.1, process="ou")
    )
    with pytest.raises(OpeError, match="--greedy"):
        PolicyTarget(mine, greedy=False)
    assert PolicyTarget(mine, greedy=True).is_deterministic


def test_an_affine_map_of_actions_moves_the_densities() -> None:
    space = Box(np.float32([-2.0, 0.0]), np.float32([2.0, 1.0]), dtype=np.float32)
    squashed, plain = policy(space, squash=True), policy(space)
    data = logged(squashed)
    there = converted(data, plain.spec.action_connectors)
    # Environment actions are 2 a and 0.5 a + 0.5: densities are divided by 2 and by 0.5.
    assert there.log_scale == pytest.approx(-math.log(2.0 * 0.5))
    assert there.action == pytest.approx(data.action * [2.0, 0.5] + [0.0, 0.5], abs=1e-6)
    # Through the environment's own space and back, all is as before.
    env = squashed.spec.action_connectors(data.action)
    imported = replace(data, action=env, action_space=space)
    back = converted(imported, squashed.spec.action_connectors)
    assert back.action == pytest.approx(data.action, abs=1e-5)
    assert back.log_scale == pytest.approx(math.log(2.0 * 0.5))


def test_a_scale_of_actions_leaves_weights_as_they_are() -> None:
    space = Box(-3.0, 3.0, (2,), np.float32)
    mine = policy(space, squash=True)
    data = logged(mine)
    env = mine.spec.action_connectors(data.action)
    imported = replace(
        with_logp(data, data.columns["logp"] - 2 * math.log(3.0)), action=env, action_space=space
    )
    found = evaluate(imported, PolicyTarget(mine, greedy=False), settings("is"))
    assert found.estimates[0].ess == pytest.approx(60, rel=1e-3)
    assert not found.warnings


def test_clipped_actions_have_no_density() -> None:
    space = Box(-0.5, 0.5, (2,), np.float32)
    data = logged(policy(space))
    squashed = policy(space, squash=True)
    found = evaluate(data, PolicyTarget(squashed, greedy=False), settings("is", "fqe"))
    assert "lie on the bounds" in found.refused["is"]
    assert values(found).keys() == {"fqe"}


def test_spaces_that_do_not_fit_are_both_named() -> None:
    data = logged(policy(Discrete(3)))
    box = policy(Box(-1.0, 1.0, (2,), np.float32))
    with pytest.raises(OpeError, match=r"Discrete\(3\).*Box"):
        evaluate(data, PolicyTarget(box, greedy=False), settings("fqe"))
    shifted = ActionConnectors((ShiftDiscrete(),), Discrete(3, start=5))
    assert (converted(data, shifted).action == data.action).all()


# The lake


def subject(sha256: str = "a") -> Subject:
    return Subject("run", 0, "/c/1", sha256, 7, "explore", 3, (("run_id", "==", "x"),), "/lake")


def test_an_evaluation_is_in_the_lake_once(tmp_path) -> None:
    storage, asked = Storage.at(tmp_path / "lake"), settings("is", "fqe")
    found = evaluate(data_of(20), TableTarget(TARGET), asked)
    one, other = (rows_of(subject(sha), asked, found) for sha in "ab")
    assert log_results(storage, [one]) == [True]
    assert log_results(storage, [one, other]) == [False, True]
    rows = Lake(storage).ope_results().to_arrow().to_pylist()
    assert [(row["sha256"], row["estimator"]) for row in rows] == [
        *(("a", "is"), ("a", "fqe")),
        *(("b", "is"), ("b", "fqe")),
    ]
    assert rows[0]["estimate"] == found.estimates[0].value
    assert rows[0]["ess"] == found.estimates[0].ess
    assert rows[1]["ess"] is None
    assert rows[0]["conditions"] == '[["run_id", "==", "x"]]'
    assert (rows[0]["table"], rows[0]["table_version"], rows[0]["level"]) == ("steps", 3, 0.95)
    assert subject().ope_id(asked) != subject().ope_id(settings("is"))


def test_an_evaluation_whose_process_was_killed_half_way_is_in_the_lake_once(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, asked = Storage.at(tmp_path / "lake"), settings("is", "wis")
    rows = rows_of(subject(), asked, evaluate(data_of(20), TableTarget(TARGET), asked))

    def killed(name: str) -> None:
        if name == "journal.written":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("offline.writer.fail_point", killed)
        with pytest.raises(KeyboardInterrupt):
            log_results(storage, [rows])
    assert Lake(storage).ope_results().count() == 0
    # What was promised is finished by the next writer, which finds it there.
    assert log_results(storage, [rows]) == [False]
    assert Lake(storage).ope_results().count() == 2
