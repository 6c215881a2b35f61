"""What connectors make of logged observations, and logged actions in the policy's space."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from offline.errors import LakeError
from offline.module_obs import module_obs, policy_actions
from rl_ops.action_connectors import default_action_connectors
from rl_ops.connectors import FlattenObs, FrameStackObs, ObsConnectors, OneHotObs
from tests.offline.validation_kit import OBS, episode, loaded


def connectors(*steps, space=OBS) -> ObsConnectors:
    return ObsConnectors(steps, space)


def test_without_connectors_it_is_what_was_logged_rows_first_and_final_observations_behind():
    data = loaded([*episode("a", 3), *episode("b", 2)])
    obs = module_obs(data, connectors())
    assert obs[:, 0].tolist() == [0, 1, 2, 0, 1, 3, 2]


def test_stateless_connectors_see_every_observation_once():
    space = Discrete(4)
    rows = [{**row, "obs": [float(row["t"] % 4)]} for row in episode("a", 4, final=False)]
    rows[-1]["final_obs"] = [0.0]
    data = loaded(rows, obs=space)
    obs = module_obs(data, connectors(OneHotObs(), space=space))
    assert obs.argmax(1).tolist() == [0, 1, 2, 3, 0]


def test_a_stack_begins_anew_with_each_episode_and_behind_each_gap():
    rows = [*episode("a", 5), *episode("b", 3)]
    del rows[2]  # of "a": 0 1 | 3 4
    obs = module_obs(loaded(rows), connectors(FrameStackObs(2)))
    pairs = obs[:, [0, 2]].tolist()
    assert pairs[:4] == [[0, 0], [0, 1], [3, 3], [3, 4]]
    assert pairs[4:7] == [[0, 0], [0, 1], [1, 2]]
    assert pairs[7:] == [[4, 5], [2, 3]]  # the final ones


def test_a_stack_equals_what_the_rollout_fed_step_by_step():
    data = loaded([row for i in range(4) for row in episode(f"e{i}", 2 + 3 * i)])
    steps = connectors(FlattenObs(), FrameStackObs(3))
    obs = module_obs(data, steps)
    for start, end in zip(data.starts, [*data.starts[1:], data.rows], strict=True):
        state = steps.start(1)
        for i in range(start, end):
            fed = steps.step(data.obs[i : i + 1], np.array([i == start]), state)
            assert np.array_equal(obs[i], fed[0])


def test_observations_of_another_space_are_refused():
    with pytest.raises(LakeError, match="the policy's environment has"):
        module_obs(loaded(episode("a")), connectors(space=Box(0, 1, (2,), np.float32)))


ENV = Box(np.float32([-2.0, 0.0]), np.float32([2.0, 4.0]))
LOGGED = np.float32([[-2.0, 1.0], [1.0, 4.0], [3.0, 2.0]])
"""Of a policy that did not squash: the last one was clipped to 2."""


@pytest.mark.parametrize(
    ("behaviour", "squash", "expected"),
    [
        ("clipped", False, LOGGED),
        ("clipped", True, [[-1, -0.5], [0.5, 1], [1, 0]]),
        ("squashed", True, [[-1, 0.25], [0.5, 1], [1, 0.5]]),
        ("squashed", False, [[-2, 2.5], [1, 4], [2, 3]]),
        ("env", True, [[-1, -0.5], [0.5, 1], [1, 0]]),
    ],
)
def test_actions_are_brought_into_the_policys_space(behaviour, squash, expected):
    logged = {
        "clipped": (default_action_connectors(ENV, squash=False).input_space, LOGGED),
        "squashed": (
            default_action_connectors(ENV, squash=True).input_space,
            np.float32([[-1, 0.25], [0.5, 1], [1, 0.5]]),
        ),
        "env": (ENV, np.float32([[-2.0, 1.0], [1.0, 4.0], [2.0, 2.0]])),
    }
    space, values = logged[behaviour]
    rows = episode("a", 3)
    for row, value in zip(rows, values, strict=True):
        row["action"] = [float(x) for x in value]
    data = loaded(rows, action=space)
    ours = default_action_connectors(ENV, squash=squash)
    found = policy_actions(data, ours, ENV)
    assert np.allclose(found, expected)


def test_discrete_actions_that_do_not_begin_at_zero():
    env = Discrete(3, start=5)
    data = loaded(episode("a", 3), action=Discrete(3))
    assert policy_actions(data, default_action_connectors(env, squash=False), env).tolist() == [
        0,
        1,
        2,
    ]


def test_actions_of_a_space_that_is_not_the_environments_are_refused():
    data = loaded(episode("a", 3), action=Discrete(3))
    with pytest.raises(LakeError, match="Choose rows"):
        policy_actions(data, default_action_connectors(ENV, squash=True), ENV)
