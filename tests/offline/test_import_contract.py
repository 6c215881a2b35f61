"""The data contract: every breach is named with its row, and nothing else is refused."""

import dataclasses

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given
from hypothesis import strategies as st

from offline.exchange import BadRecord, Episode, Spaces
from offline.import_contract import REASONS, Contract, Rules
from offline.import_rows import RowGrouper, Rows
from tests.offline.interop_kit import ALL, CARTPOLE, CONTINUOUS, assert_same, episode, raw

SIMPLE = Spaces(Box(-np.inf, np.inf, (2,), np.float32), Discrete(3), "test")


def check(change, *, spaces=SIMPLE, rows=4, terminated=True, **rules):
    """What the contract says of a good episode that was changed."""
    one = dataclasses.replace(
        raw(episode(spaces, "e", rows, terminated=terminated)), t=np.arange(rows)
    )
    return Contract(spaces, Rules(**rules)).accept(dataclasses.replace(one, **change))


def reasons(outcome):
    assert isinstance(outcome, list), outcome
    return {violation.reason: violation.row for violation in outcome}


@pytest.mark.parametrize("name", ALL)
def test_good_episodes_pass_unchanged(name):
    made = episode(ALL[name], "e", 5)
    got = Contract(ALL[name], Rules()).accept(raw(made))
    assert_same([got], [made])


def at(values, index, value):
    changed = np.array(values, np.float64)
    changed[index] = value
    return changed


OBS = np.zeros((4, 2))
BREACHES = {
    "NaN in an observation": ({"obs": at(OBS, (2, 1), np.nan)}, "not_finite", 2),
    "Inf in an observation": ({"obs": at(OBS, (1, 0), np.inf)}, "not_finite", 1),
    "NaN reward": ({"reward": [0, 0, np.nan, 0]}, "not_finite", 2),
    "too large for float32": ({"obs": at(OBS, (3, 0), 1e300)}, "wrong_dtype", 3),
    "half an action": ({"action": [0, 0.5, 1, 1]}, "wrong_dtype", 1),
    "text": ({"reward": ["a", "b", "c", "d"]}, "wrong_dtype", 0),
    "objects": ({"action": np.array([None, 1, 1, 1])}, "wrong_dtype", 0),
    "action outside": ({"action": [0, 1, 3, 0]}, "out_of_bounds", 2),
    "negative action": ({"action": [0, -1, 0, 0]}, "out_of_bounds", 1),
    "other shape": ({"obs": np.zeros((4, 3))}, "wrong_shape", 0),
    "a dict": ({"obs": {"x": np.zeros(4)}}, "wrong_structure", 0),
    "fewer actions": ({"action": [0, 1, 1]}, "lengths_differ", 0),
    "hole in t": ({"t": [0, 1, 3, 4]}, "t_order", 2),
    "t backwards": ({"t": [0, 2, 1, 3]}, "t_order", 1),
    "t from 1": ({"t": [1, 2, 3, 4]}, "t_order", 0),
    "ends twice": ({"terminated": [0, 1, 0, 1]}, "end_inside", 1),
    "no end": ({"terminated": [0, 0, 0, 0]}, "no_end", 3),
    "no flags": ({"terminated": None, "truncated": None}, "no_end", 3),
    "flag of 2": ({"terminated": [0, 0, 0, 2]}, "wrong_dtype", 3),
    "empty id": ({"episode_id": ""}, "bad_episode_id", 0),
    "NUL in id": ({"episode_id": "a\0b"}, "bad_episode_id", 0),
    "a step skipped": ({"next_obs": np.ones((4, 2))}, "next_obs_differs", 0),
}


@pytest.mark.parametrize("what", BREACHES)
def test_a_breach_is_named_with_its_row(what):
    change, reason, row = BREACHES[what]
    base = {"obs": OBS, "final_obs": np.zeros((1, 2))}
    found = reasons(check({**base, **change}))
    assert found == {reason: row}
    assert reason in REASONS


def test_no_steps_is_an_empty_episode():
    change = {name: np.zeros((0, 2)) for name in ("obs",)}
    change |= {name: np.zeros(0) for name in ("action", "reward", "terminated", "truncated", "t")}
    assert reasons(check({**change, "logp": None})) == {"empty_episode": 0}


def test_several_breaches_of_an_episode_are_all_named_and_counted():
    contract = Contract(SIMPLE, Rules())
    one = dataclasses.replace(
        raw(episode(SIMPLE, "e", 4)), action=[9, 9, 9, 9], t=[3, 2, 1, 0], reward=[np.inf] * 4
    )
    assert set(reasons(contract.accept(one))) == {"out_of_bounds", "t_order", "not_finite"}
    assert contract.counts == {"out_of_bounds": 1, "t_order": 1, "not_finite": 1}


def test_an_id_may_come_once():
    contract = Contract(SIMPLE, Rules())
    one = raw(episode(SIMPLE, "e", 2))
    assert isinstance(contract.accept(one), Episode)
    assert reasons(contract.accept(one)) == {"duplicate_episode": 0}


def test_a_record_that_could_not_be_read_is_a_violation():
    contract = Contract(SIMPLE, Rules())
    (violation,) = contract.accept(BadRecord("f.json", 17, "no JSON", "{oops", "line"))
    assert str(violation) == "f.json, line 17: no JSON"
    assert violation.content == "{oops"


class TestEnds:
    def test_an_episode_without_an_end_can_be_cut_as_truncated(self):
        contract = Contract(SIMPLE, Rules(missing_end="truncate"))
        one = dataclasses.replace(raw(episode(SIMPLE, "e", 4)), terminated=None)
        got = contract.accept(one)
        assert (got.terminated, got.truncated, len(got)) == (False, True, 4)
        assert contract.ends_made == 1

    def test_a_truncation_without_final_observation_gives_its_last_step_for_it(self):
        contract = Contract(SIMPLE, Rules())
        one = raw(episode(SIMPLE, "e", 4, terminated=False))
        got = contract.accept(dataclasses.replace(one, final_obs=None))
        assert (len(got), got.truncated, contract.rows_cut) == (3, True, 1)
        np.testing.assert_array_equal(got.final_obs, one.obs[3:])
        np.testing.assert_array_equal(got.reward, one.reward[:3])

    def test_one_truncated_step_without_final_observation_is_no_episode(self):
        found = check({"final_obs": None}, rows=1, terminated=False)
        assert reasons(found) == {"no_final_obs": 0}

    def test_a_termination_needs_no_final_observation(self):
        got = check({"final_obs": None})
        assert got.final_obs is None
        assert len(got) == 4

    def test_the_last_next_observation_is_the_final_one(self):
        obs = np.arange(8.0).reshape(4, 2)
        following = np.arange(2, 10.0).reshape(4, 2)
        got = check({"obs": obs, "next_obs": following, "final_obs": None})
        np.testing.assert_array_equal(got.final_obs, [[8, 9]])


class TestRules:
    def test_actions_outside_a_box_can_be_taken(self):
        action = np.full((4, 2), 1.5, np.float32)
        refused = check({"action": action}, spaces=CONTINUOUS)
        assert reasons(refused) == {"out_of_bounds": 0}
        assert "--bounds ignore" in refused[0].message
        assert isinstance(check({"action": action}, spaces=CONTINUOUS, bounds=False), Episode)

    def test_observations_may_stray_from_their_box(self):
        spaces = Spaces(Box(0, 1, (2,), np.float32), Discrete(3), "test")
        one = dataclasses.replace(raw(episode(SIMPLE, "e", 4)), obs=np.full((4, 2), 1.0000002))
        assert isinstance(Contract(spaces, Rules()).accept(one), Episode)

    def test_next_observations_can_be_ignored(self):
        change = {"next_obs": np.ones((4, 2)), "obs": OBS}
        assert isinstance(check(change, next_obs=False), Episode)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.uint8, 256), (np.uint8, -1), (np.int8, 200), (np.int64, 2.0**63), (np.uint64, -1)],
)
def test_integers_never_wrap_around(dtype, value):
    space = Box(np.iinfo(dtype).min, np.iinfo(dtype).max, (1,), dtype)
    spaces = Spaces(space, Discrete(3), "test")
    one = dataclasses.replace(
        raw(episode(SIMPLE, "e", 2)), obs=np.array([[0], [value]]), final_obs=np.array([[0]])
    )
    assert reasons(Contract(spaces, Rules()).accept(one)) == {"wrong_dtype": 1}


def test_nested_leaves_are_named():
    spaces = Spaces(Dict({"a": Box(0, 1, (2,), np.float32)}), Discrete(3), "test")
    one = dataclasses.replace(
        raw(episode(SIMPLE, "e", 2)), obs={"a": np.zeros((2, 3))}, final_obs=None
    )
    (violation,) = Contract(spaces, Rules()).accept(one)
    assert violation.message == "obs['a'] is [T, 3], expected [T, 2]"


class TestGrouping:
    def rows(self, ids, ends=None, **columns):
        count = len(ids)
        names = np.empty(count, object)
        names[:] = list(ids)
        return Rows(
            file="f",
            numbers=np.arange(count),
            obs=np.arange(count, dtype=np.float64)[:, None],
            action=np.arange(count),
            reward=np.arange(count),
            terminated=None if ends is None else np.array(ends),
            episode_ids=names,
            **columns,
        )

    def grouped(self, *batches, **options):
        grouper = RowGrouper(**options)
        found = [e for rows in batches for e in grouper.add(rows)]
        return {e.episode_id: e.action.tolist() for e in [*found, *grouper.finish()]}

    def test_interleaved_rows_come_together(self):
        rows = self.rows("abab", [0, 0, 1, 1])
        assert self.grouped(rows) == {"a": [0, 2], "b": [1, 3]}

    def test_an_episode_goes_on_in_the_next_batch(self):
        got = self.grouped(self.rows("aa", [0, 0]), self.rows("aab", [0, 1, 1]))
        assert got == {"a": [0, 1, 0, 1], "b": [2]}

    def test_without_flags_the_next_id_ends_an_episode(self):
        assert self.grouped(self.rows("aab")) == {"a": [0, 1], "b": [2]}

    def test_without_ids_a_flag_ends_an_episode(self):
        rows = dataclasses.replace(self.rows("xxx", [0, 1, 1]), episode_ids=None)
        assert self.grouped(rows) == {"0": [0, 1], "1": [2]}

    def test_rows_held_back_are_bounded(self):
        rows = [self.rows([str(i)], [0]) for i in range(100)]
        grouper = RowGrouper(max_open_bytes=100)
        given_out = [len(list(grouper.add(one))) for one in rows]
        assert sum(given_out) > 90

    @given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.data())
    def test_every_row_is_in_one_episode_whatever_the_batches(self, ids, data):
        ends = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        cut = data.draw(st.integers(0, len(ids)))
        whole = self.rows(ids, ends)

        def part(begin, stop):
            names = whole.episode_ids[begin:stop]
            return Rows(
                file="f",
                numbers=whole.numbers[begin:stop],
                obs=whole.obs[begin:stop],
                action=whole.action[begin:stop],
                reward=whole.reward[begin:stop],
                terminated=whole.terminated[begin:stop],
                episode_ids=names,
            )

        def all_of(*batches):
            grouper = RowGrouper()
            found = [e for rows in batches for e in grouper.add(rows)] + list(grouper.finish())
            return sorted((e.episode_id, tuple(e.action.tolist())) for e in found)

        apart = all_of(part(0, cut), part(cut, len(ids)))
        assert apart == all_of(whole)
        assert sorted(a for _, actions in apart for a in actions) == list(range(len(ids)))


def test_what_is_not_compared_is_not_refused():
    assert isinstance(check({}, spaces=CARTPOLE), Episode)
