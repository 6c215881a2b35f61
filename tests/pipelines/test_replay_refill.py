"""A replay memory's rows from the lake, against the tables that the rollouts emitted."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from gymnasium.spaces import Space
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.background import WritePolicy
from offline.compaction import compact
from offline.errors import LakeError
from offline.lake import Lake
from offline.sink import TraceSink
from offline.spaces import register_space
from offline.steps import OPTIONAL, StepFormat
from offline.storage import Storage
from offline.tables import create_tables
from offline.vacuum import vacuum
from pipelines import replay_refill
from pipelines.config import AlgorithmConfig
from pipelines.errors import CheckpointError
from pipelines.replay_refill import Segment, refill_problems, stored_fragments
from rl_ops import columns as c
from rl_ops.connectors import FlattenObs, FrameStackObs, GrayscaleObs, OneHotObs, ResizeObs
from rl_ops.envs import EnvSpec
from rl_ops.guarded_env import GuardPolicy
from rl_ops.operators import NStep
from rl_ops.policy import PolicySpec
from rl_ops.rollout import Rollout
from tests.rollout_kit import env_spec, make_rollout, policy_spec, random_weights

KEEP = frozenset({c.OBS, c.FINAL_OBS, c.FINAL_MODEL_OBS})
EMITTED = {
    *(c.ACTION, c.REWARD, c.TERMINATED, c.TRUNCATED, c.IS_LAST, c.ABORTED, c.T, c.ENV_ID),
    *(c.FRAGMENT_ID, c.FINAL_MODEL_OBS),
}


@dataclass(frozen=True)
class SumObs:
    """The sum of the episode's observations so far, so that each counts for all that follow."""

    def output_space(self, space: Space) -> Space:
        return space

    def start(self, num_envs: int, space: Space) -> Any:
        return np.zeros((num_envs, *space.shape), space.dtype)

    def step(self, obs: Any, is_first: Any, memory: Any) -> tuple[Any, Any]:
        total = np.where(is_first[:, None], 0, memory) + obs
        return total, total


COUNTS = {"lengths": (3, 7, 26), "ends": ("terminated", "truncated"), "tagged": True}
WORLDS: dict[str, tuple[EnvSpec, tuple[Any, ...] | None]] = {
    "cartpole sync": (env_spec("CartPole-v1", vectorization="sync"), None),
    "cartpole native": (env_spec("CartPole-v1", vectorization="native"), None),
    "pendulum": (EnvSpec("Pendulum-v1", max_episode_steps=9), None),
    "image": (env_spec("spaces_env", obs="image"), None),
    "frames": (
        env_spec("spaces_env", obs="image", length=11),
        (GrayscaleObs(), ResizeObs(5, 6), FrameStackObs(4)),
    ),
    "native frames": (env_spec("tests.envs:tests/Count-v0", **COUNTS), (FrameStackObs(3),)),
    "same step frames": (
        env_spec("tests.envs:tests/Count-v0", same_step=True, **COUNTS),
        (FrameStackObs(3),),
    ),
    "sums": (env_spec("count", **COUNTS), (SumObs(),)),
    "discrete": (env_spec("spaces_env", obs="discrete"), (OneHotObs(), FrameStackObs(2))),
    "dict": (env_spec("spaces_env", obs="dict", action="dict"), None),
    "dict frames": (env_spec("spaces_env", obs="dict"), (FlattenObs(), FrameStackObs(2))),
    "aborted": (
        replace(
            env_spec("faulty", fault="step", key="refill", at=3),
            guard=GuardPolicy(max_failures=10**6, backoff_s=0.0),
        ),
        (FrameStackObs(2),),
    ),
}


@dataclass
class Run:
    """Rollout workers whose fragments are logged as a learner would."""

    storage: Storage
    env: EnvSpec
    policy: PolicySpec
    num_envs: int = 3
    steps: int = 5
    workers: int = 2
    batch_mode: str = "truncate"
    columns: Sequence[str] = OPTIONAL

    def rollout(self, session: int, worker: int) -> Rollout:
        return make_rollout(
            self.env,
            num_envs=self.num_envs,
            steps=self.steps,
            policy=self.policy,
            weights=random_weights(self.policy),
            worker_id=worker,
            incarnation=session,
            batch_mode=self.batch_mode,
            keep=KEEP,
        )

    @cached_property
    def spec(self) -> Any:
        rollout = self.rollout(0, 0)
        rollout.close()
        return rollout.spec

    def fragments(
        self, ids: range, *, session: int = 0, episodes_before: int = 0
    ) -> list[pa.Table]:
        """Of workers that start with the session."""
        made = [self.rollout(session, worker) for worker in range(self.workers)]
        for rollout in made:
            rollout.episode += episodes_before
        try:
            return [made[k % self.workers].fragment(k) for k in ids]
        finally:
            for rollout in made:
                rollout.close()

    def log(self, tables: Sequence[pa.Table], *, session: int = 0, commit: int = 3) -> None:
        """`commit` fragments at a time, by one sink."""
        spaces = (self.policy.obs_space, self.policy.action_connectors.input_space)
        key = register_space(self.storage, *spaces)
        form = StepFormat("run", session, key, *spaces, columns=tuple(self.columns))
        sink = TraceSink(self.storage, form, rank=0, policy=WritePolicy(3600.0))
        for first in range(0, len(tables), commit):
            sink.used(tables[first : first + commit], learner_version=0, grad_steps=0)
            sink.flush()
        sink.close()

    def refilled(self, *segments: Segment, **options: Any) -> list[pa.Table]:
        given = {"version": None, "spec": self.spec, "rank": 0, "ranks": 1, "rows": 1, **options}
        return list(stored_fragments(self.storage, segments=segments, **given))


def run_in(folder: Path, world: str, **options: Any) -> Run:
    env, connectors = WORLDS[world]
    storage = Storage.at(folder / "lake")
    create_tables(storage)
    return Run(storage, env, policy_spec(env, connectors=connectors), **options)


def leaves(array: pa.Array) -> Iterator[bytes]:
    """The bytes of a column's numbers, so that -0.0 is not 0.0."""
    assert array.null_count == 0
    if pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from leaves(child)
    else:
        flat = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
        is_bytes = pa.types.is_fixed_size_binary(flat.type)
        values = flat.to_pylist() if is_bytes else [flat.to_numpy(zero_copy_only=False).tobytes()]
        yield b"".join(values)


def assert_same(found: Sequence[pa.Table], emitted: Sequence[pa.Table], spec: Any) -> None:
    """Bit for bit, types and order of rows and of columns too."""
    assert len(found) == len(emitted)
    for one, other in zip(found, emitted, strict=True):
        assert set(one.column_names) == EMITTED | {spec.obs_column}
        wanted = other.select([n for n in other.column_names if n in one.column_names])
        assert one.schema == wanted.schema
        for name in one.column_names:
            columns = [table.column(name).combine_chunks() for table in (one, wanted)]
            assert list(leaves(columns[0])) == list(leaves(columns[1])), name


def newest(tables: Sequence[pa.Table], rows: int, *, rank: int = 0, ranks: int = 1) -> Any:
    """The last of a rank's fragments that have `rows` rows together."""
    kept: list[pa.Table] = []
    for table in reversed(tables):
        if sum(each.num_rows for each in kept) >= rows:
            break
        if table.column(c.FRAGMENT_ID)[0].as_py() % ranks == rank:
            kept.insert(0, table)
    return kept


@pytest.mark.parametrize("world", WORLDS)
def test_the_rows_of_every_rank_come_back_bit_for_bit_compacted_or_not(tmp_path, world) -> None:
    run = run_in(tmp_path, world)
    tables = run.fragments(range(12))
    run.log(tables)
    assert_every_rank_is_refilled(run, tables)
    assert compact(run.storage, tables=["steps"])
    assert_every_rank_is_refilled(run, tables)


def assert_every_rank_is_refilled(run: Run, tables: Sequence[pa.Table]) -> None:
    for ranks in (1, 2):
        for rank in range(ranks):
            mine = newest(tables, 10**9, rank=rank, ranks=ranks)
            every = sum(table.num_rows for table in mine)
            for rows in (40, every):
                found = run.refilled(Segment("run", 0, 0, 12), rank=rank, ranks=ranks, rows=rows)
                assert_same(found, newest(tables, rows, rank=rank, ranks=ranks), run.spec)


@pytest.mark.parametrize("world", ["cartpole native", "native frames", "sums"])
def test_sessions_follow_each_other_although_their_fragments_overlap(tmp_path, world) -> None:
    run = run_in(tmp_path, world)
    first, second = run.fragments(range(8)), run.fragments(range(6, 14), session=1)
    run.log(first)
    run.log(second, session=1)
    segments = [Segment("run", 0, 2, 6), Segment("run", 1, 6, 14)]
    consumed = [*first[2:6], *second]
    for rows in (30, 130, sum(table.num_rows for table in consumed)):
        assert_same(run.refilled(*segments, rows=rows), newest(consumed, rows), run.spec)


@pytest.mark.parametrize("world", ["native frames", "sums"])
def test_fragments_of_whole_episodes_come_back(tmp_path, world) -> None:
    run = run_in(tmp_path, world, batch_mode="complete_episodes")
    tables = run.fragments(range(4))
    run.log(tables)
    rows = sum(table.num_rows for table in tables[1:])
    assert_same(run.refilled(Segment("run", 0, 0, 4), rows=rows), tables[1:], run.spec)


@settings(max_examples=8, deadline=None)
@given(
    num_envs=st.integers(1, 4),
    steps=st.integers(1, 6),
    workers=st.integers(1, 2),
    commit=st.integers(1, 5),
    rows=st.integers(1, 12),
    is_compact=st.booleans(),
)
def test_any_shape_of_fragments_and_files_gives_the_same_rows(
    num_envs, steps, workers, commit, rows, is_compact
) -> None:
    with TemporaryDirectory() as folder:
        shape = {"num_envs": num_envs, "steps": steps, "workers": workers}
        run = run_in(Path(folder), "native frames", **shape)
        tables = run.fragments(range(12))
        run.log(tables, commit=commit)
        if is_compact:
            compact(run.storage, tables=["steps"], target_bytes=8192)
        found = run.refilled(Segment("run", 0, 0, 12), rows=rows)
        assert_same(found, newest(tables, rows), run.spec)


@pytest.mark.parametrize("is_compact", [False, True])
def test_fragments_come_in_their_order_whatever_order_the_files_have(
    tmp_path, monkeypatch, is_compact
) -> None:
    monkeypatch.setattr(replay_refill, "_BATCH_ROWS", 4)  # some without a row that is wanted
    monkeypatch.setattr(replay_refill, "_FIRST_SPAN", 1)  # episodes began before
    run = run_in(tmp_path, "sums")
    tables = run.fragments(range(12))
    run.log([tables[k] for k in (11, 3, 4, 0, 7, 9, 1, 10, 2, 8, 5, 6)])
    if is_compact:
        assert compact(run.storage, tables=["steps"])
    rows = sum(table.num_rows for table in tables[5:])
    assert_same(run.refilled(Segment("run", 0, 0, 12), rows=rows), tables[5:], run.spec)
    found = run.refilled(Segment("run", 0, 0, 12), rows=50, rank=1, ranks=2)
    assert_same(found, newest(tables, 50, rank=1, ranks=2), run.spec)


def test_an_n_step_operator_makes_the_same_of_what_was_refilled(tmp_path) -> None:
    run = run_in(tmp_path, "native frames")
    tables = run.fragments(range(9))
    run.log(tables)
    n_step = NStep(n=3, gamma=0.9, obs=run.spec.obs_column)
    found = [n_step(table) for table in run.refilled(Segment("run", 0, 4, 9), rows=60)]
    assert sum(table.num_rows for table in found) >= 60
    for one, other in zip(found, [n_step(table) for table in newest(tables, 60)], strict=True):
        assert one.select(n_step.adds).equals(other.select(n_step.adds))


def test_episodes_keep_their_order_when_their_numbers_get_an_eighth_digit(tmp_path) -> None:
    run = run_in(tmp_path, "same step frames", workers=1, steps=40)
    (table,) = run.fragments(range(1), episodes_before=9_999_998)
    names = sorted(set(table.column(c.EPISODE_ID).to_pylist()))
    assert names[:2] == ["run/00000.0/10000000", "run/00000.0/10000001"], "by their text"
    shuffled = np.random.default_rng(0).permutation(table.num_rows)
    run.log([table.unify_dictionaries().take(pa.array(shuffled))])
    assert_same(run.refilled(Segment("run", 0, 0, 1)), [table], run.spec)


def test_final_observations_are_left_out_where_the_rollout_does_not_keep_them(tmp_path) -> None:
    run = run_in(tmp_path, "frames", columns=(c.OBS,))
    tables = run.fragments(range(4))
    run.log(tables)
    spec = replace(run.spec, keep=frozenset({c.OBS}))
    (found,) = run.refilled(Segment("run", 0, 0, 4), spec=spec)
    assert c.FINAL_MODEL_OBS not in found.column_names
    assert found.column(spec.obs_column).equals(tables[-1].column(spec.obs_column))
    with pytest.raises(LakeError, match="fragment 3 of table steps lacks final_obs in"):
        run.refilled(Segment("run", 0, 0, 4))


def test_files_before_the_memory_are_not_read(tmp_path) -> None:
    run = run_in(tmp_path, "cartpole sync")
    tables = run.fragments(range(9))
    run.log(tables)
    files = {
        k: file.path
        for k in range(0, 9, 3)
        for file in Lake(run.storage).steps(where=[(c.FRAGMENT_ID, "=", k)]).files()
    }
    Path(run.storage.uri, "steps", files[0]).unlink()
    rows = sum(table.num_rows for table in tables[3:])
    assert_same(run.refilled(Segment("run", 0, 3, 9), rows=rows), tables[3:], run.spec)
    with pytest.raises(LakeError, match=r"steps/.*\.parquet is missing"):
        run.refilled(Segment("run", 0, 2, 9), rows=rows + 1)


def test_the_version_asked_for_is_read_while_it_is_there_and_else_the_newest(
    tmp_path, caplog
) -> None:
    run = run_in(tmp_path, "native frames")
    tables = run.fragments(range(9))
    run.log(tables[:6])
    version = Lake(run.storage).versions()["steps"]
    run.log(tables[6:])
    segment, rows = Segment("run", 0, 0, 6), sum(table.num_rows for table in tables[1:6])
    with caplog.at_level(logging.INFO, "pipelines.replay_refill"):
        assert_same(run.refilled(segment, version=version, rows=rows), tables[1:6], run.spec)
        assert caplog.messages == []
        with pytest.raises(LakeError, match=f"version {version} of .* fragment 8 of .* not there"):
            run.refilled(Segment("run", 0, 0, 9), version=version, rows=rows)
        compact(run.storage, tables=["steps"])
        vacuum(run.storage, retention_hours=0, force=True, dry_run=False, safety_s=0)
        assert_same(run.refilled(segment, version=version, rows=rows), tables[1:6], run.spec)
    assert f"version {version} of steps is no more" in caplog.text
    assert "reading version" in caplog.text


def test_too_few_rows_are_refused_with_how_many_there_are_and_where(tmp_path) -> None:
    run = run_in(tmp_path, "cartpole sync")
    tables = run.fragments(range(6))
    run.log([table for k, table in enumerate(tables) if k != 2])
    newer = sum(table.num_rows for table in tables[3:])
    with pytest.raises(LakeError) as caught:
        run.refilled(Segment("run", 0, 0, 6), rows=newer + 1)
    message = str(caught.value)
    assert f"held {newer + 1} rows, and only the newest {newer} of them" in message
    assert run.storage.uri in message
    assert "fragment 2 of Segment(run_id='run', session=0, first=0, end=6)" in message
    assert "`millrace lake doctor`" in message
    with pytest.raises(LakeError, match=f"held {newer + 1} rows, and only the newest {newer} of"):
        run.refilled(Segment("run", 0, 3, 6), rows=newer + 1)
    with pytest.raises(LakeError, match="held 1 rows, and only the newest 0 of them"):
        run.refilled()
    assert_same(run.refilled(Segment("run", 0, 0, 6), rows=newer), tables[3:], run.spec)


def test_doubled_and_missing_rows_within_a_fragment_are_refused(tmp_path) -> None:
    run = run_in(tmp_path, "cartpole sync", workers=1)
    tables = run.fragments(range(3))
    run.log([tables[0].unify_dictionaries().take(pa.array([0, 1, 3, 4])), *tables[1:]])
    run.log(tables[2:])
    with pytest.raises(LakeError, match=r"fragment 2 .* rows are missing or doubled"):
        run.refilled(Segment("run", 0, 0, 3))
    with pytest.raises(LakeError, match=r"fragment 0 .* after t=1 of run/00000.0/0000000"):
        run.refilled(Segment("run", 0, 0, 1))


def test_memories_without_the_beginning_of_their_episodes_are_refused(tmp_path) -> None:
    run = run_in(tmp_path, "sums")
    tables = run.fragments(range(8))
    run.log(tables[6:])
    with pytest.raises(LakeError, match=r"goes on with 3 episodes .* the lake does not have"):
        run.refilled(Segment("run", 0, 6, 8))


def test_rows_of_another_environment_are_refused(tmp_path) -> None:
    run = run_in(tmp_path, "cartpole sync")
    run.log(run.fragments(range(2)))
    other = replace(run, env=WORLDS["pendulum"][0], policy=policy_spec(WORLDS["pendulum"][0]))
    with pytest.raises(LakeError, match=r"those of Pendulum-v1 are .* environment has changed"):
        other.refilled(Segment("run", 0, 0, 2))


def test_an_empty_memory_needs_no_rows_and_no_lake(tmp_path) -> None:
    run = run_in(tmp_path, "cartpole sync")
    nowhere = Storage.at(tmp_path / "nowhere")
    options = {"version": 7, "segments": [], "spec": run.spec, "rank": 0, "ranks": 1}
    assert list(stored_fragments(nowhere, **options, rows=0)) == []


@pytest.mark.parametrize("wrong", [{"rank": 2}, {"rank": -1}, {"rows": -1}])
def test_a_rank_that_is_none_of_the_ranks_is_refused(tmp_path, wrong) -> None:
    run = run_in(tmp_path, "cartpole sync")
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        run.refilled(Segment("run", 0, 0, 1), **{"ranks": 2, **wrong})


def test_a_segment_is_the_same_after_json() -> None:
    segment = Segment("run", 2, 5, 9)
    assert Segment.from_json(json.loads(json.dumps(segment.to_json()))) == segment


@pytest.mark.parametrize(
    "data",
    [
        {"run_id": "run", "session": 0, "first": 3},
        {"run_id": "run", "session": 0, "first": 3, "end": 2},
        {"run_id": "run", "session": 0, "first": -1, "end": 2},
        {"run_id": "run", "session": 0, "first": "3", "end": 4},
        {"run_id": "run", "session": 0, "first": 3, "end": 4, "more": 1},
    ],
)
def test_what_names_no_fragments_is_no_segment(data) -> None:
    with pytest.raises(CheckpointError, match="names no fragments of a run"):
        Segment.from_json(data)


@pytest.mark.parametrize(
    ("groups", "where"),
    [
        ({}, []),
        ({"connectors": {"normalize_obs": True, "clip_reward": 1.0}}, []),
        ({"trace": {"columns": ("obs", "final_obs")}}, []),
        ({"trace": {"enabled": False, "episode_frac": 0.5}}, ["trace.enabled"]),
        (
            {
                "trace": {"episode_frac": 0.5, "columns": ("final_obs", "logp")},
                "connectors": {"normalize_reward": True},
            },
            ["trace.episode_frac", "trace.columns", "connectors.normalize_reward"],
        ),
    ],
)
def test_what_the_log_lacks_is_said_before_a_run(groups, where) -> None:
    problems = refill_problems(AlgorithmConfig(algo="any", env="CartPole-v1", **groups))
    assert [problem.where for problem in problems] == where
