"""Spaces as lake columns and back bit for bit, and as notes in the lake."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Space,
    Text,
    Tuple,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.errors import LakeError
from offline.row_columns import layout_of
from offline.schemas import TABLES, VALUES
from offline.spaces import SPACE_PROPERTY, SpaceCodec, describe_spaces, register_space, spaces_of
from offline.storage import Storage
from offline.tables import create_tables, open_table, set_property
from rl_ops.spaces import codec_for, leaf_bounds
from rl_ops.tree import Tree, space_leaves, tree_leaves, tree_map_spaces
from tests.offline.race_kit import race

FLOATS = (np.float16, np.float32, np.float64)
SMALL_INTS = (np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32)
WIDE_INTS = (np.int64, np.uint64)
SHAPES = st.sampled_from([(), (1,), (4,), (2, 3), (3, 1, 2)])
CARTPOLE = Box(-np.inf, np.inf, (4,), np.float32)
FRAMES = Box(0, 255, (3, 2), np.uint8)
MIXED = Dict(
    {"frame": FRAMES, "speed": Box(-1, 1, (2,), np.float64), "gear": Discrete(5, start=-1)}
)


@st.composite
def boxes(draw: st.DrawFn) -> Space:
    dtype, shape = draw(st.sampled_from((*FLOATS, *SMALL_INTS, *WIDE_INTS, np.bool_))), draw(SHAPES)
    if dtype is np.bool_:
        return Box(0, 1, shape, np.bool_)
    if dtype in FLOATS:
        return Box(-np.inf, np.inf, shape, dtype)
    limits = np.iinfo(dtype)
    if dtype in WIDE_INTS and draw(st.booleans()):
        return Box(max(limits.min, -(2**53)), 2**53, shape, dtype)
    return Box(limits.min, limits.max, shape, dtype)


@st.composite
def choices(draw: st.DrawFn) -> Space:
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    start = draw(st.integers(0 if dtype is np.uint8 else -5, 5))
    if draw(st.booleans()):
        return Discrete(draw(st.integers(1, 9)), start=start, dtype=dtype)
    nvec = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    return MultiDiscrete(nvec, start=[start] * len(nvec), dtype=dtype)


def nested(children: st.SearchStrategy[Space]) -> st.SearchStrategy[Space]:
    named = st.lists(st.tuples(st.sampled_from("zyxab"), children), min_size=1, max_size=3)
    unique = named.map(lambda pairs: Dict(list(dict(pairs).items())))
    return unique | st.lists(children, min_size=1, max_size=3).map(Tuple)


LEAVES = boxes() | choices() | st.sampled_from([MultiBinary(3), MultiBinary((2, 2))])
SPACES = st.recursive(LEAVES, nested, max_leaves=6)


def batch(space: Space, rows: int, seed: int) -> Tree:
    """Any bits that a leaf's dtype can have, within what its space states for integers."""
    rng = np.random.default_rng(seed)

    def leaf(child: Space, _: Any) -> Any:
        dtype, shape = np.dtype(child.dtype), (rows, *child.shape)
        if dtype.kind == "f":
            values = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype)
            values = values.reshape(shape).copy()
            # A signalling NaN turns into a quiet one wherever a processor converts it.
            values[np.isnan(values)] = np.nan
            odd = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 2], dtype)
            return np.where(rng.random(shape) < 0.3, rng.choice(odd, shape), values)
        low, high = (bound.astype(dtype) for bound in leaf_bounds(child))
        inside = rng.integers(low, high, shape, np.uint8 if dtype == np.bool_ else dtype, True)
        edges = np.where(rng.random(shape) < 0.5, low, high)
        return np.where(rng.random(shape) < 0.3, edges, inside).astype(dtype)

    return tree_map_spaces(leaf, space, skeleton(space))


def skeleton(space: Space) -> Tree:
    if isinstance(space, Dict):
        return {name: skeleton(child) for name, child in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(skeleton(child) for child in space.spaces)
    return None


def encoded(codec: SpaceCodec, tree: Tree, valid: Any = None) -> tuple[Any, Any]:
    return codec.columns(tree, valid)


def assert_same_bits(one: Tree, other: Tree) -> None:
    left, right = list(tree_leaves(one)), list(tree_leaves(other))
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


def taken(tree: Tree, rows: Any) -> Tree:
    if isinstance(tree, dict):
        return {name: taken(child, rows) for name, child in tree.items()}
    return tuple(taken(c, rows) for c in tree) if isinstance(tree, tuple) else tree[rows]


def through_delta(tmp_path: Path, values: Any, bytes_: Any) -> tuple[Any, Any]:
    """The two columns as they come back from a real table."""
    rows = len(values if values is not None else bytes_)
    columns = {
        "obs": pa.nulls(rows, VALUES) if values is None else values,
        "obs_bytes": pa.nulls(rows, pa.binary()) if bytes_ is None else bytes_,
    }
    write_deltalake(tmp_path, pa.table(columns), mode="overwrite")
    back = DeltaTable(tmp_path).to_pyarrow_table()
    return back["obs"], back["obs_bytes"]


@given(SPACES, st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_every_space_comes_back_bit_for_bit(space: Space, rows: int, seed: int) -> None:
    codec, tree = SpaceCodec(space), batch(space, rows, seed)
    values, bytes_ = encoded(codec, tree)
    for column, size in ((values, codec.num_values), (bytes_, codec.num_bytes)):
        assert (column is None) == (size == 0)
        if column is not None:
            column.validate(full=True)
            assert (len(column), column.null_count) == (rows, 0)
    assert_same_bits(codec.tree(values, bytes_), tree)


@given(SPACES, st.lists(st.booleans(), max_size=12), st.integers(0, 2**32 - 1), st.data())
def test_sliced_and_chunked_columns_with_nulls_come_back(
    space: Space, present: list[bool], seed: int, data: st.DataObject
) -> None:
    codec, valid = SpaceCodec(space), np.array(present, np.bool_)
    rows = len(valid)
    tree = batch(space, rows, seed)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    cut = data.draw(st.integers(start, stop))

    def pieces(column: Any) -> Any:
        if column is None:
            return None
        column.validate(full=True)
        assert column.is_valid().to_pylist() == present
        return pa.chunked_array([column[start:cut], column[cut:stop]], column.type)

    back = codec.tree(*(pieces(column) for column in encoded(codec, tree, valid)))
    kept = valid[start:stop]
    assert_same_bits(taken(back, kept), taken(taken(tree, slice(start, stop)), kept))
    for leaf in tree_leaves(taken(back, ~kept)):
        assert not leaf.any()


@settings(max_examples=25)
@given(
    space=SPACES, present=st.lists(st.booleans(), min_size=1, max_size=5), seed=st.integers(0, 99)
)
def test_columns_come_back_from_a_real_delta_table(
    tmp_path_factory: pytest.TempPathFactory, space: Space, present: list[bool], seed: int
) -> None:
    codec, valid = SpaceCodec(space), np.array(present)
    tree = batch(space, len(valid), seed)
    columns = through_delta(tmp_path_factory.mktemp("delta"), *encoded(codec, tree, valid))
    assert_same_bits(taken(codec.tree(*columns), valid), taken(tree, valid))


def fits_a_stream(space: Space) -> bool:
    leaves = list(space_leaves(space))
    return all(leaf.dtype != np.uint64 or leaf.high.max() <= 2**63 - 1 for leaf in leaves)


@given(
    SPACES.filter(fits_a_stream),
    st.lists(st.lists(st.booleans(), max_size=5), max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_a_streams_column_gives_what_its_batch_gives(
    space: Space, chunks: list[list[bool]], seed: int
) -> None:
    lake, stream = SpaceCodec(space), codec_for(space)
    trees = [batch(space, len(present), seed) for present in chunks]
    masks = [np.array(present, np.bool_) for present in chunks]
    chunks_ = [stream.encode(t, v) for t, v in zip(trees, masks, strict=True)]
    column = pa.chunked_array(chunks_, stream.arrow_type)
    expected = [encoded(lake, t, v) for t, v in zip(trees, masks, strict=True)]
    got_columns: tuple[Any, Any] = lake.from_stream(column, stream)
    for number, got in enumerate(got_columns):
        if got is not None:
            got.validate(full=True)
            assert got.is_valid().to_pylist() == [v for present in chunks for v in present]
            for chunk, parts in zip(got.chunks, expected, strict=True):
                # Arrow's equals takes NaN for different from itself.
                assert str(chunk.to_pylist()) == str(parts[number].to_pylist())
        else:
            assert all(parts[number] is None for parts in expected)


def test_a_slice_of_a_stream_is_read_from_where_it_begins() -> None:
    obs = np.arange(40, dtype=np.float32).reshape(10, 4)
    stream = codec_for(CARTPOLE)
    values, bytes_ = SpaceCodec(CARTPOLE).from_stream(stream.encode(obs)[3:5], stream)
    assert values is not None
    assert values.to_pylist() == obs[3:5].tolist()
    assert bytes_ is None


def test_a_stream_of_another_space_is_refused() -> None:
    stream = codec_for(Box(-1, 1, (3,), np.float32))
    column = stream.encode(np.zeros((2, 3), np.float32))
    with pytest.raises(LakeError, match="the lake's codec is of"):
        SpaceCodec(CARTPOLE).from_stream(column, stream)
    with pytest.raises(LakeError, match="the stream's column cannot be logged"):
        SpaceCodec(CARTPOLE).from_stream(column, codec_for(CARTPOLE))


def test_cartpole_is_four_doubles_and_one() -> None:
    obs = np.array([[0.5, -0.0, 1e-40, np.inf]], np.float32)
    values, bytes_ = encoded(SpaceCodec(CARTPOLE), obs)
    assert values.type == VALUES == TABLES["steps"].schema.field("obs").type
    assert values.to_pylist() == [[0.5, -0.0, float(np.float32(1e-40)), float("inf")]]
    assert bytes_ is None
    action, _ = encoded(SpaceCodec(Discrete(2)), np.array([1]))
    assert action.to_pylist() == [[1.0]]


def test_a_frame_is_raw_bytes_and_the_rest_is_numbers_in_the_spaces_order() -> None:
    space = Dict([("z", Discrete(9)), ("frame", FRAMES), ("a", Box(-1, 1, (2,), np.float32))])
    frame = np.arange(6, dtype=np.uint8).reshape(1, 3, 2)
    tree = {"z": np.array([7]), "frame": frame, "a": np.array([[0.5, -0.5]], np.float32)}
    values, bytes_ = encoded(SpaceCodec(space), tree)
    assert values.to_pylist() == [[7.0, 0.5, -0.5]]
    assert bytes_.to_pylist() == [bytes(range(6))]


def test_integers_that_no_double_holds_are_little_endian_bytes() -> None:
    space = Tuple([Box(0, 2**64 - 1, (1,), np.uint64), Box(-(2**62), 0, (), np.int64)])
    tree = (np.array([[2**64 - 1]], np.uint64), np.array([-(2**53) - 1]))
    values, bytes_ = encoded(SpaceCodec(space), tree)
    assert values is None
    assert bytes_[0].as_py() == b"\xff" * 8 + (-(2**53) - 1).to_bytes(8, "little", signed=True)
    assert_same_bits(SpaceCodec(space).tree(None, bytes_), tree)


def test_wide_integers_within_the_bounds_of_doubles_stay_readable_numbers() -> None:
    space = Box(-(2**53), 2**53, (1,), np.int64)
    values, bytes_ = encoded(SpaceCodec(space), np.array([[2**53]]))
    assert values.to_pylist() == [[2.0**53]]
    assert bytes_ is None
    with pytest.raises(LakeError, match=r"doubles hold integers up to 2\*\*53"):
        encoded(SpaceCodec(space), np.array([[2**53 + 1]]))


def test_a_null_row_takes_no_values() -> None:
    valid = np.array([False, True, False])
    values, _ = encoded(SpaceCodec(CARTPOLE), np.ones((3, 4), np.float32), valid)
    assert values.to_pylist() == [None, [1.0] * 4, None]
    assert len(values.values) == 4


def test_other_arrow_types_of_the_same_rows_are_read() -> None:
    obs = np.arange(8, dtype=np.float64).reshape(2, 4)
    space = Box(-1, 1, (4,), np.float64)
    values, _ = encoded(SpaceCodec(space), obs)
    for kind in (pa.large_list(pa.float64()), pa.list_(pa.float64(), 4)):
        assert_same_bits(SpaceCodec(space).tree(values.cast(kind)), obs)
    frames = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    _, raw = encoded(SpaceCodec(FRAMES), frames)
    for kind in (pa.large_binary(), pa.binary(6)):
        assert_same_bits(SpaceCodec(FRAMES).tree(None, raw.cast(kind)[1:]), frames[1:])


def test_a_column_that_the_space_does_not_use_may_be_absent_or_null() -> None:
    frames = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    _, raw = encoded(SpaceCodec(FRAMES), frames)
    for values in (None, pa.nulls(2, VALUES), pa.nulls(2)):
        assert_same_bits(SpaceCodec(FRAMES).tree(values, raw), frames)
    with pytest.raises(LakeError, match="column obs has values; its space has none"):
        SpaceCodec(FRAMES).tree(pa.array([[1.0], [2.0]], VALUES), raw, column="obs")


FOUR = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([FOUR, None, FOUR[:3]], "column obs has 3 numbers in row 2; its space has 4"),
        ([FOUR, None, [*FOUR, 5.0]], "column obs has 5 numbers in row 2; its space has 4"),
        ([FOUR[:3], [*FOUR, 5.0]], "column obs has 3 numbers in row 0; its space has 4"),
        ([None, FOUR, []], "column obs has 0 numbers in row 2; its space has 4"),
        ([FOUR, None, [1.0, None, 3.0, 4.0]], "column obs has a null inside row 2"),
        ([FOUR, [1e300, 0.0, 0.0, 0.0]], "column obs holds 1e+300 in row 1, which float32 does"),
    ],
)
def test_rows_of_another_shape_are_refused_by_column_and_row(
    rows: list[list[float | None] | None], message: str
) -> None:
    for cut in range(len(rows) + 1):
        chunks = [pa.array(part, VALUES) for part in (rows[:cut], rows[cut:])]
        with pytest.raises(LakeError) as raised:
            SpaceCodec(CARTPOLE).tree(pa.chunked_array(chunks), column="obs")
        assert message in str(raised.value)


def test_bytes_of_another_length_are_refused_by_column_and_row() -> None:
    raw = pa.array([b"123456", None, b"1234567"], pa.binary())
    with pytest.raises(LakeError, match="column obs_bytes has 7 bytes in row 2; its space has 6"):
        SpaceCodec(FRAMES).tree(None, raw, column="obs")


@pytest.mark.parametrize("value", [0.5, -1.0, 300.0, np.nan, np.inf])
def test_a_number_that_the_dtype_does_not_hold_is_refused(value: float) -> None:
    column = pa.array([[1.0], [value]], VALUES)
    for space in (Discrete(9, dtype=np.uint8), Box(0, 1, (), np.bool_)):
        with pytest.raises(LakeError, match=r"column action holds .* in row 1, which"):
            SpaceCodec(space).tree(column, column="action")


def test_items_that_are_in_one_column_only_are_refused() -> None:
    codec = SpaceCodec(MIXED)
    values, raw = encoded(codec, batch(MIXED, 3, 0))
    with pytest.raises(LakeError, match="column obs_bytes is missing"):
        codec.tree(values, None, column="obs")
    with pytest.raises(LakeError, match="column obs is missing"):
        codec.tree(None, raw, column="obs")
    with pytest.raises(LakeError, match="columns obs and obs_bytes have 3 and 2 rows"):
        codec.tree(values, raw[:2], column="obs")
    holes = pa.array([*raw[:2].to_pylist(), None], pa.binary())
    with pytest.raises(LakeError, match="column obs_bytes is null in row 2 and obs is not"):
        codec.tree(values, holes, column="obs")
    with pytest.raises(LakeError, match="column obs is string; expected list"):
        codec.tree(pa.array(["a"]), raw, column="obs")
    with pytest.raises(LakeError, match="column obs_bytes is string; expected binary"):
        codec.tree(values, pa.array(["a"]), column="obs")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (np.zeros((2, 4)), "is float64; Box"),
        (np.zeros((2, 3), np.float32), r"has shape \(2, 3\); Box.* needs \[B, 4\]"),
        (np.zeros((), np.float32), "has shape"),
        ([1.0], "is list; Box"),
    ],
)
def test_a_batch_of_another_shape_is_refused(tree: Tree, message: str) -> None:
    with pytest.raises(LakeError, match=message):
        encoded(SpaceCodec(CARTPOLE), tree)


def test_a_batch_of_another_structure_is_refused() -> None:
    tree = batch(MIXED, 2, 0)
    with pytest.raises(LakeError, match="not shaped like"):
        encoded(SpaceCodec(MIXED), {"frame": tree["frame"]})
    with pytest.raises(LakeError, match=r"have \[1, 2\] rows"):
        encoded(SpaceCodec(MIXED), {**tree, "gear": tree["gear"][:1]})
    with pytest.raises(LakeError, match="the batch has 2 rows, one bool each"):
        encoded(SpaceCodec(MIXED), tree, np.array([True]))


def test_more_than_a_column_holds_is_refused_with_how_many_rows_go() -> None:
    with pytest.raises(LakeError, match="write at most 21304 rows at a time"):
        layout_of(22_000, None, 210 * 160 * 3)
    assert layout_of(21_304, None, 210 * 160 * 3)[0] is None


@pytest.mark.parametrize(
    "space",
    [
        Text(5),
        Sequence(Discrete(2)),
        Graph(Discrete(2), None),
        Box(-1, 1, (0,), np.float32),
        Dict({}),
        Tuple([]),
        Tuple([Discrete(2), Text(5)]),
    ],
)
def test_a_space_without_rows_of_one_size_is_refused(space: Space) -> None:
    with pytest.raises(LakeError):
        SpaceCodec(space)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage.at(tmp_path / "lake")
    create_tables(made)
    return made


@settings(max_examples=30)
@given(SPACES, SPACES)
def test_described_spaces_are_the_same_in_every_process(obs: Space, action: Space) -> None:
    key, text = describe_spaces(obs, action)
    assert len(key) == 12
    noted = json.loads(text)
    assert set(noted) == {"obs", "action", "encoding"}
    assert describe_spaces(obs, action) == (key, text)


def test_the_key_of_cartpole_never_changes() -> None:
    assert describe_spaces(CARTPOLE, Discrete(2))[0] == "4d7cacc057bd"


def test_spaces_that_were_registered_are_found_by_their_key(storage: Storage) -> None:
    key = register_space(storage, MIXED, Discrete(3, start=-1))
    other = register_space(storage, CARTPOLE, Discrete(2))
    assert key != other
    assert register_space(storage, MIXED, Discrete(3, start=-1)) == key
    assert open_table(storage, "steps").version() == 2
    for where in (storage, open_table(storage, "steps")):
        obs, action = spaces_of(where, key)
        assert (obs.space, action.space) == (MIXED, Discrete(3, start=-1))
        assert list(obs.space.spaces) == list(MIXED.spaces)
    with pytest.raises(LakeError) as raised:
        spaces_of(storage, "unknown")
    assert str(raised.value).endswith(f"it has {', '.join(sorted([key, other]))}.")


def test_a_table_of_before_knows_the_spaces_of_then(storage: Storage) -> None:
    key = register_space(storage, CARTPOLE, Discrete(2))
    with pytest.raises(LakeError, match="it has none"):
        spaces_of(open_table(storage, "steps", version=0), key)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"obs":{"kind":"?"},"action":{}}'])
def test_a_note_that_cannot_be_read_is_an_error(storage: Storage, text: str) -> None:
    set_property(storage, "steps", f"{SPACE_PROPERTY}abc", text)
    with pytest.raises(LakeError, match=r"property millrace.space.abc .* cannot be read"):
        spaces_of(storage, "abc")


def test_an_encoding_that_this_code_does_not_have_is_refused(storage: Storage) -> None:
    _, text = describe_spaces(CARTPOLE, Discrete(2))
    noted = json.loads(text)
    noted["encoding"]["obs"][0]["column"] = "elsewhere"
    set_property(storage, "steps", f"{SPACE_PROPERTY}abc", json.dumps(noted))
    with pytest.raises(LakeError, match="encoded in a way that this Millrace does not know"):
        spaces_of(storage, "abc")


def test_processes_that_register_at_once_all_find_their_spaces(storage: Storage) -> None:
    printed = race(
        "from gymnasium.spaces import Discrete\n"
        "from offline.spaces import register_space\n"
        "from offline.storage import Storage\n",
        "for n in range(2, 7):\n"
        "    storage = Storage.at(sys.argv[1])\n"
        "    print(register_space(storage, Discrete(n), Discrete(int(sys.argv[2]))))\n"
        "    print(register_space(storage, Discrete(n), Discrete(2)))\n",
        [[storage.uri, str(process)] for process in (3, 4)],
    )
    keys = {key for text in printed for key in text.split()}
    assert len(keys) == 15
    assert {spaces_of(storage, key)[0].space.n for key in keys} == set(range(2, 7))
    assert open_table(storage, "steps").version() == 15


def test_importing_it_costs_no_torch_ray_deltalake_or_duckdb() -> None:
    code = (
        "import sys, offline.spaces, offline.tables, offline.storage\n"
        "print({'torch', 'ray', 'deltalake', 'duckdb', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "set()\n"
