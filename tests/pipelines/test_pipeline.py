"""`Pipeline` between its backend and its user: streams, stops and evaluations on the way."""

import pytest

from pipelines import Pipeline, PPOConfig
from pipelines.backend import LocalBackend
from pipelines.errors import CheckpointError, StorageError, TrainingError


def make_config(**values):
    rollout = {"num_envs": 2, "fragment_steps": 8}
    return PPOConfig(env="CartPole-v1", rollout=rollout, model={"hidden": (4,)}, **values)


def iterations(results):
    return [result["training_iteration"] for result in results]


def evaluated(results):
    """{iteration: version evaluated} of the results that bring an evaluation."""
    key = "evaluation/policy_version"
    return {r["training_iteration"]: r[key] for r in results if key in r}


# --- streams ---


def test_a_stream_ends_at_the_criterion_and_begins_no_more(tmp_path):
    config = make_config(stop={"training_iteration": 3})
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        results = list(pipeline.stream())
        assert list(pipeline.stream()) == []
        assert pipeline.train()["training_iteration"] == 4
    assert iterations(results) == [1, 2, 3]
    assert [r["stopped_by"] for r in results] == [None, None, "training_iteration 3 >= 3"]


def test_train_and_stream_continue_each_other(tmp_path):
    with Pipeline(make_config(), storage=tmp_path, debug=True) as pipeline:
        assert pipeline.train()["training_iteration"] == 1
        for result in pipeline.stream():
            if result["training_iteration"] == 3:
                break
        assert pipeline.train()["training_iteration"] == 4
        assert next(pipeline.stream())["training_iteration"] == 5


def test_checkpoints_come_by_period_at_the_end_and_the_oldest_go(tmp_path):
    config = make_config(
        checkpoint={"period_iterations": 2, "keep": 2}, stop={"training_iteration": 7}
    )
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        named = {r["training_iteration"] for r in pipeline.stream() if "checkpoint" in r}
        left = sorted(path.name for path in pipeline.folder.checkpoints.iterdir())
    assert named == {2, 4, 6, 7}
    assert left == ["6", "7"]


def test_no_checkpoint_at_the_end_where_none_is_wanted(tmp_path):
    config = make_config(checkpoint={"at_end": False}, stop={"training_iteration": 1})
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        assert "checkpoint" not in next(pipeline.stream())
        assert not pipeline.folder.checkpoints.exists()


def test_saving_where_something_is_is_refused_and_saving_twice_gives_the_same(tmp_path):
    with Pipeline(make_config(), storage=tmp_path, debug=True) as pipeline:
        pipeline.train()
        assert pipeline.save() == pipeline.save()
        assert pipeline.save(tmp_path / "mine") == tmp_path / "mine"
        with pytest.raises(CheckpointError, match="mine exists already; choose another path"):
            pipeline.save(tmp_path / "mine")


def test_a_failed_run_says_so_at_every_later_call(tmp_path):
    env = {"id": "tests.envs:faulty", "kwargs": {"fault": "shape", "key": "pipeline"}}
    config = make_config().with_overrides({"env": env})
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        for call in (pipeline.train, pipeline.train, lambda: list(pipeline.stream())):
            with pytest.raises(TrainingError, match=r"SpecError: tests\.envs:faulty\.step"):
                call()


# --- evaluations ---


def test_evaluations_come_with_the_iteration_they_are_of(tmp_path):
    config = make_config(
        evaluation={"period_iterations": 2, "episodes": 3}, stop={"training_iteration": 5}
    )
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        results = list(pipeline.stream())
    assert evaluated(results) == {2: 2, 4: 4}
    assert results[1]["evaluation/episodes"] == 3


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(5, {4: 2, 5: 4}), (4, {4: 4}), (7, {4: 2, 6: 4, 7: 6})],
)
def test_an_evaluation_slower_than_its_period_is_waited_for_and_not_lost(
    stop, expected, tmp_path, monkeypatch
):
    finished = LocalBackend.finished_evaluation
    monkeypatch.setattr(  # one that is never done but when waited for
        LocalBackend,
        "finished_evaluation",
        lambda self, *, wait: finished(self, wait=wait) if wait else None,
    )
    config = make_config(
        evaluation={"period_iterations": 2, "episodes": 2, "parallel": True},
        stop={"training_iteration": stop},
    )
    with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
        results = list(pipeline.stream())
    assert evaluated(results) == expected


def test_evaluating_changes_nothing_of_the_training(tmp_path):
    losses = []
    for period in (None, 1):
        config = make_config(evaluation={"period_iterations": period, "episodes": 2})
        with Pipeline(config, storage=tmp_path, debug=True) as pipeline:
            losses.append([pipeline.train()["learner/value_loss"] for _ in range(3)])
            assert pipeline.evaluate(num_episodes=2, seed=3) == pipeline.evaluate(
                num_episodes=2, seed=3
            )
    assert losses[0] == losses[1]


def test_storage_at_an_address_is_refused_instead_of_made_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = PPOConfig(env="CartPole-v1")
    with pytest.raises(StorageError, match="gs://bucket/runs is neither a folder nor s3"):
        Pipeline(config, storage="gs://bucket/runs", debug=True)
    assert not list(tmp_path.iterdir())
