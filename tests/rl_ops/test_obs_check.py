"""Observations against their space's structure, shape and dtype."""

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from rl_ops.errors import SpecError
from rl_ops.obs_check import ObsCheck

VECTOR = Box(-1, 1, (2,), np.float32)
TREE = Dict({"a": VECTOR, "b": Tuple((Discrete(3), MultiBinary(2)))})


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (VECTOR, np.zeros(2, np.float32)),
        (VECTOR, np.zeros(2, np.float16)),
        (VECTOR, np.full(2, np.nan, np.float32)),
        (Box(-1, 1, (2,), np.float64), np.zeros(2, np.float32)),
        (Box(0, 255, (2, 2), np.uint8), np.zeros((2, 2), np.uint8)),
        (Box(-1, 1, (), np.float32), 0.5),
        (Box(-1, 1, (), np.float32), np.float32(0.5)),
        (Discrete(3), 2),
        (Discrete(3), np.int32(2)),
        (Discrete(3), np.array(2)),
        (MultiDiscrete([2, 3]), np.array([1, 2])),
        (MultiBinary(2), np.array([True, False])),
        (TREE, {"a": np.zeros(2, np.float32), "b": (1, np.zeros(2, np.int8))}),
    ],
)
def test_what_a_space_takes_without_loss_passes(space: Space, obs: Any) -> None:
    ObsCheck(space, name="E")(obs, "step")


@pytest.mark.parametrize(
    ("space", "obs", "words"),
    [
        (VECTOR, np.zeros(2), "obs has dtype float64; .* needs float32. Cast it where"),
        (VECTOR, np.zeros(2, np.int64), "obs has dtype int64"),
        (VECTOR, np.zeros(3, np.float32), r"obs has shape \(3,\); .* needs \(2,\)"),
        (VECTOR, np.zeros((1, 2), np.float32), r"obs has shape \(1, 2\)"),
        (VECTOR, np.zeros(1, np.float32), r"obs has shape \(1,\)"),
        (VECTOR, [0.0, 0.0], "obs is a list; .* is an array"),
        (VECTOR, None, "obs is a NoneType"),
        (VECTOR, 0.5, "obs is a float"),
        (Box(0, 255, (2,), np.uint8), np.array([0, 300]), "obs has dtype int64; .* needs uint8"),
        (Discrete(3), 1.0, "obs has dtype float64"),
        (Discrete(3), np.array([1]), r"obs has shape \(1,\); .* needs \(\)"),
        (TREE, {"a": np.zeros(2, np.float32)}, r"obs is keys \['a'\]; expected a dict with"),
        (TREE, np.zeros(2), "obs is ndarray; expected a dict"),
        (TREE, {"a": np.zeros(2, np.float32), "b": (1,)}, r"obs\['b'\] is 1 entries; .* of 2"),
        (TREE, {"a": np.zeros(2, np.float32), "b": [1, 1]}, r"obs\['b'\] is list"),
        (
            TREE,
            {"a": np.zeros(2, np.float32), "b": (1, np.zeros(3, np.int8))},
            r"obs\['b'\]\[1\] has shape \(3,\)",
        ),
    ],
)
def test_what_would_be_cast_or_broadcast_is_refused(space: Space, obs: Any, words: str) -> None:
    with pytest.raises(SpecError, match=rf"^E\.step: {words}"):
        ObsCheck(space, name="E")(obs, "step")


def test_batches_are_checked_with_their_leading_axis() -> None:
    check = ObsCheck(TREE, name="E", batch=(4,))
    tree = {
        "a": np.zeros((4, 2), np.float32),
        "b": (np.zeros(4, np.int64), np.zeros((4, 2), np.int8)),
    }
    check(tree, "step")
    with pytest.raises(SpecError, match=r"obs\['a'\] has shape \(1, 2\); .* needs \(4, 2\)"):
        check({**tree, "a": tree["a"][:1]}, "step")
