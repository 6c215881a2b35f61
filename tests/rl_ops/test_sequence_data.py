"""Windows of episodes: what they hold, where they end, how often each is drawn.

Legend: N rows, B windows, K steps.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_ops.sequence_data import SequenceData

CPU = torch.device("cpu")


def data_of(lengths, *, steps, begins=None):
    """Pieces whose rows are numbered from 1 on, so that 0 is padding."""
    total = sum(lengths)
    is_last = torch.zeros(total, dtype=torch.bool)
    is_last[np.cumsum(lengths) - 1] = True
    number = torch.arange(1, total + 1)
    columns = {
        "obs": torch.stack([number, -number], 1).float(),
        "action": number.clone(),
        "return_to_go": number / 8,
        "t": torch.cat([torch.arange(n) for n in lengths]),
    }
    return SequenceData(columns, is_last, steps=steps, begins=begins, device=CPU)


def windows(data, index):
    """The windows `index` as one minibatch."""
    (batch,) = data._gathered(torch.tensor(index), len(index))
    return batch


def test_windows_of_a_table_by_hand():
    batch = windows(data_of([4, 1, 2], steps=3), range(7))
    assert batch.action.tolist() == [
        [1, 2, 3],
        [2, 3, 4],
        [0, 3, 4],
        [0, 0, 4],
        [0, 0, 5],
        [0, 6, 7],
        [0, 0, 7],
    ]
    assert batch.t.tolist() == [
        [0, 1, 2],
        [1, 2, 3],
        [0, 2, 3],
        [0, 0, 3],
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 1],
    ]
    assert torch.equal(batch.step_mask, batch.action > 0)
    assert torch.equal(batch.obs[..., 0], batch.action.float())
    assert torch.equal(batch.obs[..., 1], -batch.action.float())
    assert torch.equal(batch.return_to_go, batch.action / 8)


def test_a_log_that_breaks_off_ends_its_last_piece():
    is_last = torch.tensor([False, True, False, False])
    column = {"action": torch.arange(1, 5)}
    data = SequenceData(column, is_last, steps=4, device=CPU)
    assert windows(data, [0, 2]).action.tolist() == [[0, 0, 1, 2], [0, 0, 3, 4]]


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    steps=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_windows_lie_in_one_piece_without_gaps_and_reach_its_end_or_have_k_steps(
    lengths, steps, seed
):
    data = data_of(lengths, steps=steps)
    generator = torch.Generator().manual_seed(seed)
    piece = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    assert data.rows == sum(lengths)
    for batch in data.minibatches(3, 4, generator=generator):
        assert batch.rows == 4
        assert batch.obs.shape == (4, steps, 2)
        for action, mask in zip(batch.action, batch.step_mask, strict=True):
            rows = (action[mask] - 1).tolist()
            assert rows == list(range(rows[0], rows[0] + len(rows)))
            assert mask.tolist() == [False] * (steps - len(rows)) + [True] * len(rows)
            assert len({piece[row] for row in rows}) == 1
            assert len(rows) == steps or rows[-1] + 1 == ends[piece[rows[0]]]
            assert not action[~mask].any()


def test_pieces_are_drawn_in_proportion_to_their_length():
    lengths = [12, 3, 1]
    data = data_of(lengths, steps=2)
    generator = torch.Generator().manual_seed(0)
    piece = np.repeat(np.arange(3), lengths)
    drawn = np.concatenate(
        [piece[b.action[:, -1].numpy() - 1] for b in data.minibatches(50, 64, generator=generator)]
    )
    share = np.bincount(drawn) / len(drawn)
    # three deviations of a share of 3 200 draws are below 0.025
    assert share == pytest.approx(np.array(lengths) / 16, abs=0.025)


def test_ranks_begin_at_rows_of_their_own_and_see_whole_windows():
    shards = [data_of([5, 3], steps=3, begins=torch.arange(rank, 8, 2)) for rank in range(2)]
    found = [windows(shard, range(shard.rows)).action.tolist() for shard in shards]
    whole = windows(data_of([5, 3], steps=3), range(8)).action.tolist()
    assert [found[0], found[1]] == [whole[0::2], whole[1::2]]


def test_randomness_is_the_generators_alone_whatever_the_chunks(monkeypatch):
    data = data_of([6, 9], steps=4)

    def drawn():
        generator = torch.Generator().manual_seed(5)
        found = [b.action for b in data.minibatches(7, 8, generator=generator)]
        return torch.stack(found), generator.get_state()

    many, state = drawn()
    monkeypatch.setattr("rl_ops.sequence_data._CHUNK_BYTES", 1)
    single, state_of_single = drawn()
    assert torch.equal(many, single)
    assert torch.equal(state, state_of_single)


def test_what_is_held_is_counted_and_what_cannot_be_is_refused():
    data = data_of([6, 9], steps=4)
    # obs of 2 floats, action and t of 8 bytes, return-to-go of 4; two numbers to a window
    assert data.num_bytes >= 15 * (8 + 8 + 8 + 4) + 15 * 16
    flags = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"columns of 3 rows, as is_last; got {'action': 2}"):
        SequenceData({"action": torch.zeros(2)}, flags, steps=2, device=CPU)
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="0 windows"):
        SequenceData({"action": torch.zeros(3)}, flags, steps=2, begins=empty, device=CPU)
