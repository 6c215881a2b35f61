"""Operators over small tables, and the plan's fold of their columns."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rl_ops import columns as c
from rl_ops.errors import ColumnError
from rl_ops.operators import (
    AddDiscount,
    AddGAE,
    AddTDPriority,
    ClipReward,
    NStep,
    Operator,
    fold_columns,
    next_values,
)
from rl_ops.spaces import codec_for
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


# --- n-step returns ---

FINAL = 100
"""Row i's final observation is the number FINAL + i, its own i."""


def numbered(table: pa.Table) -> pa.Table:
    """With observations that are numbers."""
    rows = np.arange(table.num_rows, dtype=np.float32)
    table = table.append_column(c.MODEL_OBS, pa.array(rows))
    return table.append_column(c.FINAL_MODEL_OBS, pa.array(FINAL + rows))


TWO_ENDS = {
    "reward": [1, 2, 4, 8, 16, 32],
    "terminated": [False, False, True, False, False, False],
    "is_last": [False, False, True, False, False, True],
}


def test_n_step_windows_of_one_terminated_and_one_cut_episode_literally() -> None:
    table = NStep(n=2, gamma=0.5)(numbered(steps(**TWO_ENDS)))
    # rows 0 and 3 see two rewards and go on; 1, 2 terminate; 4, 5 are cut by the fragment's end
    assert column(table, c.RETURN_N) == [2, 4, 4, 16, 32, 32]
    assert column(table, c.BOOTSTRAP_DISCOUNT) == [0.25, 0, 0, 0.25, 0.25, 0.5]
    obs = column(table, c.BOOTSTRAP_OBS)
    assert [obs[i] for i in (0, 3, 4, 5)] == [2, 5, 105, 105]
    assert [table.schema.field(name).type for name in (c.RETURN_N, c.BOOTSTRAP_DISCOUNT)] == [
        pa.float32()
    ] * 2


def test_n_step_bootstraps_from_final_obs_at_a_truncation_but_not_at_a_termination() -> None:
    def made(**flags: list[bool]) -> tuple[Any, ...]:
        rows = numbered(steps(reward=[1, 2, 5], is_last=[False, True, True], **flags))
        table = NStep(n=3, gamma=0.5)(rows)
        return tuple(column(table, name)[:2] for name in NStep.adds)

    assert made() == ([2, 2], [101, 101], [0.25, 0.5])
    returns, _, discounts = made(terminated=[False, True, False])
    assert (returns, discounts) == ([2, 2], [0, 0])


def test_windows_stay_within_their_environment() -> None:
    # two environments end to end, three rows each, neither of which ends an episode
    table = steps(reward=[1, 1, 1, 10, 10, 10], is_last=[False, False, True] * 2)
    table = NStep(n=5, gamma=1.0)(numbered(table))
    assert column(table, c.RETURN_N) == [3, 2, 1, 30, 20, 10]
    assert column(table, c.BOOTSTRAP_OBS) == [102] * 3 + [105] * 3
    assert column(table, c.BOOTSTRAP_DISCOUNT) == [1] * 6


SPACES: dict[str, spaces.Space[Any]] = {
    "number": spaces.Box(0, 1e3, (), np.float32),
    "vector": spaces.Box(0, 1e3, (3,), np.float32),
    "image": spaces.Box(0, 255, (4, 2, 3), np.uint8),
    "discrete": spaces.Discrete(200),
    "dict": spaces.Dict(
        {
            "place": spaces.Box(0, 1e3, (2,), np.float32),
            "inner": spaces.Tuple([spaces.Discrete(200)]),
        }
    ),
}


def filled(space: spaces.Space[Any], numbers: np.ndarray) -> Any:
    """A batch tree whose every entry of row i is numbers[i]."""
    if isinstance(space, spaces.Dict):
        return {k: filled(child, numbers) for k, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(filled(child, numbers) for child in space.spaces)
    shape = (len(numbers), *space.shape)
    return np.broadcast_to(numbers.reshape(-1, *[1] * len(space.shape)), shape).astype(space.dtype)


def assert_filled(space: spaces.Space[Any], tree: Any, numbers: list[int]) -> None:
    expected = filled(space, np.array(numbers))
    if isinstance(space, spaces.Dict):
        for k, child in space.spaces.items():
            assert_filled(child, tree[k], numbers)
    elif isinstance(space, spaces.Tuple):
        for child, part in zip(space.spaces, tree, strict=True):
            assert_filled(child, part, numbers)
    else:
        np.testing.assert_array_equal(tree, expected)


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("kind", list(SPACES))
def test_observations_of_every_encoding_are_taken_where_windows_end(kind: str, chunks: int) -> None:
    space, codec = SPACES[kind], codec_for(SPACES[kind])
    table = steps(**TWO_ENDS)
    rows = np.arange(table.num_rows)
    table = table.append_column(c.OBS, codec.encode(filled(space, rows)))
    table = table.append_column(c.FINAL_MODEL_OBS, codec.encode(filled(space, FINAL + rows)))
    if chunks == 2:
        table = pa.concat_tables([table.slice(0, 4), table.slice(4)])
    operator = NStep(n=2, gamma=0.5, obs=c.OBS)
    assert operator.reads[3:] == (c.OBS, c.FINAL_MODEL_OBS)
    found = operator(table).column(c.BOOTSTRAP_OBS)
    assert found.type == table.schema.field(c.OBS).type
    assert_filled(space, codec.decode(found), [2, 102, 102, 5, 105, 105])


def test_lists_without_a_fixed_size_as_the_lake_has_them_are_taken_too() -> None:
    table, kind = steps(**TWO_ENDS), pa.list_(pa.float32())
    rows = range(table.num_rows)
    table = table.append_column(c.MODEL_OBS, pa.array([[i, i] for i in rows], kind))
    finals = pa.array([[FINAL + i] * 2 for i in rows], kind)
    table = NStep(n=1, gamma=0.5)(table.append_column(c.FINAL_MODEL_OBS, finals))
    assert column(table, c.BOOTSTRAP_OBS) == [[k] * 2 for k in (1, 2, 102, 4, 5, 105)]


def test_no_rows_have_no_windows() -> None:
    table = NStep(n=3, gamma=0.9)(numbered(steps(**TWO_ENDS)).slice(0, 0))
    assert table.num_rows == 0
    assert set(NStep.adds) <= set(table.column_names)


def slow_n_step(table: pa.Table, *, n: int, gamma: float) -> list[tuple[float, float, float]]:
    """(return_n, bootstrap_obs, bootstrap_discount) of every row, step by step."""
    names = (c.REWARD, c.TERMINATED, c.IS_LAST, c.MODEL_OBS, c.FINAL_MODEL_OBS)
    rows = list(zip(*(column(table, name) for name in names), strict=True))
    result = []
    for t in range(len(rows)):
        total, discount = 0.0, 1.0
        for k in range(t, t + n):
            reward, terminated, is_last, _, final = rows[k]
            total += discount * reward
            discount *= gamma * (not terminated)
            following = final if is_last else rows[k + 1][3]
            if is_last:
                break
        result.append((total, following, discount))
    return result


ends = st.lists(st.tuples(number, number, st.sampled_from(["goes on", "terminated", "cut"])))


@given(rows=ends.filter(len), n=st.integers(1, 6), gamma=st.floats(0, 1))
def test_n_step_returns_are_the_loops_and_priorities_their_td_errors(
    rows: list[Any], n: int, gamma: float
) -> None:
    reward, value, how = (list(x) for x in zip(*rows, strict=True))
    how[-1] = "cut" if how[-1] == "goes on" else how[-1]
    is_last, terminated = [x != "goes on" for x in how], [x == "terminated" for x in how]
    final_value = [3.0 * (h == "cut") for h in how]
    table = numbered(
        steps(
            reward=reward,
            value=value,
            final_value=final_value,
            is_last=is_last,
            terminated=terminated,
        )
    )
    expected = slow_n_step(table, n=n, gamma=gamma)
    found = zip(*(column(NStep(n, gamma)(table), name) for name in NStep.adds), strict=True)
    np.testing.assert_allclose(list(found), expected, rtol=1e-5, atol=1e-5)
    q_value = np.linspace(-1, 1, len(rows)).astype(np.float32)
    priority = AddTDPriority(n, gamma)(table.append_column(c.Q_VALUE, pa.array(q_value)))
    # the number of an observation says whose value it is
    values = {FINAL + i: x for i, x in enumerate(final_value)} | dict(enumerate(value))
    td = [r + d * values[int(obs)] - q for (r, obs, d), q in zip(expected, q_value, strict=True)]
    np.testing.assert_allclose(column(priority, c.PRIORITY), np.abs(td), rtol=1e-4, atol=1e-5)


def test_priorities_are_the_td_errors_of_the_network_that_acted_literally() -> None:
    table = steps(
        reward=[1, 1, 1, 1],
        value=[3, 4, 5, 6],
        terminated=[False, True, False, False],
        is_last=[False, True, False, True],
        final_value=[0, 0, 0, 8],
    ).append_column(c.Q_VALUE, pa.array(np.float32([2, 4, 5, 1])))
    one, two = (column(AddTDPriority(n, 0.5)(table), c.PRIORITY) for n in (1, 2))
    # 1 + .5 x 4 - 2, 1 - 4, 1 + .5 x 6 - 5, 1 + .5 x 8 - 1
    assert one == [1, 3, 1, 4]
    # 1 + .5 - 2, 1 - 4, 1 + .5 + .25 x 8 - 5, as before
    assert two == [0.5, 3, 1.5, 4]


def test_bootstraps_of_a_rollout_are_the_observations_n_steps_on() -> None:
    env = env_spec("count", lengths=(2, 5), ends=("truncated", "terminated"))
    keep = frozenset({c.FINAL_MODEL_OBS})
    for table in fragments(make_rollout(env, num_envs=2, steps=8, keep=keep), 2):
        table = NStep(n=3, gamma=0.5, obs=c.OBS)(table)
        names = (c.OBS, c.BOOTSTRAP_OBS, c.BOOTSTRAP_DISCOUNT, c.RETURN_N)
        for (episode, t), (later, until), discount, total in zip(
            *(column(table, name) for name in names), strict=True
        ):
            if discount == 0:  # odd episodes terminate after their fifth step
                assert (episode % 2, t > 1) == (1, True)
                continue
            steps_on = until - t
            assert (later, discount) == (episode, 0.5**steps_on)
            assert total == sum(0.5**k * (t + k) for k in range(int(steps_on)))


# --- rewards and discounts for learners that make their own returns ---


def test_discounts_stand_beside_the_learners_reward() -> None:
    table = steps(reward=[1, -2], terminated=[False, True], is_last=[False, True])
    table = table.append_column(c.CLIPPED_REWARD, pa.array([1.0, -1.0]))
    made = AddDiscount(0.5, reward=c.CLIPPED_REWARD)(table)
    assert column(made, c.LEARNER_REWARD) == [1, -1]
    assert column(made, c.DISCOUNT) == [0.5, 0]
    for name in AddDiscount.adds:
        assert made.schema.field(name).type == pa.float32()
    assert column(AddDiscount(0.5)(table), c.LEARNER_REWARD) == [1, -2]


@pytest.mark.parametrize(
    "operator",
    [AddGAE(0.9, 0.5), ClipReward(1.0), AddDiscount(0.9), NStep(3, 0.9), AddTDPriority(3, 0.9)],
)
def test_operators_are_values_of_the_protocol(operator: Any) -> None:
    assert isinstance(operator, Operator)
    assert operator == dataclasses.replace(operator)
    assert hash(operator) == hash(dataclasses.replace(operator))
    renamed = dataclasses.replace(operator, reward=c.SCALED_REWARD)
    assert renamed.reads[0] == c.SCALED_REWARD != operator.reads[0]


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
