"""Spaces to Arrow and back, and to JSON and back."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rl_ops.errors import SpecError
from rl_ops.spaces import codec_for, space_from_json, space_to_json
from rl_ops.tree import tree_leaves, tree_map, tree_map_spaces, tree_take, zip_spaces

FLOATS = (np.float16, np.float32, np.float64)
INTS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
SHAPES = st.sampled_from([(), (1,), (3,), (2, 3), (2, 2, 3)])


@st.composite
def boxes(draw):
    dtype, shape = draw(st.sampled_from((*FLOATS, *INTS, np.bool_))), draw(SHAPES)
    if dtype is np.bool_:
        return Box(0, 1, shape, np.bool_)
    if dtype in FLOATS:
        size = int(np.prod(shape))
        bound = st.sampled_from([0.0, 0.5, 1.0, 7.25, np.inf])
        high = np.array(draw(st.lists(bound, min_size=size, max_size=size)), dtype).reshape(shape)
        low = -high if draw(st.booleans()) else np.full(shape, -np.inf, dtype)
        return Box(low, high, dtype=dtype)
    unsigned = np.issubdtype(dtype, np.unsignedinteger)
    low = draw(st.integers(0 if unsigned else -100, 20))
    return Box(low, draw(st.integers(low, 100)), shape, dtype)


@st.composite
def discretes(draw):
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    start = draw(st.integers(0 if dtype is np.uint8 else -5, 5))
    return Discrete(draw(st.integers(1, 9)), start=start, dtype=dtype)


@st.composite
def multi_discretes(draw):
    shape = draw(st.sampled_from([(2,), (2, 2)]))
    size = int(np.prod(shape))
    nvec = draw(st.lists(st.integers(1, 6), min_size=size, max_size=size))
    start = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    return MultiDiscrete(np.reshape(nvec, shape), start=np.reshape(start, shape), dtype=dtype)


LEAVES = st.one_of(
    boxes(),
    discretes(),
    multi_discretes(),
    st.sampled_from([MultiBinary(3), MultiBinary((2, 2))]),
)
SPACES = st.recursive(
    LEAVES,
    lambda child: (
        st.dictionaries(st.sampled_from(["b", "a", "obs.x", "0"]), child, min_size=1).map(Dict)
        | st.lists(child, min_size=1, max_size=3).map(Tuple)
    ),
    max_leaves=5,
)


def random_batch(space, rows, seed):
    """Any bits a batch of the space may hold, NaN payloads and -0.0 among them."""
    rng = np.random.default_rng(seed)

    def leaf_batch(leaf, _):
        shape = (rows, *leaf.shape)
        if leaf.dtype == np.bool_:
            return rng.integers(0, 2, shape).astype(np.bool_)
        if leaf.dtype == np.uint64:
            return rng.integers(0, 2**63, shape, dtype=np.uint64)
        bits = np.frombuffer(
            rng.bytes(int(np.prod(shape)) * leaf.dtype.itemsize), leaf.dtype
        ).reshape(shape)
        return np.nan_to_num(bits) if leaf.dtype == np.float16 else bits

    return tree_map_spaces(leaf_batch, space, codec_for(space).empty(0))


def stacked_samples(space, rows, seed):
    space.seed(seed)
    samples = [space.sample() for _ in range(rows)]
    batch = tree_map(lambda *items: np.stack(items), *samples)
    return tree_map_spaces(lambda leaf, x: x.astype(leaf.dtype), space, batch)


def assert_same_bits(got, expected):
    for one, other in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


@given(space=SPACES, rows=st.integers(0, 7), seed=st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_a_batch_comes_back_bit_for_bit(space, rows, seed):
    codec, batch = codec_for(space), random_batch(space, rows, seed)
    array = codec.encode(batch)
    array.validate(full=True)
    assert len(array) == rows
    assert array.type == codec.arrow_type
    assert_same_bits(codec.decode(array), batch)


@given(space=SPACES, rows=st.integers(1, 9), seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=60, deadline=None)
def test_slices_and_chunks_decode_to_their_own_rows(space, rows, seed, data):
    codec, batch = codec_for(space), random_batch(space, rows, seed)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    table = pa.table({"obs": codec.encode(batch)})
    part = table.slice(start, stop - start)
    expected = tree_take(batch, slice(start, stop))
    assert_same_bits(codec.decode(part["obs"]), expected)
    # A slice of a slice, and chunks out of order.
    assert_same_bits(codec.decode(part.slice(1)["obs"]), tree_take(expected, slice(1, None)))
    swapped = pa.concat_tables([table.slice(start), table.slice(0, start)])
    order = np.roll(np.arange(rows), -start)
    assert_same_bits(codec.decode(swapped["obs"]), tree_take(batch, order))


@given(space=SPACES, rows=st.integers(1, 9), seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=60, deadline=None)
def test_null_rows_come_back_as_zeros_and_others_untouched(space, rows, seed, data):
    codec, batch = codec_for(space), random_batch(space, rows, seed)
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    array = codec.encode(batch, valid)
    array.validate(full=True)
    np.testing.assert_array_equal(array.is_valid().to_numpy(zero_copy_only=False), valid)
    expected = codec.empty(rows)
    for target, source in zip(tree_leaves(expected), tree_leaves(batch), strict=True):
        target[valid] = source[valid]
    assert_same_bits(codec.decode(array), expected)
    start = data.draw(st.integers(0, rows))
    assert_same_bits(codec.decode(array.slice(start)), tree_take(expected, slice(start, None)))
    # `take` may drop what lay under the nulls.
    order = np.random.default_rng(seed).permutation(rows)
    assert_same_bits(codec.decode(array.take(pa.array(order))), tree_take(expected, order))


EVERY_STORAGE = Dict(
    f16=Box(-1, 1, (2,), np.float16),
    f32=Box(-1, 1, (2, 2), np.float32),
    f64=Box(-1, 1, (3,), np.float64),
    image=Box(0, 255, (4, 4, 3), np.uint8),
    byte=Box(0, 255, (), np.uint8),
    u32=Box(0, 2**32 - 1, (2,), np.uint32),
    flag=Box(0, 1, (2,), np.bool_),
    discrete=Discrete(3),
    tuple=Tuple([MultiBinary(2), MultiDiscrete([2, 3])]),
)


@pytest.mark.parametrize("with_nulls", [False, True])
def test_a_column_survives_parquet(with_nulls):
    codec, batch = codec_for(EVERY_STORAGE), random_batch(EVERY_STORAGE, 6, 0)
    valid = np.array([True, False, True, True, False, True]) if with_nulls else None
    array, file = codec.encode(batch, valid), io.BytesIO()
    pq.write_table(pa.table({"obs": array}), file)
    read = pq.read_table(file)["obs"]
    assert_same_bits(codec.decode(read), codec.decode(array))


def without_sizes(kind):
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, without_sizes(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.field("element", kind.value_type))
    return pa.binary() if pa.types.is_fixed_size_binary(kind) else kind


@pytest.mark.parametrize("with_nulls", [False, True])
def test_lists_and_binary_without_a_size_are_read_as_delta_returns_them(with_nulls):
    codec, batch = codec_for(EVERY_STORAGE), random_batch(EVERY_STORAGE, 5, 1)
    valid = np.array([True, False, True, True, False]) if with_nulls else None
    array = codec.encode(batch, valid)
    from_lake = pa.array(array.to_pylist(), without_sizes(codec.arrow_type))
    assert from_lake.type != codec.arrow_type
    assert_same_bits(codec.decode(from_lake.slice(1)), codec.decode(array.slice(1)))


@pytest.mark.parametrize(
    ("space", "arrow_type"),
    [
        (Discrete(5, start=-1, dtype=np.int32), pa.int64()),
        (Box(-1, 1, (), np.float32), pa.float32()),
        (Box(0, 9, (), np.uint8), pa.int16()),
        (Box(-1, 1, (2, 3), np.float32), pa.list_(pa.float32(), 6)),
        (Box(-1, 1, (3,), np.float64), pa.list_(pa.float64(), 3)),
        (Box(-1, 1, (3,), np.float16), pa.list_(pa.float32(), 3)),
        (Box(0, 255, (84, 84, 4), np.uint8), pa.binary(84 * 84 * 4)),
        (Box(0, 255, (128,), np.uint8), pa.binary(128)),
        (Box(0, 9, (3,), np.uint16), pa.list_(pa.int32(), 3)),
        (Box(0, 9, (3,), np.uint32), pa.list_(pa.int64(), 3)),
        (Box(0, 9, (3,), np.uint64), pa.list_(pa.int64(), 3)),
        (Box(-9, 9, (3,), np.int16), pa.list_(pa.int16(), 3)),
        (Box(0, 1, (3,), np.bool_), pa.list_(pa.int8(), 3)),
        (MultiBinary((2, 2)), pa.list_(pa.int8(), 4)),
        (MultiDiscrete([2, 3]), pa.list_(pa.int64(), 2)),
        (Tuple([Discrete(2), Discrete(3)]), pa.struct([("0", pa.int64()), ("1", pa.int64())])),
        (
            Dict({"b": Discrete(2), "a": Discrete(3)}),
            pa.struct([("a", pa.int64()), ("b", pa.int64())]),
        ),
    ],
    ids=str,
)
def test_each_space_has_its_storage(space, arrow_type):
    codec = codec_for(space)
    assert codec.arrow_type == arrow_type
    assert json.loads(json.dumps(codec.spec())) == codec.spec()


@pytest.mark.parametrize(
    "space",
    [
        Box(-1, 1, (3,), np.float32),
        Box(-1, 1, (), np.float64),
        Box(0, 255, (4, 4, 3), np.uint8),
        Box(0, 1, (3,), np.bool_),
        Discrete(4),
        MultiBinary(3),
        Tuple([Discrete(4), Box(0, 255, (2, 2), np.uint8)]),
    ],
    ids=str,
)
def test_encode_and_decode_share_the_memory_of_contiguous_batches(space):
    codec = codec_for(space)
    batch = random_batch(space, 6, 0)
    decoded = codec.decode(codec.encode(batch, np.ones(6, np.bool_)))
    for source, leaf in zip(tree_leaves(batch), tree_leaves(decoded), strict=True):
        assert leaf.ctypes.data == source.ctypes.data
        assert not leaf.flags.writeable
    part = codec.decode(pa.chunked_array([codec.encode(batch).slice(2, 3)]))
    for source, leaf in zip(tree_leaves(batch), tree_leaves(part), strict=True):
        assert leaf.ctypes.data == source[2:].ctypes.data


def test_a_batch_that_is_not_contiguous_is_copied_and_right():
    space = Box(-1, 1, (3,), np.float32)
    batch = np.arange(36, dtype=np.float32).reshape(3, 12)[:, ::4].T[:3]
    assert not batch.flags.c_contiguous
    np.testing.assert_array_equal(codec_for(space).decode(codec_for(space).encode(batch)), batch)


@given(space=SPACES, rows=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_empty_buffers_are_writable_zeros_of_the_space(space, rows):
    codec = codec_for(space)
    for leaf_space, leaf in zip_spaces(space, codec.empty(rows)):
        assert leaf.shape == (rows, *leaf_space.shape)
        assert leaf.dtype == leaf_space.dtype
        assert leaf.flags.writeable
        assert not leaf.any()


def test_a_codec_crosses_process_boundaries():
    codec = pickle.loads(pickle.dumps(codec_for(EVERY_STORAGE)))
    batch = random_batch(EVERY_STORAGE, 2, 0)
    assert_same_bits(codec.decode(codec.encode(batch)), batch)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Text(5), r"space is Text\(.*no rows of a fixed size; supported are Box, Discrete"),
        (Sequence(Discrete(2)), r"space is Sequence\("),
        (Graph(Discrete(2), None), r"space is Graph\("),
        (OneOf([Discrete(2)]), r"space is OneOf\("),
        (Dict(mission=Text(5), x=Discrete(2)), r"space\['mission'\] is Text"),
        (Tuple([Discrete(2), Dict(t=Text(5))]), r"space\['1'\]\['t'\] is Text"),
        (Box(0, 2**64 - 1, (2,), np.uint64), r"uint64 up to 18446744073709551615.*Lower its high"),
        (Box(0, 1, (0,)), "holds no values"),
        (Dict({}), "needs one entry or more"),
        (Dict({1: Discrete(2)}), "strings for keys"),
        (Box(0, 1, (2,), np.longdouble), "dtypes are bool, int8"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_spaces_without_a_fixed_encoding_are_refused_by_name(space, message):
    with pytest.raises(SpecError, match=message):
        codec_for(space)


@given(space=SPACES, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_check_accepts_what_the_space_samples(space, seed):
    batch = stacked_samples(space, 4, seed)
    # gymnasium's float16 exponential samples may overflow.
    assume(all(np.isfinite(leaf).all() for leaf in tree_leaves(batch)))
    codec_for(space).check(batch, where="obs")


VECTOR = Box(np.array([-1, -np.inf], np.float32), np.array([1, 5], np.float32))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"obs of E has NaN in 1 of 3 rows, the first at \[1, 1\]: got nan"),
        (np.inf, r"obs of E has Inf in 1 of 3 rows, the first at \[1, 1\]: got inf"),
        (-np.inf, "has Inf"),
        (5.5, r"has values out of bounds .* \[1, 1\]: got 5.5, expected .* in \[-inf, 5.0\]"),
    ],
)
def test_a_value_outside_the_space_is_named_with_its_place(value, message):
    batch = np.zeros((3, 2), np.float32)
    batch[1, 1] = value
    with pytest.raises(SpecError, match=message):
        codec_for(VECTOR).check(batch, where="obs of E")


def test_nan_is_reported_before_bounds_and_with_them_off():
    batch = np.array([[9, 0], [0, np.nan]], np.float32)
    for bounds in (True, False):
        with pytest.raises(SpecError, match="NaN"):
            codec_for(VECTOR).check(batch, where="obs", bounds=bounds)
    codec_for(VECTOR).check(batch[:1], where="obs", bounds=False)
    with pytest.raises(SpecError, match="out of bounds"):
        codec_for(VECTOR).check(batch[:1], where="obs")


@pytest.mark.parametrize(
    ("space", "batch", "message"),
    [
        (Discrete(3, start=1), np.array([1, 4]), r"\[1\]: got 4, .* in \[1, 3\]"),
        (Discrete(3, start=1), np.array([0]), "out of bounds"),
        (MultiDiscrete([2, 9]), np.array([[1, 8], [2, 0]]), r"\[1, 0\]: got 2"),
        (MultiBinary(2), np.array([[0, 2]], np.int8), "out of bounds"),
        (Box(0, 9, (1,), np.uint8), np.array([[10]], np.uint8), "out of bounds"),
        (Box(-1, 1, (2,)), np.zeros((4, 2)), "has dtype float64; .* needs float32"),
        (Box(-1, 1, (2,)), np.zeros((4, 3), np.float32), r"has shape \(4, 3\); .* needs \[B, 2\]"),
        (Box(-1, 1, (2,)), np.zeros((), np.float32), r"has shape \(\);"),
        (Box(-1, 1, (2,)), [[0.0, 0.0]], "obs is a list"),
        (Dict(a=Discrete(2)), {"b": np.array([0])}, r"keys \['b'\]; .* keys \['a'\]"),
        (Dict(a=Discrete(2)), np.array([0]), "obs is ndarray; expected a dict"),
        (Tuple([Discrete(2)]), (np.array([0]), np.array([0])), "2 entries; .* tuple of 1"),
        (Tuple([Discrete(2)]), [np.array([0])], "obs is list"),
        (Dict(a=Dict(b=Discrete(2))), {"a": {"b": np.array([7])}}, r"obs\['a'\]\['b'\] has"),
        (
            Tuple([Discrete(2), Discrete(2)]),
            (np.array([0]), np.array([0, 1])),
            "different row counts: {'0': 1, '1': 2}",
        ),
    ],
    ids=str,
)
def test_a_batch_that_does_not_fit_is_refused(space, batch, message):
    with pytest.raises(SpecError, match=message):
        codec_for(space).check(batch, where="obs")


def test_encode_refuses_another_dtype_and_a_mask_of_another_length():
    codec = codec_for(Box(-1, 1, (2,)))
    with pytest.raises(SpecError, match="float64"):
        codec.encode(np.zeros((4, 2)))
    with pytest.raises(SpecError, match="4 rows"):
        codec.encode(np.zeros((4, 2), np.float32), np.ones(3, np.bool_))


def test_a_column_without_chunks_is_an_empty_batch():
    codec = codec_for(EVERY_STORAGE)
    assert_same_bits(codec.decode(pa.chunked_array([], codec.arrow_type)), codec.empty(0))


@pytest.mark.parametrize(
    ("space", "column", "message"),
    [
        (Box(-1, 1, (2,)), pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32())), "other sizes"),
        (Box(0, 255, (2,), np.uint8), pa.array([b"ab", b"c"]), "other sizes"),
        (Box(0, 255, (2,), np.uint8), pa.array([b"abc"], pa.binary(3)), "other sizes"),
        (Box(-1, 1, (2,)), pa.array([[1.0] * 3], pa.list_(pa.float32(), 3)), "other sizes"),
        (Discrete(2), pa.chunked_array([], pa.float32()), "the column is float"),
        (Box(-1, 1, (2,)), pa.array([[1.0, 2.0]]), r"the column is list<item: double>"),
        (Discrete(2), pa.array([1.0]), "the column is double"),
        (Box(-1, 1, (2,)), pa.array([[1.0, None]], pa.list_(pa.float32(), 2)), "1 nulls inside"),
        (Dict(a=Discrete(2)), pa.array([{"a": None}], pa.struct([("a", pa.int64())])), "nulls"),
    ],
    ids=[
        "ragged",
        "short_bytes",
        "bytes3",
        "list3",
        "no_chunks",
        "double",
        "float_for_int",
        "null_in_list",
        "null_in_struct",
    ],
)
def test_columns_that_are_not_the_codecs_are_refused(space, column, message):
    with pytest.raises(SpecError, match=message):
        codec_for(space).decode(column)


def assert_identical_spaces(one, other):
    assert type(one) is type(other)
    assert one == other
    if isinstance(one, Dict):
        assert list(one.spaces) == list(other.spaces)
    if isinstance(one, Dict | Tuple):
        children = one.spaces.values() if isinstance(one, Dict) else one.spaces
        others = other.spaces.values() if isinstance(other, Dict) else other.spaces
        for child, twin in zip(children, others, strict=True):
            assert_identical_spaces(child, twin)
        return
    assert one.dtype == other.dtype
    for name in ("low", "high", "bounded_below", "bounded_above", "n", "nvec", "start"):
        if hasattr(one, name):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


@given(space=SPACES)
@settings(max_examples=80, deadline=None)
def test_a_space_comes_back_from_strict_json(space):
    text = json.dumps(space_to_json(space), allow_nan=False, sort_keys=True)
    assert_identical_spaces(space_from_json(json.loads(text)), space)


@pytest.mark.parametrize(
    "space",
    [
        Box(-np.inf, np.inf, (2,), np.int64),
        Box(-np.inf, 7, (2,), np.int8),
        Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
        Box(np.float32(0.1), np.finfo(np.float32).max, (2,), np.float32),
        Box(np.array([-np.inf, 0.1]), np.array([np.inf, 1e300]), dtype=np.float64),
        Box(0, 255, (210, 160, 3), np.uint8),
        Box(0, 2**64 - 1, (1,), np.uint64),
        Dict([("z", Discrete(2)), ("a", Discrete(3))]),
    ],
    ids=str,
)
def test_bounds_and_order_come_back_exactly(space):
    data = json.loads(json.dumps(space_to_json(space), allow_nan=False))
    assert_identical_spaces(space_from_json(data), space)
    assert len(json.dumps(data)) < 300, "uniform bounds are one number"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "Text"}, "kind 'Text' is unknown; kinds are Box"),
        ({}, "kind None is unknown"),
        ([], "kind 'list' is unknown"),
        ({"kind": "MultiBinary"}, "a MultiBinary cannot be read from its JSON: KeyError: 'n'"),
        ({"kind": "Discrete", "n": 0, "start": 0, "dtype": "int64"}, "a Discrete cannot be read"),
        ({"kind": "Box", "dtype": "object", "shape": [], "low": 0, "high": 1}, "dtype 'object'"),
        (
            {"kind": "Box", "dtype": "float32", "shape": [3], "low": [0, 0], "high": 1},
            "a Box cannot be read",
        ),
        ({"kind": "Tuple", "spaces": [{"kind": "x"}]}, "kind 'x' is unknown"),
    ],
    ids=str,
)
def test_json_that_is_no_space_is_refused(data, message):
    with pytest.raises(SpecError, match=message):
        space_from_json(data)


@pytest.mark.parametrize("space", [Text(3), Sequence(Discrete(2)), Dict({1: Discrete(2)})], ids=str)
def test_spaces_without_a_json_form_are_refused(space):
    with pytest.raises(SpecError, match=r"no JSON form|not strings"):
        space_to_json(space)


def test_rollout_modules_import_neither_torch_nor_ray():
    modules = ("spaces", "codec", "tree", "moments", "connectors", "action_connectors")
    imports = "\n".join(f"import rl_ops.{name}" for name in modules)
    heavy = "{'torch', 'ray', 'deltalake', 'pandas'} & set(sys.modules)"
    code = f"import sys\n{imports}\nassert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
