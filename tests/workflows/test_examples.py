"""`millrace example`: what ships is valid, listed, printed, and runs."""

import json

import pytest

from pipelines.loading import build_config, file_layer, load_config_file
from workflows.examples import FOLDER, describe, names

TUNED = {f"{env}-{algo}" for env in ("cartpole", "acrobot", "pendulum") for algo in ("a2c", "ppo")}


def test_the_tuned_examples_are_there():
    assert set(names()) >= TUNED


@pytest.mark.parametrize("name", names())
def test_an_example_is_a_valid_configuration_with_a_stop_criterion(name):
    file = load_config_file(FOLDER / f"{name}.yaml")
    config = build_config(file.values["algo"], [file_layer(file)])
    assert file.description
    assert config.stop.env_steps is not None
    assert name == f"{config.env.id.partition('-')[0].lower()}-{config.algo}"


@pytest.mark.parametrize("name", names())
def test_an_example_anneals_to_its_own_last_step(name):
    values = load_config_file(FOLDER / f"{name}.yaml").values
    for schedule in (values.get("clip_eps"), values["optim"]["lr"]):
        if isinstance(schedule, list):
            assert schedule[-1][0] == values["stop"]["env_steps"]


def test_the_list_names_each_with_its_stop_criteria(millrace):
    result = millrace("example", "list")
    assert result.exit_code == 0
    for name in names():
        assert name in result.stdout
    assert "stops at env_steps 100,000" in result.stdout
    listed = json.loads(millrace("example", "list", "--json").stdout)
    assert [one["name"] for one in listed] == names()
    assert listed[0] == describe(names()[0])


def test_an_example_is_printed_as_its_file_is(millrace):
    result = millrace("example", "get", "cartpole-ppo")
    assert result.stdout == (FOLDER / "cartpole-ppo.yaml").read_text()


def test_an_example_runs_with_options_over_its_file(millrace):
    words = ("--debug", "--storage", millrace.storage, "--name", "run", "--seed", 5)
    stop = '{"training_iteration": 1}'
    result = millrace("example", "run", "cartpole-ppo", *words, "--stop", stop)
    assert result.exit_code == 0, result.output
    params = json.loads((millrace.run_folder() / "params.json").read_text())
    assert (params["seed"], params["num_epochs"], params["gae_lambda"]) == (5, 10, 0.8)


def test_a_path_is_no_example(millrace):
    result = millrace("example", "get", "../../pyproject")
    assert result.exit_code == 2
    assert "no example" in result.stderr
