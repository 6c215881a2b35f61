"""Runs on logged rows, whole: pinned, repeatable, on Ray as in one process, and traced."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from offline.compaction import compact
from offline.errors import LakeError
from offline.lake import Lake
from offline.storage import Storage
from offline.vacuum import vacuum
from pipelines import BCConfig, IQLConfig, Pipeline, PPOConfig, load_policy
from pipelines.config_errors import ConfigError
from rl_ops.envs import UnknownEnvError
from tests.pipelines.logged_kit import log_random
from tests.pipelines.test_conformance import metrics_of

SMALL = {"model": {"hidden": (8,)}, "minibatch_rows": 32, "reporting": {"tensorboard": False}}


def iql(lake=None, *, env="CartPole-v1", **data):
    given = {"lake": lake, "updates_per_iteration": 5, **data}
    return IQLConfig(env=env, offline=given, connectors={"normalize_obs": True}, **SMALL)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A lake that nobody writes to."""
    return log_random("CartPole-v1", tmp_path_factory.mktemp("runs"), rows=600)


@pytest.fixture
def storage(logged, tmp_path):
    """A copy of it that may be written to, in a storage of its own."""
    shutil.copytree(Path(logged), tmp_path / "lake")
    return tmp_path


def weights_hash(pipeline) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(pipeline.get_policy().get_weights().module.items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def trained(config, storage, *, iterations=3, debug=True, **options) -> str:
    with Pipeline(config, storage=storage, debug=debug, **options) as pipeline:
        for _ in range(iterations):
            pipeline.train()
        return weights_hash(pipeline)


def test_a_run_pins_the_newest_version_and_says_so_everywhere(storage):
    newest = Lake(storage / "lake").steps().version
    with Pipeline(iql(), storage=storage, name="run", debug=True) as pipeline:
        pipeline.train()
        path = pipeline.save()
    assert pipeline.config.offline.version == newest
    assert json.loads((storage / "run" / "params.json").read_text())["offline"]["version"] == newest
    assert f"LakeSource(steps@{newest})" in (storage / "run" / "plan.txt").read_text()
    assert json.loads((path / "config.json").read_text())["offline"]["version"] == newest
    (row,) = (
        Lake(storage / "lake")
        .sql("SELECT input_versions FROM runs WHERE run_id = 'run'")
        .to_pylist()
    )
    inputs = json.loads(row["input_versions"])
    assert (inputs["steps"], inputs["lake"]) == (newest, str(storage / "lake"))


def test_a_version_gives_the_same_weights_after_the_table_has_grown_and_been_compacted(storage):
    version = Lake(storage / "lake").steps().version
    first = trained(iql(version=version), storage)
    log_random("CartPole-v1", storage, rows=300, name="later", seed=1)
    compact(Storage.at(storage / "lake"))
    assert Lake(storage / "lake").steps().version > version
    assert trained(iql(version=version), storage) == first
    assert trained(iql(), storage) != first
    # the same rows, in the one file that compaction made of them
    rows = [["run_id", "=", "random"]]
    assert trained(iql(where=rows), storage) == first


def test_a_version_that_was_vacuumed_is_refused_with_its_date(storage):
    log_random("CartPole-v1", storage, rows=300, name="later", seed=1)
    version = Lake(storage / "lake").steps().version
    compact(Storage.at(storage / "lake"))
    vacuum(Storage.at(storage / "lake"), retention_hours=0, force=True, dry_run=False, safety_s=0)
    with pytest.raises(ConfigError, match=r"version \d+ of steps expired: vacuumed 20\d\d-") as e:
        Pipeline(iql(version=version), storage=storage, name="late", debug=True)
    assert "offline" in str(e.value)
    assert not (storage / "late").exists()


def test_a_run_and_the_one_that_resumes_it_use_the_version_of_the_first(storage):
    whole = trained(iql(), storage, name="whole", iterations=4)
    with Pipeline(iql(), storage=storage, name="parts", debug=True) as pipeline:
        for _ in range(2):
            pipeline.train()
        path = pipeline.save()
    log_random("CartPole-v1", storage, rows=300, name="later", seed=1)
    with Pipeline.from_checkpoint(path, debug=True) as pipeline:
        for _ in range(2):
            result = pipeline.train()
        assert weights_hash(pipeline) == whole
    assert result["training_iteration"] == 4


def test_filters_choose_rows_and_one_that_leaves_none_is_explained(storage):
    good = iql(where=[["run_id", "=", "random"], ["t", "<", 10]])
    assert trained(good, storage) != trained(iql(), storage)
    with (
        pytest.raises(LakeError, match="no_rows: .*there are no such rows"),
        Pipeline(iql(where=[["run_id", "=", "nobody"]]), storage=storage, debug=True) as pipeline,
    ):
        pipeline.train()
    with pytest.raises(ConfigError, match="run_idd"):
        Pipeline(iql(where=[["run_idd", "=", "x"]]), storage=storage, debug=True)


def test_the_environment_must_be_that_of_the_rows(storage):
    with (
        pytest.raises(LakeError, match="the data's observations are"),
        Pipeline(iql(env="Acrobot-v1"), storage=storage, debug=True) as pipeline,
    ):
        pipeline.train()


def damage(storage) -> int:
    """Double an episode's rows behind the lake's back; how many."""
    table = DeltaTable(storage / "lake" / "steps")
    rows = table.to_pyarrow_table()
    one = rows.filter(
        [x == rows.column("episode_id")[0].as_py() for x in rows.column("episode_id").to_pylist()]
    )
    from deltalake import write_deltalake

    write_deltalake(table, one, mode="append")
    return int(one.num_rows)


def test_rows_that_are_wrong_are_left_out_and_noted_or_stop_the_run(storage):
    count = damage(storage)
    with Pipeline(iql(), storage=storage, name="run", debug=True) as pipeline:
        pipeline.train()
    noted = Lake(storage / "lake").rejected(where=[("run_id", "=", "run")]).to_arrow()
    assert noted.num_rows >= 1
    assert "doubled" in noted.column("reason")[0].as_py()
    assert count > 1
    strict = iql(on_invalid="fail")
    with (
        pytest.raises(LakeError, match="doubled"),
        Pipeline(strict, storage=storage, debug=True) as pipeline,
    ):
        pipeline.train()


def test_a_lake_elsewhere_is_read_and_not_written_to(logged, tmp_path):
    before = Lake(logged).versions()
    trained(iql(logged), tmp_path)
    assert Lake(logged).versions() == before
    assert Storage.at(tmp_path / "lake").is_local


# --- on Ray ---


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("load", ["memory", "stream"])
def test_ray_gives_the_metrics_and_weights_of_one_process(logged, load, tmp_path):
    config = iql(logged, load=load, shuffle_rows=128)
    told = []
    for debug in (True, False):
        with Pipeline(config, storage=tmp_path, debug=debug) as pipeline:
            results = [metrics_of(pipeline.train()) for _ in range(3)]
            told.append((results, weights_hash(pipeline), pipeline.foreach_rollout_worker(id)))
    for result in told[0][0] + told[1][0]:
        for name in ("queue_fragments", "time/rollout_s"):
            result.pop(name, None)
    assert json.dumps(told[0]) == json.dumps(told[1])


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("load", ["memory", "stream"])
def test_ranks_learn_together_from_rows_of_their_own(tmp_path, load):
    for i in range(2):
        log_random("CartPole-v1", tmp_path, rows=300, name=f"run-{i}", seed=i)
    config = BCConfig(
        env="CartPole-v1",
        offline={"updates_per_iteration": 5, "load": load, "shuffle_rows": 64},
        learner={"num_workers": 2},
        resources={"learner_cpus": 0.5},
        **SMALL,
    )
    with Pipeline(config, storage=tmp_path) as pipeline:
        results = [pipeline.train() for _ in range(3)]
    assert [result["grad_steps"] for result in results] == [5, 10, 15]


# --- without an environment ---


def test_without_an_environment_spaces_are_those_of_the_rows(storage):
    ours = trained(iql(), storage)
    with Pipeline(iql(env="lake"), storage=storage, name="none", debug=True) as pipeline:
        for _ in range(3):
            pipeline.train()
        assert weights_hash(pipeline) == ours
        path = pipeline.save()
        with pytest.raises(UnknownEnvError, match=r"nothing to step.*millrace ope"):
            pipeline.evaluate(num_episodes=1)
    action, _, _ = load_policy(path).act(np.zeros(4, np.float32))
    assert action in (0, 1)
    with Pipeline.from_checkpoint(path, debug=True) as pipeline:
        assert pipeline.train()["training_iteration"] == 4


def test_the_environments_action_space_is_known_where_its_run_noted_it(tmp_path):
    log_random("Pendulum-v1", tmp_path, rows=300)  # by actions in [-1, 1]
    with Pipeline(iql(env="lake"), storage=tmp_path, debug=True) as pipeline:
        pipeline.train()
        policy = load_policy(pipeline.save())
    assert policy.spec.action_space.high.tolist() == [2.0]
    assert abs(policy.act(np.zeros(3, np.float32))[0]).max() <= 2.0


def test_an_environment_that_is_none_is_for_logged_rows_alone(storage):
    for config in (iql(env="lake", frac=0.5), PPOConfig(env="lake")):
        with pytest.raises(UnknownEnvError, match="nothing to step"):
            Pipeline(config, storage=storage, name="none", debug=True)
    watched = iql(env="lake").with_overrides({"evaluation.period_iterations": 1})
    with pytest.raises(ConfigError, match="nothing to evaluate in"):
        Pipeline(watched, storage=storage, name="none", debug=True)
    assert not (storage / "none").exists()
