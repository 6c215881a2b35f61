"""How old rows were when they were used, asked of the lake by SQL, for every algorithm."""

import pytest

from offline.lake import Lake
from pipelines import ALGORITHMS, Pipeline, config_class
from pipelines.config import OffPolicyConfig
from rl_ops import columns as c

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(120)]

ENVS = dict.fromkeys(ALGORITHMS, "CartPole-v1") | {"td3": "Pendulum-v1", "tqc": "Pendulum-v1"}
VERSIONS = 30

_AUDIT = """
WITH acted AS (
    SELECT session, fragment_id, min(policy_version) AS low, max(policy_version) AS high
    FROM steps GROUP BY ALL
)
SELECT
    count(*) AS fragments,
    count(DISTINCT fragment_id) AS ids,
    max(lag) AS max_lag,
    min(lag) AS min_lag,
    bool_and(is_consistent) AS is_consistent,
    max(updates) AS updates,
    count(*) FILTER (low IS NULL OR low <> policy_version OR high <> policy_version) AS other,
    count(*) FILTER (high > learner_version) AS newer
FROM lag LEFT JOIN acted USING (session, fragment_id)
"""


def make_config(algo, **overrides):
    """The algorithm's own lag and learner, on rows and networks of no size."""
    small = {"rollout": {"num_envs": 2, "fragment_steps": 8}, "model": {"hidden": (8,)}}
    config = config_class(algo)(
        env=ENVS[algo],
        **small,
        resources={"rollout_cpus": 0.25, "learner_cpus": 0.25},
        stop={"training_iteration": VERSIONS},
    )
    if isinstance(config, OffPolicyConfig):
        soon = {"learning_starts_rows": 0, "minibatch_rows": 16, "updates_per_row": 0.1}
        overrides = soon | overrides
    return config.with_overrides(overrides)


def audit(config, storage):
    """What the lake of a whole run says of its lag, and the lags that its results said."""
    with Pipeline(config, storage=storage, name="run") as pipeline:
        told = [result["policy_lag_max"] for result in pipeline.stream()]
    lake = Lake(storage / "lake")
    (row,) = lake.sql(_AUDIT).to_pylist()
    used = lake.sql("SELECT max(lag) AS max_lag, max(fragment_id) AS last FROM consumption")
    assert used.to_pylist() == [{"max_lag": row["max_lag"], "last": row["fragments"] - 1}]
    return row, told


def check_lag(config, storage):
    row, told = audit(config, storage)
    assert row["fragments"] == row["ids"] == config.fragments_per_version * VERSIONS
    assert row["updates"] == 1
    assert (row["other"], row["newer"]) == (0, 0)
    assert row["is_consistent"]
    assert 0 <= row["min_lag"] <= row["max_lag"] <= config.rollout.max_policy_lag
    assert row["max_lag"] == max(told)
    return row["max_lag"]


@pytest.mark.parametrize(
    "algo",
    ["dqn", *(pytest.param(a, marks=pytest.mark.soak) for a in ALGORITHMS if a != "dqn")],
)
def test_no_row_is_used_later_than_the_algorithm_allows(algo, tmp_path):
    check_lag(make_config(algo), tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_bound_is_reached_and_not_passed_where_workers_run_ahead(algo, lag, tmp_path):
    workers = 0 if config_class(algo).model_fields["rollout"].default.num_workers == 0 else 2
    config = make_config(algo, **{"rollout.num_workers": workers, "rollout.max_policy_lag": lag})
    reached = check_lag(config, tmp_path)
    assert reached == (lag if workers else 0)


def test_two_workers_in_one_lane_run_ahead_and_stay_within_the_bound(tmp_path):
    config = make_config("impala", **{"rollout.num_workers": 2})
    assert (config.num_lanes, config.rollout.max_policy_lag) == (1, 2)
    assert check_lag(config, tmp_path) > 0
    lake = Lake(tmp_path / "lake")
    workers = lake.steps().to_arrow().column(c.WORKER_ID).unique().to_pylist()
    assert sorted(workers) == [0, 1]
