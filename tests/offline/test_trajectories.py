"""Logged steps in memory: order, ends, parts, and what is refused."""

import itertools
import time

import numpy as np
import pyarrow as pa
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from offline import schemas as s
from offline.compaction import compact
from offline.errors import LakeError
from offline.space_codec import SpaceCodec
from offline.spaces import register_space
from offline.steps import constant, table_of
from offline.trajectories import DataSpec, Trajectories, load_trajectories
from offline.validation import Needs, validate
from offline.writer import LakeWriter
from rl_ops import columns as c
from rl_ops.tree import tree_leaves
from tests.offline.validation_kit import ACTION, episode, lake_at, loaded, put_behind, row


def names(found: Trajectories) -> list[str]:
    return found.names.column(c.EPISODE_ID).to_pylist()


def assert_same(one: Trajectories, other: Trajectories) -> None:
    assert one.names.equals(other.names)
    assert (one.final_index == other.final_index).all()
    for name in ("reward", "terminated", "truncated", "t", "episode", "obs", "action", "final_obs"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    for name in one.columns.keys() & other.columns.keys():
        np.testing.assert_array_equal(one.columns[name], other.columns[name], name)


def bits(found: Trajectories, name: str) -> list[int]:
    return [int(x) for x in getattr(found, name)]


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(9)))
def test_rows_are_in_order_of_their_episodes_and_t_whatever_order_they_come_in(order) -> None:
    rows = [*episode("b", 3), *episode("a", 4, end=c.TRUNCATED), *episode("c", 2, run_id="other")]
    found = loaded([rows[i] for i in order])
    assert_same(found, loaded(rows))
    assert found.names.column(c.RUN_ID).to_pylist() == ["other", "run", "run"]
    assert names(found) == ["c", "a", "b"]
    assert found.episode.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert found.t.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert found.obs[:, 0].tolist() == found.reward.tolist() == found.t.tolist()
    assert found.final_index.tolist() == [-1, 0, -1, -1, -1, 1, -1, -1, 2]
    assert found.final_obs[:, 0].tolist() == [2, 4, 3]


def test_an_id_begins_again_in_each_run_session_and_agent() -> None:
    keys = itertools.product(("r0", "r1"), (0, 1), ("left", None))
    rows = [
        one
        for run_id, session, agent in keys
        for one in episode("0", 2, run_id=run_id, session=session, agent_id=agent)
    ]
    found = loaded(rows[::-1])
    assert found.num_episodes == 8
    assert found.is_whole().all()
    assert len({found.name(i) for i in range(8)}) == 4  # agents are told apart by names' rows
    assert found.name(7) == "0 of r1 session 1"


def test_files_and_compaction_do_not_change_the_order(tmp_path) -> None:
    lake = lake_at(tmp_path)
    first = [*episode("e0"), *episode("e2", end=c.TRUNCATED)]
    rows = [*first, *episode("e1", 5), *episode("e3", 2, run_id="other")]
    for part in (rows[::2], rows[1::4], rows[3::4]):
        put_behind(lake, part[::-1])
    before = load_trajectories(lake, DataSpec(columns=(c.LOGP, c.POLICY_VERSION)))
    assert compact(lake.storage, tables=["steps"])
    after = load_trajectories(lake, DataSpec(columns=(c.LOGP, c.POLICY_VERSION)))
    assert_same(before, after)
    assert_same(load_trajectories(lake, DataSpec(version=before.version)), loaded(rows))
    assert after.version > before.version
    assert before.uri == lake.storage.uri


def test_a_gap_a_fragments_end_and_the_logs_end_cut() -> None:
    rows = episode("e", 7, end="", final=False)
    rows[1][c.FINAL_OBS] = [1.5, 0.5]  # a fragment's end; the episode goes on in the next one
    del rows[4]
    found = loaded(rows)
    assert found.t.tolist() == [0, 1, 2, 3, 5, 6]
    assert bits(found, "has_next") == [1, 1, 1, 0, 1, 0]
    assert bits(found, "is_last") == [0, 0, 0, 1, 0, 1]
    assert bits(found, "is_usable") == [1, 1, 1, 0, 1, 0]
    assert not found.is_whole().any()


def test_a_gap_after_a_fragments_end_leaves_its_last_row_usable() -> None:
    rows = episode("e", 4)
    rows[1][c.FINAL_OBS] = [2.0, 0.5]
    del rows[2]
    found = loaded(rows)
    assert bits(found, "has_next") == [1, 0, 0]
    assert bits(found, "is_last") == [0, 1, 1]
    assert bits(found, "is_usable") == [1, 1, 1]


def test_ends_and_what_comes_after_them() -> None:
    rows = [
        *episode("a", 2, end=c.TERMINATED, final=False),
        *episode("b", 2, end=c.TRUNCATED),
        *episode("c", 2, end=c.TRUNCATED, final=False),
        *episode("d", 2, end=c.ABORTED),
        *episode("e", 2, end="", final=True),
    ]
    found = loaded(rows)
    assert bits(found, "terminated")[1::2] == [1, 0, 0, 0, 0]
    assert bits(found, "truncated")[1::2] == [0, 1, 1, 1, 0]
    assert bits(found, "is_usable")[1::2] == [1, 1, 0, 1, 1]
    assert bits(found, "has_next") == [1, 0] * 5
    assert found.is_whole().tolist() == [True, True, True, True, False]
    assert found.returns().tolist() == [1.0] * 5


def test_an_aborted_episode_is_truncated_even_if_it_says_terminated() -> None:
    rows = episode("a", 2)
    rows[-1][c.ABORTED] = True
    found = loaded(rows)
    assert bits(found, "terminated") == [0, 0]
    assert bits(found, "truncated") == [0, 1]


def test_the_first_of_two_rows_of_one_step_has_no_next() -> None:
    found = loaded([*episode("a", 3), row("a", 1)])
    assert found.t.tolist() == [0, 1, 1, 2]
    assert bits(found, "has_next") == [1, 0, 1, 0]
    assert bits(found, "is_usable") == [1, 0, 1, 1]
    assert not found.is_whole().any()


def test_numbers_that_are_null_are_marked() -> None:
    rows = [row("a", 0, logp=None, policy_version=None), row("a", 1, logp=-0.25, worker_id=2)]
    found = loaded(rows)
    np.testing.assert_array_equal(found.columns[c.LOGP], np.float32([np.nan, -0.25]))
    assert found.columns[c.POLICY_VERSION].tolist() == [-1, 7]
    assert found.columns[c.WORKER_ID].tolist() == [-1, 2]


def test_take_keeps_rows_with_their_finals_and_renumbers_episodes() -> None:
    rows = [*episode("a", 3), *episode("b", 2), *episode("c", 2, end=c.TRUNCATED)]
    rows[0][c.FINAL_OBS] = [9.0, 0.5]
    found = loaded(rows)
    kept = found.take(np.array([1, 0, 1, 0, 0, 0, 1], np.bool_))
    assert names(kept) == ["a", "c"]
    assert kept.episode.tolist() == [0, 0, 1]
    assert kept.t.tolist() == kept.obs[:, 0].tolist() == [0, 2, 1]
    assert kept.final_index.tolist() == [0, 1, 2]
    assert kept.final_obs[:, 0].tolist() == [9, 3, 2]
    assert kept.columns[c.LOGP].tolist() == [-1, -1, -1]
    nothing = found.take(np.zeros(7, np.bool_))
    assert nothing.rows == nothing.num_episodes == len(nothing.final_obs) == 0
    assert nothing.returns().size == nothing.is_whole().size == nothing.has_next.size == 0
    assert_same(found.take(np.ones(7, np.bool_)), found)


def test_dict_observations_with_frames_and_numbers() -> None:
    obs = Dict({"image": Box(0, 255, (2, 2), np.uint8), "speed": Box(-5, 5, (), np.float32)})
    rows = episode("a", 3, obs_bytes=bytes(range(4)), final_obs_bytes=None)
    for one in rows:
        one[c.OBS] = [one[c.T] / 2]
    rows[-1] |= {c.FINAL_OBS: [1.5], s.FINAL_OBS_BYTES: bytes(range(4, 8))}
    found = loaded(rows[::-1], obs=obs)
    assert found.obs["speed"].tolist() == [0, 0.5, 1]
    assert found.obs["image"].tolist() == [[[0, 1], [2, 3]]] * 3
    assert found.final_obs["image"].tolist() == [[[4, 5], [6, 7]]]
    assert all(len(leaf) == 2 for leaf in tree_leaves(found.take(found.t > 0).obs))


def test_finals_of_observations_that_are_bytes_only() -> None:
    rows = episode("a", 2, obs=None, obs_bytes=b"\1\2", final=False)
    rows[-1][s.FINAL_OBS_BYTES] = b"\3\4"
    found = loaded(rows, obs=Box(0, 255, (2,), np.uint8))
    assert found.final_index.tolist() == [-1, 0]
    assert found.final_obs.tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({c.OBS: None}, "column obs is null in 1 of 4 rows"),
        ({c.ACTION: None}, "column action is null in 1 of 4 rows"),
        ({c.T: None}, "null or below 0"),
        ({c.T: -1}, "null or below 0"),
        ({c.OBS: [1.0]}, "1 numbers in row 2; its space has 2"),
        ({c.ACTION: [0.5]}, "0.5 in row 2, which int64 does not"),
    ],
)
def test_rows_that_cannot_be_what_they_say_are_refused(changes, said) -> None:
    rows = episode("a")
    rows[2] |= changes
    with pytest.raises(LakeError, match=said):
        loaded(rows)


def test_several_spaces_are_refused_by_name_unless_one_is_chosen(tmp_path) -> None:
    lake = lake_at(tmp_path)
    put_behind(lake, episode("a"))
    put_behind(lake, episode("a", run_id="other"), action=Discrete(4))
    with pytest.raises(LakeError, match=r"2 pairs of spaces.*other has .*Choose by run_id"):
        load_trajectories(lake, DataSpec())
    found = load_trajectories(lake, DataSpec(where=[(c.RUN_ID, "==", "other")]))
    assert found.action_space == Discrete(4)


def test_nothing_left_an_unknown_column_and_an_unknown_version_are_said(tmp_path) -> None:
    lake = lake_at(tmp_path)
    put_behind(lake, episode("a"))
    with pytest.raises(LakeError, match="has no rows"):
        load_trajectories(lake, DataSpec(where=[(c.T, ">", 99)]))
    with pytest.raises(LakeError, match="it may have logp, value"):
        load_trajectories(lake, DataSpec(columns=("speed",)))
    with pytest.raises(LakeError, match="99"):
        load_trajectories(lake, DataSpec(version=99))


def parts(lake, split: float) -> tuple[set[str], set[str]]:
    def named(part) -> set[str]:
        found = load_trajectories(lake, DataSpec(split=split, part=part))
        assert found.is_whole().all()
        return set(names(found))

    return named("train"), named("rest")


def test_parts_are_disjoint_and_complete_and_stay_what_they_were(tmp_path) -> None:
    lake = lake_at(tmp_path)
    everything = {f"run/{i:04d}" for i in range(200)}
    put_behind(lake, [one for name in sorted(everything) for one in episode(name, 2)])
    train, rest = parts(lake, 0.8)
    assert not train & rest
    assert train | rest == everything
    assert 140 <= len(train) <= 180
    more = {f"run/{i:04d}" for i in range(200, 300)}
    put_behind(lake, [one for name in sorted(more) for one in episode(name, 2)])
    compact(lake.storage, tables=["steps"])
    grown, grown_rest = parts(lake, 0.8)
    assert grown & everything == train
    assert grown_rest & everything == rest
    assert grown | grown_rest == everything | more
    assert parts(lake, 0.9)[0] > grown  # a larger share only adds


def test_what_was_logged_is_what_is_loaded(tmp_path) -> None:
    from tests.offline.traces_kit import empty_lake, log_run
    from tests.rollout_kit import env_spec

    lake = empty_lake(tmp_path)
    made = log_run(lake, env_spec("CartPole-v1"), num_envs=3, steps=16, count=4)
    found = load_trajectories(lake, DataSpec(columns=(c.LOGP,)))
    assert found.rows == sum(fragment.num_rows for fragment in made)
    assert found.is_usable.all()  # the end of each fragment has its final observation
    logged = lake.episodes(where=[(c.ABORTED, "==", False)]).to_arrow().to_pylist()
    whole = dict(zip(names(found), found.is_whole(), strict=True))
    returns = dict(zip(names(found), found.returns(), strict=True))
    assert logged
    assert {name for name, is_whole in whole.items() if is_whole} == {
        one[c.EPISODE_ID] for one in logged
    }
    assert all(returns[one[c.EPISODE_ID]] == one[s.RETURN] for one in logged)


def million(lake) -> None:
    """CartPole-like: 5 000 episodes of 200 steps in 20 files of interleaved fragments."""
    rng, per, length = np.random.default_rng(0), 50_000, 200
    key = register_space(lake.storage, Box(-np.inf, np.inf, (4,), np.float32), ACTION)
    codec, actions = SpaceCodec(Box(-np.inf, np.inf, (4,), np.float32)), SpaceCodec(ACTION)
    with LakeWriter(lake.storage, "kit") as writer:
        for k in range(20):
            order = rng.permutation(per // 50).repeat(50) * 50 + np.tile(np.arange(50), per // 50)
            t = (order % length).astype(np.int32)
            is_last = t == length - 1
            values = [rng.standard_normal((per, 4)).astype(np.float32) for _ in range(2)]
            ids = pa.array([f"run/{i:07d}" for i in (k * per + order) // length])
            arrays = {
                c.RUN_ID: constant("run", per),
                s.SESSION: pa.array(np.zeros(per, np.int32)),
                c.EPISODE_ID: ids,
                c.T: pa.array(t),
                s.SPACE: constant(key, per),
                c.OBS: codec.columns(values[0]).values,
                c.FINAL_OBS: codec.columns(values[1], is_last).values,
                c.ACTION: actions.columns(rng.integers(0, 3, per)).values,
                c.REWARD: pa.array(np.ones(per)),
                c.TRUNCATED: pa.array(is_last),
                c.LOGP: pa.array(np.full(per, -1.0, np.float32)),
            }
            writer.write({"steps": table_of(arrays, s.STEPS.schema, rows=per)}, fragments=[k])


@pytest.mark.soak
def test_a_million_rows_load_and_validate(tmp_path, capsys) -> None:
    lake = lake_at(tmp_path)
    million(lake)
    began = time.perf_counter(), time.process_time()
    found = load_trajectories(lake, DataSpec(columns=(c.LOGP,)))
    loaded_at = time.perf_counter(), time.process_time()
    report = validate(found, Needs(logp=True))
    ended = time.perf_counter(), time.process_time()
    with capsys.disabled():
        for what, a, b in (("load", began, loaded_at), ("validate", loaded_at, ended)):
            took = f"{b[0] - a[0]:.2f} s, {b[1] - a[1]:.2f} s of CPU"
            print(f"\n1 M rows {what} in {took}")  # noqa: T201 - the figure is the point
    assert found.rows == 1_000_000
    assert found.is_whole().all()
    assert (found.returns() == 200).all()
    assert report.is_clean()
