"""Logged actions in the space that a policy chooses in, and what that does to their densities."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Space

from offline.ope.errors import OpeError
from offline.trajectories import Trajectories
from rl_ops.action_connectors import (
    ActionConnectors,
    ClipAction,
    RescaleAction,
    ShiftDiscrete,
    default_action_connectors,
)
from rl_ops.errors import SpecError
from rl_ops.tree import Tree, brief, space_leaves, zip_spaces

Array = npt.NDArray[Any]


class Converted(NamedTuple):
    """Actions of a policy's space.

    Attributes:
        action: batch tree [N, ...] of what the policy's action connectors take.
        log_scale: to be added to the logged log-densities, in nats: log |d logged / d policy's|.
        problem: why the logged densities say nothing of these actions; empty where they do.
    """

    action: Tree
    log_scale: float = 0.0
    problem: str = ""


def converted(data: Trajectories, connectors: ActionConnectors) -> Converted:
    """Logged actions as the policy would have chosen them, by way of the environment's.

        log mu_policy(a') = log mu_logged(a) + log |da / da'|

    Of what was clipped to a bound the probability is a lump on the bound, and no density.

    Args:
        data: whose actions are in `data.action_space`.
        connectors: of the policy.

    Raises:
        OpeError: the logged space fits neither the policy's nor the environment's.
    """
    if data.action_space == connectors.input_space:
        return Converted(data.action)
    behavior = _behavior(data.action_space, connectors)
    env_action = behavior(data.action)
    try:
        action = connectors.inverse(env_action)
    except NotImplementedError as error:
        raise OpeError(
            f"{_spaces(data.action_space, connectors)}, and its connectors cannot be inverted: "
            f"{error}."
        ) from None
    scale = _log_scale(connectors) - _log_scale(behavior)
    return Converted(action, scale, _problem(env_action, connectors, behavior))


def _behavior(logged: Space[Any], connectors: ActionConnectors) -> ActionConnectors:
    """What made environment actions of the logged ones."""
    env_space = connectors.output_space
    if logged == env_space:
        return ActionConnectors((), env_space)
    for squash in (False, True):
        try:
            found = default_action_connectors(env_space, squash=squash)
        except SpecError:  # unbounded actions cannot be squashed
            continue
        if found.input_space == logged:
            return found
    raise OpeError(
        f"{_spaces(logged, connectors)}, of an environment that acts in {brief(env_space)}; "
        "choose rows of one of these spaces with --where, or another policy."
    )


def _spaces(logged: Space[Any], connectors: ActionConnectors) -> str:
    policy = brief(connectors.input_space)
    return f"the data's actions are of {brief(logged)} and the policy's of {policy}"


def _log_scale(connectors: ActionConnectors) -> float:
    """Log |d environment's action / d module's|."""
    if not any(isinstance(step, RescaleAction) for step in connectors.steps):
        return 0.0
    halves = [leaf.high / 2.0 - leaf.low / 2.0 for leaf in _boxes(connectors.output_space)]
    return float(sum(np.log(half[half > 0]).sum() for half in halves))


def _boxes(space: Space[Any]) -> list[Box]:
    return [x for x in space_leaves(space) if isinstance(x, Box) and x.dtype.kind == "f"]


def _problem(env_action: Tree, connectors: ActionConnectors, behavior: ActionConnectors) -> str:
    steps = (*connectors.steps, *behavior.steps)
    known = (ClipAction, RescaleAction, ShiftDiscrete)
    foreign = [type(step).__name__ for step in steps if not isinstance(step, known)]
    if foreign:
        return f"what {foreign[0]} does to densities is not known"
    if not any(isinstance(step, ClipAction) for step in steps):
        return ""
    at_bound: Any = False
    for leaf, batch in zip_spaces(connectors.output_space, env_action):
        if isinstance(leaf, Box) and leaf.dtype.kind == "f":
            on = (batch <= leaf.low) | (batch >= leaf.high)
            at_bound = at_bound | on.reshape(len(batch), -1).any(1)
    count = int(np.sum(at_bound))
    if not count:
        return ""
    return (
        f"{count:,} of {len(at_bound):,} actions lie on the bounds of "
        f"{brief(connectors.output_space)}, where clipping has put a probability and no density"
    )
