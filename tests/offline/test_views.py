"""Each view against what a slow reading of the same rows gives."""

import random
from pathlib import Path
from typing import Any

import pytest

from offline.lake import Lake
from offline.storage import Storage
from offline.tables import create_tables
from offline.views import SOURCES, VIEWS, needed
from tests.offline.sql_kit import append, at, consumed, event, rows, small_lake, steps


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(small_lake(tmp_path_factory.mktemp("lake")))


@pytest.fixture
def empty(tmp_path: Path) -> Storage:
    storage = Storage.at(tmp_path / "lake")
    create_tables(storage)
    return storage


def many_steps(seed: int) -> list[dict[str, Any]]:
    """Episodes of three environments whose fragments cut through them."""
    rng = random.Random(seed)
    made: list[dict[str, Any]] = []
    for run_id in ("r0", "r1"):
        for env in range(3):
            start = 0
            for number in range(4):
                length = rng.randint(1, 7)
                fragments = [(start + t) // 4 for t in range(length)]
                end = rng.choice(["terminated", "truncated", "aborted", None])
                made += steps(
                    run_id,
                    f"{env}-{number}",
                    [rng.uniform(-1, 1) for _ in range(length)],
                    fragments=fragments,
                    end=end,
                    env_id=env,
                )
                start += length
    return made


def slow_transitions(made: list[dict[str, Any]]) -> dict[tuple[str, str, int], Any]:
    by_key = {(row["run_id"], row["episode_id"], row["t"]): row for row in made}
    found = {}
    for (run_id, episode, t), row in by_key.items():
        later = by_key.get((run_id, episode, t + 1))
        found[run_id, episode, t] = row["final_obs"] or (later["obs"] if later else None)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_final_obs", [True, False])
def test_transitions_have_the_next_observation_in_any_order_of_rows(
    empty: Storage, seed: int, with_final_obs: bool
) -> None:
    made = many_steps(seed)
    if not with_final_obs:
        made = [row | {"final_obs": None} for row in made]
    shuffled = random.Random(seed).sample(made, len(made))
    for start in range(0, len(shuffled), 17):
        append(empty, "steps", shuffled[start : start + 17])
    found = Lake(empty).sql("SELECT * FROM transitions").to_pylist()
    got = {(row["run_id"], row["episode_id"], row["t"]): row["next_obs"] for row in found}
    assert got == slow_transitions(made)
    assert len(found) == len(made)


def test_transitions_have_the_columns_of_a_step(lake: Lake) -> None:
    names = lake.sql("SELECT * FROM transitions LIMIT 0").column_names
    assert {"obs", "action", "reward", "next_obs", "next_obs_bytes", "terminated"} <= set(names)
    found = lake.sql("SELECT * FROM transitions WHERE episode_id = 'a0' ORDER BY t").to_pylist()
    assert [row["obs"] for row in found] == [[0, 0], [1, 10], [2, 20]]
    assert [row["next_obs"] for row in found] == [[1, 10], [2, 20], [3, 30]]
    assert [row["terminated"] for row in found] == [False, False, True]


def test_frames_are_transitions_too(empty: Storage) -> None:
    made = [
        row
        | {"obs": None, "obs_bytes": bytes([row["t"]]), "final_obs": None}
        | {"final_obs_bytes": b"end" if row["is_last"] else None}
        for row in steps("r", "e", [1, 1, 1], fragments=[0, 0, 1])
    ]
    append(empty, "steps", made)
    found = Lake(empty).sql("SELECT next_obs, next_obs_bytes FROM transitions ORDER BY t")
    assert found.to_pylist() == [
        {"next_obs": None, "next_obs_bytes": b"\x01"},
        {"next_obs": None, "next_obs_bytes": b"end"},
        {"next_obs": None, "next_obs_bytes": b"end"},
    ]


def test_a_missing_row_leaves_no_next_observation_instead_of_a_wrong_one(empty: Storage) -> None:
    made = steps("r", "e", [1, 1, 1, 1], fragments=[0, 0, 0, 0])
    append(empty, "steps", [made[0], made[2], made[3]])
    found = Lake(empty).sql("SELECT t, next_obs FROM transitions ORDER BY t").to_pylist()
    assert [row["next_obs"] for row in found] == [None, [3.0, 30.0], [4.0, 40.0]]


def test_episodes_of_the_same_name_in_two_runs_or_agents_stay_apart(empty: Storage) -> None:
    one = steps("r", "e", [1, 2], fragments=[0, 0])
    agents = [row | {"agent_id": name} for name in ("x", "y") for row in one]
    append(empty, "steps", agents + steps("s", "e", [4], fragments=[0]))
    found = Lake(empty).sql(
        "SELECT run_id, agent_id, t, return_to_go AS g FROM returns ORDER BY ALL"
    )
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        *(("r", name, t, g) for name in ("x", "y") for t, g in ((0, 3.0), (1, 2.0))),
        ("s", None, 0, 4.0),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_return_to_go_is_the_sum_of_what_the_episode_still_gave(empty: Storage, seed: int) -> None:
    made = many_steps(seed)
    shuffled = random.Random(seed).sample(made, len(made))
    for start in range(0, len(shuffled), 20):
        append(empty, "steps", shuffled[start : start + 20])
    for row in Lake(empty).sql("SELECT * FROM returns").to_pylist():
        own = [
            step
            for step in made
            if (step["run_id"], step["episode_id"]) == (row["run_id"], row["episode_id"])
        ]
        expected = sum(step["reward"] for step in own if step["t"] >= row["t"])
        assert row["return_to_go"] == pytest.approx(expected)
        assert row["episode_terminated"] == own[-1]["terminated"]
        assert row["episode_truncated"] == own[-1]["truncated"]


def test_runs_has_one_row_per_run_as_it_is_now(lake: Lake) -> None:
    fast, slow = lake.sql("SELECT * FROM runs ORDER BY run_id").to_pylist()
    assert (fast["status"], fast["sessions"], fast["message"]) == ("finished", 2, None)
    assert (fast["started_at"], fast["ended_at"]) == (at(0), at(90))
    assert (fast["env"], fast["seed"]) == ("CartPole-v1", 1)
    assert fast["config"] == '{"rollout": {"max_policy_lag": 1}}'
    assert (slow["status"], slow["sessions"], slow["ended_at"]) == ("running", 1, None)
    assert lake.sql("SELECT count(*) AS n FROM run_events").to_pylist() == [{"n": 5}]


def test_a_run_that_ends_in_the_instant_it_started_has_ended(empty: Storage) -> None:
    append(empty, "runs", [event("r", 0, "failed", 0, message="m"), event("r", 0, "running", 0)])
    found = Lake(empty).sql("SELECT status, message, ended_at FROM runs").to_pylist()
    assert found == [{"status": "failed", "message": "m", "ended_at": at(0)}]


def test_a_resumed_run_is_running_again(empty: Storage) -> None:
    # The clock of the second machine is behind; the session's number decides.
    append(
        empty,
        "runs",
        [
            event("r", 0, "running", 0, config="{}"),
            event("r", 0, "failed", 9, message="gone"),
            event("r", 1, "running", 5),
        ],
    )
    found = Lake(empty).sql("SELECT * FROM runs").to_pylist()[0]
    assert (found["status"], found["message"], found["ended_at"]) == ("running", None, None)
    assert (found["sessions"], found["config"]) == (2, "{}")


def test_version_returns_counts_whole_training_episodes(lake: Lake) -> None:
    found = lake.sql("SELECT * FROM version_returns ORDER BY run_id, policy_version_last")
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("fast", 1, 2, 2.5, 2.0, 3.0, 2.0),
        ("slow", 0, 1, 10.0, 10.0, 10.0, 2.0),
        ("slow", 1, 1, -1.0, -1.0, -1.0, 1.0),
    ]


def test_lag_is_recomputed_from_the_versions(empty: Storage) -> None:
    lies = consumed("r", 2, rows=4, acted=1, learner=5) | {"lag": 0}
    append(
        empty,
        "consumption",
        [
            consumed("r", 0, rows=4, acted=0, learner=0),
            consumed("r", 1, rows=4, acted=0, learner=2),
            consumed("r", 1, rows=4, acted=0, learner=3),
            lies,
        ],
    )
    found = Lake(empty).sql(
        "SELECT fragment_id, lag, is_consistent, updates, rows FROM lag ORDER BY fragment_id"
    )
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (0, 0, True, 1, 4),
        (1, 3, True, 2, 8),
        (2, 4, False, 1, 4),
    ]


def test_a_view_of_an_empty_lake_is_empty(empty: Storage) -> None:
    for view in VIEWS:
        assert Lake(empty).sql(f"SELECT * FROM {view}").num_rows == 0


def test_a_query_needs_the_sources_of_its_views_only() -> None:
    assert needed({"runs"}) == (["run_events"], ["runs"])
    assert needed({"Transitions", "steps", "other"}) == (["steps"], ["transitions"])
    assert needed({"nothing"}) == ([], [])
    assert all(source in SOURCES for view in VIEWS.values() for source in view.reads)


def test_rows_of_a_kit_have_the_schema() -> None:
    assert rows("steps", []).num_rows == 0
