"""One suite for every algorithm that rolls out, on discrete and on continuous actions.

A new algorithm needs a line in `LEARNS` and nothing else here.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import ALGORITHMS, Pipeline, config_class, load_policy
from pipelines.backend import LocalFlow
from pipelines.checkpoint import Checkpoint
from pipelines.config import OffPolicyConfig
from pipelines.coordinator import Command
from pipelines.dataflow import Rollouts, make_plan
from pipelines.errors import CheckpointError
from pipelines.training import TrainTask, make_loop, plan_for
from rl_ops.envs import UnknownEnvError
from rl_ops.errors import ColumnError
from rl_ops.learner import World
from rl_ops.policy import Policy
from rl_ops.rollout import Rollout
from tests.learning_envs import STEPS
from tests.pipelines.logged_kit import ONLINE

DISCRETE, CONTINUOUS = "CartPole-v1", "Pendulum-v1"
ACTS_IN = dict.fromkeys(ALGORITHMS, (DISCRETE, CONTINUOUS)) | {
    "apex": (DISCRETE,),
    "bcq": (DISCRETE,),
    "td3_bc": (CONTINUOUS,),
    "dqn": (DISCRETE,),
    "td3": (CONTINUOUS,),
    "tqc": (CONTINUOUS,),
}
"""Environments of the kinds that each algorithm acts in."""

SOON = {
    "learning_starts_rows": 0,
    "minibatch_rows": 32,
    "updates_per_row": 0.1,
    "replay": {"capacity_rows": 500},
}
"""Settings with which algorithms that replay rows begin to learn at once."""
REPLAYS = {a for a in ALGORITHMS if issubclass(config_class(a), OffPolicyConfig)}

_SMALL_NET = {"hidden": (32, 32), "activation": "relu"}
_TD_LEARNS = {
    "rollout": {"num_envs": 8, "fragment_steps": 8},
    "model": _SMALL_NET,
    "optim": {"lr": 5e-3},
    "learning_starts_rows": 256,
    "minibatch_rows": 64,
    "updates_per_row": 0.2,
}
_TRACE_LEARNS = {"rollout": {"num_envs": 16, "fragment_steps": 16, "max_policy_lag": 0}}
LEARNS = {
    "a2c": {
        "rollout": {"num_envs": 16, "fragment_steps": 8},
        "optim": {"lr": 7e-3},
        "stop": {"training_iteration": 150},
    },
    "apex": _TD_LEARNS | {"n_step": 1, "stop": {"training_iteration": 30}},
    "appo": _TRACE_LEARNS | {"optim": {"lr": 5e-3}, "stop": {"training_iteration": 120}},
    "ddppo": {
        "rollout": {"num_envs": 16, "fragment_steps": 32},
        "learner": {"num_workers": 0},
        "optim": {"lr": 3e-3},
        "num_epochs": 4,
        "minibatch_rows": 128,
        "stop": {"training_iteration": 30},
    },
    "dqn": _TD_LEARNS | {"epsilon": ((0, 1.0), (1000, 0.05)), "stop": {"training_iteration": 30}},
    "impala": _TRACE_LEARNS | {"optim": {"lr": 2e-2}, "stop": {"training_iteration": 150}},
    "ppo": {
        "rollout": {"num_envs": 16, "fragment_steps": 32},
        "optim": {"lr": 3e-3},
        "num_epochs": 4,
        "minibatch_rows": 128,
        "stop": {"training_iteration": 30},
    },
    "sac": _TD_LEARNS | {"temperature": {"init": 0.1}, "stop": {"training_iteration": 50}},
    "td3": _TD_LEARNS | {"stop": {"training_iteration": 50}},
    "tqc": _TD_LEARNS
    | {"temperature": {"init": 0.1}, "num_quantiles": 5, "stop": {"training_iteration": 50}},
}
"""What each algorithm needs to learn tests/learning_envs.py in about a second."""

SYNC_ENVS = {
    algo: CONTINUOUS if CONTINUOUS in envs else {"id": DISCRETE, "vectorization": "sync"}
    for algo, envs in ACTS_IN.items()
}
"""Environments that spend no step on resets, so that rows can be counted."""

CONNECTORS = {"normalize_obs": True, "normalize_reward": True}
LOGGED = {"enabled": True}


def make_config(algo, env=None, **values):
    """A small run; it logs to no lake unless told, which costs four times the run itself."""
    small = {
        "rollout": {"num_envs": 4, "fragment_steps": 16},
        "model": {"hidden": (8,)},
        "trace": {"enabled": False},
    }
    if algo in REPLAYS:
        small |= SOON
    if algo == "ddppo":
        small["learner"] = {"num_workers": 0}
    if algo == "apex":
        small["rollout"] |= {"num_workers": 1}
    return config_class(algo)(**{"env": env or ACTS_IN[algo][0], **small, **values})


def make_task(config, *, resume=None):
    return TrainTask(plan=plan_for(config, run_id="test"), started_at=0.0, resume=resume)


def loop_of(task):
    loop = make_loop(task, LocalFlow(), World())
    loop.start()
    return loop


def fragments_of(task, loop, count):
    """`count` fragments of the loop's first weights, with all that the plan adds."""
    rollout = Rollout(task.plan.rollout)
    rollout.load(loop.learner.weights(), 0)
    tables = [rollout.fragment(k) for k in range(count)]
    rollout.close()
    for operator in task.plan.dataflow.source.then:
        tables = [operator(table) for table in tables]
    return tables


def metrics_of(result):
    """A result's figures but for times and what depends on them."""
    return {
        key: value
        for key, value in result.items()
        if not key.startswith("time")
        and not key.endswith("_per_s")
        and key not in ("run_id", "checkpoint")
    }


def run(config, storage, iterations=3):
    with Pipeline(config, storage=storage, debug=True) as pipeline:
        return [metrics_of(pipeline.train()) for _ in range(iterations)]


algorithms = pytest.mark.parametrize("algo", ONLINE)
in_each_env = pytest.mark.parametrize(
    ("algo", "env"), [(algo, env) for algo in ONLINE for env in ACTS_IN[algo]]
)


# --- the plan ---


@in_each_env
def test_the_plan_prints_every_stage_with_what_it_reads_and_adds(algo, env):
    plan = plan_for(make_config(algo, env), run_id="x")
    text = plan.describe()
    assert text.startswith(f"{algo} on {env}\n")
    for operator in plan.dataflow.source.then:
        assert repr(operator) in text
    for column in (*plan.rollout.adds, *plan.dataflow.learner.reads):
        assert column in text
    assert plan.dataflow.learner.__name__ in text


@algorithms
def test_a_column_nobody_adds_is_named_before_any_process_starts(algo):
    plan = plan_for(make_config(algo), run_id="x")
    without = dataclasses.replace(plan.dataflow, source=Rollouts())
    with pytest.raises(ColumnError) as caught:
        make_plan(plan.config, without, plan.rollout)
    missing = next(
        name for name in plan.dataflow.learner.reads if f"reads {name!r}" in str(caught.value)
    )
    assert missing not in plan.rollout.adds


@algorithms
def test_an_environment_that_does_not_exist_leaves_nothing_behind(algo, tmp_path):
    with pytest.raises(UnknownEnvError, match="CartPole"):
        Pipeline(make_config(algo, "CartPole-v7"), storage=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# --- updates ---


@in_each_env
@pytest.mark.parametrize(
    ("connectors", "trace"),
    [({}, LOGGED), (CONNECTORS, {"enabled": False})],
    ids=["plain", "normalized"],
)
def test_an_update_is_finite_moves_the_weights_and_counts(algo, env, connectors, trace, tmp_path):
    config = make_config(algo, env, connectors=connectors, trace=trace)
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        before = pipeline.get_policy().get_weights().module
        result = pipeline.train()
        after = pipeline.get_policy().get_weights().module
    figures = {key: value for key, value in result.items() if key.startswith("learner/")}
    assert figures
    assert all(math.isfinite(value) for value in figures.values()), figures
    assert result["learner/skipped"] == 0
    assert result["grad_steps"] >= 1
    assert 4 * 16 * 0.5 < result["env_steps"] <= 4 * 16  # CartPole spends steps on resets
    assert (result["training_iteration"], result["policy_version"]) == (1, 1)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in moved} == {name.partition(".")[0] for name in before}


@in_each_env
def test_saved_and_loaded_the_next_update_is_bit_equal(algo, env, tmp_path):
    task = make_task(make_config(algo, env, connectors=CONNECTORS))
    loop = loop_of(task)
    first, second = fragments_of(task, loop, 2)
    loop.feed(first)
    path = loop.output(Command(0, "save", str(tmp_path / "checkpoint")))
    again = loop_of(dataclasses.replace(task, resume=path))
    for each in (loop, again):
        each.feed(second)
    assert_same_state(loop, again)
    result, result_again = (metrics_of(each.flow.results[-1]) for each in (loop, again))
    assert json.dumps(result) == json.dumps(result_again)


def assert_same_state(loop, again):
    states = loop.learner.modules.state(), again.learner.modules.state()
    for group in ("modules", "optimizers"):
        assert states[0][group].keys() == states[1][group].keys()
        for name, tensor in states[0][group].items():
            assert torch.equal(tensor, states[1][group][name]), name
    assert loop.learner.state() == again.learner.state()


@in_each_env
def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(algo, env, tmp_path):
    config = make_config(algo, env, connectors=CONNECTORS)
    first, second = (run(config, tmp_path, iterations=2) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    other = run(config.with_overrides({"seed": 1}), tmp_path, iterations=1)
    assert other[0]["learner/grad_norm"] != first[0]["learner/grad_norm"]


@algorithms
def test_a_version_of_several_fragments_of_several_workers_uses_all_their_rows(algo, tmp_path):
    rollout = {"num_workers": 2, "num_envs": 2, "fragment_steps": 8}
    config = make_config(algo, SYNC_ENVS[algo], rollout=rollout, train_rows=2 * 2 * 2 * 8)
    assert config.fragments_per_version == 4
    (result,) = run(config, tmp_path, iterations=1)
    assert result["env_steps"] == 2 * 2 * 2 * 8


@in_each_env
def test_versions_of_whole_episodes_have_their_rows_or_more_and_repeat(algo, env, tmp_path):
    steps = {"num_envs": 2, "fragment_steps": 30, "num_workers": 2}
    rollout = {**steps, "batch_mode": "complete_episodes"}
    few = {"updates_per_row": 0.02} if algo in REPLAYS else {}
    config = make_config(algo, env, rollout=rollout, train_rows=240, connectors=CONNECTORS, **few)
    assert "30 steps or more in whole episodes)" in (
        text := plan_for(config, run_id="x").describe()
    )
    assert "x 60 rows or more a version" in text
    results = run(config, tmp_path, iterations=2)
    assert json.dumps(results) == json.dumps(run(config, tmp_path, iterations=2))
    rows = [results[0]["env_steps"], results[1]["env_steps"] - results[0]["env_steps"]]
    if env == "Pendulum-v1":  # every episode takes 200 steps
        assert rows == [4 * 2 * 200] * 2
        assert [result["episodes"] for result in results] == [8, 16]
    assert min(rows) >= 240
    for result in results:
        assert all(math.isfinite(v) for k, v in result.items() if k.startswith("learner/"))


@algorithms
def test_debug_runs_a_configuration_of_a_worker_group_in_one_process(algo, tmp_path):
    rollout = {"num_workers": 2, "num_envs": 2, "fragment_steps": 8}
    config = make_config(algo, SYNC_ENVS[algo], rollout=rollout, learner={"num_workers": 2})
    (result,) = run(config, tmp_path, iterations=1)
    assert result["env_steps"] == 2 * 2 * 8


@algorithms
def test_fragments_that_hold_one_row_or_only_resets_do_not_hang(algo, tmp_path):
    one = {"n_step": 1} if algo in REPLAYS else {}
    rollout = {"num_workers": 1, "num_envs": 1, "fragment_steps": 1}
    config = make_config(algo, rollout=rollout, **one)
    results = run(config, tmp_path, iterations=60)
    assert results[-1]["episodes"] >= (ACTS_IN[algo][0] == DISCRETE)
    assert results[-1]["env_steps"] == 60


# --- checkpoints ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """A checkpoint of an algorithm's small run, made once and only read."""

    @functools.cache
    def save(algo):
        folder = tmp_path_factory.mktemp(algo)
        with Pipeline(make_config(algo), storage=folder, name="first", debug=True) as pipeline:
            pipeline.train()
            return pipeline.save()

    return save


@in_each_env
def test_a_policy_loaded_from_the_checkpoint_acts_bit_for_bit_as_the_pipeline_does(
    algo, env, tmp_path
):
    config = make_config(algo, env, connectors=CONNECTORS)
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        pipeline.train()
        policy, loaded = pipeline.get_policy(), load_policy(pipeline.save())
    rng = np.random.default_rng(0)
    shape = policy.spec.obs_space.shape
    obs = rng.standard_normal((32, *shape)).astype(np.float32)
    for explore in (False, True):
        states = policy.start(32, seed=1), loaded.start(32, seed=1)
        ours, theirs = (
            each.act(obs, state, explore=explore)[::2]
            for each, state in zip((policy, loaded), states, strict=True)
        )
        assert repr(ours) == repr(theirs)
    if policy.spec.model.has_value:
        assert np.array_equal(policy.value(obs), loaded.value(obs))


@algorithms
def test_a_resumed_run_goes_on_with_its_counters_in_its_own_folder(algo, tmp_path):
    config = make_config(algo, connectors=CONNECTORS, trace=LOGGED)
    with Pipeline(config, storage=tmp_path, name="run", debug=True) as pipeline:
        for _ in range(2):
            before = pipeline.train()
        path = pipeline.save()
    assert path == tmp_path / "run" / "checkpoints" / "2"
    with Pipeline.from_checkpoint(path, debug=True) as pipeline:
        result = pipeline.train()
    assert pipeline.folder.path == tmp_path / "run"
    assert (result["training_iteration"], result["policy_version"]) == (3, 3)
    assert before["env_steps"] < result["env_steps"] <= before["env_steps"] + 64
    assert result["grad_steps"] > before["grad_steps"]
    assert result["episodes"] >= before["episodes"]
    assert result["time_s"] > before["time_s"]


@algorithms
def test_a_checkpoint_of_another_architecture_is_refused_with_the_keys_that_differ(
    algo, saved, tmp_path
):
    config = make_config(algo)
    path = saved(algo)
    other = make_config(algo, model={"hidden": (16, 16), "activation": "silu"})
    with pytest.raises(CheckpointError) as caught:
        Pipeline(other, storage=tmp_path, resume=path, debug=True)
    assert "model.hidden: checkpoint [8], here [16, 16]" in str(caught.value)
    assert f"model.activation: checkpoint {config.model.activation}, here silu" in str(caught.value)


@algorithms
def test_a_checkpoint_of_another_space_is_refused(algo, saved, tmp_path):
    path = saved(algo)
    other = {DISCRETE: "Acrobot-v1", CONTINUOUS: "MountainCarContinuous-v0"}[ACTS_IN[algo][0]]
    with pytest.raises(CheckpointError, match="action_space"):
        Pipeline(make_config(algo, other), storage=tmp_path, resume=path, debug=True)


@algorithms
def test_a_checkpoint_of_another_optimiser_is_refused_and_leaves_no_folder(algo, saved, tmp_path):
    path = saved(algo)
    kind = make_config(algo).optim.kind
    other = "adam" if kind == "rmsprop" else "rmsprop"
    config = make_config(algo, optim={"kind": other})
    with pytest.raises(CheckpointError, match=f"optim.kind: checkpoint {kind}, here {other}"):
        Pipeline(config, storage=tmp_path, name="second", resume=path, debug=True)
    assert not (tmp_path / "second").exists()


@algorithms
def test_missing_statistics_are_named_when_normalisation_is_turned_on_after_the_fact(
    algo, saved, tmp_path
):
    path = saved(algo)
    config = make_config(algo, connectors=CONNECTORS)
    with pytest.raises(CheckpointError, match="missing obs_moments.mean"):
        Pipeline(config, storage=tmp_path, name="second", resume=path, debug=True)


# --- weights by hand ---


@algorithms
def test_weights_set_by_hand_are_trained_on_and_those_of_another_shape_change_nothing(
    algo, tmp_path
):
    with Pipeline(make_config(algo), storage=tmp_path, debug=True) as pipeline:
        policy = pipeline.get_policy()
        ours = policy.get_weights()
        zeros = {name: np.zeros_like(array) for name, array in ours.module.items()}
        policy.set_weights(ours._replace(module=zeros))
        assert not any(array.any() for array in pipeline.get_policy().get_weights().module.values())
        name, array = next(iter(ours.module.items()))
        wrong = {**ours.module, name: array[..., :-1]}
        with pytest.raises(ValueError, match=f"another architecture: {name}: got"):
            policy.set_weights(ours._replace(module=wrong))
        assert not any(array.any() for array in pipeline.get_policy().get_weights().module.values())
        result = pipeline.train()
        assert all(math.isfinite(v) for k, v in result.items() if k.startswith("learner/"))
        if algo in ("a2c", "ddppo", "impala", "ppo"):
            assert result["learner/entropy"] == pytest.approx(math.log(2), abs=1e-2)


# --- learning ---


@pytest.mark.parametrize(
    ("algo", "kind"),
    [
        (algo, "discrete" if env == DISCRETE else "continuous")
        for algo in ONLINE
        for env in ACTS_IN[algo]
    ],
)
def test_it_learns_to_copy_its_input_in_seconds(algo, kind, tmp_path):
    config = make_config(algo, f"tests.learning_envs:{kind}", gamma=0.0, **LEARNS[algo])
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        untrained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
        for _ in pipeline.stream():
            pass
        path = pipeline.save()
        trained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
    assert untrained < 0.6 * STEPS
    assert trained > 0.9 * STEPS
    assert isinstance(load_policy(path), Policy)
    assert Checkpoint(path).state["loop"]["iteration"] == config.stop.training_iteration
