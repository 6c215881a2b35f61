"""Videos of logged episodes, decoded again and counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.render_envs  # noqa: F401 - registers environments
from offline.lake import Lake
from offline.traces import EpisodeRow, find_episode, list_episodes
from pipelines import trace_replay
from pipelines.trace_replay import record_episode, write_video
from rl_ops.replay_env import ReplayError
from tests.offline.traces_kit import empty_lake, log_run, put
from tests.rollout_kit import env_spec

pytest.importorskip("pygame")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

WALK = env_spec("tests/Drawn-v0")
CARTPOLE = env_spec("CartPole-v1")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return empty_lake(tmp_path / "lake")


def frames_of(path: Path) -> list[np.ndarray]:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def episodes_of(lake: Lake, **options: Any) -> list[EpisodeRow]:
    return list_episodes(lake, limit=1000, **options)


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_a_video_of_cartpole_has_a_frame_for_each_step(
    lake: Lake, tmp_path: Path, vectorization: str
) -> None:
    log_run(lake, env_spec("CartPole-v1", vectorization=vectorization), count=6, workers=2)
    late = max(episodes_of(lake), key=lambda row: (not row.aborted, row.fragment_last, row.length))
    video = record_episode(lake, late, tmp_path / "new" / "cartpole.mp4")
    frames = frames_of(video.path)
    assert len(frames) == video.frames == late.length > 3
    assert frames[0].shape == (400, 600, 3)
    assert not np.array_equal(frames[0], frames[-1])
    assert [p.name for p in video.path.parent.iterdir()] == ["cartpole.mp4"]


def test_every_episode_can_be_replayed_the_unfinished_too(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=2, steps=9)
    rows = episodes_of(lake)[::2]
    assert any(row.aborted for row in rows)  # open when the run ended
    for i, row in enumerate(rows):
        video = record_episode(lake, row, tmp_path / f"{i}.mp4")
        assert video.frames == row.length
        assert video.fps == 10


def test_a_worker_that_was_restarted_begins_anew(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=6, workers=2, restarts=1)
    again = [row for row in episodes_of(lake) if ".1/" in row.episode_id and not row.aborted]
    assert again
    assert record_episode(lake, again[0], tmp_path / "a.mp4").frames == again[0].length


def test_a_session_that_was_resumed_begins_anew(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=2)
    log_run(lake, WALK, count=4, session=1)
    row = next(r for r in episodes_of(lake) if ".1000/0000002" in r.episode_id)
    assert record_episode(lake, row, tmp_path / "a.mp4").frames == row.length


def test_whole_episodes_are_replayed_from_their_fragment(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=4, workers=2, mode="complete_episodes")
    for i, row in enumerate([r for r in episodes_of(lake) if r.fragment_last == 5][:3]):
        assert record_episode(lake, row, tmp_path / f"{i}.mp4").frames == row.length


def test_memory_holds_a_few_fragments_at_a_time(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_replay, "_CHUNK_ROWS", 100)
    log_run(lake, WALK, count=9)
    row = max(episodes_of(lake), key=lambda row: (row.fragment_last, row.length))
    read: list[int] = []
    steps = Lake.steps

    def spy(self: Lake, **options: Any) -> Any:
        selection = steps.__get__(self)(**options)
        if "columns" in options:
            read.append(selection.count())
        return selection

    monkeypatch.setattr(Lake, "steps", spy)
    record_episode(lake, row, tmp_path / "a.mp4")
    assert len(read) > 3
    assert max(read) <= 100


def test_environments_with_randomness_of_their_own_are_refused(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, env_spec("tests/Drawn-v0", entropy=True), count=2)
    row = episodes_of(lake)[0]
    with pytest.raises(ReplayError, match="cannot be re-seeded: step t=0") as caught:
        record_episode(lake, row, tmp_path / "a.mp4")
    assert row.episode_id in str(caught.value)
    assert not list(tmp_path.glob("*.mp4"))


def test_a_sampled_run_is_refused(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=4, episode_frac=0.5)
    ids = lake.sql("SELECT episode_id FROM steps ORDER BY ALL DESC LIMIT 1").to_pylist()
    row = find_episode(lake, ids[0]["episode_id"])
    with pytest.raises(ReplayError, match="steps are missing"):
        record_episode(lake, row, tmp_path / "a.mp4")


def test_traces_without_observations_are_refused(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=2, columns=("logp",))
    with pytest.raises(ReplayError, match="observations were not logged"):
        record_episode(lake, episodes_of(lake)[0], tmp_path / "a.mp4")


def test_an_environment_without_render_mode_is_refused(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, env_spec("count"), count=2)
    with pytest.raises(ReplayError, match="cannot be made with render_mode"):
        record_episode(lake, episodes_of(lake)[0], tmp_path / "a.mp4")


def test_evaluation_episodes_are_refused(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=1)
    put(
        lake,
        "episodes",
        [
            {
                "run_id": "run",
                "session": 0,
                "episode_id": "run/evaluation/3",
                "kind": "evaluation",
                "length": 3,
                "terminated": True,
                "truncated": False,
                "aborted": False,
            }
        ],
    )
    with pytest.raises(ReplayError, match="is of kind evaluation"):
        record_episode(lake, find_episode(lake, "run/evaluation/3"), tmp_path / "a.mp4")


def test_a_run_whose_configuration_is_not_there_is_refused(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=1, run_id="one")
    log_run(lake, WALK, count=1, run_id="two", session=3)
    row = episodes_of(lake, run_id="one")[0]
    other = EpisodeRow(**{**vars(row), "session": 3})
    with pytest.raises(ReplayError, match="no configuration of session 3 of run 'one'"):
        record_episode(lake, other, tmp_path / "a.mp4")


def test_a_file_that_exists_is_kept(lake: Lake, tmp_path: Path) -> None:
    log_run(lake, WALK, count=1)
    path = tmp_path / "a.mp4"
    path.write_text("mine")
    with pytest.raises(ReplayError, match="exists already"):
        record_episode(lake, episodes_of(lake)[0], path)
    assert path.read_text() == "mine"


def test_frames_of_odd_sizes_are_written(tmp_path: Path) -> None:
    frames = [np.full((15, 31, 3), 40 * i, np.uint8) for i in range(5)]
    assert write_video(frames, tmp_path / "a.mp4", fps=50) == 5
    got = frames_of(tmp_path / "a.mp4")
    assert len(got) == 5
    assert got[0].shape == (16, 32, 3)


@pytest.mark.parametrize("count", [1, 12, 37])
def test_no_frame_is_lost(tmp_path: Path, count: int) -> None:
    frames = [np.full((32, 32, 3), 5 * i, np.uint8) for i in range(count)]
    write_video(frames, tmp_path / "a.mp4", fps=30)
    assert len(frames_of(tmp_path / "a.mp4")) == count


def test_frames_that_change_in_size_leave_no_file(tmp_path: Path) -> None:
    frames = [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)]
    with pytest.raises(ReplayError, match="frames change"):
        write_video(frames, tmp_path / "a.mp4", fps=30)
    assert not list(tmp_path.iterdir())


def test_without_the_video_extra_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ReplayError, match=r"pip install 'millrace\[video\]'"):
        write_video([np.zeros((16, 16, 3), np.uint8)], tmp_path / "a.mp4", fps=30)
