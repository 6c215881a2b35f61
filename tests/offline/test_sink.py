"""The sink, fed by real rollouts, without a pipeline."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from offline.background import WritePolicy
from offline.lake import Lake
from offline.sink import TraceSink
from offline.spaces import register_space, spaces_of
from offline.steps import StepEncoder, StepFormat
from offline.storage import Storage
from offline.tables import create_tables
from rl_ops import columns as c
from rl_ops.tree import tree_map
from tests.envs import ACTION_SPACES, OBS_SPACES
from tests.rollout_kit import env_spec, make_rollout, policy_spec, random_weights

KEEP = frozenset({c.OBS, c.FINAL_OBS})


@pytest.fixture
def storage(tmp_path):
    found = Storage.at(tmp_path / "lake")
    create_tables(found)
    return found


def spaces_rollout(obs: str, action: str) -> Any:
    env = env_spec("spaces_env", obs=obs, action=action)
    policy = policy_spec(env)
    return make_rollout(
        env, num_envs=2, steps=6, policy=policy, keep=KEEP, weights=random_weights(policy)
    )


def sink_for(storage, rollout, **options):
    policy = rollout.spec.policy
    spaces = (policy.obs_space, policy.action_connectors.input_space)
    form = StepFormat("run", 3, register_space(storage, *spaces), *spaces, **options)
    return TraceSink(storage, form, rank=1, policy=WritePolicy(3600.0))


@pytest.mark.parametrize(
    ("obs", "action"),
    [(obs, "discrete") for obs in OBS_SPACES] + [("vector", action) for action in ACTION_SPACES],
)
def test_every_space_comes_back_bit_for_bit(storage, obs, action) -> None:
    rollout = spaces_rollout(obs, action)
    sink = sink_for(storage, rollout)
    tables = [rollout.fragment(k) for k in range(3)]
    sink.used(tables, learner_version=0, grad_steps=5)
    sink.close()
    rows = pa.concat_tables(tables).unify_dictionaries()
    steps = Lake(storage).steps().to_arrow()
    assert steps.column(c.REWARD).to_pylist() == rows.column(c.REWARD).to_pylist()
    (key,) = set(steps.column("space").to_pylist())
    codecs = spaces_of(storage, key)
    for name, codec, own in (
        (c.OBS, codecs[0], rollout.obs_codec),
        (c.FINAL_OBS, codecs[0], rollout.obs_codec),
        (c.ACTION, codecs[1], rollout.action_codec),
    ):
        valid = np.array(rows.column(name).is_valid())
        chosen = steps.filter(pa.array(valid))
        found = codec.tree(chosen.column(name), chosen.column(f"{name}_bytes"))
        expected = own.decode(rows.filter(pa.array(valid)).column(name))

        def same(one, other):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)

        tree_map(same, found, expected)
        lost = steps.filter(pa.array(~valid))
        assert lost.column(name).null_count == lost.num_rows


def test_used_and_unused_fragments_are_steps_and_only_the_used_are_consumption(storage) -> None:
    rollout = make_rollout(env_spec("CartPole-v1"), num_envs=2, steps=8, keep=KEEP)
    sink = sink_for(storage, rollout)
    tables = [rollout.fragment(k) for k in range(4)]
    sink.used(tables[:2], learner_version=7, grad_steps=30)
    sink.unused(tables[2:3])
    assert sink.flush().keys() >= {"steps", "consumption"}
    sink.unused(tables[3:])
    sink.close()
    lake = Lake(storage)
    used = lake.consumption().to_arrow().to_pylist()
    assert [(row["fragment_id"], row["rows"]) for row in used] == [
        (k, tables[k].num_rows) for k in range(2)
    ]
    assert {(r["session"], r["rank"], r["learner_version"], r["lag"]) for r in used} == {
        (3, 1, 7, 7)
    }
    assert {row["grad_steps"] for row in used} == {30}
    steps = lake.steps().to_arrow()
    assert steps.num_rows == sum(table.num_rows for table in tables)
    assert set(steps.column("fragment_id").to_pylist()) == {0, 1, 2, 3}
    assert set(steps.column("session").to_pylist()) == {3}


def test_a_sink_that_was_given_nothing_writes_nothing(storage) -> None:
    rollout = make_rollout(env_spec("CartPole-v1"), keep=KEEP)
    sink = sink_for(storage, rollout)
    before = Lake(storage).versions()
    sink.unused([])
    sink.close()
    assert Lake(storage).versions() == before
    assert Lake(storage).steps().count() == 0


def test_a_share_of_the_episodes_is_chosen_by_their_ids_alone(storage) -> None:
    rollout = make_rollout(env_spec("CartPole-v1"), num_envs=16, steps=64, keep=KEEP)
    tables = [rollout.fragment(k) for k in range(4)]
    policy = rollout.spec.policy
    spaces = (policy.obs_space, policy.action_connectors.input_space)

    def chosen(given, frac):
        form = StepFormat("run", 0, "key", *spaces, episode_frac=frac)
        return set(StepEncoder(form).encode(given).column(c.EPISODE_ID).to_pylist())

    every = chosen(tables, 1.0)
    some = chosen(tables, 0.4)
    assert 0.2 < len(some) / len(every) < 0.6
    assert some == set().union(*(chosen([table], 0.4) for table in tables))
    assert chosen(tables, 0.2) < some
    assert chosen(tables, 0.0) == set()
