"""What checkpoints keep of learners' memories: where rows are, and what cannot be brought back."""

import json

import pyarrow as pa
import pytest
import torch

from pipelines import PPOConfig
from pipelines.checkpoint import MEMORY, Checkpoint
from pipelines.errors import CheckpointError
from pipelines.memory_state import Origins, load_memory, save_memory, tree_cat
from pipelines.replay_refill import Segment
from rl_ops import columns as c
from rl_ops.learner import World
from tests.pipelines.test_off_policy_resume import Session, make_config

HERE = ("lake", "run", 0)


def fragment(k, rows=4):
    return pa.table({c.FRAGMENT_ID: pa.array([k] * rows, pa.int64())})


def origins_of(*consumed, capacity_rows=10):
    """Of (origin, fragment ids)."""
    origins = Origins(capacity_rows)
    for origin, ids in consumed:
        origins.consumed(origin, [fragment(k) for k in ids])
    return origins


# --- origins ---


def test_only_fragments_of_which_a_row_is_held_are_named():
    assert origins_of((HERE, range(2))).segments() == [Segment("run", 0, 0, 2)]
    # Of 40 rows in fragments of 4 the newest 10 begin in the middle of fragment 7.
    assert origins_of((HERE, range(10))).segments() == [Segment("run", 0, 7, 10)]
    assert origins_of((HERE, range(10)), capacity_rows=8).segments() == [Segment("run", 0, 8, 10)]


def test_each_session_is_a_segment_and_the_oldest_comes_first():
    later = ("lake", "run", 2)
    origins = origins_of((HERE, range(3)), (later, range(3, 5)))
    assert origins.segments() == [Segment("run", 0, 2, 3), Segment("run", 2, 3, 5)]
    origins.consumed(later, [fragment(5)])
    assert origins.segments() == [Segment("run", 2, 3, 6)]


def test_a_rank_names_ranges_although_it_has_only_some_of_their_fragments():
    assert origins_of((HERE, (1, 3, 5))).segments() == [Segment("run", 0, 1, 6)]


def test_one_lake_must_have_them_all():
    assert origins_of((HERE, range(5))).is_in("lake")
    assert not origins_of((HERE, range(5))).is_in("other")
    assert not origins_of((HERE, range(5))).is_in(None)
    mixed = origins_of((("other", "run", 0), [0]), (HERE, [1]))
    assert not mixed.is_in("lake")
    mixed.consumed(HERE, [fragment(2), fragment(3)])
    assert mixed.is_in("lake")


def test_rows_without_a_lake_are_in_none():
    assert not origins_of(((None, "run", 0), [0])).is_in(None)
    assert not origins_of(((None, "run", 0), [0])).is_in("lake")


def test_rows_that_a_checkpoint_brought_count_until_they_are_overwritten():
    origins = Origins(10)
    origins.loaded(10)
    origins.consumed(HERE, [fragment(5), fragment(6)])
    assert not origins.is_in("lake")
    origins.consumed(HERE, [fragment(7)])
    assert origins.is_in("lake")
    assert origins.segments() == [Segment("run", 0, 5, 8)]


def test_no_rows_brought_are_no_reason_to_keep_rows_in_checkpoints():
    origins = Origins(10)
    origins.loaded(0)
    assert origins.is_in("lake")
    assert origins.segments() == []


def test_trees_of_rows_join_leaf_by_leaf():
    trees = [{"a": torch.tensor([k]), "b": (torch.tensor([[k, k]]),)} for k in (1, 2)]
    joined = tree_cat(trees)
    assert joined["a"].tolist() == [1, 2]
    assert joined["b"][0].tolist() == [[1, 1], [2, 2]]


# --- checkpoints ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that ended, and its checkpoint."""
    session = Session(make_config(), tmp_path_factory.mktemp("run")).train(4)
    path = session.save("saved")
    session.close()
    return session, path


def load(run, *, told=None, world=None, **state):
    """Load the run's checkpoint, altered, into a fresh learner."""
    session, path = run
    fresh = Session(session.config, session.folder, None, session.number + 1)
    checkpoint = Checkpoint(path)
    checkpoint.state |= state
    if told is not None:
        checkpoint.state["memory"] = told(checkpoint.state["memory"])
    learner = fresh.loop.learner
    learner.world = world or World()
    try:
        load_memory(learner, fresh.loop.origins, fresh.task.plan, checkpoint)
    finally:
        fresh.close()
    return learner


def test_what_is_kept_beside_the_rows_is_small_and_says_where_they_are(run):
    session, path = run
    checkpoint = Checkpoint(path)
    assert set(checkpoint.memory()) == {"0.state.num_added"}
    (told,) = checkpoint.state["memory"]
    assert told == {
        "lake": session.storage.uri,
        "segments": [{"run_id": "run", "session": 0, "first": 1, "end": 4}],
    }
    assert load(run).replay.num_added == session.loop.learner.replay.num_added


@pytest.mark.parametrize("ranks", [2, 3])
def test_another_number_of_learner_ranks_is_refused_with_both(run, ranks):
    with pytest.raises(
        CheckpointError, match=f"memory is of 1 learner ranks, and there are {ranks}"
    ):
        load(run, world=World(rank=1, size=ranks))
    with pytest.raises(CheckpointError, match=f"of {ranks} learner ranks, and there are 1 here"):
        load(run, told=lambda told: told * ranks)


def test_a_checkpoint_without_a_memory_is_refused(run):
    with pytest.raises(CheckpointError, match="its replay memory is of none, and there are 1 here"):
        load(run, memory=None)


def test_segments_that_lack_rows_are_refused_with_how_many_there_are(run):
    def without_oldest(told):
        told = json.loads(json.dumps(told))
        told[0]["segments"][0]["first"] += 1
        return told

    with pytest.raises(CheckpointError, match=r"held 150 rows, and only the newest \d+ of them"):
        load(run, told=without_oldest)


def test_segments_that_are_none_are_refused(run):
    def broken(told):
        return [{**told[0], "segments": [{"run_id": "run", "session": 0}]}]

    with pytest.raises(CheckpointError, match="names no fragments of a run"):
        load(run, told=broken)


def test_a_learner_that_remembers_nothing_saves_and_loads_nothing(tmp_path):
    rollout = {"num_envs": 2, "fragment_steps": 8}
    session = Session(PPOConfig(env="CartPole-v1", rollout=rollout), tmp_path).train(1)
    assert save_memory(session.loop.learner, None, session.task.plan, session.task.trace) is None
    path = session.save("saved")
    session.close()
    assert not (tmp_path / "saved" / MEMORY).exists()
    load_memory(session.loop.learner, None, session.task.plan, Checkpoint(path))
