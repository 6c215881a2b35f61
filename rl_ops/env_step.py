"""What one step of a vector environment gave, and how it is read from autoreset's infos.

Legend: N sub-environments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rl_ops.errors import SpecError
from rl_ops.guarded_env import ABORTED_INFO
from rl_ops.tree import tree_map, tree_take

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EnvStep:
    """What one step of all sub-environments gave.

    Attributes:
        obs: [N] what to act on next; where an episode ended, of the new one or (NEXT_STEP) of
            the old one, whose next row is then not a transition.
        reward: [N] floats; 0 where is_transition is False.
        terminated, truncated: [N] bool; False where is_transition is.
        ended: terminated | truncated.
        is_transition: [N] bool; False where the environment spent the step on a reset.
        is_first: [N] bool; obs is the first of an episode.
        successor: obs tree [N] whose rows where an episode ended hold its final observation.
        aborted: {sub-environment: message} of episodes that an exception ended.
    """

    obs: Any
    reward: Array
    terminated: Array
    truncated: Array
    ended: Array
    is_transition: Array
    is_first: Array
    successor: Any
    aborted: Mapping[int, str]


def with_final(obs: Any, final: Any, ended: Array, *, env_id: str) -> Any:
    """`obs` with the rows `ended` of `final`, which is a tree [N] or an object array of trees."""
    if final is None:
        raise SpecError(
            f"{env_id} resets in the step that ends an episode, but info has no 'final_obs'; "
            "set env.vectorization to sync, or have it emit the final observations"
        )
    result = tree_map(lambda leaf: leaf.copy(), obs)

    def put(leaf: Array, values: Any, rows: Any) -> None:
        leaf[rows] = values

    if isinstance(final, np.ndarray) and final.dtype == object:
        for i in ended.tolist():
            tree_map(partial(put, rows=i), result, final[i])
    else:
        tree_map(partial(put, rows=ended), result, tree_take(final, ended))
    return result


def aborted_episodes(infos: Mapping[str, Any]) -> Mapping[int, str]:
    """Messages of the episodes that `GuardedEnv` ended: their last infos, after autoreset."""
    messages = infos.get("final_info", {}).get(ABORTED_INFO)
    if messages is None:
        return {}
    return {i: str(message) for i, message in enumerate(messages) if message is not None}
