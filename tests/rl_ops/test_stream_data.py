"""Windows of a stream: each row once a pass, and a resumed stream goes on bit for bit."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.batch import Batch
from rl_ops.stream_data import Block, Place, StreamData

CPU = torch.device("cpu")
GENERATOR = torch.Generator()


class Files:
    """Files of numbered rows in blocks; counts what is read."""

    def __init__(self, files: list[list[int]]) -> None:
        self.files = files
        self.read = 0

    def __call__(self, place: Place):
        number = sum(sum(blocks) for blocks in self.files[: place.file])
        for file, blocks in enumerate(self.files[place.file :], start=place.file):
            for rows in blocks:
                self.read += rows
                # a pass adds a million, so that its rows can be told from those of another
                first = number + 1_000_000 * place.epoch
                yield Block(Batch({"x": torch.arange(first, first + rows)}), file)
                number += rows


def stream(files, *, window_rows=8) -> StreamData:
    return StreamData(Files(files), window_rows=window_rows, seed=0, device=CPU)


def drawn(data, count, rows):
    return [b.x for b in data.minibatches(count, rows, generator=GENERATOR)]


layouts = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=60)
@given(files=layouts, rows=st.integers(1, 4), window=st.integers(1, 12), passes=st.integers(1, 3))
def test_every_row_comes_once_a_pass(files, rows, window, passes):
    total = sum(map(sum, files))
    count = -(-passes * total // rows)
    data = stream(files, window_rows=window)
    size = max(1, window // rows) * rows
    windows = -(-count * rows // size) * size // rows  # whole windows, to count what they hold
    seen = torch.cat(drawn(data, windows, rows))
    expected = [
        epoch * 1_000_000 + i for epoch in range(len(seen) // total + 1) for i in range(total)
    ]
    assert sorted(seen.tolist()) == sorted(expected[: len(seen)])


@settings(max_examples=60)
@given(files=layouts, rows=st.integers(1, 4), window=st.integers(1, 12), before=st.integers(0, 30))
def test_a_resumed_stream_goes_on_as_it_would_have(files, rows, window, before):
    one = stream(files, window_rows=window)
    drawn(one, before, rows)
    other = stream(files, window_rows=window)
    other.load_state(json.loads(json.dumps(one.state())))
    for ours, theirs in zip(drawn(one, 25, rows), drawn(other, 25, rows), strict=True):
        assert torch.equal(ours, theirs)
    assert one.state() == other.state()


def test_a_window_is_shuffled_and_another_otherwise():
    data = stream([[1000]], window_rows=100)
    first, second = (torch.cat(drawn(data, 10, 10)) for _ in range(2))
    assert sorted(first.tolist()) == list(range(100))
    assert first.tolist() != sorted(first.tolist())
    assert (second - 100).tolist() != first.tolist()


def test_a_resume_reads_no_file_before_its_window():
    data = stream([[10], [10], [10]], window_rows=10)
    drawn(data, 4, 5)  # the first two windows
    again = stream([[10], [10], [10]], window_rows=10)
    again.load_state(data.state())
    drawn(again, 2, 5)
    assert again._blocks.read <= 20


def test_a_data_set_without_rows_is_refused():
    with pytest.raises(ValueError, match="has no rows"):
        drawn(stream([]), 1, 1)
