"""Videos of a policy: one whole, readable MP4 per episode."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from pipelines import PPOConfig
from pipelines.config_errors import ConfigError
from pipelines.evaluation import record_videos
from rl_ops.envs import EnvSpec, make_env
from rl_ops.policy import Policy
from tests.rollout_kit import env_spec, policy_spec, random_weights

pytest.importorskip("moviepy")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")


def frames_of(path: Path) -> list[np.ndarray]:
    """Decoded frames, [H, W, 3] each."""
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def cartpole_policy(env: EnvSpec) -> Policy:
    spec = policy_spec(env)
    return Policy(spec, random_weights(spec))


def steps_of(policy: Policy, env: EnvSpec, *, seed: int) -> int:
    single = make_env(env)
    obs, _ = single.reset(seed=seed)
    state, steps, ended = None, 0, False
    while not ended:
        action, state, _ = policy.act(obs, state)
        obs, _, terminated, truncated, _ = single.step(action)
        steps, ended = steps + 1, terminated or truncated
    single.close()
    return steps


def test_each_episode_is_a_video_of_all_its_frames(tmp_path: Path) -> None:
    env = env_spec("CartPole-v1")
    policy = cartpole_policy(env)
    paths = record_videos(policy, env, folder=tmp_path / "new", episodes=2, seed=5)
    assert [path.name for path in paths] == [
        "rl-video-episode-0.mp4",
        "rl-video-episode-1.mp4",
    ]
    for i, path in enumerate(paths):
        frames = frames_of(path)
        # The first shows where the episode starts, each other one what a step led to. moviepy
        # counts frames by adding up times, and of some numbers of them loses the last.
        steps = steps_of(policy, env, seed=5 + i)
        assert len(frames) in (steps, steps + 1)
        assert frames[0].shape == (400, 600, 3)
        assert frames[0].mean() > 200  # a white scene
        assert not np.array_equal(frames[0], frames[-1])


def test_no_display_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    env = env_spec("CartPole-v1")
    assert record_videos(cartpole_policy(env), env, folder=tmp_path, episodes=1, seed=0)


def test_without_the_video_extra_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise gym.error.DependencyNotInstalled("moviepy is not installed")

    monkeypatch.setattr("gymnasium.wrappers.RecordVideo", missing)
    env = env_spec("CartPole-v1")
    with pytest.raises(ValueError, match=r"moviepy is not installed; pip install 'millrace\[video"):
        record_videos(cartpole_policy(env), env, folder=tmp_path, episodes=1, seed=0)


@pytest.mark.parametrize("parallel", [False, True])
def test_evaluations_in_training_are_filmed(tmp_path: Path, parallel: bool) -> None:
    config = PPOConfig(
        env="CartPole-v1",
        rollout={"num_envs": 4, "fragment_steps": 16},
        evaluation={
            **{"period_iterations": 2, "episodes": 2, "videos": 1, "parallel": parallel},
        },
        stop={"training_iteration": 4},
    )
    with config.build(storage=tmp_path, name="r", debug=True) as pipeline:
        list(pipeline.stream())
    found = sorted((tmp_path / "r" / "videos").rglob("*.mp4"))
    assert [path.parent.name for path in found] == ["2", "4"]
    assert all(len(frames_of(path)) > 5 for path in found)


def test_what_cannot_be_filmed_is_refused_before_the_run_starts(tmp_path: Path) -> None:
    config = PPOConfig(env="tests.envs:count", evaluation={"period_iterations": 1, "videos": 1})
    with pytest.raises(ConfigError, match=r"evaluation\.videos"):
        config.build(storage=tmp_path / "s", name="r", debug=True)
    assert not (tmp_path / "s").exists()
