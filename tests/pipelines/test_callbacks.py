"""Callbacks: each moment told once and in order, figures in results, and clear failures."""

import json
import statistics

import pyarrow as pa
import pytest

from offline.lake import Lake
from pipelines import PPOConfig, StopTraining
from pipelines.callbacks import CallbackSpec, FigureWindow, Observe, read_figures
from pipelines.config_errors import ConfigError
from pipelines.errors import CallbackError, TrainingError
from rl_ops import columns as c
from tests.callbacks import Recorder

SMALL = {
    "env": "CartPole-v1",
    "rollout": {"num_envs": 4, "fragment_steps": 16},
    "minibatch_rows": 32,
    "num_epochs": 1,
}


def config(*callbacks, **given):
    return PPOConfig(**{**SMALL, "callbacks": callbacks, **given})


def table(returns, ids, **columns):
    n = len(returns)
    usual = {
        c.EPISODE_ID: ids,
        c.EPISODE_RETURN: pa.array(returns, pa.float64()),
        c.EPISODE_LENGTH: pa.array([None if r is None else 7 for r in returns], pa.int64()),
        c.TERMINATED: [r is not None for r in returns],
        c.TRUNCATED: [False] * n,
        c.WORKER_ID: [3] * n,
        c.ENV_ID: [1] * n,
        c.POLICY_VERSION: [5] * n,
    }
    return pa.table(usual | columns)


def test_an_operator_tells_of_ended_episodes_and_keeps_rows_as_they_are():
    observe = Observe((CallbackSpec("tests.callbacks:Counter", {"factor": 10}),))
    given = table([None, 2.0, None, 4.0, None], ["a", "a", "b", "b", "c"])
    found = observe(given)
    assert found.drop_columns([c.CUSTOM_METRICS]).equals(given)
    assert read_figures(found) == [
        {"scaled_return": 20.0, "length": 7.0},
        {"scaled_return": 40.0, "length": 7.0},
        {"fragments": 1.0, "rows": 5.0},
    ]
    assert read_figures(observe(given))[-1] == {"fragments": 2.0, "rows": 5.0}
    assert found.column(c.CUSTOM_METRICS).null_count == 4


def test_a_pickled_operator_makes_callbacks_of_its_own():
    import pickle

    observe = Observe((CallbackSpec("tests.callbacks:Counter"),))
    observe(table([1.0], ["a"]))
    again = pickle.loads(pickle.dumps(observe))
    assert read_figures(again(table([1.0], ["a"])))[-1]["fragments"] == 1.0


def test_a_window_keeps_the_latest():
    window = FigureWindow(3)
    window.add([{"x": value} for value in (9.0, 1.0, 2.0, 6.0)])
    assert window.figures() == {"custom/x_mean": 3.0, "custom/x_min": 1.0, "custom/x_max": 6.0}


def test_moments_of_the_driver_come_once_each_and_in_order(tmp_path):
    Recorder.told.clear()
    settings = {
        "evaluation": {"period_iterations": 2, "episodes": 2, "num_envs": 2},
        "checkpoint": {"period_iterations": 2},
        "stop": {"training_iteration": 3},
    }
    run = config("tests.callbacks:Recorder", **settings)
    with run.build(storage=tmp_path, name="r", debug=True) as pipeline:
        results = list(pipeline.stream())
    assert Recorder.told == [
        ("start", "r"),
        ("result", 1, False),
        ("evaluation", 2, 2),
        ("result", 2, True),
        ("checkpoint", "2", True),
        ("result", 3, False),
        ("checkpoint", "3", True),
        ("end", "finished", None),
    ]
    assert [result["custom/twice"] for result in results] == [2.0, 4.0, 6.0]
    assert results[1]["evaluation/best"] == results[1]["evaluation/episode_return_max"]
    logged = [json.loads(line) for line in (tmp_path / "r" / "result.json").open()]
    assert [row["custom/twice"] for row in logged] == [2.0, 4.0, 6.0]
    rows = Lake(tmp_path / "lake").sql("SELECT value FROM metrics WHERE key = 'custom/twice'")
    assert sorted(rows["value"].to_pylist()) == [2.0, 4.0, 6.0]


def test_figures_of_episodes_are_those_of_the_lake_and_survive_a_resume(tmp_path):
    callbacks = {"path": "tests.callbacks:Counter", "kwargs": {"factor": 2}}
    run = config(callbacks, reporting={"window_episodes": 1000})
    with run.build(storage=tmp_path, name="r", debug=True) as pipeline:
        pipeline.train()
        pipeline.train()
        path = pipeline.save()
    with pipeline.from_checkpoint(path, debug=True) as pipeline:
        last = pipeline.train()
    found = Lake(tmp_path / "lake").sql(
        "SELECT \"return\", length FROM episodes WHERE NOT aborted AND kind = 'train'"
    )
    returns, lengths = found["return"].to_pylist(), found["length"].to_pylist()
    assert last["custom/scaled_return_mean"] == pytest.approx(2 * statistics.mean(returns))
    assert last["custom/length_max"] == max(lengths)
    rows = Lake(tmp_path / "lake").sql("SELECT count(*) n FROM steps GROUP BY session, fragment_id")
    assert last["custom/rows_mean"] == pytest.approx(statistics.mean(rows["n"].to_pylist()))
    # A process of its own counts anew; the window goes on.
    assert last["custom/fragments_max"] == 2.0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("workers", [0, 2])
def test_on_ray_each_worker_has_its_own_and_the_figures_are_debugs(tmp_path, workers):
    callbacks = {"path": "tests.callbacks:Counter"}
    run = config(callbacks, rollout={"num_envs": 4, "fragment_steps": 16, "num_workers": workers})
    found = []
    for debug in (True, False):
        with run.build(storage=tmp_path, name=f"r{debug}", debug=debug) as pipeline:
            found.append([pipeline.train() for _ in range(4)])
    for here, there in zip(*found, strict=True):
        keys = {key for key in here if key.startswith("custom/")}
        assert {key: here[key] for key in keys} == {key: there[key] for key in keys}
    assert len([key for key in found[1][-1] if key.startswith("custom/")]) == 12
    assert found[0][-1]["custom/fragments_max"] == 4.0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("debug", [True, False])
def test_a_callback_ends_the_run_as_a_criterion_does(tmp_path, debug):
    run = config({"path": "tests.callbacks:StopAt", "kwargs": {"iteration": 3}})
    with run.build(storage=tmp_path, name="r", debug=debug) as pipeline:
        results = list(pipeline.stream())
    assert results[-1]["stopped_by"] == "enough"
    assert [result["stopped_by"] for result in results[:-1]] == [None] * (len(results) - 1)
    # Without Ray there is nobody ahead; with it the learner may be.
    assert len(results) == 3 if debug else len(results) >= 3
    assert results[-1]["checkpoint"].endswith(str(len(results)))
    status = Lake(tmp_path / "lake").sql("SELECT status FROM runs")["status"].to_pylist()
    assert status == ["finished"]


@pytest.mark.parametrize("moment", ["on_result", "on_checkpoint"])
@pytest.mark.parametrize("gives", [None, {"a": "b"}])
def test_what_a_driver_callback_raises_fails_the_run_and_says_which(tmp_path, moment, gives):
    kwargs = {"moment": moment, "gives": gives}
    run = config(
        {"path": "tests.callbacks:Broken", "kwargs": kwargs}, stop={"training_iteration": 1}
    )
    said = "KeyError: 'mine'" if gives is None else "expected nothing, or a dict"
    with (
        pytest.raises(CallbackError, match=rf"tests\.callbacks:Broken.*{moment}.*{said}"),
        run.build(storage=tmp_path, name="r", debug=True) as pipeline,
    ):
        list(pipeline.stream())
    rows = Lake(tmp_path / "lake").sql("SELECT status, message FROM runs").to_pylist()
    assert rows[0]["status"] == "failed"
    assert moment in rows[0]["message"]


def test_a_failure_at_the_start_leaves_a_run_that_failed(tmp_path):
    run = config({"path": "tests.callbacks:Broken", "kwargs": {"moment": "on_start"}})
    with pytest.raises(CallbackError, match="on_start"):
        run.build(storage=tmp_path, name="r", debug=True)
    rows = Lake(tmp_path / "lake").sql("SELECT status FROM runs").to_pylist()
    assert rows == [{"status": "failed"}]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("debug", [True, False])
def test_what_a_workers_callback_raises_fails_the_run_and_says_which(tmp_path, debug):
    run = config(
        {"path": "tests.callbacks:Broken", "kwargs": {"moment": "on_episode_end"}},
        stop={"training_iteration": 20},
    )
    with (
        pytest.raises(TrainingError, match=r"tests\.callbacks:Broken.*on_episode_end.*'mine'"),
        run.build(storage=tmp_path, name="r", debug=debug) as pipeline,
    ):
        list(pipeline.stream())


def test_an_end_can_be_asked_for_with_a_result_only(tmp_path):
    run = config("tests.callbacks:Late", stop={"training_iteration": 1})
    with (
        pytest.raises(CallbackError, match="on_result only"),
        run.build(storage=tmp_path, name="r", debug=True) as pipeline,
    ):
        list(pipeline.stream())


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        ("tests.callbacks", "form 'module:name'"),
        ("nonesuch:Callbacks", "no module 'nonesuch'"),
        ("tests.callbacks:Recorders", "has no 'Recorders'"),
        ("tests.callbacks:NotOne", "no subclass of pipelines.callbacks.Callbacks"),
        ({"path": "tests.callbacks:StopAt"}, "missing 1 required"),
        ({"path": "tests.callbacks:Counter", "kwargs": {"facto": 1}}, "facto"),
    ],
)
def test_callbacks_that_cannot_be_are_refused_before_anything_is_made(tmp_path, callbacks, said):
    with pytest.raises(ConfigError, match=said) as caught:
        config(callbacks).build(storage=tmp_path / "s", name="r", debug=True)
    assert "callbacks.0" in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_env_failures_are_told_as_they_are_logged(tmp_path):
    Recorder.told.clear()
    run = PPOConfig(
        env={
            "id": "tests.envs:faulty",
            "kwargs": {"fault": "step", "key": "callbacks", "times": 2},
        },
        rollout={"num_envs": 2, "fragment_steps": 32},
        minibatch_rows=32,
        num_epochs=1,
        callbacks=["tests.callbacks:Recorder"],
        faults={"max_env_failures": 1000},
        stop={"training_iteration": 4},
    )
    with run.build(storage=tmp_path, name="r", debug=True) as pipeline:
        list(pipeline.stream())
    told = [told[1:] for told in Recorder.told if told[0] == "failure"]
    rows = Lake(tmp_path / "lake").sql("SELECT kind, message FROM failures").to_pylist()
    assert told
    assert sorted(told) == sorted((row["kind"], row["message"]) for row in rows)


def test_the_plan_names_the_callbacks():
    from pipelines.training import plan_for

    assert (
        "Observe(tests.callbacks:Counter)"
        in plan_for(config("tests.callbacks:Counter"), run_id="r").describe()
    )
    assert "Observe" not in plan_for(config("tests.callbacks:Recorder"), run_id="r").describe()


def test_stop_training_is_exported():
    assert issubclass(StopTraining, Exception)
