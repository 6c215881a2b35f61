"""What learners with a replay memory share: how often they learn, from what, and slow copies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipelines import ApexConfig, DQNConfig, config_class
from pipelines.config import TargetConfig
from pipelines.dqn import DQNLearner
from pipelines.off_policy import (
    TRANSITION,
    Follower,
    Learned,
    ReplayLearner,
    follower_of,
    frozen,
    initial_priorities,
    noted_steps,
    transitions,
)
from pipelines.training import plan_for
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.operators import AddTDPriority, ClipReward, NStep
from rl_ops.optim import FlatOptimizer
from rl_ops.optim_spec import OptimSpec


class Probe(DQNLearner):
    """A DQN that notes what it is given instead of learning from it."""

    def learn(self, batch: Batch) -> Learned:
        self.seen.append((self.updates, batch))
        priority = batch.obs[:, 0] if self.gives_priority else None
        return Learned({"seen": float(batch.rows)}, priority)


POLICY = plan_for(DQNConfig(env="CartPole-v1"), run_id="test").policy


def probe(*, gives_priority=True, **config) -> Probe:
    settings = {"minibatch_rows": 4, "learning_starts_rows": 0, "updates_per_row": 1.0, **config}
    made = Probe(DQNConfig(env="CartPole-v1", **settings), POLICY)
    made.seed(0)
    made.seen, made.gives_priority = [], gives_priority
    return made


def rows(count, *, first=0, **columns) -> Batch:
    """Rows whose observations say which they are, counted from `first`."""
    number = torch.arange(first, first + count, dtype=torch.float32)
    return Batch(
        {
            "obs": number[:, None].expand(-1, 4).clone(),
            "action": torch.zeros(count, dtype=torch.int64),
            "return_n": number,
            "bootstrap_obs": (number[:, None] + 0.5).expand(-1, 4).clone(),
            "bootstrap_discount": torch.full((count,), 0.9),
            **columns,
        }
    )


def consume(made, count, *, first=0, **columns):
    """One version of `count` rows, as the loop hands it to the learner."""
    metrics = made.update(rows(count, first=first, **columns))
    made.env_steps += count
    return metrics


# --- how often ---


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    starts=st.integers(0, 60),
    per_row=st.sampled_from([0.1, 0.25, 0.7, 1.0, 1.5]),
)
def test_gradient_steps_keep_their_ratio_to_rows_whatever_the_versions_sizes(
    sizes, starts, per_row
):
    made = probe(learning_starts_rows=starts, updates_per_row=per_row)
    total = 0
    for size in sizes:
        consume(made, size)
        total += size
        # in whole numbers: tenths are not exact in binary
        assert len(made.seen) == max(0, total - starts) * round(100 * per_row) // 100
    assert [updates for updates, _ in made.seen] == list(range(1, len(made.seen) + 1))


@pytest.mark.parametrize(("per_row", "count", "expected"), [(0.29, 100, 29), (0.7, 90, 63)])
def test_no_gradient_step_is_lost_to_rounding(per_row, count, expected):
    made = probe(updates_per_row=per_row)
    consume(made, count)
    assert len(made.seen) == expected > int(per_row * count)


def test_a_run_that_goes_on_with_fewer_updates_a_row_waits_for_its_rows():
    made = probe()
    consume(made, 10)
    slower = probe(updates_per_row=0.5)
    slower.load_state(made.state())
    assert slower.updates == 10
    counts = []
    for _ in range(3):
        consume(slower, 5)
        counts.append(len(slower.seen))
    assert counts == [0, 0, 2], "12 for 25 rows, of which 10 were made"


def test_before_learning_starts_rows_are_only_stored():
    made = probe(learning_starts_rows=100)
    assert consume(made, 30) == {"replay_rows": 30.0}
    assert made.seen == []


def test_the_count_of_updates_is_in_the_state():
    made = probe()
    consume(made, 7)
    other = probe()
    other.load_state(made.state())
    assert (other.updates, other.env_steps) == (7, 7)


# --- from what ---


def test_a_minibatch_has_the_transitions_and_weights_of_one_where_draws_are_even():
    made = probe()
    consume(made, 20)
    assert len(made.seen) == 20
    for _, batch in made.seen:
        assert set(batch.names) == {c.OBS, *TRANSITION, "is_weight"}
        assert batch.rows == 4
        assert torch.equal(batch.is_weight, torch.ones(4))
        # the columns of one row stay together
        assert torch.equal(batch.return_n, batch.obs[:, 0])
        assert torch.equal(batch.bootstrap_obs, batch.obs + 0.5)
    assert len({int(x) for _, batch in made.seen for x in batch.return_n}) > 15


PRIORITIZED = {"replay": {"prioritized": True, "alpha": 0.5, "beta": 0.4, "eps": 0.01}}


def stored_priorities(made):
    return made.replay.state()["priorities"]


def test_learned_td_errors_become_the_priorities_of_the_rows_they_are_of():
    made = probe(**PRIORITIZED)
    consume(made, 12)
    drawn = {int(x) for _, batch in made.seen for x in batch.obs[:, 0]}
    for row, found in enumerate(stored_priorities(made).tolist()):
        raw = row if row in drawn else 1.0  # rows enter with the largest priority so far
        assert found == pytest.approx((raw + 0.01) ** 0.5, rel=1e-6)
    assert drawn - {0, 1}


def test_rows_enter_with_the_priority_that_their_worker_gave():
    made = probe(**PRIORITIZED, learning_starts_rows=100)
    consume(made, 5, priority=torch.tensor([0.0, 1.0, 2.0, 3.0, 8.0]))
    expected = [(x + 0.01) ** 0.5 for x in (0, 1, 2, 3, 8)]
    assert stored_priorities(made).tolist() == pytest.approx(expected, rel=1e-6)


def test_without_td_errors_priorities_stay():
    made = probe(**PRIORITIZED, gives_priority=False)
    consume(made, 5)
    assert stored_priorities(made).tolist() == pytest.approx([1.01**0.5] * 5, rel=1e-6)


def test_weights_undo_the_bias_of_draws_as_far_as_beta_says():
    beta = ((0, 0.0), (100, 1.0))
    settings = {**PRIORITIZED["replay"], "beta": beta, "alpha": 1.0}
    made = probe(replay=settings, gives_priority=False)
    priority = torch.tensor([1.0, 2.0, 4.0, 8.0])
    consume(made, 4, priority=priority)
    assert all(torch.equal(batch.is_weight, torch.ones(4)) for _, batch in made.seen)
    made.env_steps, made.seen = 50, []
    consume(made, 4, first=4, priority=priority)
    p = torch.tensor([1.0, 2, 4, 8, 1, 2, 4, 8]) + 0.01
    assert len(made.seen) == 50
    for _, batch in made.seen:
        drawn = p[batch.obs[:, 0].long()]
        expected = (drawn.min() / drawn) ** 0.5
        torch.testing.assert_close(batch.is_weight, expected, rtol=1e-5, atol=0)


def test_rows_are_stored_as_they_were_and_fed_with_the_statistics_of_now():
    made = probe(connectors={"normalize_obs": True, "obs_clip": 1.0})
    consume(made, 2)
    consume(made, 6, first=2)
    stored = made.replay.newest(8)
    assert torch.equal(stored.obs, rows(8).obs)
    mean, std = 3.5, torch.arange(8.0).std(correction=0)
    assert len(made.seen) == 8
    for _, batch in made.seen[2:]:
        number = batch.return_n
        for found, raw in ((batch.obs, number), (batch.bootstrap_obs, number + 0.5)):
            expected = ((raw - mean) / std).clamp(-1, 1)[:, None].expand(-1, 4)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_metrics_are_means_over_the_updates():
    made = probe()
    assert consume(made, 6) == {"seen": 4.0, "replay_rows": 6.0}


# --- the dataflow around ---


@pytest.mark.parametrize("connectors", [None, [{"kind": "FrameStackObs", "num_frames": 2}]])
def test_windows_are_taken_from_what_the_module_is_fed(connectors):
    config = DQNConfig(env="CartPole-v1", n_step=3, connectors={"obs": connectors})
    plan = plan_for(config, run_id="test")
    (operator,) = plan.dataflow.source.then
    assert operator == NStep(3, 0.99, obs=plan.rollout.obs_column)
    assert c.FINAL_MODEL_OBS in plan.rollout.keep
    assert set(TRANSITION) <= set(plan.columns)


def test_priorities_of_workers_are_of_the_reward_that_the_learner_sees():
    config = ApexConfig(env="CartPole-v1", connectors={"clip_reward": 1.0}, gamma=0.9)
    clip, windows = transitions(config)
    assert clip == ClipReward(1.0)
    assert windows == NStep(3, 0.9, reward=c.CLIPPED_REWARD)
    assert initial_priorities(config) == AddTDPriority(3, 0.9, reward=c.CLIPPED_REWARD)
    plan = plan_for(config, run_id="test")
    assert {c.Q_VALUE, c.FINAL_MODEL_OBS} <= plan.rollout.keep
    assert c.PRIORITY in plan.columns


# --- slow copies ---


def network_and_optimizer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    return network, FlatOptimizer([network], OptimSpec(kind="sgd", max_grad_norm=None))


def step(network, optimizer, number=0):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
    optimizer.step(network(x).square().sum(), lr=0.05)


def values(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def test_a_soft_copy_moves_by_tau_each_time():
    network, optimizer = network_and_optimizer()
    copy = follower_of(network)
    follower = Follower(copy, optimizer, TargetConfig(tau=0.25, period_updates=1))
    expected = values(network)
    for k in range(1, 4):
        step(network, optimizer, k)
        follower.follow(k)
        expected = 0.75 * expected + 0.25 * values(network)
        torch.testing.assert_close(values(copy), expected, rtol=1e-6, atol=1e-7)


def test_a_hard_copy_is_the_network_of_every_periods_end():
    network, optimizer = network_and_optimizer()
    copy = follower_of(network)
    follower = Follower(copy, optimizer, TargetConfig(tau=1.0, period_updates=3))
    start = values(network)
    for k in range(1, 8):
        step(network, optimizer, k)
        follower.follow(k)
        if k in (3, 6):
            start = values(network)
        assert torch.equal(values(copy), start), k
    assert not torch.equal(values(copy), values(network))


def test_a_copy_is_not_trained_and_shares_no_memory():
    network, _ = network_and_optimizer()
    copy = follower_of(network)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in network.parameters())
    before = values(copy)
    with torch.no_grad():
        network[0].weight.add_(1.0)
    assert torch.equal(values(copy), before)


def test_a_loaded_copy_still_follows():
    network, optimizer = network_and_optimizer()
    copy = follower_of(network)
    follower = Follower(copy, optimizer, TargetConfig(tau=1.0, period_updates=1))
    copy.load_state_dict({name: torch.zeros_like(x) for name, x in copy.state_dict().items()})
    follower.follow(1)
    assert torch.equal(values(copy), values(network))


def test_a_network_that_is_trained_in_part_has_no_slow_copy():
    network = nn.Sequential(nn.Linear(3, 50), nn.Linear(50, 2))
    network[0].requires_grad_(False)
    optimizer = FlatOptimizer([network], OptimSpec())
    with pytest.raises(ValueError, match="must train all its parameters"):
        Follower(follower_of(network), optimizer, TargetConfig())


def test_gradients_pass_through_what_is_frozen_and_stop_at_its_parameters():
    network, _ = network_and_optimizer()
    network.zero_grad()
    x = torch.randn(4, 3, requires_grad=True)
    with frozen(network):
        loss = network(x).sum()
    loss.backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.grad is not None and p.grad.any() for p in network.parameters())
    assert all(p.requires_grad for p in network.parameters())
    with pytest.raises(RuntimeError, match="inside"), frozen(network):
        raise RuntimeError("inside")
    assert all(p.requires_grad for p in network.parameters())


def test_the_steps_of_two_optimisers_do_not_hide_each_other():
    critic = {"critic_loss": 1.0, "grad_norm": float("nan"), "skipped": 1.0}
    actor = {"actor_loss": 2.0, "grad_norm": 3.0, "skipped": 0.0}
    noted = noted_steps(critic, actor)
    assert noted["skipped"] == noted_steps(actor, critic)["skipped"] == 1.0
    assert (noted["critic_loss"], noted["actor_loss"], noted["actor_grad_norm"]) == (1, 2, 3)
    assert noted["grad_norm"] != noted["grad_norm"]


def test_acting_weights_are_the_models_and_say_how_far_the_learner_is():
    made = probe()
    consume(made, 5)
    weights = made.weights()
    assert weights.env_steps == 5
    before = values(made.modules.target)
    again = Probe(made.config.with_overrides({"seed": 3}), made.policy)
    assert not torch.equal(values(again.modules.model), values(made.modules.model))
    again.set_weights(weights)
    assert torch.equal(values(again.modules.model), values(made.modules.model))
    assert torch.equal(values(made.modules.target), before)
    assert again.modules.model.trunk[0].weight.data_ptr() == again.modules.optimizer.flat.data_ptr()


@pytest.mark.parametrize("algo", ["dqn", "apex", "sac", "td3", "tqc"])
def test_every_algorithm_with_a_memory_is_one_of_these(algo):
    env = "CartPole-v1" if algo in ("dqn", "apex") else "Pendulum-v1"
    dataflow = plan_for(config_class(algo)(env=env), run_id="test").dataflow
    assert issubclass(dataflow.learner, ReplayLearner)
    assert dataflow.learner.reads == TRANSITION
    assert dataflow.replay.memory.capacity_rows == 100_000
