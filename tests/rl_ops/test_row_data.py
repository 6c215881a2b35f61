"""Rows of a data set: what minibatches are made of."""

import pytest
import torch

from rl_ops.row_data import RowData

CPU = torch.device("cpu")


def made(rows=10, *, shape=(3,), dtype=torch.float32) -> RowData:
    """Row i has observation i, bootstraps from i + 1, and says which it is."""
    obs = torch.arange(rows + 1).view(-1, *[1] * len(shape)).expand(-1, *shape).to(dtype)
    index = torch.arange(rows)
    columns = {"action": index.clone(), "return_n": index.float()}
    return RowData(obs, index, columns, bootstrap_row=index + 1, device=CPU)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("shape", "dtype"), [((3,), torch.float32), ((4, 4, 2), torch.uint8)])
def test_each_row_comes_with_its_own_columns_and_its_two_observations(shape, dtype):
    data = made(shape=shape, dtype=dtype)
    for batch in data.minibatches(20, 7, generator=generator()):
        number = batch.action
        assert batch.rows == 7
        assert batch.obs.shape == (7, *shape)
        assert batch.obs.dtype == dtype
        for tensor, expected in [
            (batch.obs, number),
            (batch.bootstrap_obs, number + 1),
            (batch.return_n, number),
        ]:
            assert torch.equal(tensor.reshape(7, -1)[:, 0].long(), expected)


def test_rows_are_drawn_evenly():
    data = made(5)
    drawn = torch.cat([b.action for b in data.minibatches(1000, 10, generator=generator())])
    counts = torch.bincount(drawn, minlength=5)
    # 10 000 draws of probability 1/5: 5 deviations of 40
    assert (counts - 2000).abs().max() < 200


def test_the_size_of_a_call_changes_no_draw():
    whole = [b.action for b in made().minibatches(6, 4, generator=generator())]
    one, parts = generator(), []
    for count in (1, 2, 3):
        parts += [b.action for b in made().minibatches(count, 4, generator=one)]
    assert torch.equal(torch.cat(whole), torch.cat(parts))


def test_a_row_left_out_is_never_drawn():
    obs, kept = torch.arange(6.0)[:, None], torch.tensor([0, 2, 4])
    data = RowData(obs, kept, {"action": kept}, device=CPU)
    drawn = torch.cat([b.obs[:, 0] for b in data.minibatches(50, 8, generator=generator())])
    assert set(drawn.tolist()) == {0.0, 2.0, 4.0}
    assert data.rows == 3


def test_columns_of_other_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="one number of rows, got"):
        RowData(torch.zeros(3, 1), torch.arange(3), {"action": torch.arange(2)}, device=CPU)
    with pytest.raises(ValueError, match="one number of rows"):
        RowData(torch.zeros(3, 1), torch.arange(0), {"action": torch.arange(0)}, device=CPU)
