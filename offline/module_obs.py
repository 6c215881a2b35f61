"""What a policy's connectors make of logged observations and actions.

Legend: N rows, F final observations.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Space

from offline.errors import LakeError
from offline.trajectories import Trajectories
from rl_ops.action_connectors import ActionConnectors, default_action_connectors
from rl_ops.connectors import ObsConnectors, StatefulObsConnector
from rl_ops.spaces import codec_for
from rl_ops.tree import Tree, brief, tree_concat, tree_set, tree_take

Array = npt.NDArray[Any]

_CONNECTOR_ROWS: Final = 4096


def module_obs(data: Trajectories, connectors: ObsConnectors) -> Tree:
    """What the module is fed at every row, and then at every final observation.

    Args:
        data: N rows and F final observations.
        connectors: of the policy, whose memories begin anew with each episode.

    Returns:
        Batch tree [N + F, ...] of the connectors' output space.

    Raises:
        LakeError: the data's observations are of another space.
    """
    if data.obs_space != connectors.input_space:
        raise LakeError(
            f"the data's observations are {brief(data.obs_space)}, and the policy's environment "
            f"has {brief(connectors.input_space)}; choose other rows or another environment."
        )
    both = tree_concat([data.obs, data.final_obs])
    if connectors.is_identity:
        return both
    if any(isinstance(step, StatefulObsConnector) for step in connectors.steps):
        return _walked(data, connectors)
    fed = codec_for(connectors.output_space).empty(data.rows + _finals(data))
    for low in range(0, data.rows + _finals(data), _CONNECTOR_ROWS):
        span = slice(low, min(low + _CONNECTOR_ROWS, data.rows + _finals(data)))
        part = tree_take(both, span)
        first = np.zeros(span.stop - low, np.bool_)
        tree_set(fed, span, connectors.step(part, first, connectors.start(span.stop - low)))
    return fed


def _finals(data: Trajectories) -> int:
    return int((data.final_index >= 0).sum())


def _walked(data: Trajectories, connectors: ObsConnectors) -> Tree:
    """By the connectors that remember: the i-th rows of all pieces of episodes at once."""
    fed = codec_for(connectors.output_space).empty(data.rows + _finals(data))
    begins = np.append(True, data.is_last[:-1])
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=data.rows)
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    state = connectors.start(len(starts))
    for i in range(int(lengths[0]) if len(lengths) else 0):
        going = int(np.count_nonzero(lengths > i))
        index = starts[:going] + i
        state = [None if m is None else tree_take(m, slice(0, going)) for m in state]
        first = np.full(going, i == 0)
        tree_set(fed, index, connectors.step(tree_take(data.obs, index), first, state))
        at = np.flatnonzero(data.final_index[index] >= 0)
        if at.size:
            finals = data.final_index[index[at]]
            last = connectors.peek(tree_take(data.final_obs, finals), state, at)
            tree_set(fed, data.rows + finals, last)
    return fed


def policy_actions(data: Trajectories, connectors: ActionConnectors, env_space: Space) -> Tree:
    """The logged actions as the policy's module would have to choose them.

    Data of the same space as the module's is taken as it is; other data goes through the
    environment's action.

    Args:
        data: whose actions are in `data.action_space`.
        connectors: of the policy.
        env_space: in which the environment acts.

    Returns:
        Batch tree [N, ...] of `connectors.input_space`.

    Raises:
        LakeError: the data's space is neither the module's nor one that acts in `env_space`.
    """
    if data.action_space == connectors.input_space:
        return data.action
    for squash in (False, True):
        behaviour = default_action_connectors(env_space, squash=squash)
        if behaviour.input_space == data.action_space:
            return connectors.inverse(behaviour(data.action))
    if data.action_space == env_space:
        return connectors.inverse(data.action)
    raise LakeError(
        f"the data's actions are {brief(data.action_space)}; the environment acts in "
        f"{brief(env_space)} and the policy in {brief(connectors.input_space)}. Choose rows of "
        "one of these spaces."
    )
