"""Operators over small tables, and the plan's fold of their columns."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_ops import columns as c
from rl_ops.errors import ColumnError
from rl_ops.operators import AddGAE, ClipReward, Operator, fold_columns, next_values
from tests.rollout_kit import column, env_spec, fragments, make_rollout


def steps(**columns: list[Any]) -> pa.Table:
    """A table of steps whose values are float32 and whose flags are False unless given."""
    rows = len(columns[c.REWARD])
    names = {c.VALUE: np.float32, c.FINAL_VALUE: np.float32, c.REWARD: np.float64}
    names |= {c.TERMINATED: bool, c.IS_LAST: bool}
    arrays = {name: np.array(columns.get(name, [0] * rows), kind) for name, kind in names.items()}
    return pa.table(arrays)


def slow_gae(table: pa.Table, *, gamma: float, gae_lambda: float) -> list[float]:
    """Sum of (gamma lambda)^k delta over the rest of each segment, row by row, forwards."""
    names = (c.REWARD, c.TERMINATED, c.IS_LAST, c.VALUE, c.FINAL_VALUE)
    rows = list(zip(*(column(table, name) for name in names), strict=True))
    result = []
    for t in range(len(rows)):
        advantage, weight = 0.0, 1.0
        for k in range(t, len(rows)):
            reward, terminated, is_last, value, final_value = rows[k]
            following = final_value if is_last else rows[k + 1][3]
            advantage += weight * (reward + gamma * (not terminated) * following - value)
            weight *= gamma * gae_lambda
            if is_last:
                break
        result.append(advantage)
    return result


def test_gae_of_one_terminated_and_one_cut_episode_literally() -> None:
    table = steps(
        reward=[1, 1, 1, 1],
        value=[0.5, 0.5, 0.5, 0.5],
        terminated=[False, True, False, False],
        is_last=[False, True, False, True],
        final_value=[0, 0, 0, 2],
    )
    result = AddGAE(gamma=0.5, gae_lambda=0.5)(table)
    # deltas: 1 + 0.25 - 0.5, 1 - 0.5, 1 + 0.25 - 0.5, 1 + 1 - 0.5
    assert column(result, c.ADVANTAGE) == [0.75 + 0.25 * 0.5, 0.5, 0.75 + 0.25 * 1.5, 1.5]
    assert column(result, c.VALUE_TARGET) == [1.375, 1.0, 1.625, 2.0]
    assert result.schema.field(c.ADVANTAGE).type == pa.float32()
    assert result.select(table.column_names).equals(table), "rows and their order stay"


def test_truncation_bootstraps_but_termination_does_not() -> None:
    def advantage(**flags: list[bool]) -> float:
        table = steps(reward=[1.0], value=[0.0], is_last=[True], final_value=[10.0], **flags)
        return column(AddGAE(gamma=0.9, gae_lambda=1.0)(table), c.ADVANTAGE)[0]

    assert advantage() == 10.0
    assert advantage(terminated=[True]) == 1.0


number = st.floats(-5, 5, width=32)
row = st.tuples(number, number, number, st.sampled_from(["goes on", "terminated", "cut"]))


@given(
    rows=st.lists(row, min_size=1, max_size=12),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
)
def test_gae_is_the_papers_sum(rows: list[Any], gamma: float, gae_lambda: float) -> None:
    reward, value, final_value, how = (list(x) for x in zip(*rows, strict=True))
    how[-1] = "cut" if how[-1] == "goes on" else how[-1]
    is_last, terminated = [x != "goes on" for x in how], [x == "terminated" for x in how]
    final_value = [v * (h == "cut") for v, h in zip(final_value, how, strict=True)]
    table = steps(
        reward=reward, value=value, final_value=final_value, is_last=is_last, terminated=terminated
    )
    result = AddGAE(gamma=gamma, gae_lambda=gae_lambda)(table)
    expected = slow_gae(table, gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_allclose(column(result, c.ADVANTAGE), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        column(result, c.VALUE_TARGET), np.add(expected, value), rtol=1e-4, atol=1e-4
    )


def test_gae_of_a_rollout_is_the_papers_sum() -> None:
    env = env_spec("count", lengths=(2, 5), ends=("truncated", "terminated"))
    for table in fragments(make_rollout(env, num_envs=3, steps=8, value=(1.0, 0.5)), 2):
        result = AddGAE(gamma=0.9, gae_lambda=0.8)(table)
        expected = slow_gae(table, gamma=0.9, gae_lambda=0.8)
        np.testing.assert_allclose(column(result, c.ADVANTAGE), expected, rtol=1e-5)


def test_gae_takes_tables_of_several_chunks_and_of_none() -> None:
    table = steps(reward=[1, 2, 3], value=[1, 1, 1], is_last=[True, False, True])
    whole = AddGAE(0.9, 0.9)(table)
    chunked = AddGAE(0.9, 0.9)(pa.concat_tables([table.slice(0, 2), table.slice(2)]))
    assert column(chunked, c.ADVANTAGE) == column(whole, c.ADVANTAGE)
    assert AddGAE(0.9, 0.9)(table.slice(0, 0)).num_rows == 0


def test_gae_reads_the_reward_column_it_was_given() -> None:
    table = steps(reward=[1.0], is_last=[True]).append_column(c.SCALED_REWARD, pa.array([4.0]))
    operator = AddGAE(0.9, 0.9, reward=c.SCALED_REWARD)
    assert operator.reads[0] == c.SCALED_REWARD
    assert column(operator(table), c.ADVANTAGE) == [4.0]


def test_next_values_are_the_next_rows_but_where_a_row_is_last() -> None:
    value, final = np.array([1.0, 2, 3, 4]), np.array([0.0, 20, 0, 40])
    is_last = np.array([False, True, False, True])
    assert next_values(value, final, is_last).tolist() == [2, 20, 4, 40]


def test_clipped_rewards_stand_beside_the_originals() -> None:
    table = ClipReward(1.5)(steps(reward=[-3, -1, 0, 2]))
    assert column(table, c.CLIPPED_REWARD) == [-1.5, -1, 0, 1.5]
    assert column(table, c.REWARD) == [-3, -1, 0, 2]


def test_operators_are_values_of_the_protocol() -> None:
    assert AddGAE(0.9, 0.5) == AddGAE(0.9, 0.5)
    assert isinstance(AddGAE(0.9, 0.5), Operator)
    assert isinstance(ClipReward(1.0), Operator)


def test_columns_fold_in_order() -> None:
    rollout = ("reward", "terminated", "is_last", "value", "final_value")
    operators = (ClipReward(1.0), AddGAE(0.9, 0.9, reward=c.CLIPPED_REWARD))
    added = ("clipped_reward", "advantage", "value_target")
    assert fold_columns(rollout, operators) == rollout + added


def test_a_missing_column_names_operator_column_and_what_there_is() -> None:
    present = (c.REWARD, c.TERMINATED, c.IS_LAST, c.FINAL_VALUE)
    words = (
        r"^AddGAE reads 'value'; the stream after the rollout has final_value, is_last, reward, "
        r"terminated\. Put an operator that adds it before AddGAE$"
    )
    with pytest.raises(ColumnError, match=words):
        fold_columns(present, [AddGAE(0.9, 0.9)])
    with pytest.raises(ColumnError, match="AddGAE reads 'scaled_reward'; the stream after Clip"):
        fold_columns(present, [ClipReward(1.0), AddGAE(0.9, 0.9, reward=c.SCALED_REWARD)])


def test_a_column_that_is_there_already_is_not_added_again() -> None:
    words = "ClipReward adds 'clipped_reward', which the stream after ClipReward has already"
    with pytest.raises(ColumnError, match=words):
        fold_columns((c.REWARD,), [ClipReward(1.0), ClipReward(2.0)])


def test_an_operator_may_have_a_name_of_its_own() -> None:
    class Reader:
        name, reads, adds = "PPOLearner", ("logp",), ()

        def __call__(self, table: pa.Table) -> pa.Table:
            return table

    with pytest.raises(ColumnError, match="PPOLearner reads 'logp'"):
        fold_columns((c.REWARD,), [Reader()])
