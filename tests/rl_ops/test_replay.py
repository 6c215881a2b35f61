"""Replay memory: tiny rings by hand, the paper's formulas, and a model of lists."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops import replay as replay_module
from rl_ops import row_memory
from rl_ops.batch import Batch
from rl_ops.replay import Replay, ReplaySpec

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(capacity=5, **spec):
    return Replay(ReplaySpec(capacity, **spec), device=CPU)


def numbered(first, end):
    """Rows that know their number, in columns of several dtypes and shapes."""
    k = torch.arange(first, end)
    return Batch(
        {
            "is_last": k % 2 == 0,
            "obs": torch.stack([k, 2 * k, 3 * k], 1).float(),
            "action": k.clone(),
            "reward": k.float() / 4,
            "half": k.half(),
        }
    )


def tree_rows(first, end):
    """Rows of a column that is a dict with a tuple, and frames too large to be packed."""
    k = torch.arange(first, end)
    frames = k.to(torch.uint8)[:, None, None, None].expand(-1, 84, 84, 4)
    place = torch.stack([k, -k], 1).double()
    return Batch({"obs": {"place": place, "inner": (k.float(), frames)}, "action": k})


def filled(rows=8, capacity=5, **spec):
    replay = make(capacity, **spec)
    replay.add(numbered(0, rows))
    return replay


def draw(replay, count=20, rows=4, seed=0, **kw):
    return list(replay.minibatches(count, rows, generator=generator(seed), **kw))


def assert_numbered(batch, numbers):
    """The batch's rows are those that `numbered` gave these numbers, in every column."""
    k = torch.tensor(numbers, dtype=torch.int64)
    expected = numbered(0, 1000)
    assert batch.action.tolist() == numbers
    for name in ("is_last", "obs", "reward", "half"):
        got, want = getattr(batch, name), getattr(expected, name)[k]
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert torch.equal(got, want), name


class TestRing:
    def test_the_oldest_rows_make_room(self):
        replay = make(5)
        replay.add(numbered(0, 3))
        assert (replay.rows, replay.num_added) == (3, 3)
        assert_numbered(replay.newest(3), [0, 1, 2])
        replay.add(numbered(3, 7))
        assert (replay.rows, replay.num_added, replay.capacity_rows) == (5, 7, 5)
        assert_numbered(replay.newest(5), [2, 3, 4, 5, 6])
        assert_numbered(replay.newest(2), [5, 6])
        assert replay.newest(0).rows == 0

    @pytest.mark.parametrize("before", [0, 3, 5, 7])
    def test_of_more_rows_than_there_is_room_for_the_last_stay(self, before):
        replay = make(5)
        replay.add(numbered(0, before))
        replay.add(numbered(before, before + 13))
        assert replay.num_added == before + 13
        assert_numbered(replay.newest(5), list(range(before + 8, before + 13)))

    def test_a_row_lies_in_the_slot_of_its_number_modulo_the_capacity(self):
        replay = filled(8, 5)
        for drawn in draw(replay):
            assert torch.equal(drawn.batch.action % 5, drawn.index)
            assert_numbered(drawn.batch, drawn.batch.action.tolist())

    def test_no_rows_can_be_added(self):
        replay = make(5)
        replay.add(numbered(0, 0))
        assert (replay.rows, replay.num_added) == (0, 0)
        replay.add(numbered(0, 2))
        replay.add(numbered(2, 2))
        assert_numbered(replay.newest(2), [0, 1])

    def test_columns_may_come_in_another_order(self):
        replay = filled(2)
        replay.add(numbered(2, 4).select(["reward", "half", "obs", "action", "is_last"]))
        assert_numbered(replay.newest(4), [0, 1, 2, 3])

    def test_rows_do_not_share_memory_with_what_was_added_or_given_out(self):
        replay, batch = make(5), numbered(0, 3)
        replay.add(batch)
        batch.obs.zero_()
        replay.newest(3).obs.zero_()
        for drawn in draw(replay, 3):
            drawn.batch.obs.zero_()
        assert_numbered(replay.newest(3), [0, 1, 2])

    def test_a_column_with_gradient_is_stored_without(self):
        replay = make(5)
        replay.add(Batch({"value": torch.ones(2, requires_grad=True)}))
        assert not replay.newest(2).value.requires_grad
        assert not draw(replay, 1)[0].batch.value.requires_grad

    def test_trees_and_frames_come_back_as_they_were(self):
        replay = make(3)
        replay.add(tree_rows(0, 2))
        replay.add(tree_rows(2, 5))
        assert list(replay.newest(3).obs) == ["place", "inner"]
        for batch in (replay.newest(3), *(drawn.batch for drawn in draw(replay, 5))):
            place, (number, frames) = batch.obs["place"], batch.obs["inner"]
            assert torch.equal(place, torch.stack([batch.action, -batch.action], 1).double())
            assert torch.equal(number, batch.action.float())
            assert frames.shape == (batch.rows, 84, 84, 4)
            assert (frames == batch.action[:, None, None, None]).all()

    @pytest.mark.parametrize(
        "dtype",
        [torch.bool, torch.uint8, torch.int16, torch.bfloat16, torch.float64, torch.complex128],
    )
    @pytest.mark.parametrize("shape", [(), (3,), (5, 1001)])
    def test_every_dtype_and_width_keeps_its_bits(self, dtype, shape):
        raw = torch.randint(0, 2, (7, *shape), generator=generator())
        x = raw.to(dtype) if dtype == torch.bool else (raw * 100 + 27).to(dtype) / 2
        x = x.to(dtype)
        replay = make(4)
        replay.add(Batch({"flag": raw.reshape(7, -1)[:, 0] == 1, "x": x, "k": torch.arange(7)}))
        assert torch.equal(replay.newest(4).x, x[3:])
        for drawn in draw(replay, 3):
            assert drawn.batch.x.dtype == dtype
            assert torch.equal(drawn.batch.x, x[drawn.batch.k])

    def test_floats_keep_the_bits_of_nans_and_denormals(self):
        bits = torch.tensor([0x7F800001, -1, 1, -(2**31)], dtype=torch.int32)
        replay = make(4)
        replay.add(Batch({"x": bits.view(torch.float32), "k": torch.arange(4)}))
        for drawn in draw(replay, 5):
            got = drawn.batch.x.contiguous().view(torch.int32)
            assert torch.equal(got, bits[drawn.batch.k])

    def test_the_kernels_of_other_devices_gather_the_same(self):
        replay = make(6)
        replay.add(tree_rows(0, 10))
        expected = draw(replay, 5)
        replay._memory._arrays = None
        for got, want in zip(draw(replay, 5), expected, strict=True):
            assert torch.equal(got.batch.action, want.batch.action)
            assert torch.equal(got.batch.obs["place"], want.batch.obs["place"])
            assert torch.equal(got.batch.obs["inner"][1], want.batch.obs["inner"][1])

    def test_num_bytes_counts_rows_and_priorities(self):
        replay = make(1000)
        assert replay.num_bytes == 0
        replay.add(numbered(0, 1))
        row = 8 + 3 * 4 + 4 + 2 + 1
        assert 1000 * row <= replay.num_bytes < 1000 * (row + 8)
        assert make(1000, prioritized=True).num_bytes >= 8000


class TestRefusals:
    def test_later_batches_must_have_the_columns_of_the_first(self):
        replay = filled(3)
        batch = numbered(3, 5)
        pattern = (
            r"the replay's rows have obs torch.float32 \[3\]; the batch has obs torch.float64 \[3\]"
        )
        with pytest.raises(ValueError, match=pattern):
            replay.add(batch.with_columns(obs=batch.obs.double()))
        with pytest.raises(ValueError, match=r"obs torch.float32 \[3\]; .* torch.float32 \[3, 1\]"):
            replay.add(batch.with_columns(obs=batch.obs[..., None]))
        with pytest.raises(ValueError, match=r"have extra missing; .* extra torch.bool \[\]"):
            replay.add(batch.with_columns(extra=batch.is_last))
        with pytest.raises(ValueError, match=r"reward torch.float32 \[\]; .* reward missing"):
            replay.add(batch.select(["obs", "action", "is_last", "half"]))
        replay.check_valid()
        assert_numbered(replay.newest(3), [0, 1, 2])

    @pytest.mark.parametrize("key", ["a.b", "0", 3])
    def test_keys_that_would_make_flat_names_ambiguous(self, key):
        with pytest.raises(ValueError, match="obs has the key"):
            make().add(Batch({"obs": {key: torch.zeros(2)}}))

    def test_trees_whose_leaves_differ_in_rows(self):
        replay = make()
        with pytest.raises(ValueError, match=r"obs\.1 has 3 rows, the batch 2"):
            replay.add(Batch({"obs": (torch.zeros(2), torch.zeros(3))}))
        assert replay.num_added == 0

    @pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
    def test_priorities_that_are_negative_or_not_finite(self, bad):
        replay = filled(3, prioritized=True)
        before = replay.state()
        with pytest.raises(ValueError, match=r"priorities from .*finite, not negative"):
            replay.update_priorities(torch.tensor([0, 1]), torch.tensor([1.0, bad]))
        with pytest.raises(ValueError, match=r"priorities from .*finite, not negative"):
            replay.add(numbered(3, 5), priority=torch.tensor([bad, 1.0]))
        assert_same_tensors(replay.state(), before)
        replay.check_valid()

    def test_priorities_of_another_number(self):
        replay = filled(3, prioritized=True)
        with pytest.raises(ValueError, match=r"priority has shape \(1,\), expected \(2,\)"):
            replay.update_priorities(torch.tensor([0, 1]), torch.tensor([1.0]))
        with pytest.raises(ValueError, match=r"priority has shape \(2, 1\), expected \(2,\)"):
            replay.add(numbered(3, 5), priority=torch.ones(2, 1))

    @pytest.mark.parametrize("slot", [-1, 3, 4, 99])
    def test_a_slot_without_row_has_no_priority(self, slot):
        replay = filled(3, 5, prioritized=True)
        with pytest.raises(ValueError, match=f"slot {slot}|from {slot}"):
            replay.update_priorities(torch.tensor([slot]), torch.tensor([1.0]))
        replay.check_valid()

    def test_uniform_draws_have_no_priorities(self):
        replay = filled(3)
        with pytest.raises(ValueError, match="set replay.prioritized"):
            replay.update_priorities(torch.tensor([0]), torch.tensor([1.0]))
        with pytest.raises(ValueError, match="set replay.prioritized"):
            replay.add(numbered(3, 4), priority=torch.tensor([1.0]))

    def test_nothing_can_be_drawn_from_no_rows_or_in_no_size(self):
        with pytest.raises(ValueError, match="holds no rows"):
            make().minibatches(1, 4, generator=generator())
        for count, rows, beta in [(-1, 4, 1.0), (1, 0, 1.0), (1, 4, -0.1), (1, 4, np.nan)]:
            with pytest.raises(ValueError, match="expected at least 0, 1 and 0"):
                filled().minibatches(count, rows, generator=generator(), beta=beta)

    def test_more_rows_than_are_held(self):
        with pytest.raises(ValueError, match="got 4 rows, expected 0 to the 3 held"):
            filled(3).newest(4)

    @pytest.mark.parametrize("prioritized", [False, True])
    def test_rows_added_while_iterating(self, prioritized):
        replay = filled(3, prioritized=prioritized)
        drawn = replay.minibatches(5, 2, generator=generator())
        next(drawn)
        replay.add(numbered(3, 5))
        with pytest.raises(RuntimeError, match="2 rows were added while iterating"):
            next(drawn)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("capacity_rows", 0),
            ("priority_alpha", -0.1),
            ("priority_alpha", np.nan),
            ("priority_eps", 0.0),
            ("priority_eps", np.inf),
        ],
    )
    def test_numbers_of_the_spec_out_of_range(self, field, value):
        with pytest.raises(ValueError, match=field):
            ReplaySpec(**{"capacity_rows": 5, field: value})

    def test_a_memory_that_the_machine_does_not_have(self, monkeypatch):
        monkeypatch.setattr(row_memory, "available_bytes", lambda device: 3 * 2**30)
        make(3 * 2**30 // 32).add(numbered(0, 1))
        with pytest.raises(ValueError, match="needs 29.8 GiB; cpu has 3.0 GiB .* 100663296") as e:
            make(10**9).add(numbered(0, 1))
        assert "Lower replay.capacity_rows" in str(e.value)

    def test_the_machines_memory_is_known(self):
        assert 2**20 < row_memory.available_bytes(CPU) < 2**60
        with pytest.raises(ValueError, match="Lower replay.capacity_rows"):
            make(10**16).add(numbered(0, 1))


class TestDraws:
    def test_every_row_is_as_likely(self):
        replay = filled(13, 10)
        drawn = torch.cat([d.batch.action for d in draw(replay, 200, 50)])
        counts = torch.bincount(drawn, minlength=13)
        assert counts[:3].tolist() == [0, 0, 0]
        # Chi-square of 9 degrees of freedom is above 27.9 once in a thousand seeds.
        assert float(((counts[3:] - 1000) ** 2 / 1000).sum()) < 27.9

    def test_rows_not_filled_yet_are_never_drawn(self):
        assert set(torch.cat([d.index for d in draw(filled(3, 1000))]).tolist()) == {0, 1, 2}

    def test_there_are_as_many_minibatches_as_asked_for_and_no_weights(self):
        drawn = draw(filled(), count=7, rows=3)
        assert [(d.batch.rows, len(d.index), d.is_weight) for d in drawn] == [(3, 3, None)] * 7
        assert draw(filled(), count=0) == []

    @pytest.mark.parametrize("prioritized", [False, True])
    @pytest.mark.parametrize("chunk_bytes", [1, 1000, 2**24])
    def test_draws_do_not_depend_on_how_many_are_made_at_once(
        self, chunk_bytes, prioritized, monkeypatch
    ):
        replay, one, two = filled(prioritized=prioritized), generator(1), generator(1)
        expected = [d.index.tolist() for d in replay.minibatches(99, 4, generator=one)]
        monkeypatch.setattr(replay_module, "_CHUNK_BYTES", chunk_bytes)
        drawn = list(replay.minibatches(99, 4, generator=two))
        assert [d.index.tolist() for d in drawn] == expected
        assert torch.equal(one.get_state(), two.get_state())
        for d in drawn:
            assert_numbered(d.batch, d.batch.action.tolist())

    def test_draws_follow_the_generator(self):
        replay, one = filled(100, 100), generator(1)

        def numbers(g):
            return [d.index.tolist() for d in replay.minibatches(5, 8, generator=g)]

        first, second = numbers(one), numbers(one)
        assert numbers(generator(1)) == first != second


class TestDrawsByPriority:
    PRIORITY = torch.tensor([0.0, 0.5, 1.0, 4.0, 0.25, 2.0, 0.0, 8.0])

    def make(self, **spec):
        replay = make(8, prioritized=True, **spec)
        replay.add(numbered(0, 8), priority=self.PRIORITY)
        return replay

    def probability(self, alpha=0.6, eps=1e-6):
        """P(i) of equation 1 with p_i of the proportional variant."""
        p = (self.PRIORITY.numpy().astype(np.float64) + eps) ** alpha
        return p / p.sum()

    @pytest.mark.parametrize(("alpha", "eps"), [(0.6, 1e-6), (0.0, 1e-6), (1.0, 0.5)])
    def test_rows_are_drawn_in_proportion_to_the_papers_probability(self, alpha, eps):
        replay = self.make(priority_alpha=alpha, priority_eps=eps)
        drawn = torch.cat([d.index for d in draw(replay, 400, 32)])
        share = torch.bincount(drawn, minlength=8).numpy() / len(drawn)
        # Stratified draws are closer to their expectation than independent ones.
        np.testing.assert_allclose(share, self.probability(alpha, eps), atol=0.004)

    def test_each_stratum_gives_one_row(self):
        rows, replay = 16, self.make()
        right = self.probability().cumsum()
        for d in draw(replay, 50, rows):
            for k, i in enumerate(d.index.tolist()):
                left = 0.0 if i == 0 else right[i - 1]
                assert left <= (k + 1) / rows + 1e-9
                assert right[i] >= k / rows - 1e-9

    @pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
    def test_weights_are_the_papers(self, beta):
        for d in draw(self.make(), 20, 16, beta=beta):
            expected = (8 * self.probability()[d.index.numpy()]) ** -beta
            expected /= expected.max()
            assert d.is_weight.dtype == torch.float32
            np.testing.assert_allclose(d.is_weight.numpy(), expected, rtol=1e-6)
            assert d.is_weight.max() == 1.0

    def test_weights_undo_the_draws(self):
        """With beta = 1, unnormalised weights give the mean over all rows."""
        replay, values = self.make(priority_eps=0.5), torch.arange(8.0) ** 2
        p = torch.from_numpy(self.probability(eps=0.5))
        estimates = []
        for d in draw(replay, 500, 32):
            scale = float((8 * p[d.index]).pow(-1).max())  # undoes the normalisation
            estimates.append(float((d.is_weight * scale * values[d.index]).mean()))
        assert np.mean(estimates) == pytest.approx(float(values.mean()), rel=0.02)

    def test_without_prioritisation_weights_are_one(self):
        for d in draw(self.make(priority_alpha=0.0), 5):
            assert d.is_weight.tolist() == [1.0] * 4

    def test_new_rows_get_the_largest_priority_seen(self):
        replay = make(4, prioritized=True, priority_alpha=1.0, priority_eps=0.5)
        replay.add(numbered(0, 1))
        replay.add(numbered(1, 2), priority=torch.tensor([3.0]))
        replay.add(numbered(2, 3))
        replay.update_priorities(torch.tensor([1]), torch.tensor([0.25]))
        replay.add(numbered(3, 4))
        assert replay.state()["priorities"].tolist() == [1.5, 0.75, 3.5, 3.5]
        assert replay.state()["max_priority"].item() == 3.0

    def test_a_row_that_is_overwritten_takes_its_priority_along(self):
        replay = make(2, prioritized=True, priority_alpha=1.0, priority_eps=0.5)
        replay.add(numbered(0, 3), priority=torch.tensor([7.0, 1.0, 2.0]))
        assert replay.state()["priorities"].tolist() == [1.5, 2.5]
        replay.add(numbered(3, 8), priority=torch.tensor([9.0, 9.0, 9.0, 4.0, 5.0]))
        assert replay.state()["priorities"].tolist() == [4.5, 5.5]
        assert replay.state()["max_priority"].item() == 9.0

    def test_minibatches_see_the_priorities_that_earlier_ones_gave(self):
        replay = make(8, prioritized=True, priority_alpha=1.0, priority_eps=1e-12)
        replay.add(numbered(0, 8))
        drawn = replay.minibatches(2, 4, generator=generator())
        next(drawn)
        replay.update_priorities(torch.arange(8), torch.tensor([0.0] * 5 + [1.0] + [0.0] * 2))
        assert next(drawn).index.tolist() == [5, 5, 5, 5]

    def test_of_a_slot_drawn_twice_the_last_priority_stays(self):
        replay = filled(3, prioritized=True, priority_alpha=1.0, priority_eps=0.5)
        replay.update_priorities(torch.tensor([1, 1, 1]), torch.tensor([5.0, 6.0, 2.0]))
        assert replay.state()["priorities"].tolist() == [1.5, 2.5, 1.5]


def assert_same_tensors(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert torch.equal(one[name], two[name]), name


def assert_goes_on_alike(one, two):
    """Draws, updates and overwrites of both are bit-equal."""
    for step in range(4):
        for x, y in zip(draw(one, 3, 5, seed=step), draw(two, 3, 5, seed=step), strict=True):
            assert torch.equal(x.index, y.index)
            assert torch.equal(x.batch.action, y.batch.action)
            if x.is_weight is None:
                assert y.is_weight is None
            else:
                assert torch.equal(x.is_weight, y.is_weight)
                priority = torch.rand(5, generator=generator(step)) * 3
                one.update_priorities(x.index, priority)
                two.update_priorities(y.index, priority)
        rows = numbered(one.num_added, one.num_added + 3)
        one.add(rows)
        two.add(rows)
        assert_same_tensors(one.state(), two.state())
        assert_same_tensors(one.contents(), two.contents())


class TestSaving:
    @pytest.mark.parametrize("prioritized", [False, True])
    @pytest.mark.parametrize("rows", [3, 5, 17])
    @pytest.mark.parametrize("refilled", [False, True])
    def test_a_loaded_replay_goes_on_bit_for_bit(self, prioritized, rows, refilled):
        one = make(5, prioritized=prioritized)
        for first in range(rows):
            one.add(numbered(first, first + 1))
        if prioritized:
            for d in one.minibatches(5, 3, generator=generator(9)):
                one.update_priorities(d.index, torch.rand(3, generator=generator(rows)) * 7)
        two = make(5, prioritized=prioritized)
        two.load(one.state(), one.newest(one.rows) if refilled else one.contents())
        two.check_valid()
        assert_goes_on_alike(one, two)

    @pytest.mark.parametrize("prioritized", [False, True])
    def test_a_replay_that_held_more_can_be_loaded_into(self, prioritized):
        one, two = (make(5, prioritized=prioritized) for _ in range(2))
        one.add(numbered(0, 2))
        two.add(numbered(50, 70))
        two.load(one.state(), one.contents())
        two.check_valid()
        assert two.rows == 2
        assert_goes_on_alike(one, two)

    def test_nothing_can_be_saved_and_loaded(self):
        one, two = make(prioritized=True), filled(7, prioritized=True)
        assert one.contents() == {}
        two.load(one.state(), one.contents())
        two.check_valid()
        assert (two.rows, two.num_added) == (0, 0)

    def test_contents_have_flat_names_and_memory_of_their_own(self):
        replay = make(3)
        replay.add(tree_rows(0, 4))
        contents = replay.contents()
        assert list(contents) == ["obs.place", "obs.inner.0", "obs.inner.1", "action"]
        assert contents["action"].tolist() == [1, 2, 3]
        assert all(x.is_contiguous() for x in contents.values())
        assert len({x.untyped_storage().data_ptr() for x in contents.values()}) == 4

    def test_trees_are_rebuilt_from_flat_names(self):
        one, two = make(3), make(3)
        one.add(tree_rows(0, 4))
        two.load(one.state(), dict(reversed(one.contents().items())))
        assert_same_tensors(
            dict(sorted(two.contents().items())), dict(sorted(one.contents().items()))
        )
        assert isinstance(two.newest(3).obs["inner"], tuple)
        two.add(tree_rows(4, 5))
        assert two.newest(3).obs["place"][:, 0].tolist() == [2, 3, 4]

    def test_a_tuple_of_more_than_ten_keeps_its_order(self):
        one, two = make(3), make(3)
        one.add(Batch({"obs": tuple(torch.full((2,), i) for i in range(12))}))
        two.load(one.state(), one.contents())
        assert [int(x[0]) for x in two.newest(2).obs] == list(range(12))

    def test_refuses_another_number_of_rows(self):
        one, two = filled(8, 5), filled(2, 5)
        before = two.contents()
        with pytest.raises(
            ValueError, match=r"8 rows .* capacity of 5, so 5 must be given; got .*4"
        ):
            two.load(one.state(), one.newest(4))
        with pytest.raises(ValueError, match="so 5 must be given; got 0"):
            two.load(one.state(), {})
        with pytest.raises(ValueError, match="capacity of 6, so 6 must be given; got .*5"):
            make(6).load(one.state(), one.contents())
        assert_same_tensors(two.contents(), before)

    def test_refuses_the_state_of_another_spec(self):
        uniform, prioritized = filled(8), filled(8, prioritized=True)
        with pytest.raises(ValueError, match="expected .*max_priority.* where prioritized is True"):
            prioritized.load(uniform.state(), uniform.contents())
        with pytest.raises(ValueError, match="where prioritized is False"):
            uniform.load(prioritized.state(), prioritized.contents())
        state = prioritized.state()
        state["priorities"] = state["priorities"][:3]
        with pytest.raises(ValueError, match=r"priorities have shape \(3,\), expected \(5,\)"):
            prioritized.load(state, prioritized.contents())
        with pytest.raises(ValueError, match="-1 rows"):
            uniform.load({"num_added": torch.tensor(-1)}, {})

    def test_refuses_rows_of_other_columns(self):
        one, two = filled(8, prioritized=True), make(prioritized=True)
        one.update_priorities(torch.tensor([0]), torch.tensor([9.0]))
        two.add(tree_rows(0, 1))
        before = two.state()
        with pytest.raises(ValueError, match="the replay's rows have"):
            two.load(one.state(), one.contents())
        assert_same_tensors(two.state(), before)


class TestCheckValid:
    def test_a_spoilt_replay_is_noticed(self):
        replay = filled(3, prioritized=True)
        replay.check_valid()
        replay._tree.set(torch.tensor([4]), torch.tensor([1.0]))
        with pytest.raises(RuntimeError, match="a priority lies beyond the 3 rows"):
            replay.check_valid()
        replay._tree.set(torch.tensor([4, 2]), torch.tensor([0.0, 0.0]))
        with pytest.raises(RuntimeError, match="can never be drawn"):
            replay.check_valid()
        replay._tree.set(torch.tensor([2]), torch.tensor([1.0]))
        replay._max_priority = np.nan
        with pytest.raises(RuntimeError, match="largest priority is nan"):
            replay.check_valid()

    def test_rows_without_memory_are_noticed(self):
        replay = make()
        replay._num_added = 3
        with pytest.raises(RuntimeError, match="3 rows were added to a capacity of 5"):
            replay.check_valid()

    OPERATIONS = st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("draw"), st.integers(1, 3), st.integers(1, 6)),
        st.tuples(st.just("reload"), st.booleans()),
    )

    @pytest.mark.parametrize("prioritized", [False, True])
    @settings(deadline=None, max_examples=100)
    @given(
        operations=st.lists(OPERATIONS, max_size=12),
        capacity=st.integers(1, 7),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_sequence_of_calls_leaves_what_a_list_would_hold(
        self, prioritized, operations, capacity, seed
    ):
        rng = np.random.default_rng(seed)
        spec = {"prioritized": prioritized, "priority_alpha": 0.5, "priority_eps": 0.01}
        replay, model, largest = make(capacity, **spec), deque(maxlen=capacity), 1.0
        for kind, *args in operations:
            if kind == "add":
                rows, given_priority = args
                priority = rng.random(rows) * 5 if prioritized and given_priority else None
                tensor = None if priority is None else torch.from_numpy(priority)
                first = replay.num_added
                replay.add(numbered(first, first + rows), priority=tensor)
                raw = [largest] * rows if priority is None else priority.tolist()
                model.extend([first + i, p] for i, p in enumerate(raw))
                largest = max([largest, *raw])
            elif kind == "draw" and replay.rows > 0:
                held = {row[0] for row in model}
                for d in replay.minibatches(*args, generator=generator(seed)):
                    assert set(d.batch.action.tolist()) <= held
                    assert_numbered(d.batch, d.batch.action.tolist())
                    if prioritized:
                        priority = rng.random(args[1]) * 5
                        replay.update_priorities(d.index, torch.from_numpy(priority))
                        updated = dict(zip(d.batch.action.tolist(), priority, strict=True))
                        for row in model:
                            row[1] = updated.get(row[0], row[1])
                        largest = max(largest, *priority)
            elif kind == "reload":
                state, contents = replay.state(), replay.contents()
                rows = replay.newest(replay.rows) if args[0] and contents else contents
                replay = make(capacity, **spec)
                replay.load(state, rows)
            replay.check_valid()
            assert replay.rows == len(model)
        if replay.num_added > 0:
            assert_numbered(replay.newest(replay.rows), [row[0] for row in model])
        if prioritized:
            expected = [(row[1] + 0.01) ** 0.5 for row in model]
            np.testing.assert_allclose(replay.state()["priorities"], expected, rtol=1e-12)
            assert replay.state()["max_priority"].item() == largest
