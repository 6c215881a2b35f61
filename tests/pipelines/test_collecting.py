"""Collecting: the rows promised, honest logp, and every row once whatever is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from offline.background import WritePolicy
from offline.errors import LakeBusyError
from offline.failpoints import VARIABLE, WRITER_POINTS
from offline.lake import Lake
from offline.spaces import spaces_of
from offline.storage import Storage
from offline.writer import LakeWriter
from pipelines import behaviour, collecting
from pipelines.behaviour import Behaviour, Mode, Uniform, UniformMix, own_actions
from pipelines.collecting import CollectError, Collection, collect
from rl_ops import columns as c
from rl_ops.action_connectors import ActionConnectors, default_action_connectors
from rl_ops.envs import EnvSpec
from rl_ops.errors import SpecError
from rl_ops.exploration import AddNoise, EpsilonGreedy, Greedy, RandomFirst, Sample
from rl_ops.model_spec import QSpec
from rl_ops.policy import Policy, PolicySpec
from tests.rollout_kit import env_spec, linear_weights, policy_spec

ROOT = Path(__file__).parents[2]
SOON = WritePolicy(interval_s=0.001, rows=1)
CARTPOLE, PENDULUM = EnvSpec("CartPole-v1"), EnvSpec("Pendulum-v1")


@pytest.fixture
def storage(tmp_path):
    return Storage.at(tmp_path / "lake")


def trained(env, *, act=None, squash=False, seed=0):
    """A policy with weights that make something of the observation."""
    spec = policy_spec(env, squash=squash)
    if act is not None:
        spec = dataclasses.replace(spec, act=act)
    weights = linear_weights(spec)
    rng = np.random.default_rng(seed)
    module = {k: rng.normal(0, 0.3, v.shape).astype(np.float32) for k, v in weights.module.items()}
    return Behaviour(env, spec, weights._replace(module=module), version=7)


def rows_of(storage, run_id):
    table = Lake(storage).steps(where=[(c.RUN_ID, "=", run_id)]).to_arrow()
    return table.sort_by([(c.FRAGMENT_ID, "ascending"), (c.ENV_ID, "ascending")])


def decoded(storage, table):
    obs, action = spaces_of(storage, table.column("space")[0].as_py())
    return (
        obs.tree(table.column(c.OBS), table.column("obs_bytes"), column=c.OBS),
        action.tree(table.column(c.ACTION), table.column("action_bytes"), column=c.ACTION),
    )


def column(table, name):
    return table.column(name).to_numpy()


@pytest.mark.parametrize("env", [CARTPOLE, PENDULUM], ids=lambda env: env.id)
@pytest.mark.parametrize("kind", ["random", "trained"])
def test_the_lake_has_the_rows_that_the_result_says_in_whole_episodes(storage, env, kind):
    who = Behaviour.uniform(env) if kind == "random" else trained(env)
    found = collect(storage, Collection("run", who, rows=300, num_envs=2))
    lake, rows = Lake(storage), rows_of(storage, "run")
    assert found.status == "finished"
    assert found.rows == found.new_rows == rows.num_rows >= 300
    ends = column(rows, c.TERMINATED) | column(rows, c.TRUNCATED)
    episodes = lake.episodes().to_arrow()
    assert found.episodes == ends.sum() == episodes.num_rows
    assert np.array_equal(ends, column(rows, c.IS_LAST))
    assert np.array_equal(ends, rows.column(c.FINAL_OBS).is_valid().to_numpy())
    assert not column(rows, c.ABORTED).any()
    assert sum(episodes.column("length").to_pylist()) == found.rows
    assert found.return_mean == pytest.approx(np.mean(episodes.column("return").to_pylist()))
    assert found.return_mean * found.episodes == pytest.approx(column(rows, c.REWARD).sum())
    assert set(rows.column(c.POLICY_VERSION).to_pylist()) == {0 if kind == "random" else 7}
    assert lake.steps(version=found.steps_version).count() == found.rows


def test_a_number_of_episodes_is_kept_exactly_and_each_environment_runs_its_share(storage):
    found = collect(storage, Collection("run", Behaviour.uniform(CARTPOLE), episodes=7, num_envs=3))
    assert found.episodes == 7
    envs = Lake(storage).episodes().to_arrow().column(c.ENV_ID).to_pylist()
    assert sorted(envs) == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("env", "squash"), [(CARTPOLE, False), (PENDULUM, False), (PENDULUM, True)]
)
def test_logp_is_the_policys_own(storage, env, squash):
    who = trained(env, squash=squash)
    collect(storage, Collection("run", who, rows=200, num_envs=2))
    rows = rows_of(storage, "run")
    obs, action = decoded(storage, rows)
    policy = Policy(who.policy, who.weights)
    distribution, params = policy.dist(obs)
    np.testing.assert_allclose(
        column(rows, c.LOGP), distribution.logp(params, action), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(column(rows, c.VALUE), policy.value(obs), rtol=1e-4, atol=1e-5)
    assert len(np.unique(column(rows, c.LOGP))) > 50


def test_a_random_policys_logp_is_that_of_the_choices_and_of_the_density(storage):
    collect(storage, Collection("cart", Behaviour.uniform(CARTPOLE), rows=300))
    collect(storage, Collection("pend", Behaviour.uniform(PENDULUM), rows=300, num_envs=2))
    rows = rows_of(storage, "cart")
    np.testing.assert_allclose(column(rows, c.LOGP), -np.log(2), rtol=1e-6)
    share = np.mean(decoded(storage, rows)[1])
    assert 0.4 < share < 0.6
    rows = rows_of(storage, "pend")
    np.testing.assert_allclose(column(rows, c.LOGP), -np.log(4), rtol=1e-6)
    action = decoded(storage, rows)[1]
    assert action.min() < -1.9
    assert action.max() > 1.9
    assert np.abs(action).max() <= 2.0
    key = rows.column("space")[0].as_py()
    assert spaces_of(storage, key)[1].space == Box(-2.0, 2.0, (1,), np.float32)
    assert rows.column(c.VALUE).null_count == rows.num_rows


@pytest.mark.parametrize("squash", [False, True])
def test_random_actions_like_a_policys_are_of_its_space_and_cover_the_environments(storage, squash):
    like = policy_spec(PENDULUM, squash=squash)
    collect(
        storage, Collection("run", Behaviour.uniform(PENDULUM, like=like), rows=400, num_envs=2)
    )
    rows = rows_of(storage, "run")
    action = decoded(storage, rows)[1]
    bound = 1.0 if squash else 2.0
    key = rows.column("space")[0].as_py()
    assert spaces_of(storage, key)[1].space == like.action_connectors.input_space
    assert 0.95 * bound < np.abs(action).max() <= bound
    np.testing.assert_allclose(column(rows, c.LOGP), -np.log(2 * bound), rtol=1e-6)


def test_a_behaviour_that_was_stopped_goes_on_with_the_rows_it_would_have_had(storage, tmp_path):
    wanted = Collection("run", trained(CARTPOLE), rows=1500, num_envs=1)
    asked = []

    def after_two():
        asked.append(None)
        return len(asked) > 2

    first = collect(storage, wanted, should_stop=after_two, policy=SOON)
    assert (first.status, first.new_rows) == ("stopped", first.rows)
    assert 1024 <= first.rows < 1500
    second = collect(storage, wanted)
    assert second.status == "finished"
    assert second.rows == first.rows + second.new_rows
    whole = Storage.at(tmp_path / "other")
    collect(whole, wanted)
    assert_same_rows(rows_of(storage, "run"), rows_of(whole, "run"))
    sessions = Lake(storage).runs().to_pandas().sort_values("at")[["session", "status"]]
    assert sessions.to_numpy().tolist() == [
        [0, "running"],
        [0, "stopped"],
        [1, "running"],
        [1, "finished"],
    ]


def assert_same_rows(these, those):
    """But for when and in which session they were made."""
    dropped = ["session", c.SAMPLED_AT]
    these, those = (x.drop_columns(dropped).to_pylist() for x in (these, those))
    order = lambda row: (row[c.EPISODE_ID], row[c.T])  # noqa: E731
    assert sorted(these, key=order) == sorted(those, key=order)


def test_an_error_leaves_what_is_committed_and_the_next_call_goes_on(
    storage, tmp_path, monkeypatch
):
    wanted = Collection("run", Behaviour.uniform(CARTPOLE), rows=1500, num_envs=1)
    made = collecting.Rollout.fragment

    def third_fails(self, fragment_id):
        if fragment_id == 2:
            raise RuntimeError("boom")
        return made(self, fragment_id)

    with monkeypatch.context() as patched:
        patched.setattr(collecting.Rollout, "fragment", third_fails)
        with pytest.raises(RuntimeError, match="boom"):
            collect(storage, wanted, policy=SOON)
    runs = Lake(storage).runs().to_pandas()
    assert set(runs.status) == {"running", "failed"}
    assert "boom" in runs.message.dropna().iloc[0]
    assert set(column(rows_of(storage, "run"), c.FRAGMENT_ID)) == {0, 1}
    collect(storage, wanted)
    whole = Storage.at(tmp_path / "other")
    collect(whole, wanted)
    assert_same_rows(rows_of(storage, "run"), rows_of(whole, "run"))


CHILD = """
import sys
from offline.background import WritePolicy
from offline.storage import Storage
from pipelines.behaviour import Behaviour
from pipelines.collecting import Collection, collect
from rl_ops.envs import EnvSpec
wanted = Collection("run", Behaviour.uniform(EnvSpec("CartPole-v1")), rows=1500, num_envs=1)
collect(Storage.at(sys.argv[1]), wanted, policy=WritePolicy(interval_s=0.001, rows=1))
"""


def kill_and_go_on(tmp_path, point):
    """Whether the point was passed; the rows are those of a run that was not killed either way."""
    storage = Storage.at(tmp_path / "lake")

    def run(**environment):
        command = [sys.executable, "-c", CHILD, storage.uri]
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            timeout=120,
            check=False,
        )

    killed = run(**{VARIABLE: point})
    assert killed.returncode in (0, -signal.SIGKILL), killed.stderr.decode()
    done = run()
    assert done.returncode == 0, done.stderr.decode()
    whole = Storage.at(tmp_path / "whole")
    collect(whole, Collection("run", Behaviour.uniform(CARTPOLE), rows=1500, num_envs=1))
    assert_same_rows(rows_of(storage, "run"), rows_of(whole, "run"))
    episodes = Lake(storage).episodes().to_arrow()
    assert len(set(episodes.column(c.EPISODE_ID).to_pylist())) == episodes.num_rows
    assert episodes.num_rows == Lake(whole).episodes().count()
    return killed.returncode != 0


def test_quick_a_collection_killed_between_two_commits_ends_with_every_row_once(tmp_path):
    # The first batch is the run's own row; the fifth commit is of the first fragment's episodes.
    assert kill_and_go_on(tmp_path, "commit.written:4")


@pytest.mark.fault
@pytest.mark.parametrize("hit", [1, 2, 4, 7])
@pytest.mark.parametrize("name", [*WRITER_POINTS, "sink.queued"])
def test_a_collection_killed_anywhere_ends_with_every_row_once(tmp_path, name, hit):
    if not kill_and_go_on(tmp_path, f"{name}:{hit}"):
        pytest.skip(f"a collection passes {name} less than {hit} times")


def test_a_finished_collection_is_not_made_again(storage):
    wanted = Collection("run", Behaviour.uniform(CARTPOLE), rows=200)
    first = collect(storage, wanted)
    runs = Lake(storage).runs().count()
    second = collect(storage, wanted)
    assert (second.status, second.new_rows) == ("already finished", 0)
    assert (second.rows, second.return_mean) == (first.rows, first.return_mean)
    assert Lake(storage).runs().count() == runs


def test_more_rows_of_a_finished_collection_are_added_to_it(storage):
    wanted = Collection("run", Behaviour.uniform(CARTPOLE), rows=200)
    first = collect(storage, wanted)
    second = collect(storage, dataclasses.replace(wanted, rows=first.rows + 100))
    assert second.rows == first.rows + second.new_rows >= first.rows + 100
    names = rows_of(storage, "run").select([c.EPISODE_ID, c.T]).to_pylist()
    assert len({tuple(row.values()) for row in names}) == second.rows


def test_rows_that_are_all_there_without_a_last_word_only_get_it(storage, monkeypatch):
    wanted = Collection("run", Behaviour.uniform(CARTPOLE), rows=200)
    with monkeypatch.context() as patched:
        # Killed after the last commit of rows.
        patched.setattr(collecting, "_collected", lambda *_, **__: None)
        patched.setattr(
            collecting._Run,
            "note",
            lambda self, status, message=None: (
                note(self, status, message=message) if status == "running" else None
            ),
        )
        collect(storage, wanted)
    found = collect(storage, wanted)
    assert (found.status, found.new_rows) == ("finished", 0)
    assert Lake(storage).sql("SELECT status FROM runs").to_pylist() == [{"status": "finished"}]


note = collecting._Run.note


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, "seed is 0, asked is 1"),
        ({"num_envs": 4}, "num_envs is 8, asked is 4"),
        ({"behaviour": Behaviour.uniform(PENDULUM)}, "env is "),
        ({"behaviour": trained(CARTPOLE)}, "weights is "),
        ({"rows": None, "episodes": 5}, "by is 'rows', asked is 'episodes'"),
    ],
)
def test_another_collection_of_the_same_name_is_refused(storage, other, said):
    wanted = Collection("run", Behaviour.uniform(CARTPOLE), rows=100)
    collect(storage, wanted)
    with pytest.raises(CollectError, match="is another one") as error:
        collect(storage, dataclasses.replace(wanted, **other))
    assert said in str(error.value)


def test_a_run_that_another_process_collects_is_refused(storage):
    wanted = Collection("run", Behaviour.uniform(CARTPOLE), rows=100)
    collect(storage, wanted)
    with LakeWriter(storage, "run/driver"), pytest.raises(LakeBusyError):
        collect(storage, dataclasses.replace(wanted, rows=1000))


def test_failures_of_an_environment_are_logged_and_their_episodes_not_counted(storage):
    env = env_spec("faulty", fault="step", key="collecting", at=2, times=1)
    found = collect(storage, Collection("run", Behaviour.uniform(env), episodes=4, num_envs=1))
    aborted = Lake(storage).episodes(where=[(c.ABORTED, "=", True)]).count()
    failures = Lake(storage).failures().to_arrow().to_pylist()
    assert found.episodes == 4
    assert aborted == len(failures) >= 1
    assert failures[0]["kind"] == "env"


@pytest.mark.parametrize(
    "numbers",
    [{}, {"rows": 10, "episodes": 1}, {"rows": 0}, {"episodes": 0}, {"rows": 1, "num_envs": 0}],
)
def test_numbers_that_make_no_collection_are_refused(numbers):
    with pytest.raises(CollectError):
        Collection("run", Behaviour.uniform(CARTPOLE), **numbers)


def test_the_run_says_whose_policy_acted_in_terms_that_a_replay_understands(storage):
    who = dataclasses.replace(trained(PENDULUM, squash=True), about={"checkpoint": "x", "k": 1})
    collect(storage, Collection("run", who, episodes=1, num_envs=1, level="medium"))
    row = Lake(storage).runs().to_arrow().to_pylist()[0]
    config = json.loads(row["config"])
    assert (row["algo"], row["env"], row["seed"]) == ("collect", "Pendulum-v1", 0)
    assert config["collect"] == {
        "checkpoint": "x",
        "k": 1,
        "weights": who.digest,
        "level": "medium",
        "rows": None,
        "episodes": 1,
    }
    assert config["connectors"] == {"squash_action": True}


TREE = Dict(
    {
        "a": Discrete(3, start=-1),
        "b": Box(np.array([0.0, -1.0]), np.array([2.0, 3.0]), dtype=np.float32),
        "m": MultiDiscrete([2, 5]),
        "n": MultiBinary(3),
    }
)


def test_uniform_actions_of_a_tree_lie_in_it_and_have_its_density():
    uniform = Uniform.of(own_actions(TREE))
    noise = np.random.default_rng(0).random((4000, uniform.noise_size), dtype=np.float32)
    action = uniform.sample(noise)
    expected = -np.log(3) - np.log(2 * 4) - np.log(2 * 5) - 3 * np.log(2)
    np.testing.assert_allclose(uniform.logp(action), expected)
    assert {int(x) for x in action["a"]} == {0, 1, 2}
    for i in (0, 3999):
        item = {name: part[i] for name, part in action.items()}
        assert uniform.space.contains(item)
    means = {name: part.mean(axis=0) for name, part in action.items()}
    np.testing.assert_allclose(means["b"], [1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(means["m"], [0.5, 2.0], atol=0.1)
    outside = {**action, "b": action["b"] + 5}
    assert np.isneginf(uniform.logp(outside)).all()


def test_a_dimension_with_one_value_counts_nothing():
    space = Box(np.array([1.0, 0.0]), np.array([1.0, 4.0]), dtype=np.float32)
    uniform = Uniform.of(own_actions(space))
    action = uniform.sample(np.full((2, 2), 0.5, np.float32))
    np.testing.assert_allclose(action, [[1.0, 2.0]] * 2)
    np.testing.assert_allclose(uniform.logp(action), -np.log(4))


def test_a_box_without_bounds_has_no_uniform_action():
    space = Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(SpecError, match="finite bounds"):
        Uniform.of(ActionConnectors((), space))


@pytest.mark.parametrize("squash", [False, True])
def test_a_mixtures_logp_is_that_of_both_ways_to_the_action(squash):
    spec = policy_spec(PENDULUM, squash=squash)
    act = UniformMix(Sample(), 0.25, Uniform.of(spec.action_connectors))
    rows = 6
    rng = np.random.default_rng(3)
    params = rng.normal(0, 0.5, (rows, 2)).astype(np.float32)
    action = np.linspace(-0.9, 0.9, rows, dtype=np.float32)[:, None]
    levels = {name: np.repeat(x, rows) for name, x in act.levels(0, np.arange(1)).items()}
    width = 2.0 if squash else 4.0
    density = np.exp(spec.distribution.logp(params, action).astype(np.float64))
    expected = np.log(0.25 / width + 0.75 * density)
    np.testing.assert_allclose(
        act.logp(spec.distribution, params, action, levels), expected, rtol=1e-5
    )
    outside = np.full((rows, 1), 1.5 * width, np.float32)
    if not squash:
        alone = np.log(0.75) + spec.distribution.logp(params, outside)
        np.testing.assert_allclose(
            act.logp(spec.distribution, params, outside, levels), alone, rtol=1e-5
        )


def test_a_mixture_is_uniform_as_often_as_it_says(storage):
    base = trained(PENDULUM)
    act = UniformMix(Mode(), 0.5, Uniform.of(base.policy.action_connectors))
    who = dataclasses.replace(base, policy=dataclasses.replace(base.policy, act=act))
    collect(storage, Collection("run", who, rows=1000, num_envs=2))
    rows = rows_of(storage, "run")
    obs, action = decoded(storage, rows)
    distribution, params = Policy(who.policy, who.weights).dist(obs)
    greedy = np.isclose(distribution.mode(params), action, atol=1e-5).all(axis=1)
    assert 0.4 < greedy.mean() < 0.6
    assert rows.column(c.LOGP).null_count == rows.num_rows
    assert set(column(rows, c.EPSILON)) == {0.5}


def acting(spec: PolicySpec, **options):
    return behaviour._act(spec, **{"greedy": False, "epsilon": None, **options})


def test_what_acts_is_the_policys_own_act_unless_asked_otherwise():
    discrete, box = policy_spec(CARTPOLE), policy_spec(PENDULUM, squash=True)
    q = dataclasses.replace(
        discrete,
        act=EpsilonGreedy(0.05),
        model=dataclasses.replace(discrete.model, head="q", q=QSpec(2)),
    )
    warm = dataclasses.replace(box, act=RandomFirst(100, Sample()))
    over = Uniform.of(box.action_connectors)
    assert acting(discrete) == Sample()
    assert acting(q) == EpsilonGreedy(0.05)
    assert acting(discrete, greedy=True) == EpsilonGreedy(0.0)
    assert acting(q, epsilon=0.3) == EpsilonGreedy(0.3)
    assert acting(q, greedy=True, epsilon=0.3) == EpsilonGreedy(0.3)
    assert isinstance(acting(discrete, epsilon=0.3), UniformMix)
    assert acting(box, greedy=True) == Mode()
    assert acting(warm, epsilon=0.5) == UniformMix(Sample(), 0.5, over)
    with pytest.raises(SpecError, match="epsilon is 2"):
        acting(box, epsilon=2.0)


def test_the_logp_of_a_greedy_choice_is_0_and_not_the_distributions():
    spec = policy_spec(CARTPOLE)
    act = acting(spec, greedy=True)
    params = np.array([[1.0, 0.0], [0.0, 3.0]], np.float32)
    levels = {c.EPSILON: np.zeros(2, np.float32)}
    chosen = params.argmax(axis=1)
    np.testing.assert_allclose(act.logp(spec.distribution, params, chosen, levels), 0.0, atol=1e-6)
    assert (Greedy().logp(spec.distribution, params, chosen, levels) < -0.01).all()


def test_noise_without_a_density_has_none_in_a_mixture_either():
    spec = policy_spec(PENDULUM, squash=True)
    noisy = dataclasses.replace(spec, act=AddNoise(0.1))
    act = acting(noisy, epsilon=0.2)
    assert isinstance(act, UniformMix)
    assert not act.has_logp
    assert act.columns == (c.EPSILON, c.NOISE_SCALE)


def test_own_actions_leave_a_box_as_it_is_and_count_choices_from_0():
    box = Box(-2.0, 2.0, (1,), np.float32)
    assert own_actions(box).input_space == box
    assert own_actions(Discrete(3, start=2)).input_space == Discrete(3)
    assert default_action_connectors(box, squash=False).input_space != box


@pytest.mark.parametrize("kind", ["dict", "image"])
def test_random_actions_need_no_network_that_fits_the_observation(storage, kind):
    if kind == "image":
        env = EnvSpec("tests.pipelines.test_collecting:pictures")
    else:
        env = EnvSpec("tests.pipelines.test_collecting:parts")
    found = collect(storage, Collection("run", Behaviour.uniform(env), episodes=2, num_envs=1))
    assert (found.episodes, found.rows) == (2, 8)


class FourSteps(gym.Env):
    def __init__(self, space):
        self.observation_space, self.action_space = space, Discrete(2)
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 4, False, {}


def pictures():
    return FourSteps(Box(0, 255, (6, 6, 3), np.uint8))


def parts():
    return FourSteps(Dict({"x": Box(-1, 1, (2,), np.float32), "k": Discrete(3)}))
