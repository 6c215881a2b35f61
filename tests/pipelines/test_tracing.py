"""What a run leaves in its lake, against what it consumed and reported."""

import json

import numpy as np
import pyarrow as pa
import pytest

from offline.errors import LakeError
from offline.lake import Lake
from offline.spaces import spaces_of
from pipelines import Pipeline, PPOConfig
from pipelines.checkpoint import Checkpoint
from pipelines.coordinator import END
from pipelines.errors import TrainingError
from pipelines.learn import LearnLoop
from pipelines.ppo import PPOLearner
from pipelines.provenance import code
from rl_ops import columns as c

SMALL = {
    "rollout": {"num_envs": 4, "fragment_steps": 32},
    "model": {"hidden": (8,)},
    "num_epochs": 2,
    "minibatch_rows": 64,
}


def small(env="CartPole-v1", **values):
    return PPOConfig(**{"env": env, **SMALL, **values})


def run(folder, config, *, iterations=4, name="run", debug=True, **options):
    with Pipeline(config, storage=folder, name=name, debug=debug, **options) as pipeline:
        results = [pipeline.train() for _ in range(iterations)]
        pipeline.save()
    return results


def rows_of(folder, table, *columns):
    found = Lake(folder / "lake").table(table, columns=columns or None).to_arrow()
    return found.to_pylist()


@pytest.fixture
def consumed_rows(monkeypatch):
    """The tables that the learner was handed."""
    tables, iterate = [], LearnLoop._iterate

    def note(self, given):
        tables.extend(given)
        iterate(self, given)

    monkeypatch.setattr(LearnLoop, "_iterate", note)
    return tables


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_steps_are_the_rows_that_were_consumed_bit_for_bit(
    tmp_path, consumed_rows, env
) -> None:
    run(tmp_path, small(env))
    steps = Lake(tmp_path / "lake").steps().to_arrow()
    rows = pa.concat_tables(consumed_rows).unify_dictionaries()
    assert steps.num_rows == rows.num_rows
    steps = steps.sort_by(
        [(c.FRAGMENT_ID, "ascending"), (c.ENV_ID, "ascending"), (c.T, "ascending")]
    )
    rows = rows.sort_by([(c.FRAGMENT_ID, "ascending"), (c.ENV_ID, "ascending"), (c.T, "ascending")])
    for name in (c.REWARD, c.TERMINATED, c.TRUNCATED, c.LOGP, c.VALUE, c.POLICY_VERSION, c.T):
        assert steps.column(name).to_pylist() == rows.column(name).to_pylist(), name
    assert steps.column(c.EPISODE_ID).to_pylist() == rows.column(c.EPISODE_ID).to_pylist()
    (key,) = set(steps.column("space").to_pylist())
    codecs = spaces_of(Lake(tmp_path / "lake").storage, key)
    for name, codec in zip((c.OBS, c.ACTION), codecs, strict=True):
        found = codec.tree(steps.column(name), steps.column(f"{name}_bytes"))
        expected = np.array(rows.column(name).to_pylist(), found.dtype).reshape(found.shape)
        np.testing.assert_array_equal(found, expected)
    is_last = np.array(steps.column(c.IS_LAST))
    has_final = np.array(steps.column(c.FINAL_OBS).is_valid())
    np.testing.assert_array_equal(has_final, is_last)


def test_every_fragment_is_logged_once_and_every_use_of_it(tmp_path) -> None:
    results = run(tmp_path, small(rollout={**SMALL["rollout"], "num_workers": 2}), iterations=5)
    steps = rows_of(tmp_path, "steps", "fragment_id")
    used = rows_of(tmp_path, "consumption")
    assert len(steps) == results[-1]["env_steps"] == sum(row["rows"] for row in used)
    assert sorted(row["fragment_id"] for row in used) == list(range(10))
    assert {row["lag"] for row in used} == {0}
    assert [row["learner_version"] for row in sorted(used, key=lambda r: r["fragment_id"])] == [
        *(0, 0, 1, 1, 2, 2, 3, 3, 4, 4)
    ]
    ledger = [row for row in rows_of(tmp_path, "ledger") if row["table"] == "steps"]
    assert sorted(k for row in ledger for k in row["fragments"]) == list(range(10))


def test_every_episode_of_the_steps_has_one_row_and_the_returns_add_up(tmp_path) -> None:
    results = run(tmp_path, small())
    lake = Lake(tmp_path / "lake")
    steps = lake.steps().to_pandas().groupby("episode_id")
    episodes = lake.episodes().to_pandas().set_index("episode_id")
    assert episodes.index.is_unique
    assert set(episodes.index) == set(steps.groups)
    episodes = episodes.sort_index()
    assert (episodes["length"] == steps["t"].count()).all()
    assert (episodes["return"] == steps["reward"].sum()).all()
    ended = episodes[~episodes["aborted"]]
    assert len(ended) == results[-1]["episodes"]
    assert len(episodes) - len(ended) == 4, "one a sub-environment was under way at the end"


def test_results_checkpoints_evaluations_and_the_run_are_rows(tmp_path) -> None:
    config = small(evaluation={"period_iterations": 2, "episodes": 3})
    results = run(tmp_path, config)
    metrics = rows_of(tmp_path, "metrics")
    for result in results:
        found = {
            r["key"]: r["value"] for r in metrics if r["iteration"] == result["training_iteration"]
        }
        assert found["episode_return_mean"] == result["episode_return_mean"]
        assert found["learner/policy_loss"] == result["learner/policy_loss"]
    (checkpoint,) = rows_of(tmp_path, "checkpoints")
    saved = Checkpoint(checkpoint["path"])
    assert json.loads(checkpoint["table_versions"]) == saved.state["lake"]["versions"]
    assert checkpoint["fragments"] == 4
    evaluations = rows_of(tmp_path, "evaluations")
    assert [row["policy_version"] for row in evaluations] == [2, 4]
    of_evaluation = [r for r in rows_of(tmp_path, "episodes") if r["kind"] == "evaluation"]
    assert len(of_evaluation) == 6
    assert evaluations[1]["return_mean"] == results[3]["evaluation/episode_return_mean"]
    started, ended = sorted(rows_of(tmp_path, "runs"), key=lambda row: row["at"])
    assert (started["status"], ended["status"]) == ("running", "stopped")
    assert json.loads(ended["config"]) == config.model_dump(mode="json")
    assert json.loads(ended["packages"])["torch"]


def test_the_versions_a_checkpoint_names_hold_all_that_trained_it(tmp_path) -> None:
    with Pipeline(small(), storage=tmp_path, name="run", debug=True) as pipeline:
        pipeline.train()
        early = Checkpoint(pipeline.save())
        rows = pipeline.train()["env_steps"]
        late = Checkpoint(pipeline.save())
        pipeline.train()
    lake = Lake(tmp_path / "lake")
    for saved, fragments in ((early, 1), (late, 2)):
        steps = lake.steps(version=saved.state["lake"]["versions"]["steps"]).to_arrow()
        assert set(steps.column("fragment_id").to_pylist()) == set(range(fragments))
    assert steps.num_rows == rows


def test_a_resumed_run_is_a_session_of_its_own(tmp_path) -> None:
    with Pipeline(small(), storage=tmp_path, name="run", debug=True) as pipeline:
        pipeline.train()
        saved = pipeline.save()
        pipeline.train()
    for _ in range(2):
        with Pipeline.from_checkpoint(saved, debug=True) as pipeline:
            pipeline.train()
    steps = Lake(tmp_path / "lake").steps().to_pandas()
    fragments = {(row.session, row.fragment_id) for row in steps.itertuples()}
    assert fragments == {(0, 0), (0, 1), (1, 1), (2, 1)}
    assert steps.groupby("episode_id")["session"].nunique().max() == 1
    episodes = [row["episode_id"] for row in rows_of(tmp_path, "episodes")]
    assert len(episodes) == len(set(episodes))
    origins = [r["resumed_from"] for r in rows_of(tmp_path, "runs") if r["status"] == "running"]
    assert sum(origin is None for origin in origins) == 1
    assert all(json.loads(o)["checkpoint_id"] == 1 for o in origins if o is not None)


def test_a_name_that_the_lake_knows_gets_a_new_session(tmp_path) -> None:
    lake = str(tmp_path / "lake")
    run(tmp_path / "a", small(trace={"lake": lake}), iterations=1)
    run(tmp_path / "b", small(trace={"lake": lake}), iterations=1)
    sessions = {row["session"] for row in rows_of(tmp_path, "steps", "session")}
    assert sessions == {0, 1}


def test_episodes_can_be_sampled_and_columns_left_out(tmp_path) -> None:
    config = small(trace={"episode_frac": 0.5, "columns": ["logp"]})
    results = run(tmp_path, config)
    lake = Lake(tmp_path / "lake")
    steps, episodes = lake.steps().to_pandas(), lake.episodes().to_pandas()
    lengths = steps.groupby("episode_id")["t"].count()
    expected = episodes.set_index("episode_id")["length"]
    assert 0 < len(lengths) < len(expected)
    assert (lengths == expected[lengths.index]).all(), "an episode is there whole or not at all"
    assert len(episodes[~episodes["aborted"]]) == results[-1]["episodes"]
    assert steps["obs"].isna().all()
    assert steps["final_obs"].isna().all()
    assert steps["value"].isna().all()
    assert steps["logp"].notna().all()
    assert steps["action"].notna().all()


def test_tracing_can_be_off(tmp_path) -> None:
    results = run(tmp_path, small(trace={"enabled": False}))
    assert not (tmp_path / "lake").exists()
    assert not any(key.startswith("lake/") for key in results[-1])


def test_logging_changes_no_metric(tmp_path) -> None:
    on = run(tmp_path / "on", small(connectors={"normalize_obs": True}))
    off = run(tmp_path / "off", small(connectors={"normalize_obs": True}, trace={"enabled": False}))
    for one, other in zip(on, off, strict=True):
        names = [name for name in other if name.startswith(("learner/", "episode", "env_steps"))]
        names.remove("env_steps_per_s")
        assert {n: one[n] for n in names} == {n: other[n] for n in names}


def test_failures_of_environments_are_rows(tmp_path) -> None:
    env = {
        "id": "tests.envs:faulty",
        "kwargs": {"fault": "step", "key": "traced", "at": 2, "times": 2},
    }
    results = run(tmp_path, small(env))
    failures = rows_of(tmp_path, "failures")
    assert sum(row["count"] for row in failures) == results[-1]["faults/aborted_episodes"] == 2
    aborted = [r for r in rows_of(tmp_path, "episodes") if r["aborted"]]
    assert {row["episode_id"] for row in failures} <= {row["episode_id"] for row in aborted}
    assert {row["kind"] for row in failures} == {"env"}
    assert all("no step today" in row["message"] for row in failures)


def test_a_failed_run_says_so_and_keeps_what_was_consumed(tmp_path, monkeypatch) -> None:
    update = PPOLearner.update

    def fail_at_third(self, batch):
        if self.version == 2:
            raise RuntimeError("no update today")
        return update(self, batch)

    monkeypatch.setattr(PPOLearner, "update", fail_at_third)
    with pytest.raises(TrainingError, match="no update today"):
        run(tmp_path, small(), iterations=5)
    ended = [row for row in rows_of(tmp_path, "runs") if row["status"] != "running"]
    assert [row["status"] for row in ended] == ["failed"]
    assert "no update today" in ended[0]["message"]
    used = {row["fragment_id"] for row in rows_of(tmp_path, "consumption")}
    assert used == {0, 1}
    logged = {row["fragment_id"] for row in rows_of(tmp_path, "steps", "fragment_id")}
    assert logged == {0, 1, 2}, "the one whose update failed was sampled, too"


def test_a_lake_that_cannot_be_written_is_refused_at_once(tmp_path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(LakeError, match="file"):
        Pipeline(small(trace={"lake": str(tmp_path / "file")}), storage=tmp_path, debug=True)


def test_the_checkpoint_of_a_kill_before_its_row_gets_one_when_it_is_resumed(
    tmp_path, monkeypatch
) -> None:
    class Killed(BaseException):
        pass

    def die(name):
        if name == "checkpoint.logged":
            raise Killed

    monkeypatch.setattr("pipelines.tracing.fail_point", die)
    with pytest.raises(Killed):
        run(tmp_path, small(), iterations=1)
    monkeypatch.undo()
    assert rows_of(tmp_path, "checkpoints") == []
    Pipeline.from_checkpoint(tmp_path / "run" / "checkpoints" / "1", debug=True).close()
    (row,) = rows_of(tmp_path, "checkpoints")
    assert (row["session"], row["checkpoint_id"]) == (0, 1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("lag", [0, 1])
def test_on_ray_everything_sampled_is_logged_used_or_not(tmp_path, lag) -> None:
    rollout = {**SMALL["rollout"], "num_workers": 2, "max_policy_lag": lag}
    results = run(tmp_path, small(rollout=rollout), debug=False, iterations=6)
    steps = rows_of(tmp_path, "steps", "fragment_id", "policy_version")
    used = rows_of(tmp_path, "consumption")
    ids = {row["fragment_id"] for row in steps}
    assert sum(row["rows"] for row in used) == results[-1]["env_steps"]
    assert {row["fragment_id"] for row in used} == set(range(12)) <= ids
    assert ids == set(range(len(ids))), "no gap: what was granted came, and was logged"
    assert max(row["lag"] for row in used) <= lag
    assert END not in ids


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
def test_data_parallel_ranks_log_their_own_fragments(tmp_path) -> None:
    config = small(
        rollout={**SMALL["rollout"], "num_workers": 2},
        learner={"num_workers": 2},
        resources={"rollout_cpus": 0.25, "learner_cpus": 0.25},
    )
    results = run(tmp_path, config, debug=False, iterations=3)
    used = rows_of(tmp_path, "consumption")
    assert sorted((row["rank"], row["fragment_id"]) for row in used) == [
        *((0, 0), (0, 2), (0, 4), (1, 1), (1, 3), (1, 5))
    ]
    steps = rows_of(tmp_path, "steps", "fragment_id")
    assert len(steps) == results[-1]["env_steps"]
    (checkpoint,) = rows_of(tmp_path, "checkpoints")
    version = json.loads(checkpoint["table_versions"])["steps"]
    held = Lake(tmp_path / "lake").steps(version=version).to_arrow()
    assert held.num_rows == results[-1]["env_steps"]


def test_the_commit_of_the_working_folder_is_recorded(tmp_path) -> None:
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / "deep").mkdir()
    assert json.loads(code(tmp_path / "deep"))["commit"] is None
    (git / "packed-refs").write_text("# pack-refs\nabc123 refs/heads/main\n")
    assert json.loads(code(tmp_path / "deep"))["commit"] == "abc123"
    (git / "refs" / "heads" / "main").write_text("def456\n")
    assert json.loads(code(tmp_path))["commit"] == "def456"
