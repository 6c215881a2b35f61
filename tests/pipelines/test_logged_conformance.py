"""One suite for every algorithm that learns from logged rows.

A new one needs a line in `LEARNS` and nothing else here.
"""

import dataclasses
import json
import math

import numpy as np
import pytest

from pipelines import Pipeline, load_policy
from pipelines.config_errors import ConfigError
from pipelines.coordinator import Command
from pipelines.dataflow import make_plan
from pipelines.errors import CheckpointError
from pipelines.training import plan_for
from rl_ops.errors import ColumnError
from tests.learning_envs import STEPS
from tests.pipelines.logged_kit import LOGGED, log_random
from tests.pipelines.test_conformance import (
    ACTS_IN,
    CONTINUOUS,
    DISCRETE,
    assert_same_state,
    loop_of,
    make_config,
    make_task,
    metrics_of,
)

_LEARNS = {"optim": {"lr": 5e-3}, "offline": {"updates_per_iteration": 200}}
LEARNS = dict.fromkeys(LOGGED, _LEARNS) | {
    # uniform actions have to be told apart sharply
    "awac": _LEARNS | {"temperature": 30.0},
    "iql": _LEARNS | {"temperature": 30.0},
    "marwil": _LEARNS | {"beta": 10.0, "square_init": 0.1},
}
"""What each needs to learn tests/learning_envs.py from uniform actions in about a second."""
IMITATES = {"bc"}
"""Those that are as good as their data."""
IN_SEQUENCES = {"dt"}
"""Those that learn from stretches of episodes, all in memory, and from no rollouts."""

algorithms = pytest.mark.parametrize("algo", LOGGED)
in_each_env = pytest.mark.parametrize(
    ("algo", "env"), [(algo, env) for algo in LOGGED for env in ACTS_IN[algo]]
)
NORMALIZED = {"normalize_obs": True, "normalize_reward": True}


@pytest.fixture(scope="module")
def lakes(tmp_path_factory):
    """Environment → a lake of its steps, by uniform actions."""
    return {
        env: log_random(env, tmp_path_factory.mktemp("logged"), rows=rows)
        for env, rows in {
            DISCRETE: 800,
            CONTINUOUS: 800,
            "tests.learning_envs:discrete": 2000,
            "tests.learning_envs:continuous": 2000,
        }.items()
    }


def config_of(algo, env, lakes, **values):
    data = {"lake": lakes[env], "updates_per_iteration": 4, **values.pop("offline", {})}
    return make_config(algo, env, offline=data, **values)


def run(config, storage, iterations=2, **options):
    with Pipeline(config, storage=storage, debug=True, **options) as pipeline:
        return [metrics_of(pipeline.train()) for _ in range(iterations)]


# --- the plan ---


@in_each_env
def test_the_plan_names_the_table_its_version_and_what_is_read(algo, env, lakes):
    config = config_of(algo, env, lakes, offline={"version": 3, "where": [["reward", ">", 0.5]]})
    plan = plan_for(config, run_id="x")
    text = plan.describe()
    assert text.startswith(f"{algo} on {env}\n")
    assert "LakeSource(steps@3, reward > 0.5)" in text
    assert ", ".join(plan.dataflow.learner.reads) in text
    assert "Rollouts(" not in text


@algorithms
def test_a_column_that_is_not_made_of_logged_rows_is_named(algo, lakes):
    plan = plan_for(config_of(algo, ACTS_IN[algo][0], lakes), run_id="x")

    class Wants(plan.dataflow.learner):
        reads = (*plan.dataflow.learner.reads, "advantage")

    with pytest.raises(ColumnError, match=r"Wants reads 'advantage'"):
        make_plan(plan.config, dataclasses.replace(plan.dataflow, learner=Wants), plan.rollout)


# --- updates ---


@in_each_env
@pytest.mark.parametrize("connectors", [{}, NORMALIZED], ids=["plain", "normalized"])
def test_an_update_is_finite_moves_the_weights_and_counts(algo, env, connectors, lakes, tmp_path):
    config = config_of(algo, env, lakes, connectors=connectors)
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        before = pipeline.get_policy().get_weights().module
        result = pipeline.train()
        after = pipeline.get_policy().get_weights().module
    figures = {key: value for key, value in result.items() if key.startswith("learner/")}
    assert figures
    assert all(math.isfinite(value) for value in figures.values()), figures
    assert result["learner/skipped"] == 0
    assert result["grad_steps"] >= 4
    assert (result["training_iteration"], result["env_steps"]) == (1, 0)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved


@pytest.mark.parametrize(
    ("algo", "env", "load"),
    [
        (algo, env, load)
        for algo in LOGGED
        for env in ACTS_IN[algo]
        for load in ("memory", "stream")
        if load == "memory" or algo not in IN_SEQUENCES
    ],
)
def test_saved_and_loaded_the_next_update_is_bit_equal(algo, env, load, lakes, tmp_path):
    data = {"load": load, "shuffle_rows": 200, "updates_per_iteration": 5}
    config = config_of(algo, env, lakes, connectors=NORMALIZED, offline=data)
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        task = dataclasses.replace(make_task(pipeline.config), data=pipeline._data)
    loop = loop_of(task)
    loop.iterate_logged(5)
    path = loop.output(Command(0, "save", str(tmp_path / "checkpoint")))
    again = loop_of(dataclasses.replace(task, resume=path))
    for each in (loop, again):
        each.iterate_logged(5)
    assert_same_state(loop, again)
    result, result_again = (metrics_of(each.flow.results[-1]) for each in (loop, again))
    assert json.dumps(result) == json.dumps(result_again)


@in_each_env
def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(algo, env, lakes, tmp_path):
    config = config_of(algo, env, lakes)
    first, second = run(config, tmp_path), run(config, tmp_path)
    assert json.dumps(first) == json.dumps(second)
    other = run(config.with_overrides({"seed": 1}), tmp_path)
    assert other[0]["learner/grad_norm"] != first[0]["learner/grad_norm"]


@pytest.mark.parametrize("load", ["memory", "stream"])
@in_each_env
def test_losses_of_held_out_episodes_leave_no_trace_in_what_is_learned(
    algo, env, load, lakes, tmp_path
):
    if load == "stream" and algo in IN_SEQUENCES:
        pytest.skip("sequences are loaded at once")
    split = {"load": load, "shuffle_rows": 200, "split": 0.7}
    found = {}
    for count in (0, 3):
        config = config_of(algo, env, lakes, offline={**split, "validation_minibatches": count})
        with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
            results = [metrics_of(pipeline.train()) for _ in range(2)]
            found[count] = results, pipeline.get_policy().get_weights().module
    (plain, weights), (validated, weights_too) = found[0], found[3]
    assert all(np.array_equal(weights[name], weights_too[name]) for name in weights)
    extra = [{k: r.pop(k) for k in sorted(r) if "validation/" in k} for r in validated]
    assert json.dumps(plain) == json.dumps(validated)
    assert all(extra)
    assert all(math.isfinite(value) for figures in extra for value in figures.values())
    assert extra[0] != extra[1]  # the same rows, of another policy


@pytest.mark.parametrize("algo", sorted(set(LOGGED) - IN_SEQUENCES))
def test_rows_of_rollouts_beside_logged_ones(algo, lakes, tmp_path):
    config = config_of(algo, ACTS_IN[algo][0], lakes, offline={"frac": 0.5}, n_step=1)
    assert "+  LakeSource(" in plan_for(config, run_id="x").describe()
    results = run(config, tmp_path, iterations=2)
    assert 0 < results[0]["env_steps"] <= 64 < results[1]["env_steps"]
    assert all(math.isfinite(v) for r in results for k, v in r.items() if k.startswith("learner/"))


# --- checkpoints ---


@in_each_env
def test_a_policy_loaded_from_the_checkpoint_acts_bit_for_bit_as_the_pipeline_does(
    algo, env, lakes, tmp_path
):
    config = config_of(algo, env, lakes, connectors=NORMALIZED)
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        pipeline.train()
        policy, loaded = pipeline.get_policy(), load_policy(pipeline.save())
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((32, *policy.spec.obs_space.shape)).astype(np.float32)
    for explore in (False, True):
        states = policy.start(32, seed=1), loaded.start(32, seed=1)
        ours, theirs = (
            each.act(obs, state, explore=explore)[::2]
            for each, state in zip((policy, loaded), states, strict=True)
        )
        assert repr(ours) == repr(theirs)


@algorithms
def test_a_resumed_run_goes_on_with_its_counters_in_its_own_folder(algo, lakes, tmp_path):
    config = config_of(algo, ACTS_IN[algo][0], lakes)
    with Pipeline(config, storage=tmp_path, name="run", debug=True) as pipeline:
        before = pipeline.train()
        path = pipeline.save()
    with Pipeline.from_checkpoint(path, debug=True) as pipeline:
        result = pipeline.train()
    assert pipeline.folder.path == tmp_path / "run"
    assert result["training_iteration"] == 2
    assert result["grad_steps"] > before["grad_steps"]
    assert result["time_s"] > before["time_s"]


@algorithms
def test_a_checkpoint_of_another_architecture_is_refused_with_the_keys_that_differ(
    algo, lakes, tmp_path
):
    env = ACTS_IN[algo][0]
    with Pipeline(config_of(algo, env, lakes), storage=tmp_path, debug=True) as pipeline:
        pipeline.train()
        path = pipeline.save()
    other = config_of(algo, env, lakes, model={"hidden": (16, 16)})
    with pytest.raises(CheckpointError, match=r"model.hidden: checkpoint \[8\], here \[16, 16\]"):
        Pipeline(other, storage=tmp_path, resume=path, debug=True)


# --- data ---


@algorithms
def test_a_version_that_does_not_exist_is_refused_before_anything_is_made(algo, lakes, tmp_path):
    config = config_of(algo, ACTS_IN[algo][0], lakes, offline={"version": 10**6})
    with pytest.raises(ConfigError, match=r"version 1000000 of steps does not exist"):
        Pipeline(config, storage=tmp_path / "runs", debug=True)
    assert not (tmp_path / "runs").exists()


# --- learning ---


@pytest.mark.parametrize(
    ("algo", "kind"),
    [
        (algo, "discrete" if env == DISCRETE else "continuous")
        for algo in LOGGED
        for env in ACTS_IN[algo]
        if algo not in IMITATES | IN_SEQUENCES
    ],
)
def test_it_learns_to_copy_its_input_from_uniform_actions(algo, kind, lakes, tmp_path):
    env = f"tests.learning_envs:{kind}"
    values = {k: v for k, v in LEARNS[algo].items() if k != "offline"}
    values |= {
        "model": {"hidden": (32, 32), "activation": "relu"},
        "minibatch_rows": 64,
        "gamma": 0.0,
    }
    config = config_of(algo, env, lakes, offline=LEARNS[algo]["offline"], **values)
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        untrained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
        for _ in range(4):
            pipeline.train()
        trained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
    assert untrained < 0.6 * STEPS
    assert trained > 0.85 * STEPS


@pytest.mark.parametrize("algo", sorted(IMITATES))
def test_imitation_is_as_good_as_what_it_imitates(algo, lakes, tmp_path):
    env = "tests.learning_envs:discrete"
    values = {
        "model": {"hidden": (32, 32), "activation": "relu"},
        "minibatch_rows": 64,
        "optim": {"lr": 5e-3},
    }
    good = {"where": [["reward", "=", 1.0]], "updates_per_iteration": 300}
    config = config_of(algo, env, lakes, offline=good, **values)
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        pipeline.train()
        trained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
    assert trained > 0.95 * STEPS
