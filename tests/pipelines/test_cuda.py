"""Every algorithm with its learner on a CUDA device, and policies that leave it."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch

from pipelines import Pipeline, load_policy
from pipelines.backend import LocalFlow
from pipelines.coordinator import Command
from pipelines.training import make_loop
from rl_ops.learner import World
from tests.pipelines.logged_kit import LOGGED, ONLINE, log_random
from tests.pipelines.test_conformance import (
    ACTS_IN,
    CONNECTORS,
    assert_same_state,
    make_config,
    make_task,
    metrics_of,
)

DEVICE = os.environ.get("MILLRACE_TEST_DEVICE", "cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

EACH = [(algo, env) for algo in (*ONLINE, *LOGGED) for env in ACTS_IN[algo]]
in_each_env = pytest.mark.parametrize(("algo", "env"), EACH)


@pytest.fixture(scope="module")
def lakes(tmp_path_factory):
    """Environment → a lake of its steps, by uniform actions."""
    envs = sorted({env for _, env in EACH})
    return {env: log_random(env, tmp_path_factory.mktemp("logged"), rows=900) for env in envs}


def config_of(algo, env, lakes, *, device=DEVICE, **values):
    if algo in LOGGED:
        values["offline"] = {"lake": lakes[env], "updates_per_iteration": 4}
    if algo == "dt":
        values["dropout"] = 0.0  # what is left out is drawn on the device
    learner = {"num_workers": 0, "device": device}
    return make_config(algo, env, learner=learner, reporting={"tensorboard": False}, **values)


def loop_of(task):
    """A loop on the device, started."""
    loop = make_loop(task, LocalFlow(), World(device=torch.device(DEVICE)))
    loop.start()
    return loop


def run(config, storage, iterations=2):
    with Pipeline(config, storage=storage, debug=True) as pipeline:
        results = [metrics_of(pipeline.train()) for _ in range(iterations)]
        return results, pipeline.get_policy(), pipeline.save()


@in_each_env
def test_the_first_update_is_the_processors_but_for_rounding(algo, env, lakes, tmp_path):
    ours, theirs = (
        run(config_of(algo, env, lakes, device=device), tmp_path, iterations=1)[0][0]
        for device in (DEVICE, "cpu")
    )
    figures = {key: value for key, value in ours.items() if key.startswith("learner/")}
    assert figures
    for key, value in figures.items():
        assert math.isfinite(value)
        # Later minibatches begin at weights that rounding has moved apart.
        assert value == pytest.approx(theirs[key], rel=2e-2, abs=2e-3), key


@in_each_env
def test_networks_and_rows_are_on_the_device_and_the_same_seed_repeats(algo, env, lakes, tmp_path):
    config = config_of(algo, env, lakes, connectors=CONNECTORS)
    task = make_task(config)
    if algo in LOGGED:
        with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
            task = dataclasses.replace(make_task(pipeline.config), data=pipeline._data)
    learner = loop_of(task).learner
    for name, tensor in learner.modules.state()["modules"].items():
        moments = name.startswith(("obs_moments", "reward_moments"))
        assert tensor.device.type == ("cpu" if moments else DEVICE), name
    if algo in LOGGED:
        batch = next(iter(learner.data.minibatches(1, 8, generator=learner.generator)))
        assert batch.obs.device.type == DEVICE
    first, again = (run(config, tmp_path)[0] for _ in range(2))
    assert json.dumps(first) == json.dumps(again)


@in_each_env
def test_a_checkpoint_acts_on_a_machine_without_the_device_as_it_did_here(
    algo, env, lakes, tmp_path
):
    _, policy, path = run(config_of(algo, env, lakes), tmp_path)
    loaded = load_policy(path)
    obs = np.random.default_rng(0).standard_normal((16, *policy.spec.obs_space.shape))
    states = policy.start(16, seed=1), loaded.start(16, seed=1)
    ours, theirs = (
        each.act(obs.astype(np.float32), state)[0]
        for each, state in zip((policy, loaded), states, strict=True)
    )
    assert np.array_equal(ours, theirs)
    for array in policy.get_weights().module.values():
        assert isinstance(array, np.ndarray)


@pytest.mark.parametrize(("algo", "env"), [pair for pair in EACH if pair[0] in LOGGED])
def test_saved_and_loaded_the_next_update_is_bit_equal(algo, env, lakes, tmp_path):
    config = config_of(algo, env, lakes)
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        task = dataclasses.replace(make_task(pipeline.config), data=pipeline._data)
    loop = loop_of(task)
    loop.iterate_logged(4)
    path = loop.output(Command(0, "save", str(tmp_path / "checkpoint")))
    again = loop_of(dataclasses.replace(task, resume=path))
    for each in (loop, again):
        each.iterate_logged(4)
    assert_same_state(loop, again)
