"""Runs that log to a lake in an object store: what is there, what may not be, and what recovers."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from offline import background
from offline.compaction import compact
from offline.doctor import doctor
from offline.errors import LakeError, LakeStorageError
from offline.lake import Lake
from offline.lineage import of_checkpoint
from offline.schemas import TABLES
from offline.spaces import spaces_of
from offline.storage import Storage
from offline.vacuum import vacuum
from pipelines import Pipeline, PPOConfig
from pipelines.checkpoint import Checkpoint
from pipelines.learn import LearnLoop
from rl_ops import columns as c
from tests.offline.flaky_proxy import Fault, proxy_of
from tests.offline.s3_kit import (
    BUCKET,
    address_of,
    assert_no_secret,
    objects_of,
    require_signatures,
    s3_options,
    set_environment,
)

ROLLOUT = {"num_envs": 4, "fragment_steps": 16}
ORDER = [(name, "ascending") for name in (c.FRAGMENT_ID, c.ENV_ID, c.T)]


def small(lake, *, rollout=None, trace=None, **values):
    return PPOConfig(
        env="CartPole-v1",
        rollout={**ROLLOUT, **(rollout or {})},
        model={"hidden": (8,)},
        num_epochs=1,
        minibatch_rows=32,
        trace={"lake": lake, **(trace or {})},
        **values,
    )


def assert_no_secret_in(folder: Path, lake: str) -> None:
    """Neither in a file of the run, nor in an object or a value of the lake."""
    assert_no_secret(*(path.read_bytes() for path in folder.rglob("*") if path.is_file()))
    assert_no_secret(*objects_of(lake).values())
    for name in TABLES:
        assert_no_secret(str(Lake(lake).table(name).to_arrow().to_pylist()))


def assert_sound(lake: str) -> None:
    assert [f for f in doctor(Storage.at(lake), deep=True) if f.severity != "info"] == []


@pytest.fixture(scope="module")
def ran(s3_server, tmp_path_factory):
    """A run that was saved twice, and the tables that its learner was handed."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, s3_server)
        tables, iterate = [], LearnLoop._iterate

        def note(self, given):
            tables.extend(given)
            iterate(self, given)

        patch.setattr(LearnLoop, "_iterate", note)
        folder, lake = tmp_path_factory.mktemp("runs"), f"{address_of('ran')}/lake"
        with Pipeline(small(lake), storage=folder, name="run", debug=True) as pipeline:
            assert pipeline.lake == lake
            pipeline.train()
            saved = [pipeline.save()]
            result = pipeline.train()
            saved.append(pipeline.save())
    return folder, lake, pa.concat_tables(tables).unify_dictionaries(), saved, result


@pytest.fixture
def run(ran, s3):
    """The same, with the server's options in the environment."""
    return ran


def test_the_steps_are_the_rows_that_were_consumed(run) -> None:
    _, lake, consumed, _, result = run
    steps = Lake(lake).steps().to_arrow().sort_by(ORDER)
    rows = consumed.sort_by(ORDER)
    assert steps.num_rows == rows.num_rows == result["env_steps"]
    for name in (c.EPISODE_ID, c.T, c.REWARD, c.LOGP, c.VALUE, c.TERMINATED, c.TRUNCATED):
        assert steps.column(name).to_pylist() == rows.column(name).to_pylist(), name
    (key,) = set(steps.column("space").to_pylist())
    obs, _ = spaces_of(Storage.at(lake), key)
    found = obs.tree(steps.column("obs"), steps.column("obs_bytes"))
    expected = np.array(rows.column(c.OBS).to_pylist(), found.dtype)
    np.testing.assert_array_equal(found, expected)


def test_each_checkpoint_has_a_row_and_versions_that_hold_what_trained_it(run) -> None:
    _, lake, _, saved, result = run
    rows = Lake(lake).checkpoints().to_arrow().sort_by("checkpoint_id").to_pylist()
    assert [row["path"] for row in rows] == [str(path) for path in saved]
    for row, path in zip(rows, saved, strict=True):
        state = Checkpoint(path).state
        assert state["lake"]["uri"] == lake
        version = json.loads(row["table_versions"])["steps"]
        assert Lake(lake).steps(version=version).count() == row["env_steps"]
    assert rows[-1]["env_steps"] == result["env_steps"]


def test_sql_answers_now_and_as_of_a_version(run) -> None:
    _, lake, _, saved, result = run
    query = "SELECT count(*) AS n, count(DISTINCT fragment_id) AS f FROM steps"
    assert Lake(lake).sql(query).to_pylist() == [{"n": result["env_steps"], "f": 2}]
    early = Checkpoint(saved[0]).state["lake"]["versions"]["steps"]
    assert Lake(lake).sql(query, versions={"steps": early}).to_pylist()[0]["f"] == 1
    summary = Lake(lake).sql("SELECT status FROM runs WHERE run_id = 'run'").to_pylist()
    assert "stopped" in {row["status"] for row in summary}


def test_lineage_counts_the_rows_of_a_checkpoint(run) -> None:
    _, lake, _, _, result = run
    found = of_checkpoint(Lake(lake), "run", 2)
    assert sum(part.rows for part in found.sessions) == result["env_steps"]


def test_credentials_are_nowhere_to_be_read(run) -> None:
    folder, lake, *_ = run
    assert_no_secret_in(folder, lake)


def test_the_doctor_has_nothing_to_say(run) -> None:
    _, lake, *_ = run
    assert_sound(lake)


def test_a_resumed_run_is_a_session_of_its_own_and_compaction_changes_no_row(run) -> None:
    _, lake, _, saved, _ = run
    with Pipeline.from_checkpoint(saved[-1], debug=True) as pipeline:
        pipeline.train()
    rows = Lake(lake).steps().to_arrow().sort_by([("session", "ascending"), *ORDER])
    assert sorted(set(rows.column("session").to_pylist())) == [0, 1]
    before = Lake(lake).versions()["steps"]
    storage = Storage.at(lake)
    (compacted,) = compact(storage, tables=["steps"])
    assert compacted.rows == rows.num_rows
    after = Lake(lake).steps().to_arrow().sort_by([("session", "ascending"), *ORDER])
    assert after.equals(rows)
    now = {"retention_hours": 0, "force": True, "dry_run": False, "safety_s": -60}
    (vacuumed,) = vacuum(storage, tables=["steps"], **now)
    assert len(vacuumed.files) == compacted.files_before
    assert Lake(lake).steps().to_arrow().num_rows == rows.num_rows
    with pytest.raises(LakeError, match="expired|missing"):
        Lake(lake).steps(version=before).to_arrow()
    assert_sound(lake)


def test_unsafe_renames_are_refused_before_a_run_starts(s3, s3_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    with pytest.raises(LakeError, match="AWS_S3_ALLOW_UNSAFE_RENAME is set"):
        Pipeline(small(s3_folder), storage=tmp_path, name="run", debug=True)
    assert not (tmp_path / "run").exists()


def test_credentials_in_the_address_are_refused_before_they_are_in_a_file(s3, tmp_path) -> None:
    with Pipeline(small(str(tmp_path / "lake")), storage=tmp_path, name="run", debug=True) as run:
        run.train()
        saved = run.save()
    config = small("s3://someone:hush-hush@bucket/lake")
    with pytest.raises(LakeError, match="credentials in AWS_ACCESS_KEY_ID") as raised:
        Pipeline(config, storage=tmp_path, resume=saved, debug=True)
    assert "hush" not in str(raised.value)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if b"hush" in path.read_bytes()]


def test_wrong_credentials_end_a_run_before_it_starts_and_are_not_told(tmp_path, monkeypatch):
    with s3_options() as options:
        set_environment(monkeypatch, options)
        require_signatures(options)
        with pytest.raises(LakeStorageError, match="the credentials are wrong") as raised:
            Pipeline(small(f"s3://{BUCKET}/lake"), storage=tmp_path, name="run", debug=True)
    assert_no_secret(str(raised.value))
    assert not (tmp_path / "run").exists()


@pytest.mark.fault
def test_a_run_loses_nothing_behind_a_store_that_fails(s3, s3_folder, tmp_path, monkeypatch):
    with proxy_of(s3) as proxy:
        set_environment(monkeypatch, proxy.options)
        proxy.fail(*(Fault(kind, frac=0.04) for kind in ("busy", "forgotten", "dropped", "cut")))
        config = small(s3_folder, trace={"commit_interval_s": 0.2})
        with Pipeline(config, storage=tmp_path, name="run", debug=True) as pipeline:
            results = [pipeline.train() for _ in range(12)]
            pipeline.save()
        assert proxy.heal() > 0
    set_environment(monkeypatch, s3)
    lake = Lake(s3_folder)
    assert lake.steps().count() == results[-1]["env_steps"]
    doubled = "SELECT 1 FROM steps GROUP BY episode_id, t HAVING count(*) > 1"
    assert lake.sql(doubled).num_rows == 0
    assert_sound(s3_folder)
    assert_no_secret_in(tmp_path, s3_folder)


@pytest.mark.fault
@pytest.mark.parametrize("policy", ["stop", "wait"])
def test_a_store_that_goes_away_stops_a_run_or_is_waited_for(
    policy, s3, s3_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(background, "RETRY_S", 0.2)
    with proxy_of(s3) as proxy:
        set_environment(monkeypatch, proxy.options)
        trace = {"commit_interval_s": 0.1, "on_storage_error": policy}
        pipeline = Pipeline(small(s3_folder, trace=trace), storage=tmp_path, name="run", debug=True)
        saved = pipeline.train()["env_steps"]
        pipeline.save()
        proxy.fail(Fault("down"))
        begin = time.monotonic()
        if policy == "wait":
            threading.Timer(5, proxy.heal).start()
            result = pipeline.train()
            pipeline.save()
            pipeline.close()
        else:
            with pytest.raises(LakeStorageError, match="does not answer") as raised:  # noqa: PT012
                result = pipeline.train()
                pipeline.save()
            assert_no_secret(str(raised.value))
            with pytest.raises(LakeStorageError):
                pipeline.close()
            assert time.monotonic() - begin < 120
            proxy.heal()
    set_environment(monkeypatch, s3)
    steps = Lake(s3_folder).steps()
    assert steps.count() == (result["env_steps"] if policy == "wait" else saved)
    assert_no_secret_in(tmp_path, s3_folder)
    if policy == "stop":
        with Pipeline.from_checkpoint(tmp_path / "run" / "checkpoints" / "1", debug=True) as again:
            result = again.train()
        assert Lake(s3_folder).steps().count() == result["env_steps"]
    assert_sound(s3_folder)


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
def test_ranks_and_workers_on_ray_log_there_without_an_environment_of_their_own(
    s3_folder, tmp_path
) -> None:
    config = small(
        s3_folder,
        rollout={"num_workers": 2},
        learner={"num_workers": 2},
        resources={"rollout_cpus": 0.25, "learner_cpus": 0.25},
    )
    with Pipeline(config, storage=tmp_path, name="run") as pipeline:
        results = [pipeline.train() for _ in range(2)]
        pipeline.save()
    lake = Lake(s3_folder)
    assert lake.steps().count() == results[-1]["env_steps"]
    used = lake.consumption().to_arrow().to_pylist()
    assert sorted((row["rank"], row["fragment_id"]) for row in used) == [
        *((0, 0), (0, 2), (1, 1), (1, 3))
    ]
    (checkpoint,) = lake.checkpoints().to_arrow().to_pylist()
    version = json.loads(checkpoint["table_versions"])["steps"]
    assert lake.steps(version=version).count() == results[-1]["env_steps"]
    assert_sound(s3_folder)
    assert_no_secret_in(tmp_path, s3_folder)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    assert_no_secret(*(path.read_bytes() for path in logs.rglob("*") if path.is_file()))
