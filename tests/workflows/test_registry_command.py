"""`millrace registry`: aliases, comparison with the champion, and the way back."""

import json

import pytest

from offline.lake import Lake


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Two CartPole policies: of a few steps, and of more."""
    from pipelines import PPOConfig

    folder = tmp_path_factory.mktemp("registry")
    for name, iterations in (("bad", 1), ("good", 25)):
        config = PPOConfig(
            env="CartPole-v1",
            rollout={"num_envs": 16, "fragment_steps": 64},
            optim={"lr": 3e-3},
            stop={"training_iteration": iterations},
            reporting={"tensorboard": False},
        )
        with config.build(storage=folder, name=name, debug=True) as pipeline:
            for _ in pipeline.stream():
                pass
    return folder


def answer(millrace, *words):
    done = millrace("registry", *words, "--json")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_better_policy_passes_and_a_worse_or_equal_one_does_not(millrace, storage):
    at = ("--storage", storage, "--episodes", 20)
    (first,) = answer(millrace, "compare", "m", "bad", *at)
    assert (first["passed"], first["champion"]) == (True, None)
    assert not answer(millrace, "compare", "m", "bad", "--first", "hold", *at)[0]["passed"]
    answer(millrace, "set", "m", "champion", "bad", "--storage", storage)
    (better,) = answer(millrace, "compare", "m", "good", *at)
    assert better["passed"]
    assert 0 < better["low"] <= better["gain"] <= better["high"]
    gain = better["candidate_return"] - better["champion_return"]
    assert better["gain"] == pytest.approx(gain)
    much = answer(millrace, "compare", "m", "good", "--min-gain", 10_000, *at)
    assert not much[0]["passed"]
    answer(millrace, "set", "m", "champion", "good", "--storage", storage)
    (worse,) = answer(millrace, "compare", "m", "bad", *at)
    assert (worse["passed"], worse["gain"]) == (False, pytest.approx(-gain))
    (equal,) = answer(millrace, "compare", "m", "good", *at)
    assert (equal["passed"], equal["gain"]) == (False, 0.0)


def test_by_ope_the_same_logged_episodes_are_asked_for_both(millrace, storage):
    answer(millrace, "set", "o", "champion", "bad", "--storage", storage)
    where = ("--where", "run_id == good", "--by", "ope", "--estimator", "wis")
    (found,) = answer(millrace, "compare", "o", "good", *where, "--storage", storage)
    assert found["low"] <= found["gain"] <= found["high"]
    assert found["gain"] == pytest.approx(found["candidate_return"] - found["champion_return"])
    assert found["passed"] is (found["low"] > 0)


def test_an_alias_goes_back_and_forth_and_every_change_is_a_row(millrace, storage):
    at = ("--storage", storage)
    for run in ("bad", "good"):
        answer(millrace, "set", "r", "champion", run, "--reason", f"try {run}", *at)
    assert answer(millrace, "list", *at)[-1]["run_id"] == "good"
    (back,) = answer(millrace, "rollback", "r", *at)
    assert (back["run_id"], back["action"]) == ("bad", "rollback")
    failed = millrace("registry", "rollback", "r", *at)
    assert failed.exit_code == 2
    assert "nothing to go back to" in failed.output
    history = answer(millrace, "show", "r", *at)
    assert [(e["action"], e["run_id"]) for e in history] == [
        *(("set", "bad"), ("set", "good"), ("rollback", "bad")),
    ]
    assert history[1]["reason"] == {"reason": "try good"}
    rows = Lake(storage / "lake").sql("SELECT * FROM registry WHERE model = 'r'")
    assert rows.num_rows == 3


def test_a_scheduled_run_sets_an_alias_once(millrace, storage):
    mine = ("--workflow", "w", "--logical-time", "2026-11-24T02:00:00+00:00")
    for _ in range(2):
        answer(millrace, "set", "s", "champion", "good", *mine, "--storage", storage)
    assert len(answer(millrace, "show", "s", "--storage", storage)) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "../m", "champion", "good"), "letters, digits"),
        (("set", "m", "champion", "nothing"), "no run"),
        (("rollback", "unknown"), "not set"),
    ],
)
def test_bad_input_is_refused(millrace, storage, words, said):
    done = millrace("registry", *words, "--storage", storage)
    assert done.exit_code == 2
    assert said in done.output
