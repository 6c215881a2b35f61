"""Tables as tensors: shapes, memory, minibatches."""

import copy
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_ops import columns as c
from rl_ops.batch import Batch, to_batch
from rl_ops.errors import ColumnError
from rl_ops.spaces import codec_for
from tests.envs import OBS_SPACES
from tests.rollout_kit import env_spec, fragments, make_rollout

CPU = torch.device("cpu")


def table(rows: int, first: int = 0) -> pa.Table:
    space = OBS_SPACES["dict"]
    codec = codec_for(space)
    obs = codec.empty(rows)
    obs["place"][:, 0] = np.arange(first, first + rows)
    obs["inner"][0][:] = 1
    return pa.table(
        {
            c.OBS: codec.encode(obs),
            c.LOGP: np.arange(first, first + rows, dtype=np.float32),
            c.IS_LAST: np.arange(rows) % 2 == 0,
            c.T: np.arange(rows, dtype=np.int32),
        }
    )


CODECS = {c.OBS: codec_for(OBS_SPACES["dict"]), c.LOGP: None, c.IS_LAST: None, c.T: None}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_columns_become_tensors_of_their_own_dtypes() -> None:
    batch = to_batch([table(3)], CODECS, device=CPU)
    assert batch.rows == 3
    assert batch.logp.tolist() == [0, 1, 2]
    assert (batch.logp.dtype, batch.is_last.dtype, batch.t.dtype) == (
        torch.float32,
        torch.bool,
        torch.int32,
    )
    assert batch.is_last.tolist() == [True, False, True]
    assert isinstance(batch.obs["inner"], tuple)
    assert batch.obs["inner"][1].shape == (3, 2)
    assert batch.obs["place"][:, 0].tolist() == [0, 1, 2]


def test_several_tables_are_joined_in_order() -> None:
    one, chunked = table(2), pa.concat_tables([table(2, 2), table(1, 4)])
    batch = to_batch([one, chunked], CODECS, device=CPU)
    assert batch.rows == 5
    assert batch.logp.tolist() == [0, 1, 2, 3, 4]
    assert batch.obs["place"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_the_tables_memory_is_never_written() -> None:
    for tables in ([table(3)], [table(3), table(2)]):
        before = [t.to_pydict() for t in tables]
        batch = to_batch(tables, CODECS, device=CPU)
        batch.logp.add_(1)
        batch.obs["place"].add_(1)
        batch.is_last.logical_not_()
        assert [t.to_pydict() for t in tables] == before


def test_columns_are_renamed_for_the_learner() -> None:
    batch = to_batch([table(2)], CODECS, device=CPU, rename={c.LOGP: "old_logp"})
    assert batch.old_logp.tolist() == [0, 1]
    assert c.LOGP not in batch


def test_rollouts_become_batches() -> None:
    env = env_spec("spaces_env", obs="image", action="dict")
    rollout = make_rollout(env, num_envs=2, steps=3, gain=0.001)
    policy = rollout.spec.policy
    codecs = {
        c.MODEL_OBS: codec_for(policy.obs_connectors.output_space)
        if not policy.obs_connectors.is_identity
        else None,
        c.ACTION: codec_for(policy.action_connectors.input_space),
        c.LOGP: None,
    }
    if policy.obs_connectors.is_identity:
        codecs[c.OBS] = codec_for(policy.obs_space)
        del codecs[c.MODEL_OBS]
    batch = to_batch(fragments(rollout, 2), codecs, device=CPU)
    assert batch.rows == 12
    assert batch.obs.dtype == torch.uint8
    assert batch.obs.shape == (12, 10, 12, 3)
    assert batch.action["how"].shape == (12, 2)


def test_a_missing_column_is_named_with_what_there_is() -> None:
    words = r"the learner reads 'value'; the stream has \['obs', 'logp', 'is_last', 't'\]"
    with pytest.raises(ColumnError, match=words):
        to_batch([table(1)], {c.VALUE: None}, device=CPU)
    batch = to_batch([table(1)], {c.LOGP: None}, device=CPU)
    with pytest.raises(ColumnError, match=r"the batch has no 'value'; it has \['logp'\]"):
        _ = batch.value


def test_columns_of_different_rows_are_refused() -> None:
    words = r"one number of rows, got \{'a': 2, 'b': 3\}"
    with pytest.raises(ValueError, match=words):
        Batch({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match="one number of rows"):
        Batch({"a": torch.zeros(2)}).with_columns(b=torch.zeros(1))
    with pytest.raises(ValueError, match=r"got \{\}"):
        Batch({})


def test_columns_are_added_and_selected_in_new_batches() -> None:
    batch = Batch({"a": torch.zeros(2), "b": torch.ones(2)})
    more = batch.with_columns(b=torch.full((2,), 5.0), d=torch.zeros(2))
    assert more.b.tolist() == [5, 5]
    assert batch.b.tolist() == [1, 1]
    assert "d" not in batch
    few = more.select(["a", "d"])
    assert ("a" in few, "b" in few, few.rows) == (True, False, 2)
    with pytest.raises(ColumnError, match="no 'z'"):
        more.select(["z"])


@given(
    rows=st.integers(1, 40),
    max_rows=st.integers(1, 50),
    min_count=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_minibatches_are_all_rows_once_in_nearly_equal_parts(
    rows: int, max_rows: int, min_count: int, seed: int
) -> None:
    batch = Batch({"x": torch.arange(rows), "tree": {"y": (torch.arange(rows) * 2,)}})
    min_count = min(min_count, rows)
    parts = list(batch.minibatches(max_rows, generator=generator(seed), min_count=min_count))
    sizes = [part.rows for part in parts]
    assert sorted(torch.cat([part.x for part in parts]).tolist()) == list(range(rows))
    assert all(torch.equal(part.x * 2, part.tree["y"][0]) for part in parts)
    assert all(len(part.x) == part.rows for part in parts)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max_rows
    assert len(parts) == max(-(-rows // max_rows), min_count)


def test_minibatches_follow_their_generator() -> None:
    batch = Batch({"x": torch.arange(30)})

    def order(generator: torch.Generator) -> list[int]:
        return [i for part in batch.minibatches(7, generator=generator) for i in part.x.tolist()]

    one = generator(1)
    first, second = order(one), order(one)
    assert order(generator(1)) == first != second
    assert order(generator(2)) != first
    assert batch.x.tolist() == list(range(30)), "the batch itself keeps its order"


def test_no_rows_make_no_minibatch() -> None:
    batch = to_batch([table(0)], CODECS, device=CPU)
    assert batch.rows == 0
    assert list(batch.minibatches(4, generator=generator())) == []


def test_a_batch_can_be_copied_and_pickled() -> None:
    batch = Batch({"x": torch.arange(3)})
    for twin in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert twin.x.tolist() == [0, 1, 2]
        assert twin.rows == 3
