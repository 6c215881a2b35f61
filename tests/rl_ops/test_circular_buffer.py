"""The buffer of versions: whose turn it is, how often each comes, and what a checkpoint keeps."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_ops.batch import Batch
from rl_ops.circular_buffer import CircularBuffer

CPU = torch.device("cpu")


def version(k: int, rows: int = 2) -> Batch:
    """A batch whose rows all say that they are version k's."""
    return Batch(
        {"obs": torch.full((rows, 3), float(k)), "is_last": torch.arange(rows) == rows - 1}
    )


def number(batch: Batch) -> int:
    return int(batch.obs[0, 0])


def uses(capacity: int, per_add: int, versions: int) -> list[list[int]]:
    """Which versions each round of `per_add` uses takes, in order."""
    buffer, rounds = CircularBuffer(capacity, device=CPU), []
    for k in range(versions):
        buffer.add(version(k))
        rounds.append([number(buffer.next()) for _ in range(per_add)])
    return rounds


def test_turns_go_from_the_newest_backwards() -> None:
    assert uses(2, 2, 4) == [[0, 0], [1, 0], [2, 1], [3, 2]]
    assert uses(3, 4, 4) == [[0] * 4, [1, 0, 1, 0], [2, 1, 0, 2], [3, 2, 1, 3]]
    assert uses(1, 3, 2) == [[0] * 3, [1] * 3]


@given(capacity=st.integers(1, 5), per_add=st.integers(1, 7))
def test_every_version_is_given_as_often_as_next_is_called_per_add(
    capacity: int, per_add: int
) -> None:
    versions = 4 * capacity
    count = Counter(k for taken in uses(capacity, per_add, versions) for k in taken)
    # the first have nothing older beside them, and the last are not dropped yet
    whole = range(capacity - 1, versions - capacity + 1)
    assert [count[k] for k in whole] == [per_add] * len(whole)


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_loaded_buffer_goes_on_with_the_same_turns_and_rows(done: int) -> None:
    one, two = (CircularBuffer(3, device=CPU) for _ in range(2))
    for k, rows in enumerate((2, 5, 1, 4)):
        one.add(version(k, rows))
    for _ in range(done):
        one.next()
    two.add(version(9))
    two.load({k: x.clone() for k, x in one.state().items()}, one.contents())
    for _ in range(4):
        expected, found = one.next(), two.next()
        assert found.names == expected.names
        assert torch.equal(found.obs, expected.obs)
        assert torch.equal(found.is_last, expected.is_last)
    assert {number(two.next()) for _ in range(3)} == {1, 2, 3}, "the oldest was dropped"


def test_columns_that_are_trees_survive_too() -> None:
    buffer = CircularBuffer(2, device=CPU)
    for k in range(2):
        action = {"go": torch.tensor([k, k + 1]), "how": (torch.full((2, 2), k / 2),)}
        buffer.add(Batch({"action": action, "logp": torch.tensor([0.5, k])}))
    rows = buffer.contents()
    assert sorted(rows) == ["action.go", "action.how.0", "logp"]
    again = CircularBuffer(2, device=CPU)
    again.load(buffer.state(), rows)
    for _ in range(2):
        expected, found = buffer.next(), again.next()
        assert torch.equal(found.action["go"], expected.action["go"])
        assert torch.equal(found.action["how"][0], expected.action["how"][0])
        assert torch.equal(found.logp, expected.logp)


def test_an_empty_buffer_survives_and_has_nothing_to_give() -> None:
    buffer, other = (CircularBuffer(2, device=CPU) for _ in range(2))
    assert buffer.contents() == {}
    other.add(version(1))
    other.load(buffer.state(), buffer.contents())
    with pytest.raises(ValueError, match="the buffer is empty; add a batch first"):
        other.next()


def test_rows_of_another_number_are_refused_and_nothing_is_loaded() -> None:
    buffer = CircularBuffer(2, device=CPU)
    buffer.add(version(0))
    buffer.add(version(1))
    state, rows = buffer.state(), buffer.contents()
    other = CircularBuffer(2, device=CPU)
    other.add(version(7))
    with pytest.raises(ValueError, match=r"held 4 rows, and there are \{'obs': 3\}"):
        other.load(state, {**rows, "obs": rows["obs"][:3]})
    with pytest.raises(ValueError, match="held 4 rows, and there are none"):
        other.load(state, {})
    assert number(other.next()) == 7


def test_a_buffer_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity=0; a buffer holds at least one batch"):
        CircularBuffer(0, device=CPU)
