"""A video of a logged episode: its environments made again, its actions taken again."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from offline import schemas as s
from offline.lake import Lake
from offline.space_codec import SpaceCodec
from offline.spaces import spaces_of
from offline.traces import EpisodeRow
from pipelines.config import AlgorithmConfig
from pipelines.specs import env_spec
from rl_ops import columns as c
from rl_ops.action_connectors import default_action_connectors
from rl_ops.envs import EnvSpec, VectorSlots, env_seeds, seed_words
from rl_ops.replay_env import LoggedRows, ReplayError, Wanted, replay

Array = npt.NDArray[Any]

_EPISODE_ID: Final = re.compile(
    r"(?P<run>[^/]+)/(?P<env>\d{5,})\.(?P<incarnation>\d+)/(?P<n>\d{7,})"
)
_CHUNK_ROWS: Final = 8192
"""Rows in memory at a time; of Atari frames 230 MB."""
_COLUMNS: Final = (
    *(c.FRAGMENT_ID, c.ENV_ID, c.EPISODE_ID, c.T, s.SPACE, c.OBS, s.OBS_BYTES, c.ACTION),
    *(s.ACTION_BYTES, c.REWARD, c.TERMINATED, c.TRUNCATED),
)


@dataclass(frozen=True)
class Video:
    """A video that was written; `frames` is the episode's length."""

    path: Path
    frames: int
    fps: int


@dataclass(frozen=True)
class _Place:
    """Where an episode was made.

    Attributes:
        env_ids: of the worker's environments within the run.
        incarnation: of the worker.
        wanted: the episode within the worker.
        seed, is_complete: of the run's configuration.
    """

    episode: EpisodeRow
    env_ids: range
    incarnation: int
    wanted: Wanted
    seed: int
    is_complete: bool
    num_workers: int

    def seeds(self, start: int) -> list[int]:
        words = seed_words(self.seed, self.incarnation, self.env_ids, start=start)
        return env_seeds(words)


def record_episode(lake: Lake, episode: EpisodeRow, output: Path) -> Video:
    """Replay an episode and write what its environment shows at each step as an MP4.

    The worker's environments are made again with their seeds and take all actions that it logged
    from its start on; every observation, reward and flag has to be the one that was logged.

    Args:
        lake: with the run's steps.
        episode: of a training run.
        output: the file, which must not exist.

    Raises:
        ReplayError: the environment cannot be re-seeded, renders nothing, or steps are missing;
            the file cannot be written; or the `video` extra is not installed.
        LakeError: the lake has no such run, or not its spaces.
        UnknownEnvError: the environment cannot be made.
    """
    config = _config_of(lake, episode)
    place = _place_of(episode, config)
    env = _env_of(config)
    # Only images are wanted, and pygame looks for a display unless told otherwise.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        slots = VectorSlots(env, len(place.env_ids), render_mode="rgb_array")
        with closing(slots):
            squash = bool(config["connectors"]["squash_action"])
            connectors = default_action_connectors(slots.action_space, squash=squash)
            fragments = _fragments(lake, place)
            frames = replay(slots, connectors, fragments, wanted=place.wanted)
            fps = round(slots.env.metadata.get("render_fps") or 30)
            return Video(output, write_video(frames, output, fps=fps), fps)
    except ReplayError as error:
        raise ReplayError(f"{episode.episode_id}: {error}") from error
    except gym.error.DependencyNotInstalled as error:
        raise ReplayError(f"cannot render {env.id}: {error}") from error
    except TypeError as error:
        if "render_mode" not in str(error):
            raise
        raise ReplayError(
            f"{env.id} cannot be made with render_mode='rgb_array', so it shows no images: {error}"
        ) from error


def write_video(frames: Iterable[Array], output: Path, *, fps: int) -> int:
    """Write uint8 images [H, W, 3] as they come; the file is there whole or not at all.

    Returns:
        How many frames there were.

    Raises:
        ReplayError: there is none, or they change in size; the file exists or cannot be written;
            or the `video` extra is not installed.
    """
    try:
        import imageio_ffmpeg  # type: ignore[import-untyped]
    except ImportError as error:
        message = f"cannot write videos: {error}; pip install 'millrace[video]'"
        raise ReplayError(message) from error
    if os.path.lexists(output):
        raise ReplayError(f"{output} exists already; choose another --output")
    source = iter(frames)
    first = next(source, None)
    if first is None:
        raise ReplayError("an episode without steps has no video")
    partial = output.with_name(f".partial-{os.getpid()}-{output.name}")
    height, width = first.shape[:2]
    count = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        writer = imageio_ffmpeg.write_frames(
            # The common colour format halves both sides, so both have to be even.
            str(partial),
            (width + width % 2, height + height % 2),
            fps=fps,
            macro_block_size=2,
            ffmpeg_log_level="error",
        )
        with closing(writer):
            writer.send(None)
            for frame in chain([first], source):
                if frame.shape != first.shape:
                    raise ReplayError(f"frames change from {first.shape} to {frame.shape}")
                padding = ((0, height % 2), (0, width % 2), (0, 0))
                writer.send(np.pad(frame, padding, mode="edge").tobytes())
                count += 1
        partial.rename(output)
    except (OSError, RuntimeError) as error:
        raise ReplayError(f"cannot write {output}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _config_of(lake: Lake, episode: EpisodeRow) -> Mapping[str, Any]:
    """The configuration of the session that made the episode."""
    where = [(c.RUN_ID, "=", episode.run_id), (s.SESSION, "=", episode.session)]
    rows = lake.runs(where=where, columns=["config"]).to_arrow()
    for text in rows.column("config").drop_null().to_pylist():
        config: Mapping[str, Any] = json.loads(text)
        return config
    raise ReplayError(
        f"the lake has no configuration of session {episode.session} of run {episode.run_id!r}, so "
        "its environments cannot be made again"
    )


def _env_of(config: Mapping[str, Any]) -> EnvSpec:
    parts = {key: config[key] for key in ("algo", "env", "seed", "faults") if key in config}
    return env_spec(AlgorithmConfig.model_validate(parts))


def _place_of(episode: EpisodeRow, config: Mapping[str, Any]) -> _Place:
    found = _EPISODE_ID.fullmatch(episode.episode_id)
    if found is None or found["run"] != episode.run_id or episode.kind not in ("train", None):
        raise ReplayError(
            f"episode {episode.episode_id!r} is of kind {episode.kind}; only those of training "
            "runs can be replayed, whose seeds are known"
        )
    rollout = config["rollout"]
    env, per_worker = int(found["env"]), int(rollout["num_envs"])
    first = env - env % per_worker
    if episode.worker_id != first // per_worker:
        raise ReplayError(
            f"environment {env} is said to be of worker {episode.worker_id}, but the run's "
            f"configuration has {per_worker} environments in each worker"
        )
    return _Place(
        episode=episode,
        env_ids=range(first, first + per_worker),
        incarnation=int(found["incarnation"]),
        wanted=Wanted(env=env - first, episode=int(found["n"]), length=episode.length),
        seed=int(config["seed"]),
        is_complete=rollout.get("batch_mode") == "complete_episodes",
        # 0 is one rollout in each learner process.
        num_workers=int(rollout["num_workers"]) or max(1, int(config["learner"]["num_workers"])),
    )


def _fragments(lake: Lake, place: _Place) -> Iterator[LoggedRows]:
    """The worker's fragments since it started, up to the one in which the episode ends.

    Of whole episodes only that one: its environments were seeded at its beginning.
    """
    version = lake.steps().version
    counted = _counted(lake, place, version)
    if not counted:
        raise ReplayError("steps are missing: there are none of its worker")
    first = counted[0][0]
    if place.is_complete:
        counted = counted[-1:]
    for low, high in _chunks(counted):
        episode = place.episode
        where = [(c.RUN_ID, "=", episode.run_id), (s.SESSION, "=", episode.session)]
        where += [(c.WORKER_ID, "=", episode.worker_id)]
        where += [(c.FRAGMENT_ID, ">=", low), (c.FRAGMENT_ID, "<=", high)]
        rows = lake.steps(version=version, where=where, columns=_COLUMNS).to_arrow()
        rows = rows.sort_by(c.FRAGMENT_ID)
        codecs = spaces_of(lake.storage, rows.column(s.SPACE)[0].as_py())
        ids = rows.column(c.FRAGMENT_ID).to_numpy()
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            fragment = int(ids[start])
            seeds = None
            if place.is_complete:
                # Worker w makes every fragment k with k mod num_workers = w.
                seeds = place.seeds((fragment - first) // place.num_workers)
            elif fragment == first:
                seeds = place.seeds(0)
            yield _logged(place, rows.slice(start, end - start), seeds, codecs)


def _counted(lake: Lake, place: _Place, version: int) -> list[tuple[int, int]]:
    """(fragment, rows) of the worker's incarnation, ascending, up to the episode's end."""
    episode = place.episode
    rows = lake.sql(
        "SELECT fragment_id, count(*) AS n FROM steps WHERE run_id = ? AND session = ? "
        "AND worker_id = ? AND fragment_id <= ? AND contains(episode_id, ?) "
        "GROUP BY fragment_id ORDER BY fragment_id",
        [
            *(episode.run_id, episode.session, episode.worker_id, episode.fragment_last),
            f".{place.incarnation}/",
        ],
        versions={s.STEPS.name: version},
    ).to_pylist()
    return [(row[c.FRAGMENT_ID], row["n"]) for row in rows]


def _chunks(counted: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """First and last fragment of parts of at most `_CHUNK_ROWS` rows, or of one fragment."""
    low, total = counted[0][0], 0
    previous = low
    for fragment, rows in counted:
        if total and total + rows > _CHUNK_ROWS:
            yield low, previous
            low, total = fragment, 0
        total += rows
        previous = fragment
    yield low, previous


def _logged(
    place: _Place,
    rows: pa.Table,
    seeds: list[int] | None,
    codecs: tuple[SpaceCodec, SpaceCodec],
) -> LoggedRows:
    obs_codec, action_codec = codecs
    columns = [rows.column(name) for name in (c.OBS, s.OBS_BYTES)]
    if all(column.null_count for column in columns):
        raise ReplayError("its observations were not logged, so a replay could not be checked")
    # "<run>/<env>.<incarnation>/<number>"
    numbers = [int(name.rpartition("/")[2]) for name in rows.column(c.EPISODE_ID).to_pylist()]
    return LoggedRows(
        env=rows.column(c.ENV_ID).to_numpy() - place.env_ids[0],
        episode=np.array(numbers),
        t=rows.column(c.T).to_numpy(),
        obs=obs_codec.tree(*columns, column=c.OBS),
        action=action_codec.tree(
            rows.column(c.ACTION), rows.column(s.ACTION_BYTES), column=c.ACTION
        ),
        reward=rows.column(c.REWARD).to_numpy(),
        terminated=rows.column(c.TERMINATED).to_numpy(),
        truncated=rows.column(c.TRUNCATED).to_numpy(),
        seeds=seeds,
        is_complete=place.is_complete,
    )
