"""Pipelines on a real Ray: the same rows and metrics as without, and an end without remains."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray

from pipelines import Pipeline, PPOConfig, config_class
from pipelines.config_errors import ConfigError
from pipelines.errors import TrainingError
from pipelines.learn import LearnLoop

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(120)]
SOAK = pytest.mark.soak
"""Of what another test of this file runs too, with fewer processes; a worker group takes eight."""


def make_config(env="CartPole-v1", *, workers=1, lag=0, learners=0, **values):
    rollout = {"num_workers": workers, "num_envs": 4, "fragment_steps": 32, "max_policy_lag": lag}
    return PPOConfig(
        env=env,
        rollout=rollout,
        model={"hidden": (8,)},
        num_epochs=2,
        minibatch_rows=32,
        learner={"num_workers": learners},
        resources={"rollout_cpus": 0.25, "learner_cpus": 0.25},
        **values,
    )


def metrics_of(result):
    """What must not depend on where the run runs; `time/rollout_s` and the queue are of timing."""
    skip = ("env_steps_per_s", "grad_steps_per_s", "run_id", "checkpoint", "queue_fragments")
    kept = {k: v for k, v in result.items() if not k.startswith("time") and k not in skip}
    return json.dumps(kept, sort_keys=True)


def run(config, storage, *, iterations=3, debug=False):
    with Pipeline(config, storage=storage, debug=debug) as pipeline:
        return [metrics_of(pipeline.train()) for _ in range(iterations)]


def living_actors():
    from ray._private.state import actors

    # One each for all of a session's executions, which Ray Data starts and keeps.
    services = {"_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker"}
    living = {a["ActorClassName"] for a in actors().values() if a["State"] != "DEAD"}
    return living - services


def wait_until(condition, *, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


# --- the same as without Ray ---


@pytest.mark.parametrize("workers", [1, 2])
def test_local_mode_gives_the_metrics_of_debug_bit_for_bit(workers, tmp_path):
    config = make_config(workers=workers, connectors={"normalize_obs": True})
    assert run(config, tmp_path) == run(config, tmp_path, debug=True)


def test_a_worker_group_of_one_gives_the_metrics_of_local_mode_bit_for_bit(tmp_path):
    grouped = run(make_config(learners=1), tmp_path)
    assert grouped == run(make_config(), tmp_path, debug=True)


@pytest.mark.parametrize(
    "algo", ["dqn", "ppo", *(pytest.param(a, marks=SOAK) for a in ("a2c", "impala"))]
)
def test_whole_episodes_give_the_metrics_of_debug_bit_for_bit(algo, tmp_path):
    rollout = {"num_workers": 2, "num_envs": 2, "fragment_steps": 16, "max_policy_lag": 0}
    at_once = {"learning_starts_rows": 0} if algo == "dqn" else {}
    config = config_class(algo)(
        env="CartPole-v1",
        rollout={**rollout, "batch_mode": "complete_episodes"},
        model={"hidden": (8,)},
        resources={"rollout_cpus": 0.25},
        **at_once,
    )
    results = run(config, tmp_path, iterations=2)
    assert results == run(config, tmp_path, iterations=2, debug=True)
    figures = [json.loads(result) for result in results]
    assert figures[1]["env_steps"] >= 2 * 2 * 2 * 16
    assert all(np.isfinite(v) for k, v in figures[1].items() if k.startswith("learner/"))


@SOAK
@pytest.mark.parametrize("batch_mode", ["truncate", "complete_episodes"])
def test_a_worker_group_of_two_counts_all_rows_and_saves_each_generator(batch_mode, tmp_path):
    # Minibatches of 3 rows: ranks whose rows differ in number would otherwise differ in steps.
    config = make_config(
        workers=2,
        learners=2,
        connectors={"normalize_obs": True, "normalize_reward": True},
        target_kl=0.05,
        reporting={"window_episodes": 1000},
    ).with_overrides({"minibatch_rows": 3, "rollout.batch_mode": batch_mode})
    with Pipeline(config, storage=tmp_path, name="run") as pipeline:
        for _ in range(3):
            result = pipeline.train()
        path = pipeline.save()
        rows = pipeline.foreach_rollout_worker(lambda worker: worker.rollout.counters.env_steps)
        ended = pipeline.foreach_rollout_worker(lambda worker: worker.rollout.counters.episodes)
    assert rows[0] != rows[1]
    assert result["env_steps"] == sum(rows)
    assert result["episodes"] == sum(ended)
    state = json.loads((path / "state.json").read_text())
    assert len(set(state["generators"])) == 2


# --- learners that roll out by themselves ---


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_learner_that_rolls_out_by_itself_gives_the_metrics_of_debug_and_of_a_worker(
    algo, tmp_path
):
    rollout = {"num_workers": 0, "num_envs": 4, "fragment_steps": 32}
    soon = {"learning_starts_rows": 100} if algo == "dqn" else {"num_epochs": 2}
    config = config_class(algo)(
        env="CartPole-v1",
        rollout=rollout,
        model={"hidden": (8,)},
        minibatch_rows=32,
        resources={"rollout_cpus": 0.25},
        connectors={"normalize_obs": True},
        **soon,
    )
    own = run(config, tmp_path)
    assert own == run(config, tmp_path, debug=True)
    assert own == run(config.with_overrides({"rollout.num_workers": 1}), tmp_path)
    assert json.loads(own[-1])["grad_steps"] > 0


def test_a_learner_that_rolls_out_by_itself_pauses_and_obeys_as_workers_do(tmp_path):
    class TwoWordsError(Exception):
        """Can be pickled and not be read again."""

        def __init__(self, one, other):
            super().__init__(f"{one} {other}")

    def raise_two_words(worker):
        raise TwoWordsError("not", "readable")

    with Pipeline(make_config(workers=0), storage=tmp_path, name="run") as pipeline:
        check_calls_between_iterations(pipeline, workers=1)
        with pytest.raises(RuntimeError, match="TwoWordsError: not readable"):
            pipeline.foreach_rollout_worker(raise_two_words)
        check_weights_set_by_hand(pipeline)
        check_leaving_a_stream(pipeline)
        check_saving_and_going_on(pipeline, tmp_path)


def test_ranks_that_roll_out_by_themselves_stay_equal_and_count_all_rows(tmp_path):
    """One run for all that two ranks are asked: a worker group takes long to start."""

    def learner_digest(worker):
        (loop,) = (each for each in gc.get_objects() if type(each) is LearnLoop)
        tensors = loop.learner.modules.state()
        data = [x.numpy().tobytes() for group in tensors.values() for x in group.values()]
        return len(data), hashlib.sha256(b"".join(data)).hexdigest()

    def env_steps(worker):
        return worker.rollout.counters.env_steps

    config = config_class("ddppo")(
        env="Pendulum-v1",
        rollout={"num_workers": 0, "num_envs": 4, "fragment_steps": 32},
        model={"hidden": (8,)},
        num_epochs=2,
        minibatch_rows=32,
        connectors={"normalize_obs": True, "normalize_reward": True},
        resources={"learner_cpus": 0.25},
    )
    with Pipeline(config, storage=tmp_path, name="run") as pipeline:
        results = [pipeline.train() for _ in range(3)]
        first, second = pipeline.foreach_rollout_worker(learner_digest)
        assert first == second
        assert first[0] > 10
        assert pipeline.foreach_rollout_worker(env_steps) == [3 * 4 * 32] * 2
        ids = pipeline.foreach_rollout_worker_with_id(lambda i, worker: (i, worker.worker_id))
        assert ids == [(0, 0), (1, 1)]
        with pytest.raises(ZeroDivisionError):
            pipeline.foreach_rollout_worker(lambda worker: 1 // (1 - worker.worker_id))
        with pytest.raises(Exception, match="pickle|serialize"):
            pipeline.foreach_rollout_worker(lambda worker: threading.Lock())
        path = pipeline.save()
        results.append(pipeline.train())
        check_an_error_of_one_rank_ends_the_run(pipeline)
    assert len(set(json.loads((path / "state.json").read_text())["generators"])) == 2
    with Pipeline(config, storage=tmp_path / "debug", debug=True) as pipeline:
        expected = [pipeline.train()["env_steps"] for _ in range(4)]
    assert [result["env_steps"] for result in results] == expected == [256, 512, 768, 1024]


def check_an_error_of_one_rank_ends_the_run(pipeline):
    """The other rank would wait for its gradients for ever."""

    def break_the_second(worker):
        if worker.worker_id == 1:
            worker.rollout.fragment = lambda fragment: 1 / 0

    pipeline.foreach_rollout_worker(break_the_second)
    start = time.monotonic()
    with pytest.raises(TrainingError, match="rollout worker 1: ZeroDivisionError"):
        list(pipeline.stream())
    assert time.monotonic() - start < 30


# --- pauses ---


def test_a_pipeline_between_calls_takes_no_env_steps_and_obeys(tmp_path):
    """One run for all that a user does between iterations: they cost seconds each to start."""
    config = make_config(workers=2, lag=1)
    with Pipeline(config, storage=tmp_path, name="run") as pipeline:
        check_calls_between_iterations(pipeline, workers=2)
        check_weights_set_by_hand(pipeline)
        check_leaving_a_stream(pipeline)
        check_saving_and_going_on(pipeline, tmp_path)


def check_calls_between_iterations(pipeline, *, workers):
    def env_steps(worker):
        return worker.rollout.counters.env_steps

    # Paused from the start: the workers are there and have made nothing.
    assert pipeline.foreach_rollout_worker(env_steps) == [0] * workers
    result = pipeline.train()
    made = pipeline.foreach_rollout_worker(env_steps)
    time.sleep(0.3)
    assert pipeline.foreach_rollout_worker(env_steps) == made
    assert sum(made) == result["env_steps"]

    ids = pipeline.foreach_rollout_worker_with_id(lambda i, worker: (i, worker.worker_id))
    assert ids == [(i, i) for i in range(workers)]
    with pytest.raises(ZeroDivisionError):
        pipeline.foreach_rollout_worker(lambda worker: 1 / 0)
    with pytest.raises(Exception, match="pickle|serialize"):
        pipeline.foreach_rollout_worker(lambda worker: threading.Lock())


def check_weights_set_by_hand(pipeline):
    policy = pipeline.get_policy()
    ours = policy.get_weights()
    halved = ours._replace(module={name: x / 2 for name, x in ours.module.items()})

    def bias(worker):
        return float(np.abs(worker.rollout.policy.get_weights().module["actor_head.weight"]).sum())

    before = pipeline.foreach_rollout_worker(bias)
    policy.set_weights(halved)
    # The workers have this version's weights already; the new ones reach them all the same.
    after = pipeline.foreach_rollout_worker(bias)
    assert np.allclose(after, np.array(before) / 2)
    again = pipeline.get_policy().get_weights().module
    assert all(np.array_equal(again[name], x) for name, x in halved.module.items())
    with pytest.raises(ValueError, match="another architecture"):
        policy.set_weights(ours._replace(module={}))


def check_leaving_a_stream(pipeline):
    """The run is ahead of who reads its results; leaving loses none of them."""
    stream = pipeline.stream()
    seen = [next(stream)["training_iteration"] for _ in range(5)]
    stream.close()
    assert seen == [2, 3, 4, 5, 6]
    following = [pipeline.train()["training_iteration"] for _ in range(12)]
    assert following == list(range(7, 19))


def check_saving_and_going_on(pipeline, storage):
    last = pipeline.train()
    path = pipeline.save()
    assert path == storage / "run" / "checkpoints" / str(last["training_iteration"])
    state = json.loads((path / "state.json").read_text())
    assert state["loop"]["iteration"] == last["training_iteration"]
    assert state["learner"]["env_steps"] == last["env_steps"]
    assert pipeline.save() == path
    pipeline.close()
    pipeline.close()
    with Pipeline.from_checkpoint(path) as resumed:
        result = resumed.train()
    assert result["training_iteration"] == last["training_iteration"] + 1
    assert result["policy_version"] == last["policy_version"] + 1
    assert result["grad_steps"] > last["grad_steps"]
    assert result["env_steps"] > last["env_steps"]
    assert result["episodes"] >= last["episodes"]
    lines = (storage / "run" / "result.json").read_text().splitlines()
    iterations = [json.loads(line)["training_iteration"] for line in lines]
    assert iterations == list(range(1, result["training_iteration"] + 1))


# --- the end ---


@pytest.mark.parametrize("workers", [2, 0])
def test_closing_in_the_middle_of_a_stream_is_quick_and_leaves_no_actor_and_no_thread(
    workers, tmp_path
):
    before = {thread.name for thread in threading.enumerate()}
    wait_until(lambda: not living_actors())
    pipeline = Pipeline(make_config(workers=workers, lag=1), storage=tmp_path)
    for result in pipeline.stream():
        if result["training_iteration"] == 3:
            start = time.monotonic()
            pipeline.close()
            break
    assert time.monotonic() - start < 10
    wait_until(lambda: not living_actors())
    # Ray Data's own prefetcher parks a daemon thread for each iterator, and never ends it.
    allowed = before | {"Prefetcher"}
    wait_until(lambda: {thread.name for thread in threading.enumerate()} <= allowed)


def test_a_script_that_forgets_to_close_ends_all_the_same(tmp_path):
    script = f"""
from pipelines import PPOConfig
pipeline = PPOConfig(env="CartPole-v1").build(storage={str(tmp_path)!r})
raise SystemExit(3)
"""
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 3


# --- failures ---


def failure_of(config, storage, **options):
    start = time.monotonic()
    config = config.with_overrides({"stop.training_iteration": 5})
    with (
        Pipeline(config, storage=storage, **options) as pipeline,
        pytest.raises(TrainingError) as caught,
    ):
        list(pipeline.stream())
    assert time.monotonic() - start < 60
    return str(caught.value)


def faulty(fault, **kwargs):
    return {"id": "tests.envs:faulty", "kwargs": {"fault": fault, "key": fault, **kwargs}}


@pytest.mark.parametrize(
    ("fault", "says", "workers"),
    [
        ("shape", "SpecError: tests.envs:faulty.step: obs has shape (1,)", 1),
        ("reset_shape", "SpecError: tests.envs:faulty.reset: obs has shape (1,)", 1),
        ("step", "EnvError: tests.envs:faulty.step failed 2 times in a row (seed ", 1),
        ("step", "EnvError: tests.envs:faulty.step failed 2 times in a row (seed ", 0),
    ],
)
def test_a_broken_environment_fails_the_run_with_its_name_and_what_it_did(
    fault, says, workers, tmp_path
):
    config = make_config(faulty(fault), workers=workers, faults={"max_env_failures": 1})
    message = failure_of(config, tmp_path)
    assert message.startswith("rollout worker 0: ")
    assert says in message
    assert "\n" not in message


def test_an_environment_that_raises_once_costs_an_aborted_episode_and_no_more(tmp_path):
    with Pipeline(make_config(faulty("step", times=1)), storage=tmp_path) as pipeline:
        for _ in range(2):
            result = pipeline.train()
    assert result["faults/aborted_episodes"] == 1
    assert result["faults/worker_restarts"] == 0


def test_a_loss_that_is_not_finite_fails_the_run_with_its_terms(tmp_path):
    config = make_config("Pendulum-v1", optim={"lr": 1e30, "max_grad_norm": None})
    assert "NonFiniteError: gradient norm" in failure_of(config, tmp_path)


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"rollout_cpus": 1000}, "makes 1000 CPUs, and there are"),
        ({"rollout_gpus": 1}, "makes 1 GPUs, and there are 0"),
        ({"rollout_custom": {"tpu": 1}}, "tpu"),
    ],
)
def test_resources_that_are_not_there_are_refused_at_once_and_nothing_is_left(
    resources, says, tmp_path
):
    start = time.monotonic()
    config = PPOConfig(env="CartPole-v1", resources=resources)
    with pytest.raises(ConfigError, match=says):
        Pipeline(config, storage=tmp_path)
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


# --- kills ---


def test_a_killed_worker_a_version_ahead_is_replaced_and_no_fragment_is_lost_or_used_twice(
    tmp_path, consumed
):
    config = make_config(workers=2, lag=1, stop={"training_iteration": 60})
    lags = []
    with Pipeline(config, storage=tmp_path) as pipeline:
        (pid, _) = pipeline.foreach_rollout_worker(lambda worker: os.getpid())
        for result in pipeline.stream():
            lags.append(result["policy_lag_max"])
            if result["training_iteration"] == 10:
                os.kill(pid, signal.SIGKILL)
    assert result["faults/worker_restarts"] == 1
    assert lags[0] == 0
    assert max(lags) == 1
    assert [ids for ids, _ in consumed] == [[2 * v, 2 * v + 1] for v in range(60)]
    assert_no_step_twice(consumed)
    assert result["env_steps"] == sum(len(steps) for _, steps in consumed)


def assert_no_step_twice(consumed):
    counts = Counter(step for _, steps in consumed for step in steps)
    assert max(counts.values()) == 1


def test_a_worker_killed_while_it_runs_a_function_fails_the_function_and_not_the_run(tmp_path):
    with Pipeline(make_config(), storage=tmp_path) as pipeline:
        pipeline.train()
        with pytest.raises(RuntimeError, match="worker 0 died while it ran the function"):
            pipeline.foreach_rollout_worker(lambda worker: os.kill(os.getpid(), signal.SIGKILL))
        assert pipeline.train()["faults/worker_restarts"] == 1


def test_the_session_is_left_running():
    assert ray.is_initialized()
