"""Episodes of any space, a source that yields them, and comparisons bit for bit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from offline.exchange import Episode, Origin, RawEpisode, Source, Spaces
from offline.export_episodes import EpisodeQuery, LakeEpisodes
from offline.import_contract import Contract, Rules
from offline.importing import ImportReport, ImportRequest, import_episodes
from offline.lake import Lake
from offline.storage import Storage
from rl_ops.tree import tree_leaves, tree_map_spaces

CARTPOLE = Spaces(Box(-np.inf, np.inf, (4,), np.float32), Discrete(2), "the test")
CONTINUOUS = Spaces(Box(-np.inf, np.inf, (3,), np.float64), Box(-1, 1, (2,), np.float32), "test")
NESTED = Spaces(
    Dict(
        [
            ("image", Box(0, 255, (4, 4, 3), np.uint8)),
            ("arm", Tuple([Box(-np.inf, np.inf, (2,), np.float32), Discrete(5, start=-2)])),
            ("mask", MultiBinary(3)),
        ]
    ),
    Dict([("move", MultiDiscrete([3, 4])), ("force", Box(-2, 2, (1,), np.float64))]),
    "the test",
)
ALL = {"cartpole": CARTPOLE, "continuous": CONTINUOUS, "nested": NESTED}


def values(space: Space, rows: int, rng: np.random.Generator) -> Any:
    """Random rows of a space; floats with all their digits, also below 1e-300 and -0."""

    def leaf(part: Space, _: Any) -> Any:
        if isinstance(part, Box) and part.dtype.kind == "f":
            scale = 1.0 if np.isfinite(part.high).all() else 1e6
            array = rng.uniform(-scale, scale, (rows, *part.shape)).astype(part.dtype)
            array[:1] = -0.0
            if part.dtype == np.float64:
                array[-1:] = 5e-324
            return array
        part.seed(int(rng.integers(2**31)))
        return np.stack([part.sample() for _ in range(rows)]).astype(part.dtype)

    return tree_map_spaces(leaf, space, space.sample() if hasattr(space, "spaces") else None)


def episode(
    spaces: Spaces, name: str, rows: int, *, terminated: bool = True, seed: int = 0
) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        episode_id=name,
        obs=values(spaces.obs, rows, rng),
        action=values(spaces.action, rows, rng),
        reward=rng.normal(size=rows),
        terminated=terminated,
        truncated=not terminated,
        final_obs=values(spaces.obs, 1, rng),
        logp=rng.normal(size=rows).astype(np.float32).astype(np.float64),
        seed=seed,
    )


def episodes(spaces: Spaces, *lengths: int) -> list[Episode]:
    """One of each length, by turns terminated and truncated."""
    return [
        episode(spaces, f"ep-{i}", rows, terminated=i % 2 == 0, seed=i)
        for i, rows in enumerate(lengths)
    ]


def raw(one: Episode, *, file: str = "memory") -> RawEpisode:
    rows = len(one)
    last = np.arange(rows) == rows - 1
    return RawEpisode(
        episode_id=one.episode_id,
        origin=Origin(file, np.arange(rows)),
        obs=one.obs,
        action=one.action,
        reward=one.reward,
        terminated=last & one.terminated,
        truncated=last & one.truncated,
        final_obs=one.final_obs,
        logp=one.logp,
        seed=one.seed,
    )


@dataclass
class MemorySource:
    """A source of given records, and of one file that stands for them."""

    records_: Sequence[Any]
    file: Path
    spaces: Spaces | None = None
    kind: str = "memory"
    untyped: bool = False
    ignored: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)

    @property
    def files(self) -> tuple[str, ...]:
        self.file.touch()
        return (str(self.file),)

    def stated_spaces(self) -> Spaces | None:
        return self.spaces

    def records(self, spaces: Spaces | None) -> Iterator[Any]:
        yield from self.records_


def lake_of(folder: Path, spaces: Spaces, made: Sequence[Episode], *, run_id: str = "run") -> Lake:
    """A lake that has these episodes, as an import."""
    folder.mkdir(parents=True, exist_ok=True)
    source = MemorySource([raw(one) for one in made], folder / f"{run_id}.source", spaces)
    import_episodes(Storage.at(folder / "lake"), source, ImportRequest(run_id=run_id))
    return Lake(folder / "lake")


def import_into(folder: Path, source: Source, **request: Any) -> tuple[Lake, ImportReport]:
    storage = Storage.at(folder / "lake")
    report = import_episodes(storage, source, ImportRequest(**request))
    return Lake(storage), report


def read(lake: Lake, **query: Any) -> list[Episode]:
    return list(LakeEpisodes(lake, EpisodeQuery(**query)))


def accepted(source: Source, spaces: Spaces | None = None, **rules: Any) -> list[Any]:
    """What the contract makes of a source, without a lake."""
    spaces = spaces or source.stated_spaces()
    assert spaces is not None
    contract = Contract(spaces, Rules(**rules))
    return [contract.accept(record) for record in source.records(spaces)]


def assert_same_tree(got: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert list(got) == list(expected)
    pairs = zip(tree_leaves(got), tree_leaves(expected), strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def assert_same(
    got: Sequence[Episode], expected: Sequence[Episode], *, without: Sequence[str] = ()
) -> None:
    """The same episodes, to the bit, whatever their order; but for columns a format lacks."""
    assert sorted(e.episode_id for e in got) == sorted(e.episode_id for e in expected)
    by_id = {one.episode_id: one for one in got}
    for other in expected:
        one = by_id[other.episode_id]
        assert_same_tree(one.obs, other.obs)
        assert_same_tree(one.action, other.action)
        assert one.reward.tobytes() == other.reward.tobytes()
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)
        assert_same_tree(one.final_obs, other.final_obs)
        if "logp" not in without:
            assert_same_tree(one.logp, other.logp)
        if "seed" not in without:
            assert one.seed == other.seed
