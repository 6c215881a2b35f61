"""Gymnasium spaces: their codec, their flat size, and themselves as JSON."""

from collections.abc import Callable, Mapping
from math import isfinite, prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from rl_ops.codec import Codec as Codec
from rl_ops.codec import LeafCodec, StructCodec
from rl_ops.errors import SpecError
from rl_ops.tree import brief, space_leaves

Array = npt.NDArray[Any]

_SUPPORTED: Final = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of them"
_INT64_MAX: Final = np.iinfo(np.int64).max

# What a leaf of each dtype is stored as. uint8 arrays are raw bytes instead, a row each.
_STORAGE: Final[Mapping[str, str]] = {
    "bool": "int8",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "uint8": "int16",
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
    "float16": "float32",
    "float32": "float32",
    "float64": "float64",
}


def codec_for(space: Space) -> Codec:
    """The codec of a space.

    | space | a row is |
    |---|---|
    | Discrete | int64 |
    | uint8 Box | fixed_size_binary: the bytes in C order |
    | Box of another dtype, MultiDiscrete, MultiBinary | fixed_size_list of the storage dtype |
    | Box of shape () | the storage dtype |
    | Dict, Tuple | struct, in the space's order |

    Storage: uint16, 32, 64 in the next wider signed integer, float16 in float32, bool in int8.

    Raises:
        SpecError: the space, or one inside it, has no encoding of a fixed size, or is a uint64
            that reaches above int64.
    """
    return _codec(space, "space")


def _codec(space: Space, where: str) -> Codec:
    if isinstance(space, Dict | Tuple):
        return _struct_codec(space, where)
    if not isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        raise SpecError(
            f"{where} is {brief(space)}, which has no rows of a fixed size; supported are "
            f"{_SUPPORTED}. Wrap the environment so that it gives one of those."
        )
    dtype, shape = np.dtype(space.dtype), tuple(space.shape)
    if dtype.name not in _STORAGE:
        raise SpecError(f"{where} is {brief(space)}; dtypes are {', '.join(_STORAGE)}.")
    if prod(shape) == 0:
        raise SpecError(f"{where} is {brief(space)}, which holds no values; leave it out.")
    storage, arrow_type = _storage(space, dtype, shape)
    low, high = leaf_bounds(space)
    if dtype == np.uint64 and int(high.max()) > _INT64_MAX:
        raise SpecError(
            f"{where} is {brief(space)}, uint64 up to {int(high.max())}; columns hold integers "
            f"up to {_INT64_MAX}. Lower its high, or use another dtype."
        )
    is_full = _is_full_range(low, high, dtype)
    if (low == low.flat[0]).all() and (high == high.flat[0]).all():
        low, high = low.reshape(-1)[0, ...], high.reshape(-1)[0, ...]
    return LeafCodec(
        space=space,
        arrow_type=arrow_type,
        dtype=dtype,
        shape=shape,
        storage=storage,
        low=None if is_full else low,
        high=None if is_full else high,
    )


def _storage(
    space: Space, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> tuple[np.dtype[Any], pa.DataType]:
    if isinstance(space, Discrete):
        return np.dtype(np.int64), pa.int64()
    if isinstance(space, Box) and dtype == np.uint8 and shape:
        return dtype, pa.binary(prod(shape))
    storage = np.dtype(_STORAGE[dtype.name])
    leaf = pa.from_numpy_dtype(storage)
    return storage, pa.list_(leaf, prod(shape)) if shape else leaf


def _is_full_range(low: Array, high: Array, dtype: np.dtype[Any]) -> bool:
    if dtype.kind not in "iu":
        return dtype.kind == "b"
    limits = np.iinfo(dtype)
    return bool((low == limits.min).all() and (high == limits.max).all())


def _struct_codec(space: Space, where: str) -> StructCodec:
    pairs = (
        [(str(i), child) for i, child in enumerate(space.spaces)]
        if isinstance(space, Tuple)
        else list(space.spaces.items())
    )
    if not pairs or any(not isinstance(name, str) for name, _ in pairs):
        raise SpecError(
            f"{where} is {brief(space)}; a {type(space).__name__} needs one entry or more, "
            "with strings for keys."
        )
    fields = tuple((name, _codec(child, f"{where}[{name!r}]")) for name, child in pairs)
    arrow_type = pa.struct([(name, codec.arrow_type) for name, codec in fields])
    return StructCodec(space=space, arrow_type=arrow_type, fields=fields)


def flat_size(space: Space) -> int:
    """Numbers in one flattened item: Discrete and MultiDiscrete as one-hot, all else as it is.

    Raises:
        SpecError: the space is not supported.
    """
    return sum(_leaf_flat_size(leaf) for leaf in space_leaves(space))


def _leaf_flat_size(space: Space) -> int:
    if isinstance(space, Discrete):
        return int(space.n)
    if isinstance(space, MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, Box | MultiBinary):
        return prod(space.shape)
    raise SpecError(f"{brief(space)} has no flat size; supported are {_SUPPORTED}.")


def leaf_bounds(space: Space) -> tuple[Array, Array]:
    """The least and greatest value of a leaf space, both of its shape."""
    if isinstance(space, Box):
        return np.asarray(space.low), np.asarray(space.high)
    if isinstance(space, MultiBinary):
        return np.zeros(space.shape, np.int8), np.ones(space.shape, np.int8)
    count = space.n if isinstance(space, Discrete) else space.nvec
    low = np.asarray(space.start)
    return low, low + (np.asarray(count) - 1).astype(low.dtype)


def space_to_json(space: Space) -> dict[str, Any]:
    """The space as values that `json.dumps(..., allow_nan=False)` takes; seeds are left out.

    Raises:
        SpecError: a kind of space, a key or a dtype that has no JSON form here.
    """
    if isinstance(space, Dict):
        if any(not isinstance(name, str) for name in space.spaces):
            raise SpecError(f"{brief(space)} has keys that are not strings.")
        # Pairs, for the order is part of the space and JSON objects may be re-sorted on the way.
        fields = [[name, space_to_json(child)] for name, child in space.spaces.items()]
        return {"kind": "Dict", "spaces": fields}
    if isinstance(space, Tuple):
        return {"kind": "Tuple", "spaces": [space_to_json(child) for child in space.spaces]}
    if isinstance(space, Discrete):
        dtype = np.dtype(space.dtype).name
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype}
    if isinstance(space, MultiDiscrete):
        nvec, start = space.nvec.tolist(), space.start.tolist()
        dtype = np.dtype(space.dtype).name
        return {"kind": "MultiDiscrete", "nvec": nvec, "start": start, "dtype": dtype}
    if isinstance(space, MultiBinary):
        n = space.n if isinstance(space.n, int) else [int(size) for size in space.n]
        return {"kind": "MultiBinary", "n": n}
    if isinstance(space, Box):
        if np.dtype(space.dtype).name not in _STORAGE:
            raise SpecError(f"{brief(space)}: dtypes are {', '.join(_STORAGE)}.")
        return {
            "kind": "Box",
            "dtype": np.dtype(space.dtype).name,
            "shape": [int(size) for size in space.shape],
            "low": _bound_to_json(space.low, space.bounded_below, "-inf"),
            "high": _bound_to_json(space.high, space.bounded_above, "inf"),
        }
    raise SpecError(f"{brief(space)} has no JSON form; kinds are {', '.join(_READERS)}.")


def space_from_json(data: Mapping[str, Any]) -> Space:
    """The space that `space_to_json` described, equal in bounds, dtype, start and order.

    Raises:
        SpecError: an unknown kind, or a description that is not of its kind's form.
    """
    kind = data.get("kind") if isinstance(data, Mapping) else type(data).__name__
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise SpecError(f"space kind {kind!r} is unknown; kinds are {', '.join(_READERS)}.")
    try:
        return reader(data)
    except SpecError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AssertionError) as error:
        raise SpecError(
            f"a {kind} cannot be read from its JSON: {type(error).__name__}: {error}"
        ) from error


def _bound_to_json(bound: Array, bounded: Array, infinite: str) -> Any:
    """One value where uniform, as for an image, else the values in C order."""

    def value(number: Any, is_bounded: Any) -> Any:
        # An unbounded integer holds its dtype's limit and only the flag tells them apart.
        return number.item() if is_bounded and isfinite(number) else infinite

    flat, flags = bound.reshape(-1), np.broadcast_to(bounded, bound.shape).reshape(-1)
    if flat.size and (flat == flat[0]).all() and (flags == flags[0]).all():
        return value(flat[0], flags[0])
    return [value(number, flag) for number, flag in zip(flat, flags, strict=True)]


def _bound_from_json(
    data: Any, shape: tuple[int, ...], dtype: np.dtype[Any], infinite: str
) -> tuple[Array, Array]:
    values = data if isinstance(data, list) else [data]
    bounded = np.array([value != infinite for value in values])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        limit = limits.min if infinite == "-inf" else limits.max
        values = [limit if value == infinite else value for value in values]
    elif dtype.kind == "f":
        values = [float(value) for value in values]
    bound = np.array(values, dtype)
    if isinstance(data, list):
        return bound.reshape(shape), bounded.reshape(shape)
    return np.full(shape, bound[0]), np.full(shape, bounded[0])


def _read_box(data: Mapping[str, Any]) -> Space:
    if data["dtype"] not in _STORAGE:
        raise SpecError(f"Box dtype {data['dtype']!r}: dtypes are {', '.join(_STORAGE)}.")
    dtype, shape = np.dtype(data["dtype"]), tuple(data["shape"])
    low, below = _bound_from_json(data["low"], shape, dtype, "-inf")
    high, above = _bound_from_json(data["high"], shape, dtype, "inf")
    box = Box(low, high, shape=shape, dtype=dtype.type)
    # gymnasium takes an integer's infinite bound as a scalar only, so the flags are set here.
    box.bounded_below, box.bounded_above = below, above
    return box


def _read_discrete(data: Mapping[str, Any]) -> Space:
    dtype = np.dtype(data["dtype"])
    # Older gymnasium has no `dtype` argument, and no other dtype than int64.
    other = {} if dtype == np.int64 else {"dtype": dtype.type}
    return Discrete(data["n"], start=data["start"], **other)


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Space]]] = {
    "Box": _read_box,
    "Discrete": _read_discrete,
    "MultiDiscrete": lambda data: MultiDiscrete(
        data["nvec"], start=data["start"], dtype=np.dtype(data["dtype"]).type
    ),
    "MultiBinary": lambda data: MultiBinary(data["n"]),
    "Dict": lambda data: Dict([(name, space_from_json(child)) for name, child in data["spaces"]]),
    "Tuple": lambda data: Tuple([space_from_json(child) for child in data["spaces"]]),
}
