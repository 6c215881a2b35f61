"""Evaluations of a checkpoint in its run's lake."""

import shutil

import pytest

from offline.lake import Lake
from offline.writer import LakeWriter
from pipelines import Pipeline, PPOConfig
from pipelines.checkpoint import Checkpoint
from pipelines.evaluation import Evaluation, EvaluationTask
from pipelines.evaluation_log import lake_of_checkpoint, log_evaluation
from pipelines.specs import env_spec


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("storage")
    rollout = {"num_envs": 2, "fragment_steps": 8}
    with Pipeline(
        PPOConfig(env="CartPole-v1", rollout=rollout), storage=folder, name="run", debug=True
    ) as run:
        run.train()
        run.save()
    return folder


def task_of(checkpoint):
    config = PPOConfig.model_validate(checkpoint.config)
    return EvaluationTask(
        policy=checkpoint.policy, env=env_spec(config), episodes=2, seed=3, num_envs=1, version=1
    )


FOUND = Evaluation(returns=(10.0, 30.0), lengths=(10, 30))


def test_an_evaluation_and_its_episodes_are_tagged_with_the_checkpoint(storage) -> None:
    checkpoint = Checkpoint(storage / "run" / "checkpoints" / "1")
    name = log_evaluation(lake_of_checkpoint(checkpoint), checkpoint, FOUND, task_of(checkpoint))
    lake = Lake(storage / "lake")
    (row,) = lake.evaluations(where=[("evaluation_id", "=", name)]).to_arrow().to_pylist()
    assert (row["return_mean"], row["return_std"], row["length_mean"]) == (20.0, 10.0, 20.0)
    assert (row["checkpoint"], row["policy_version"]) == (str(checkpoint.path), 1)
    tagged = lake.episodes(where=[("checkpoint", "=", str(checkpoint.path))]).to_arrow().to_pylist()
    assert [(e["kind"], e["return"], e["length"]) for e in tagged] == [
        ("evaluation", 10.0, 10),
        ("evaluation", 30.0, 30),
    ]


def test_a_storage_that_was_moved_keeps_its_lake(storage, tmp_path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(storage, moved)
    checkpoint = Checkpoint(moved / "run" / "checkpoints" / "1")
    assert lake_of_checkpoint(checkpoint).uri == str(moved / "lake")
    shutil.rmtree(moved / "lake")
    assert lake_of_checkpoint(checkpoint).uri == str(storage / "lake")


def test_a_checkpoint_without_a_lake_is_not_logged(tmp_path) -> None:
    config = PPOConfig(
        env="CartPole-v1", rollout={"num_envs": 2, "fragment_steps": 8}, trace={"enabled": False}
    )
    with Pipeline(config, storage=tmp_path, name="run", debug=True) as run:
        run.train()
        saved = run.save()
    assert lake_of_checkpoint(Checkpoint(saved)) is None


def test_two_evaluations_at_once_wait_for_each_other(storage, monkeypatch) -> None:
    checkpoint = Checkpoint(storage / "run" / "checkpoints" / "1")
    lake = lake_of_checkpoint(checkpoint)
    other = LakeWriter(lake, "run/evaluate")
    monkeypatch.setattr("offline.transact.time.sleep", lambda _: other.close())
    before = Lake(lake).evaluations().count()
    log_evaluation(lake, checkpoint, FOUND, task_of(checkpoint))
    assert Lake(lake).evaluations().count() == before + 1
