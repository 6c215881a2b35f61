"""Pipelines under Ray Tune: sweeps over settings and over versions of logged data."""

import json

import pytest
from ray import tune

from offline.lake import Lake
from pipelines import trainable
from pipelines.config_errors import ConfigError
from pipelines.tune_trial import settings_to_config
from tests.pipelines.logged_kit import log_random

SMALL = {
    "env": "CartPole-v1",
    "model": {"hidden": (8,), "activation": "relu"},
    "minibatch_rows": 32,
    "reporting": {"tensorboard": False},
}


def fit(trial, space, folder, **options):
    quiet = {"verbose": 0, "storage_path": str(folder / "tune"), "name": "sweep"}
    return tune.Tuner(
        tune.with_resources(trial, {"cpu": 0.5}),
        param_space=space,
        tune_config=tune.TuneConfig(metric="grad_steps", mode="max", **options),
        run_config=tune.RunConfig(**quiet),
    ).fit()


def test_dotted_paths_and_groups_make_one_configuration():
    config = settings_to_config("iql", {**SMALL, "optim.lr": 0.01, "optim": {"eps": 1e-6}})
    assert (config.optim.lr, config.optim.eps, config.model.hidden) == (0.01, 1e-6, (8,))


def test_an_unknown_setting_is_refused_with_what_may_be_meant():
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        settings_to_config("iql", {**SMALL, "optim.lrr": 0.01})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(240)
def test_a_sweep_over_versions_of_the_data_and_rates_is_compared_in_sql(tmp_path):
    log_random("CartPole-v1", tmp_path, rows=300, name="data-1")
    first = Lake(tmp_path / "lake").steps().version
    log_random("CartPole-v1", tmp_path, rows=300, name="data-2", seed=1)
    second = Lake(tmp_path / "lake").steps().version
    trial = trainable(
        "bc",
        storage=tmp_path,
        base={**SMALL, "offline": {"updates_per_iteration": 5}, "stop": {"training_iteration": 2}},
    )
    space = {"offline.version": tune.grid_search([first, second]), "optim.lr": 0.01}
    results = fit(trial, space, tmp_path)
    assert results.num_errors == 0
    assert sorted(r.config["offline.version"] for r in results) == [first, second]
    assert all(r.metrics["training_iteration"] == 2 for r in results)
    assert results.get_best_result().checkpoint.path
    rows = (
        Lake(tmp_path / "lake")
        .sql("SELECT run_id, input_versions, status FROM runs WHERE starts_with(run_id, 'sweep-')")
        .to_pylist()
    )
    assert sorted(json.loads(r["input_versions"])["steps"] for r in rows) == [first, second]
    assert {r["status"] for r in rows} == {"finished"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(240)
# In one of six runs of the whole suite Tune's last result of a trial was 4 instead of 5; alone and
# beside other work it never was (10 times). Nightly until that is understood.
@pytest.mark.fault
def test_a_trial_goes_on_from_anothers_checkpoint_with_settings_of_its_own(tmp_path):
    log_random("CartPole-v1", tmp_path, rows=300, name="data")
    base = {**SMALL, "offline": {"updates_per_iteration": 5}}
    trial = trainable("bc", storage=tmp_path, base=base, checkpoint_period=1)
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=3,
        hyperparam_mutations={"optim.lr": [0.01, 0.02]},
        quantile_fraction=0.5,
        synch=True,
    )
    space = {"optim.lr": tune.grid_search([0.0001, 0.01]), "stop": {"training_iteration": 5}}
    results = fit(trial, space, tmp_path, scheduler=scheduler)
    assert results.num_errors == 0
    origins = [
        json.loads(row["resumed_from"])
        for row in Lake(tmp_path / "lake")
        .sql("SELECT resumed_from FROM run_events WHERE resumed_from IS NOT NULL")
        .to_pylist()
    ]
    assert origins  # one was cloned
    assert {origin["run_id"].partition("-")[0] for origin in origins} == {"sweep"}
    told = {str(path): path.read_text() for path in tmp_path.rglob("result.json")}
    assert [r.metrics["training_iteration"] for r in results] == [5, 5], told
