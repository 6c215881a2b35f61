"""Validation of logged data: what is counted, where it is said to be, and what is left."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st

from offline import schemas as s
from offline.errors import LakeError
from offline.trajectories import DataSpec, Trajectories
from offline.validation import (
    KINDS,
    MAX_PLACES,
    Needs,
    Place,
    cleaned,
    rejected_rows,
    settle,
    validate,
)
from offline.validation_reading import inspect, load_valid
from offline.writer import LakeWriter
from rl_ops import columns as c
from tests.offline.validation_kit import Row, episode, lake_at, loaded, put_behind, row

CONTINUOUS = Box(-1.0, 1.0, (2,), np.float32)
ANY = Needs(contiguous=False)


def counts_of(rows: list[Row], needs: Needs | None = None, **spaces) -> dict[str, int]:
    return validate(loaded(rows, **spaces), needs).counts


def clean_rows(rows: list[Row], needs: Needs | None = None, **spaces) -> Trajectories:
    """What is left; `validate` has nothing against it."""
    found = loaded(rows, **spaces)
    report = validate(found, needs)
    left = cleaned(found, report)
    assert validate(left, needs).counts == ({} if left.rows else {"no_rows": 0})
    assert (left.rows, left.num_episodes) == (report.usable_rows, report.usable_episodes)
    return left


def changed(rows: list[Row], index: int, **changes) -> list[Row]:
    rows[index] |= changes
    return rows


def test_whole_episodes_have_no_problem() -> None:
    rows = [
        *episode("a"),
        *episode("b", final=False),  # nothing comes after a termination
        *episode("c", end=c.TRUNCATED),
        *episode("d", end=c.ABORTED),
        *episode("e", 1, end=""),
        *changed(episode("f"), 1, final_obs=[2.0, 0.5]),  # a fragment's end within
    ]
    found = loaded(rows)
    report = validate(found, Needs(logp=True))
    assert report.is_clean()
    assert report.usable()
    assert (report.rows, report.episodes) == (report.usable_rows, report.usable_episodes) == (21, 6)
    assert cleaned(found, report) is found
    assert report.text() == "\n".join(
        (
            "data       version 3 of steps at memory",
            "rows       21 of 6 episodes",
            "problems   none",
        )
    )


def test_a_step_that_is_there_twice_costs_the_episode() -> None:
    rows = [*episode("a"), *episode("b"), row("b", 1), row("b", 1)]
    assert counts_of(rows) == {"doubled_rows": 2}
    assert clean_rows(rows).names.column(c.EPISODE_ID).to_pylist() == ["a"]
    whole_twice = [*episode("a"), *episode("a")]
    assert counts_of(whole_twice) == {"doubled_rows": 4}


def test_one_episode_id_used_twice_is_doubled_rows() -> None:
    assert counts_of([*episode("a", 4), *episode("a", 2, end=c.TRUNCATED)])["doubled_rows"] == 2


def test_before_a_gap_an_episode_stays_and_ends_in_the_observation_before_it() -> None:
    rows = [one for one in episode("a", 7) if one[c.T] != 4]
    assert counts_of(rows) == {"gap": 1}
    left = clean_rows(rows)
    assert left.t.tolist() == [0, 1, 2]
    assert left.final_index.tolist() == [-1, -1, 0]
    assert left.final_obs.tolist() == [[3.0, 0.5]]
    assert left.is_usable.all()
    assert not left.truncated.any()


def test_of_single_transitions_what_is_behind_a_gap_stays() -> None:
    rows = [one for one in episode("a", 7) if one[c.T] != 4]
    left = clean_rows(rows, ANY)
    assert left.t.tolist() == [0, 1, 2, 5, 6]
    assert left.final_obs.tolist() == [[3.0, 0.5], [7.0, 0.5]]
    assert left.final_index.tolist() == [-1, -1, 0, -1, 1]


def test_a_gap_behind_a_known_observation_matters_to_returns_only() -> None:
    rows = [one for one in changed(episode("a", 5), 1, final_obs=[2, 0.5]) if one[c.T] != 2]
    assert counts_of(rows) == {"gap": 1}
    assert clean_rows(rows).t.tolist() == [0, 1]
    assert counts_of(rows, ANY) == {}


def test_an_episode_that_begins_late_matters_to_returns_only() -> None:
    rows = [*episode("a", 5)[2:], *episode("b", 3)]
    assert counts_of(rows) == {"late_start": 1}
    assert clean_rows(rows).names.column(c.EPISODE_ID).to_pylist() == ["b"]
    assert counts_of(rows, ANY) == {}


@pytest.mark.parametrize("end", [c.TRUNCATED, c.ABORTED, ""])
def test_a_cut_whose_observation_is_missing_costs_its_last_row(end) -> None:
    rows = episode("a", 4, end=end, final=False)
    assert counts_of(rows) == {"no_final_obs": 1}
    left = clean_rows(rows)
    assert left.t.tolist() == [0, 1, 2]
    assert left.final_obs.tolist() == [[3.0, 0.5]]
    # A time limit a step earlier, as an import cuts it; where the log ended nothing did.
    assert left.truncated.tolist() == [False, False, bool(end)]
    assert left.is_whole().tolist() == [bool(end)]
    assert clean_rows(episode("a", 1, end=end, final=False)).rows == 0


def test_a_row_before_the_cut_that_knows_its_next_observation_keeps_it() -> None:
    rows = changed(episode("a", 3, end=c.TRUNCATED, final=False), 1, final_obs=[9.0, 0.5])
    left = clean_rows(rows)
    assert left.final_obs.tolist() == [[9.0, 0.5]]
    assert left.truncated.tolist() == [False, True]


def test_a_row_that_is_left_out_ends_no_other_episode() -> None:
    lost = episode("b", 1, end=c.TRUNCATED, final=False)
    left = clean_rows([*episode("a", 2, final=False), *lost])
    assert left.final_index.tolist() == [-1, -1]
    assert not left.truncated.any()
    behind_a_gap = episode("a", 6, end=c.TRUNCATED, final=False)
    left = clean_rows([behind_a_gap[t] for t in (0, 1, 2, 5)], ANY)
    assert left.t.tolist() == [0, 1]
    assert left.final_obs.tolist() == [[2.0, 0.5]]
    assert not left.truncated.any()


@pytest.mark.parametrize("end", [c.TERMINATED, c.TRUNCATED])
def test_rows_after_an_end_cost_the_episode(end) -> None:
    rows = [*changed(episode("a", 5), 1, **{end: True}), *episode("b", 2)]
    assert counts_of(rows) == {"end_inside": 3}
    cut = changed(episode("c", 5, end="", final=False), 1, **{end: True})
    del cut[3]  # of what comes after the end nothing else is said
    assert counts_of(cut) == {"end_inside": 2}
    assert clean_rows(rows).names.column(c.EPISODE_ID).to_pylist() == ["b"]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (c.OBS, [np.nan, 0.0], "[0] nan in Box(-10.0, 10.0, (2,), float32)"),
        (c.OBS, [0.0, -np.inf], "[1] -inf in Box(-10.0, 10.0, (2,), float32)"),
        (c.ACTION, [0.0, np.nan], "[1] nan in Box(-1.0, 1.0, (2,), float32)"),
        (c.FINAL_OBS, [np.inf, np.nan], "[0] inf in Box(-10.0, 10.0, (2,), float32)"),
        (c.REWARD, np.nan, "nan"),
        (c.REWARD, None, "nan"),
        (c.LOGP, -np.inf, "-inf"),
    ],
)
def test_what_is_not_finite_is_named_with_column_row_and_place(column, value, said) -> None:
    rows = changed(episode("a", action=[0.0, 0.0]), -1, **{column: value})
    report = validate(loaded(rows, action=CONTINUOUS))
    (problem,) = report.problems
    assert (problem.name, problem.rows, problem.episodes) == (f"not_finite:{column}", 1, 1)
    assert problem.places == (Place("run", 0, "a", "agent", 3, said),)
    assert not report.usable()


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (c.OBS, [0.0, 10.5], "[1] 10.5 in Box(-10.0, 10.0, (2,), float32)"),
        (c.FINAL_OBS, [-11.0, 0.5], "[0] -11.0 in Box(-10.0, 10.0, (2,), float32)"),
        (c.ACTION, [3], "3 in Discrete(3)"),
        (c.ACTION, [-1], "-1 in Discrete(3)"),
    ],
)
def test_what_is_outside_of_its_space_is_named(column, value, said) -> None:
    report = validate(loaded(changed(episode("a"), -1, **{column: value})))
    (problem,) = report.problems
    assert problem.name == f"out_of_bounds:{column}"
    assert problem.places == (Place("run", 0, "a", "agent", 3, said),)


def test_rounding_is_not_outside_and_actions_may_be_where_their_space_says() -> None:
    rounded = [float(np.float32(x)) for x in (10.00005, -10.00005)]
    assert counts_of(changed(episode("a"), 0, obs=rounded)) == {}
    outside = episode("a", action=[3.0, 0.0])
    assert counts_of(outside, action=CONTINUOUS) == {"out_of_bounds:action": 4}
    unbounded = Box(-np.inf, np.inf, (2,), np.float32)  # of a policy whose actions are clipped
    assert counts_of(outside, action=unbounded) == {}
    half = Box(np.array([-np.inf, 0], np.float32), np.array([0, np.inf], np.float32))
    assert counts_of(outside, action=half) == {"out_of_bounds:action": 4}
    below = Box(-np.inf, np.array([0, np.inf], np.float32))
    assert counts_of(outside, action=below) == {"out_of_bounds:action": 4}


def test_integers_of_every_kind_of_space_have_bounds_without_rounding() -> None:
    space = Dict(
        {
            "box": Box(-3, 3, (2,), np.int16),
            "discrete": Discrete(4, start=-1),
            "flags": MultiBinary(2),
            "many": Tuple([MultiDiscrete([2, 5])]),
        }
    )
    good = [3.0, -3.0, 2.0, 1.0, 0.0, 1.0, 4.0]
    assert counts_of(episode("a", obs=good, final=False), obs=space) == {}
    for item, value in ((0, 4.0), (1, -4.0), (2, 3.0), (2, -2.0), (3, 2.0), (5, 2.0), (6, 5.0)):
        bad = [value if i == item else x for i, x in enumerate(good)]
        rows = changed(episode("a", obs=good, final=False), 2, obs=bad)
        assert counts_of(rows, obs=space) == {"out_of_bounds:obs": 1}, (item, value)


def test_frames_may_hold_any_byte_unless_their_box_says_less() -> None:
    rows = episode("a", obs=None, obs_bytes=b"\0\xff", final=False)
    assert counts_of(rows, obs=Box(0, 255, (2,), np.uint8)) == {}
    assert counts_of(rows, obs=Box(0, 254, (2,), np.uint8)) == {"out_of_bounds:obs": 4}


def test_log_probabilities_are_needed_by_those_who_need_them() -> None:
    rows = [*changed(episode("a"), 1, logp=None), *changed(episode("b"), 1, logp=np.nan)]
    assert counts_of(rows) == {}
    assert counts_of(rows, Needs(logp=True)) == {"no_logp:logp": 2}
    with pytest.raises(ValueError, match=r"DataSpec\(columns=\('logp',\)\)"):
        validate(dataclasses.replace(loaded(rows), columns={}), Needs(logp=True))


def test_a_probability_above_one_is_impossible_and_a_density_is_not() -> None:
    assert counts_of(episode("a", logp=0.5)) == {"positive_logp:logp": 4}
    assert counts_of(episode("a", logp=1e-6)) == {}
    assert counts_of(episode("a", logp=0.5, action=[0.0, 0.0]), action=CONTINUOUS) == {}
    assert counts_of(episode("a", logp=np.inf)) == {"not_finite:logp": 4}


def test_no_rows_are_a_problem() -> None:
    found = loaded([])
    report = validate(found)
    assert report.counts == {"no_rows": 0}
    assert not report.usable()
    with pytest.raises(LakeError, match="nothing to learn from"):
        settle(found, report, on_invalid="skip")


def doubled(rows: list[Row], k: int) -> Counter:
    rows.append(dict(rows[k % len(rows)]))
    return Counter({"doubled_rows": 1})


def without_inner(rows: list[Row], k: int) -> Counter:
    del rows[1 + k % (len(rows) - 2)]
    return Counter({"gap": 1})


def without_first(rows: list[Row], k: int) -> Counter:
    del rows[: 1 + k % (len(rows) - 1)]
    return Counter({"late_start": 1})


def without_final(rows: list[Row], k: int) -> Counter:
    rows[-1] |= {c.FINAL_OBS: None, c.TERMINATED: False, c.TRUNCATED: k % 2 == 0}
    return Counter({"no_final_obs": 1})


def ended_inside(rows: list[Row], k: int) -> Counter:
    at = k % (len(rows) - 1)
    rows[at][c.TERMINATED if k % 2 else c.TRUNCATED] = True
    return Counter({"end_inside": len(rows) - 1 - at})


def with_value(name: str, **changes) -> Callable[[list[Row], int], Counter]:
    def inject(rows: list[Row], k: int) -> Counter:
        rows[-1 if c.FINAL_OBS in changes else k % len(rows)] |= changes
        return Counter({name: 1})

    return inject


INJECTIONS = {
    "none": lambda _rows, _k: Counter(),
    "doubled": doubled,
    "gap": without_inner,
    "late": without_first,
    "no final": without_final,
    "end inside": ended_inside,
    "nan obs": with_value("not_finite:obs", obs=[0.0, np.nan]),
    "inf final": with_value("not_finite:final_obs", final_obs=[np.inf, 0.0]),
    "nan reward": with_value("not_finite:reward", reward=np.nan),
    "inf logp": with_value("not_finite:logp", logp=-np.inf),
    "far obs": with_value("out_of_bounds:obs", obs=[11.0, 0.0]),
    "far final": with_value("out_of_bounds:final_obs", final_obs=[0.0, -11.0]),
    "no action": with_value("out_of_bounds:action", action=[3]),
    "no logp": with_value("no_logp:logp", logp=None),
    "sure": with_value("positive_logp:logp", logp=1.0),
}
DAMAGE = st.tuples(
    st.sampled_from(sorted(INJECTIONS)),
    st.integers(3, 8),
    st.integers(0, 99),
    st.sampled_from([c.TERMINATED, c.TRUNCATED]),
)


@settings(max_examples=150, deadline=None)
@given(damage=st.lists(DAMAGE, min_size=1, max_size=12), contiguous=st.booleans())
def test_counts_are_what_was_injected_and_what_is_left_is_clean(damage, contiguous) -> None:
    needs = Needs(logp=True, contiguous=contiguous)
    rows, injected, healthy = [], Counter(), []
    for number, (kind, steps, k, end) in enumerate(damage):
        own = episode(f"e{number}", steps, end=end)
        injected += INJECTIONS[kind](own, k)
        rows += own
        if kind == "none":
            healthy.append(f"e{number}")
    if not contiguous:
        del injected["late_start"]
    assert counts_of(rows, needs) == dict(injected)
    left = clean_rows(rows, needs)
    names = np.array(left.names.column(c.EPISODE_ID).to_pylist())
    assert set(healthy) <= set(names[left.is_whole()])
    assert left.is_usable.all()
    # An observation tells its t: so do those that became final ones.
    ends = np.flatnonzero(left.final_index >= 0)
    assert left.final_obs[left.final_index[ends], 0].tolist() == (left.t[ends] + 1).tolist()
    follows = np.flatnonzero(left.has_next)
    assert left.obs[follows + 1, 0].tolist() == (left.t[follows] + 1).tolist()


def test_policies(caplog) -> None:
    rows = [*episode("a"), *changed(episode("b"), 1, reward=np.nan), *episode("c")[1:]]
    found = loaded(rows)
    report = validate(found)
    with pytest.raises(LakeError) as failed:
        settle(found, report, on_invalid="fail")
    assert report.text() in str(failed.value)
    assert "on_invalid" in str(failed.value)
    with caplog.at_level(logging.WARNING, "offline.validation"):
        left, counts = settle(found, report, on_invalid="skip")
    assert counts == {"late_start": 1, "not_finite:reward": 1}
    assert left.names.column(c.EPISODE_ID).to_pylist() == ["a"]
    assert [record.getMessage() for record in caplog.records] == [
        "steps version 3: late_start: 1 row of 1 episode: the episode does not begin at t=0; "
        "left out: the episodes",
        "steps version 3: not_finite:reward: 1 row of 1 episode: NaN, Inf or nothing where a "
        "number is needed; left out: the episodes",
    ]
    with pytest.raises(ValueError, match="report is of 11 rows"):
        cleaned(left, report)


def test_a_report_in_words_and_as_json() -> None:
    rows = [one for i in range(5) for one in episode(f"e{i}", 9) if one[c.T] != 4]
    report = validate(loaded(rows))
    assert report.text().splitlines() == [
        "data       version 3 of steps at memory",
        "rows       40 of 5 episodes",
        "problems   1",
        "  gap: 5 rows of 5 episodes: steps are missing after the row; left out: the rows and what "
        "is behind them",
        "    e0 of run, t=3: t=5 comes next",
        "    e1 of run, t=3: t=5 comes next",
        "    e2 of run, t=3: t=5 comes next",
        "    and 2 more",
        "usable     15 of 5 episodes, the rest left out",
    ]
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert record["problems"][0]["places"][4] == {
        "run_id": "run",
        "session": 0,
        "episode_id": "e4",
        "agent_id": "agent",
        "t": 3,
        "found": "t=5 comes next",
    }
    assert record["needs"] == {"logp": False, "contiguous": True}
    assert (record["rows"], record["usable_rows"], record["version"]) == (40, 15, 3)


def test_what_was_left_out_as_rows_of_the_lake(tmp_path) -> None:
    lake = lake_at(tmp_path)
    rows = [one for i in range(MAX_PLACES + 20) for one in episode(f"e{i:03d}", reward=np.nan)]
    put_behind(lake, [*rows, *episode("good"), *episode("late")[1:]])
    _, report = load_valid(lake, DataSpec(), on_invalid="skip")
    assert report.counts == {"late_start": 1, "not_finite:reward": 4 * (MAX_PLACES + 20)}
    with LakeWriter(lake.storage, "trainer") as writer:
        writer.write({"rejected": rejected_rows(report, run_id="trainer", session=1)})
    written = lake.rejected().to_arrow().to_pylist()
    reasons = Counter(one[s.REASON] for one in written)
    assert reasons == {"late_start": 1, "not_finite:reward": MAX_PLACES}
    late = next(one for one in written if one[s.REASON] == "late_start")
    assert (late[c.RUN_ID], late[s.SESSION], late[c.EPISODE_ID], late["row"]) == (
        *("trainer", 1, "late"),
        1,
    )
    assert late["source"] == f"steps version {report.version} of {lake.storage.uri}"
    content = json.loads(late["content"])
    assert content["found"] == "it begins at t=1"
    assert content[c.RUN_ID] == "run"


def test_values_that_cannot_be_of_their_space_are_found_in_the_lake(tmp_path) -> None:
    lake = lake_at(tmp_path)
    put_behind(
        lake,
        [
            *episode("good"),
            *changed(episode("short"), 1, obs=[1.0]),
            *changed(changed(episode("none"), 1, obs=None), 2, obs=None),
            *changed(episode("null inside"), 2, obs=[None, 1.0]),
            *changed(episode("too fine"), 2, obs=[0.1, 0.5]),  # no float32
            *changed(episode("half"), 3, action=[0.5]),
            *changed(episode("nan"), 3, action=[np.nan]),
            *changed(episode("empty final"), 3, final_obs=[]),
            *changed(episode("no t"), 3, t=None),
            *changed(episode("negative"), 0, t=-1),
            *changed(episode("reward"), 3, reward=np.nan),
        ],
    )
    inspected = inspect(lake, DataSpec())
    assert inspected.report.counts == {
        "no_t:t": 2,
        "not_of_space:obs": 5,
        "not_of_space:action": 2,
        "not_of_space:final_obs": 1,
        "not_finite:reward": 1,
    }
    assert (inspected.report.rows, inspected.report.episodes) == (44, 11)
    assert (inspected.report.usable_rows, inspected.report.usable_episodes) == (4, 1)
    named = {p.name: [x.episode_id for x in p.places] for p in inspected.report.problems}
    assert sorted(named["not_of_space:obs"]) == sorted(
        ["short", "none", "none", "null inside", "too fine"]
    )
    found, _ = load_valid(lake, DataSpec(), on_invalid="skip")
    assert found.names.column(c.EPISODE_ID).to_pylist() == ["good"]
    with pytest.raises(LakeError, match="not_of_space:action: 2 rows of 2 episodes"):
        load_valid(lake, DataSpec(), on_invalid="fail")


def test_bytes_of_another_size_are_found_in_the_lake(tmp_path) -> None:
    lake = lake_at(tmp_path)
    space = Dict({"image": Box(0, 255, (3,), np.uint8), "x": Box(-1, 1, (), np.float32)})
    good = {"obs": [0.5], "obs_bytes": b"abc", "final": False}
    rows = [
        *episode("good", **good),
        *changed(episode("short", **good), 2, obs_bytes=b"ab"),
        *changed(episode("half", **good), 1, obs=None),
        *changed(episode("half final", **good), -1, final_obs_bytes=b"abc"),
        *changed(episode("good final", **good), -1, final_obs_bytes=b"abc", final_obs=[0.5]),
    ]
    put_behind(lake, rows, obs=space)
    report = inspect(lake, DataSpec()).report
    assert report.counts == {"not_of_space:obs": 2, "not_of_space:final_obs": 1}
    assert report.usable_episodes == 2


def test_several_spaces_and_nothing_at_all_are_problems_of_the_choice(tmp_path) -> None:
    lake = lake_at(tmp_path)
    put_behind(lake, [*episode("a"), *episode("b")])
    put_behind(lake, episode("a", run_id="other"), action=Discrete(4))
    inspected = inspect(lake, DataSpec())
    assert inspected.trajectories is None
    assert not inspected.report.usable()
    assert inspected.report.counts == {"several_spaces": 12}
    places = inspected.report.problems[0].places
    assert [(x.run_id, x.found.partition(" of ")[0]) for x in places] == [
        ("run", "8 rows"),
        ("other", "4 rows"),
    ]
    for policy in ("skip", "fail"):
        with pytest.raises(LakeError, match="several_spaces: 12 rows of 3 episodes"):
            load_valid(lake, DataSpec(), on_invalid=policy)
    assert inspect(lake, DataSpec(where=[(c.RUN_ID, "==", "other")])).report.is_clean()
    assert inspect(lake, DataSpec(where=[(c.T, ">", 99)])).report.counts == {"no_rows": 0}
    with pytest.raises(LakeError, match="no_rows"):
        load_valid(lake, DataSpec(where=[(c.T, ">", 99)]), on_invalid="skip")


def test_what_a_run_logged_is_valid(tmp_path) -> None:
    from tests.offline.traces_kit import empty_lake, log_run
    from tests.rollout_kit import env_spec

    lake = empty_lake(tmp_path)
    for run_id, env in (("discrete", "CartPole-v1"), ("continuous", "Pendulum-v1")):
        log_run(lake, env_spec(env), run_id=run_id, steps=64)
        where = [(c.RUN_ID, "==", run_id)]
        report = inspect(lake, DataSpec(where=where), Needs(logp=True)).report
        assert report.is_clean(), report.text()
        assert report.rows > 500


def test_every_kind_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "offline-data.md").read_text()
    assert not [kind for kind in KINDS if f"`{kind}`" not in text]
