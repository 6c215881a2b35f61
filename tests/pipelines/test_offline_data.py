"""Logged rows as a learner reads them, against loops written from the definitions."""

import logging

import numpy as np
import pytest
import torch

from offline.lake import Lake
from offline.storage import Storage
from offline.trajectories import DataSpec, load_trajectories
from pipelines import BCConfig, IQLConfig, MARWILConfig
from pipelines.bc import BCLearner
from pipelines.config import DataConfig
from pipelines.held_out import held_out_losses
from pipelines.offline_attach import attach
from pipelines.offline_data import DataMoments, DataTask, drawn_rows, rows_of
from pipelines.offline_stream import is_too_large, read_here
from pipelines.training import plan_for
from rl_ops import columns as c
from rl_ops.learner import World
from tests.offline.validation_kit import episode, loaded
from tests.pipelines.logged_kit import log_random

READS = (c.ACTION, c.RETURN_N, c.BOOTSTRAP_OBS, c.BOOTSTRAP_DISCOUNT, c.RETURN_TO_GO)
TOY = "tests.pipelines.logged_kit:toy"


def drawn(data, *, reads=READS, kind=IQLConfig, **values):
    """The rows, and the observations of the module."""
    config = kind(env=TOY, **values)
    policy = plan_for(config, run_id="x").policy
    obs = np.concatenate([data.obs, data.final_obs])
    moments = DataMoments.new(config, policy)
    moments.update(data, obs, gamma=config.gamma)
    return drawn_rows(data, config, policy, reads, obs=obs, moments=moments), obs


def slow_returns(data, *, steps, gamma):
    """Row → (return, discount, number of the observation after); None where that is unknown."""
    found = []
    for i in range(data.rows):
        total, factor, j = 0.0, 1.0, i
        for k in range(steps):
            j = i + k
            total += factor * data.reward[j]
            factor *= 0.0 if data.terminated[j] else gamma
            if data.is_last[j]:
                break
        if data.terminated[j]:
            found.append((total, 0.0, None))
        elif not data.is_last[j]:
            found.append((total, factor, j + 1))
        elif data.final_index[j] >= 0:
            found.append((total, factor, data.rows + data.final_index[j]))
        else:
            found.append(None)
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 100, None])
def test_returns_bootstraps_and_discounts_are_those_of_the_definition(steps):
    rows = [
        *episode("terminated", 4),
        *episode("truncated", 3, end="truncated"),
        *episode("cut", 5, end=""),
        *episode("lost", 4, end="", final=False),
        *episode("gap", 6),
    ]
    rows = [row for row in rows if (row["episode_id"], row["t"]) != ("gap", 2)]
    data = loaded(rows)
    expected = slow_returns(data, steps=steps or 10**6, gamma=0.9)
    found, _ = drawn(data, kind=MARWILConfig, gamma=0.9, n_step=steps)
    kept = [i for i, row in enumerate(expected) if row is not None]
    assert found.obs_row.tolist() == kept
    assert 0 < len(kept) < data.rows
    for j, i in enumerate(kept):
        total, factor, after = expected[i]
        assert found.columns[c.RETURN_N][j] == pytest.approx(total, abs=1e-9)
        assert found.columns[c.BOOTSTRAP_DISCOUNT][j] == pytest.approx(factor, abs=1e-9)
        if after is not None:
            assert found.bootstrap_row[j] == after


def test_truncation_bootstraps_but_termination_does_not():
    data = loaded([*episode("a", 2), *episode("b", 2, end="truncated")])
    found, obs = drawn(data, gamma=0.5)
    assert found.columns[c.BOOTSTRAP_DISCOUNT].tolist() == [0.5, 0.0, 0.5, 0.5]
    assert obs[found.bootstrap_row[3]].tolist() == [2.0, 0.5]


def test_an_aborted_episode_is_one_that_was_cut():
    rows = episode("a", 3)
    rows[-1] |= {"aborted": True, "terminated": True}
    found, _ = drawn(loaded(rows), gamma=0.5)
    assert found.columns[c.BOOTSTRAP_DISCOUNT].tolist() == [0.5, 0.5, 0.5]


def test_returns_to_go_are_undiscounted_and_end_with_the_episode():
    found, _ = drawn(loaded([*episode("a", 3), *episode("b", 2)]), gamma=0.5)
    assert found.columns[c.RETURN_TO_GO].tolist() == [3.0, 3.0, 2.0, 1.0, 1.0]


def test_rewards_are_scaled_by_the_deviation_of_running_returns_and_then_clipped():
    data = loaded([*episode("a", 4), *episode("b", 3)])
    running, value = [], 0.0
    for i in range(data.rows):
        value = data.reward[i] + (0.0 if data.t[i] == 0 else 0.9 * value)
        running.append(value)
    scale = np.std(running)
    connectors = {"normalize_reward": True}
    found, _ = drawn(data, gamma=0.9, connectors=connectors)
    assert found.columns[c.RETURN_N] == pytest.approx(data.reward / scale, rel=1e-6)
    clipped, _ = drawn(data, gamma=0.9, connectors={**connectors, "clip_reward": 0.5})
    assert clipped.columns[c.RETURN_N].max() == 0.5


def test_ranks_share_the_rows_between_them():
    numbered = [row for i in range(5) for row in episode(f"e{i}", 3)]
    data = loaded([{**row, "reward": float(i)} for i, row in enumerate(numbered)])
    config = IQLConfig(env=TOY)
    policy = plan_for(config, run_id="x").policy
    seen = []
    for rank in range(2):
        rows, _ = rows_of(data, config, policy, READS, World(rank=rank, size=2))
        generator = torch.Generator().manual_seed(0)
        batches = rows.minibatches(50, 8, generator=generator)
        seen.append({(b, float(x)) for batch in batches for b, x in _named(batch)})
        assert rows.rows in (7, 8)
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == len({(float(r), float(g)) for r, g in _all(data)})


def _named(batch):
    return zip(batch.return_n.tolist(), batch.return_to_go.tolist(), strict=True)


def _all(data):
    found, _ = drawn(data)
    return zip(found.columns[c.RETURN_N], found.columns[c.RETURN_TO_GO], strict=True)


# --- streams ---


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    storage = tmp_path_factory.mktemp("streams")
    for i in range(3):
        log_random("CartPole-v1", storage, rows=300, name=f"run-{i}", seed=i)
    return str(storage / "lake")


def learner_of(lake, load, **values):
    config = IQLConfig(
        env="CartPole-v1",
        offline={"lake": lake, "load": load, "shuffle_rows": 64},
        minibatch_rows=16,
        model={"hidden": (4,)},
        **values,
    )
    plan = plan_for(config, run_id="x")
    learner = plan.dataflow.learner(config, plan.policy)
    learner.seed(0)
    version = Lake(lake).steps().version
    attach(learner, DataTask(Storage.at(lake), DataSpec(version=version)), read=read_here)
    return learner


def test_a_stream_has_the_rows_that_the_memory_has(lake):
    memory = learner_of(lake, "memory", connectors={"normalize_obs": True})
    stream = learner_of(lake, "stream", connectors={"normalize_obs": True})
    count = -(-memory.data.rows // 16) * 3
    rows = [
        {
            (
                *np.round(torch.cat([b.obs, b.bootstrap_obs], 1).numpy()[i], 5).tolist(),
                *(int(b.action[i]), float(b.return_n[i]), round(float(b.bootstrap_discount[i]), 5)),
            )
            for b in learner.data.minibatches(n, 16, generator=learner.generator)
            for i in range(16)
        }
        for learner, n in ((memory, 20 * count), (stream, count))
    ]
    assert len(rows[0]) > 850
    assert rows[0] == rows[1]
    for name in ("mean", "m2"):
        ours, theirs = (getattr(x.modules.obs_moments, name) for x in (memory, stream))
        assert np.allclose(ours, theirs, rtol=1e-9)


def test_data_that_does_not_fit_streams_and_the_log_says_why(lake, caplog):
    config = IQLConfig(env="CartPole-v1")
    policy = plan_for(config, run_id="x").policy
    task = DataTask(Storage.at(lake), DataSpec())
    with caplog.at_level(logging.INFO):
        assert not is_too_large(task, DataConfig(), policy, 2**30)
        assert "they are loaded at once" in caplog.text
        assert is_too_large(task, DataConfig(), policy, 2**10)
        assert "they are streamed" in caplog.text
    assert not is_too_large(task, DataConfig(load="memory"), policy, 2**10)
    assert is_too_large(task, DataConfig(load="stream"), policy, 2**30)


def test_a_split_is_by_episodes_and_the_same_however_rows_are_read(lake):
    parts = [
        load_trajectories(Lake(lake), DataSpec(split=0.7, part=part)) for part in ("train", "rest")
    ]
    whole = load_trajectories(Lake(lake), DataSpec())
    assert sum(part.rows for part in parts) == whole.rows
    names = [set(map(str, part.names.to_pylist())) for part in parts]
    assert not names[0] & names[1]
    assert 0.5 < len(names[0]) / whole.num_episodes < 0.9


@pytest.mark.parametrize("load", ["memory", "stream"])
def test_held_out_minibatches_are_of_the_other_episodes_and_their_loss_is_the_policys(
    tmp_path, load
):
    lake = log_random("CartPole-v1", tmp_path, rows=600)
    offline = {"lake": lake, "split": 0.7, "load": load, "shuffle_rows": 100}
    config = BCConfig(env="CartPole-v1", minibatch_rows=16, offline=offline)
    learner = BCLearner(config, plan_for(config, run_id="x").policy)
    task = DataTask(Storage.at(lake), DataSpec(split=0.7, version=Lake(lake).steps().version))
    attach(learner, task, read=read_here)
    train, rest = (
        load_trajectories(Lake(lake), DataSpec(split=0.7, part=part)) for part in ("train", "rest")
    )
    others = {row.tobytes() for row in rest.obs}
    assert others.isdisjoint(row.tobytes() for row in train.obs)
    assert [batch.rows for batch in learner.held_out] == [16] * 8
    assert all(row.tobytes() in others for b in learner.held_out for row in b.obs.numpy())
    with torch.no_grad():
        logp = [
            torch.log_softmax(learner.modules.model(b.obs)[0], -1)[torch.arange(16), b.action]
            for b in learner.held_out
        ]
    figures = learner.update_logged(1)
    before = -torch.stack(logp).mean()
    assert figures["validation/bc_loss"] != pytest.approx(float(before), abs=1e-7)
    again = held_out_losses(learner, (learner._prepared(b) for b in learner.held_out))
    assert again["validation/bc_loss"] == figures["validation/bc_loss"]
    with torch.no_grad():
        logp = [
            torch.log_softmax(learner.modules.model(b.obs)[0], -1)[torch.arange(16), b.action]
            for b in learner.held_out
        ]
    assert figures["validation/bc_loss"] == pytest.approx(-float(torch.stack(logp).mean()), 1e-5)


def test_where_no_episode_is_held_out_there_is_a_warning_and_no_validation(tmp_path, caplog):
    lake = log_random("CartPole-v1", tmp_path, rows=600)
    data = load_trajectories(Lake(lake), DataSpec())
    run, only = (data.names.column(n)[0].as_py() for n in ("run_id", "episode_id"))
    where = [("run_id", "=", run), ("episode_id", "=", only)]
    split = 0.999
    config = BCConfig(env="CartPole-v1", offline={"lake": lake, "split": split, "where": where})
    learner = BCLearner(config, plan_for(config, run_id="x").policy)
    spec = DataSpec(split=split, where=where, version=Lake(lake).steps().version)
    attach(learner, DataTask(Storage.at(lake), spec), read=read_here)
    assert learner.held_out == ()
    assert "leaves out none" in caplog.text
