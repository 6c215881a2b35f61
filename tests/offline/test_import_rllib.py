"""RLlib's recordings: JSON lines, and its three layouts of parquet."""

import json

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box, Discrete

from offline.errors import ImportDataError
from offline.exchange import Episode, Spaces
from offline.import_rllib import RllibSource
from tests.offline.interop_kit import accepted

SPACES = Spaces(Box(-np.inf, np.inf, (2,), np.float32), Discrete(3), "test")


def batch(eps_id=1, rows=3, *, start=0, end=True, **columns):
    obs = [[float(t), 0.5] for t in range(start, start + rows + 1)]
    last = [False] * (rows - 1) + [end]
    made = {
        "type": "SampleBatch",
        "eps_id": [eps_id] * rows,
        "t": list(range(start, start + rows)),
        "obs": obs[:-1],
        "new_obs": obs[1:],
        "actions": [1] * rows,
        "rewards": [1.0] * rows,
        "terminateds": last,
        "truncateds": [False] * rows,
        "infos": [{}] * rows,
    }
    made |= columns
    return {name: values for name, values in made.items() if values is not None}


def source(tmp_path, *lines, name="output.json"):
    path = tmp_path / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return RllibSource((str(path),))


def test_a_line_is_an_episode_and_unknown_columns_are_named(tmp_path):
    made = source(tmp_path, batch(action_logp=[-1.0] * 3, vf_preds=[0.0] * 3))
    (one,) = accepted(made, SPACES)
    assert (one.episode_id, len(one), one.terminated) == ("1", 3, True)
    assert one.final_obs.tolist() == [[3.0, 0.5]]
    assert one.logp.tolist() == [-1.0] * 3
    assert made.ignored == {"infos", "vf_preds"}


def test_fragments_of_interleaved_episodes_come_together(tmp_path):
    lines = [
        batch(1, 2, end=False),
        batch(2, 2, end=False),
        batch(1, 2, start=2),
        batch(2, 1, start=2),
    ]
    found = {e.episode_id: len(e) for e in accepted(source(tmp_path, *lines), SPACES)}
    assert found == {"1": 4, "2": 3}


def test_a_line_may_hold_several_episodes(tmp_path):
    both = batch(rows=4, eps_id=0, terminateds=[False, True, False, True], t=[0, 1, 0, 1])
    both["eps_id"] = [1, 1, 2, 2]
    both.pop("new_obs")
    assert [len(e) for e in accepted(source(tmp_path, both), SPACES)] == [2, 2]


def test_old_dones_are_terminations_and_the_user_is_told(tmp_path):
    made = source(tmp_path, batch(terminateds=None, truncateds=None, dones=[0, 0, 1]))
    (one,) = accepted(made, SPACES)
    assert one.terminated
    assert "dones" in next(iter(made.notes))


def test_action_prob_gives_the_logarithm(tmp_path):
    (one,) = accepted(source(tmp_path, batch(action_prob=[0.5, 0.25, 1.0])), SPACES)
    np.testing.assert_allclose(one.logp, np.log([0.5, 0.25, 1.0]))


@pytest.mark.parametrize("column", ["obs", "new_obs", "actions"])
def test_packed_columns_are_refused_with_the_option_that_writes_others(tmp_path, column):
    made = source(tmp_path, batch(**{column: "BCJNGGhAogsBAAAAAACABZVn"}))
    with pytest.raises(ImportDataError, match=rf"line 1: column '{column}'.*compress_columns"):
        list(made.records(None))


def test_several_policies_are_refused_and_one_is_taken(tmp_path):
    def multi(*names):
        batches = {name: batch() for name in names}
        return {"type": "MultiAgentBatch", "count": 3, "policy_batches": batches}

    assert len(accepted(source(tmp_path, multi("default_policy")), SPACES)) == 1
    with pytest.raises(ImportDataError, match=r"MultiAgentBatch of \['a', 'b'\]"):
        list(source(tmp_path, multi("a", "b")).records(None))


def test_bad_lines_are_named_and_the_others_are_read(tmp_path):
    lines = [batch(1), "{broken", '{"a": 1}', batch(2, actions=[1]), batch(3, rewards="abc"[:0])]
    outcomes = accepted(source(tmp_path, *lines[:4], batch(4)), SPACES)
    good = [e.episode_id for e in outcomes if isinstance(e, Episode)]
    rows = [found[0].row for found in outcomes if isinstance(found, list)]
    assert (good, rows) == (["1", "4"], [2, 3, 4])


def test_rows_of_mixed_lengths_are_explained(tmp_path):
    obs = [[0.0, 0.5], [1.0], [2.0, 0.5]]
    (found,) = accepted(source(tmp_path, batch(obs=obs, new_obs=None)), SPACES)
    assert [(v.reason, v.message) for v in found] == [
        ("mixed_lengths", "obs has shape [1], other rows [2]")
    ]


def test_null_and_nan_are_not_finite(tmp_path):
    lines = [batch(1, rewards=[1.0, None, 1.0]), batch(2, rewards=[1.0, float("nan"), 1.0])]
    for found in accepted(source(tmp_path, *lines), SPACES):
        assert [v.reason for v in found] == ["not_finite"]


def write(tmp_path, table):
    path = tmp_path / "000.parquet"
    pq.write_table(table, path)
    return RllibSource((str(path),))


def step_columns(one):
    return {name: one[name] for name in one if name not in ("type", "infos")}


def test_parquet_with_a_row_for_each_step(tmp_path):
    (one,) = accepted(write(tmp_path, pa.table(step_columns(batch("e")))), SPACES)
    assert (one.episode_id, len(one), one.final_obs.tolist()) == ("e", 3, [[3.0, 0.5]])


def test_parquet_with_a_row_for_each_sample_batch(tmp_path):
    rows = [step_columns(batch(1)), step_columns(batch(2, rows=2))]
    found = accepted(write(tmp_path, pa.Table.from_pylist(rows)), SPACES)
    assert {e.episode_id: len(e) for e in found} == {"1": 3, "2": 2}


def test_parquet_with_packed_columns_is_refused(tmp_path):
    columns = {**step_columns(batch(1)), "obs": ["BCJNGG"] * 3}
    with pytest.raises(ImportDataError, match="output_compress_columns"):
        list(write(tmp_path, pa.table(columns)).records(None))


def test_tensors_of_ray_have_their_shape_with_ray_or_without(tmp_path):
    from ray.data.extensions import ArrowTensorArray

    frames = np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2)
    columns = {**step_columns(batch(1)), "obs": ArrowTensorArray.from_numpy(frames)}
    columns.pop("new_obs")
    spaces = Spaces(Box(-np.inf, np.inf, (2, 2), np.float32), Discrete(3), "test")
    (one,) = accepted(write(tmp_path, pa.table(columns)), spaces)
    np.testing.assert_array_equal(one.obs, frames)


def encoded(array):
    """As msgpack_numpy packs an array."""
    array = np.asarray(array)
    head = {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape}
    return {**head, b"data": array.tobytes()}


def chunk(*, start, stop, lookback=0, end=False, name="e", **changes):
    """`SingleAgentEpisode.get_state()` of steps start to stop."""

    def buffer(items, **more):
        return {"data": items, "lookback": lookback, "finalized": False, "space": None, **more}

    first = start - lookback
    obs = [encoded(np.array([t, 0.5], np.float32)) for t in range(first, stop + 1)]
    state = {
        "id_": name,
        "agent_id": None,
        "module_id": None,
        "observations": buffer(obs),
        "actions": buffer([encoded(np.int64(t % 3)) for t in range(first, stop)]),
        "rewards": buffer([float(t) for t in range(first, stop)]),
        "infos": buffer([{b"nd": True, b"kind": b"O", b"type": "O", b"data": b"\x80\x04"}]),
        "extra_model_outputs": {"action_logp": buffer([-1.0] * (stop - first))},
        "is_terminated": end,
        "is_truncated": False,
        "t_started": start,
    }
    return msgpack.packb({**state, **changes}, use_bin_type=True)


def test_packed_episodes_come_together_from_their_chunks(tmp_path):
    cells = [chunk(start=0, stop=3), chunk(start=3, stop=5, lookback=1, end=True)]
    (one,) = accepted(write(tmp_path, pa.table({"item": cells})), SPACES)
    assert one.reward.tolist() == [0, 1, 2, 3, 4]
    assert one.obs[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert one.action.tolist() == [0, 1, 2, 0, 1]
    assert one.final_obs.tolist() == [[5.0, 0.5]]
    assert one.logp.tolist() == [-1.0] * 5


def test_pickled_arrays_within_packed_episodes_are_refused_and_never_loaded(tmp_path):
    pickled = {b"nd": True, b"kind": b"O", b"type": "O", b"data": b"\x80\x04."}
    bad = {"data": pickled, "lookback": 0, "finalized": True, "space": None}
    cells = [chunk(start=0, stop=3, end=True, observations=bad)]
    with pytest.raises(ImportDataError, match="pickled objects"):
        list(write(tmp_path, pa.table({"item": cells})).records(None))


def test_a_broken_packed_episode_is_named(tmp_path):
    cells = [b"\xc1 nonsense", chunk(start=0, stop=2, end=True)]
    bad, good = accepted(write(tmp_path, pa.table({"item": cells})), SPACES)
    assert (bad[0].reason, bad[0].row) == ("bad_record", 0)
    assert isinstance(good, Episode)


def test_other_parquet_is_sent_to_its_importer(tmp_path):
    with pytest.raises(ImportDataError, match="millrace import parquet"):
        list(write(tmp_path, pa.table({"x": [1]})).records(None))
