"""A served policy gives the actions of `Policy.act`, whatever the spaces and the connectors."""

from typing import Any

import numpy as np
import pytest
import torch

from rl_ops.connectors import FlattenObs, FrameStackObs, OneHotObs
from rl_ops.errors import SpecError
from rl_ops.image_connectors import GrayscaleObs, ResizeObs
from rl_ops.policy import Policy, Weights
from rl_ops.served import ServedPolicy, drawn, names_of
from rl_ops.tree import tree_leaves, tree_map_spaces
from tests.envs import ACTION_SPACES, OBS_SPACES
from tests.rollout_kit import env_spec, policy_spec, random_weights

ROWS = 64


def batch_of(space: Any, seed: int) -> Any:
    space.seed(seed)
    return drawn(space, ROWS)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(leaf)) for leaf in tree_leaves(tree)]


def assert_acts_alike(policy: Policy, served: ServedPolicy, steps: int = 3) -> None:
    space = policy.spec.obs_space
    state = policy.start(ROWS)
    actions = len([name for name in served.outputs if not name.startswith("next_")])
    stacks = list(served.example(ROWS)[len(list(tree_leaves(batch_of(space, 0)))) + 1 :])
    for step in range(steps):
        obs = batch_of(space, step)
        wanted, state, _ = policy.act(obs, state)
        first = [torch.full((ROWS,), step == 0)] if stacks else []
        with torch.no_grad():
            found = served(*tensors(obs), *first, *stacks)
        assert len(found) == len(served.outputs)
        stacks = list(found[actions:])
        for one, other in zip(tree_leaves(wanted), found[:actions], strict=True):
            assert one.dtype == other.numpy().dtype
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-6)


def make(env: Any, connectors: Any = None, **given: Any) -> tuple[Policy, ServedPolicy]:
    spec = policy_spec(env, connectors=connectors, hidden=(8,), **given)
    weights = random_weights(spec)
    return Policy(spec, weights), ServedPolicy(spec, weights)


@pytest.mark.parametrize("obs", [name for name in OBS_SPACES if name != "image"])
@pytest.mark.parametrize("action", ["discrete", "dict"])
def test_every_kind_of_observation(obs: str, action: str) -> None:
    assert_acts_alike(*make(env_spec("spaces_env", obs=obs, action=action)))


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_every_kind_of_action(action: str) -> None:
    assert_acts_alike(*make(env_spec("spaces_env", obs="vector", action=action)))


@pytest.mark.parametrize("action", ["narrow_box", "wide_box"])
def test_squashed_actions_fill_their_bounds(action: str) -> None:
    assert_acts_alike(*make(env_spec("spaces_env", obs="vector", action=action), squash=True))


@pytest.mark.parametrize(
    "connectors",
    [
        (FrameStackObs(3),),
        (FlattenObs(), FrameStackObs(2)),
        (FrameStackObs(2), FrameStackObs(2)),
    ],
)
def test_stacks_go_in_and_out(connectors: Any) -> None:
    policy, served = make(env_spec("spaces_env", obs="vector"), connectors)
    assert "is_first" in served.inputs
    assert_acts_alike(policy, served, steps=6)


@pytest.mark.parametrize(
    "connectors",
    [
        (GrayscaleObs(), FlattenObs()),
        (ResizeObs(4, 5), FlattenObs()),
        (GrayscaleObs(), ResizeObs(7, 5), FrameStackObs(4), FlattenObs()),
    ],
)
def test_images_are_those_of_numpy_to_the_bit(connectors: Any) -> None:
    policy, served = make(env_spec("spaces_env", obs="image"), connectors)
    assert_acts_alike(policy, served)


@pytest.mark.parametrize("step", [GrayscaleObs(), ResizeObs(3, 4), ResizeObs(20, 7)])
def test_pixels_are_equal(step: Any) -> None:
    from rl_ops.torch_connectors import gray, resized

    space = OBS_SPACES["image"]
    images = batch_of(space, 3)
    convert = gray if isinstance(step, GrayscaleObs) else resized
    found = convert(step, torch.from_numpy(images), space)
    assert np.array_equal(found.numpy(), step(images, space))


def test_one_hot_of_trees() -> None:
    from rl_ops.torch_connectors import one_hot

    space = OBS_SPACES["dict"]
    obs = batch_of(space, 1)
    found = one_hot(
        OneHotObs(), tree_map_spaces(lambda _, x: torch.from_numpy(x), space, obs), space
    )
    for one, other in zip(tree_leaves(OneHotObs()(obs, space)), tree_leaves(found), strict=True):
        assert np.array_equal(one, other.numpy())


def test_statistics_are_within() -> None:
    spec = policy_spec(env_spec("spaces_env", obs="vector"), hidden=(8,))
    module = random_weights(spec).module
    weights = Weights(module, np.array([0.5, -0.5, 0.0]), np.array([0.1, 2.0, 1.0]))
    assert_acts_alike(Policy(spec, weights), ServedPolicy(spec, weights))


def test_names_are_those_of_the_leaves() -> None:
    assert names_of("obs", OBS_SPACES["dict"]) == ["obs_inner_0", "obs_inner_1", "obs_place"]
    assert names_of("obs", OBS_SPACES["vector"]) == ["obs"]
    assert names_of("action", ACTION_SPACES["tuple"]) == ["action_0", "action_1"]


def test_a_connector_of_ones_own_is_refused() -> None:
    class Mine:
        def output_space(self, space: Any) -> Any:
            return space

        def __call__(self, obs: Any, space: Any) -> Any:
            return obs

    spec = policy_spec(env_spec("spaces_env", obs="vector"), connectors=(Mine(),))
    with pytest.raises(SpecError, match=r"Mine.*no torch form"):
        ServedPolicy(spec, random_weights(spec))
