"""`millrace example`: what ships is valid, listed, printed, and runs."""

import json

import pytest

from pipelines.loading import build_config, file_layer, load_config_file
from workflows.datasets import load_dataset
from workflows.examples import FOLDER, describe, is_dataset, names

TRAININGS = [name for name in names() if not is_dataset(name)]
DATASETS = [name for name in names() if is_dataset(name)]
TUNED = {f"{env}-{algo}" for env in ("cartpole", "acrobot", "pendulum") for algo in ("a2c", "ppo")}


def test_the_tuned_examples_are_there():
    assert set(TRAININGS) >= TUNED
    envs = ("cartpole", "pendulum", "lunarlander", "hopper")
    assert set(DATASETS) == {f"make-dataset-{env}" for env in envs}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_trains_a_valid_configuration_until_each_of_its_levels(name):
    dataset = load_dataset(FOLDER / f"{name}.yaml")
    assert dataset.description
    assert dataset.training.stop.env_steps is not None
    assert dataset.name == dataset.training.env.id.partition("-")[0].lower()
    assert list(dataset.config.levels) == ["random", "medium", "expert"]
    until = {level: found.until for level, found in dataset.config.levels.items()}
    assert until["random"] is until["expert"] is None
    assert until["medium"]
    assert dataset.training.optim.lr[-1][0] == dataset.training.stop.env_steps


@pytest.mark.parametrize("name", TRAININGS)
def test_an_example_is_a_valid_configuration_with_a_stop_criterion(name):
    file = load_config_file(FOLDER / f"{name}.yaml")
    config = build_config(file.values["algo"], [file_layer(file)])
    assert file.description
    assert config.stop.training_iteration or config.stop.env_steps
    assert name == f"{config.env.id.partition('-')[0].lower()}-{config.algo}"


@pytest.mark.parametrize("name", TRAININGS)
def test_an_example_anneals_to_its_own_last_step(name):
    values = load_config_file(FOLDER / f"{name}.yaml").values
    for schedule in (values.get("clip_eps"), values["optim"]["lr"]):
        if isinstance(schedule, list):
            assert schedule[-1][0] == last_step(values)


def last_step(values):
    """Where schedules are when a run ends: env steps, or gradient steps on logged rows."""
    if "offline" not in values:
        return values["stop"]["env_steps"]
    iterations = values["stop"]["training_iteration"]
    return iterations * values["offline"]["updates_per_iteration"]


def test_the_list_names_each_with_its_stop_criteria(millrace):
    result = millrace("example", "list")
    assert result.exit_code == 0
    for name in names():
        assert name in result.stdout
    assert "stops at env_steps 100,000" in result.stdout
    listed = json.loads(millrace("example", "list", "--json").stdout)
    assert [one["name"] for one in listed] == names()
    assert listed[0] == describe(names()[0])
    kinds = {one["name"]: one["kind"] for one in listed}
    assert [name for name in names() if kinds[name] == "dataset"] == DATASETS
    assert "levels random, medium, expert; 100,000 rows each" in result.stdout
    hopper = next(one for one in listed if one["name"] == "make-dataset-hopper")
    assert (hopper["env"], hopper["algo"], hopper["rows"]) == ("Hopper-v5", "ppo", 100_000)


def test_an_example_is_printed_as_its_file_is(millrace):
    for name in ("cartpole-ppo", "make-dataset-cartpole"):
        result = millrace("example", "get", name)
        assert result.stdout == (FOLDER / f"{name}.yaml").read_text()


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
