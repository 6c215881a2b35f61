"""Learners: a complete state, losses by terms, and ranks that agree."""

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rl_ops.batch import Batch
from rl_ops.learner import Averages, Learner, Loss, Metrics, Modules, World
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.optim_spec import OptimSpec
from rl_ops.policy import Weights
from tests.rollout_kit import env_spec, policy_spec


@dataclass
class Nets(Modules):
    net: nn.Module
    target: nn.Module
    optimizer: FlatOptimizer
    moments: RunningMoments | None
    extra: nn.Module | None = None


def make_nets(seed: int, *, width: int = 3, with_moments: bool = True) -> Nets:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
    moments = RunningMoments((2,)) if with_moments else None
    if moments is not None:
        moments.update(np.random.default_rng(seed).standard_normal((5, 2)))
    return Nets(net, copy.deepcopy(net), FlatOptimizer([net], OptimSpec()), moments)


def train(nets: Nets, steps: int) -> None:
    for step in range(steps):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
        nets.optimizer.step(nets.net(x).square().mean() + nets.net[0].weight.sum(), lr=0.1)


def snapshot(nets: Nets) -> dict[str, dict[str, torch.Tensor]]:
    return {g: {k: v.clone() for k, v in x.items()} for g, x in nets.state().items()}


def test_the_state_holds_every_field() -> None:
    state = make_nets(0).state()
    assert list(state) == ["modules", "optimizers"]
    prefixes = {name.partition(".")[0] for name in state["modules"]}
    assert prefixes == {"net", "target", "moments"}
    assert {"moments.count", "moments.mean", "moments.m2"} <= set(state["modules"])
    assert {"net.1.running_mean", "net.1.num_batches_tracked"} <= set(state["modules"])
    assert set(state["optimizers"]) == {"optimizer.slot_0", "optimizer.slot_1", "optimizer.step"}


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    one, two = make_nets(0), make_nets(1)
    train(one, 4)
    with torch.no_grad():
        one.target[0].weight.fill_(7.0)
    two.load(snapshot(one))
    train(one, 3)
    train(two, 3)
    assert float(two.target[0].weight[0, 0].detach()) == 7.0
    for group, tensors in one.state().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two.state()[group][name]), name
    assert two.net[0].weight.data_ptr() == two.optimizer.flat.data_ptr(), "still views"


def test_keys_and_shapes_that_differ_are_all_listed_and_nothing_is_loaded() -> None:
    nets = make_nets(0)
    before = snapshot(nets)
    state = snapshot(make_nets(1, width=20, with_moments=False))
    state["modules"]["critic.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="of another architecture") as caught:
        nets.load(state)
    for problem in (
        "missing moments.count",
        "unexpected critic.weight",
        "net.0.weight: got (20, 2), here (3, 2)",
        "optimizer.slot_0: got (144,), here (64,)",
    ):
        assert problem in str(caught.value)
    for group, tensors in nets.state().items():
        assert all(torch.equal(tensor, before[group][name]) for name, tensor in tensors.items())


def test_a_missing_or_other_optimizer_is_listed_too() -> None:
    nets = make_nets(0)
    state = snapshot(nets)
    del state["optimizers"]["optimizer.slot_1"]
    state["optimizers"]["optimizer.slot_9"] = torch.zeros(1)
    words = r"missing optimizer.slot_1; unexpected optimizer.slot_9"
    with pytest.raises(ValueError, match=words):
        nets.load(state)
    with pytest.raises(ValueError, match=r"missing optimizer.slot_0"):
        nets.load({"modules": snapshot(nets)["modules"]})


def test_a_field_that_cannot_be_saved_is_refused() -> None:
    @dataclass
    class Odd(Modules):
        net: nn.Module
        note: str

    with pytest.raises(TypeError, match=r"Modules.note is a str; expected a module or optimizer"):
        Odd(nn.Linear(1, 1), "x").state()


def test_a_loss_is_the_sum_of_its_terms_and_its_metrics_are_not_in_it() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    loss = Loss({"one": 2 * x, "two": x * x}, {"entropy": torch.tensor(100.0)})
    assert loss.total.item() == 15.0
    loss.total.backward()
    assert x.grad.item() == 8.0


def test_averages_keep_no_graph() -> None:
    averages = Averages()
    x = torch.tensor(1.0, requires_grad=True)
    averages.add({"a": x * 2, "b": x})
    averages.add({"a": x * 4})
    assert averages.means() == {"a": 3.0, "b": 1.0}
    averages.add({"b": 3.0})
    assert averages.means()["b"] == 2.0


class Toy(Learner[dict[str, Any]]):
    """A learner of one net."""

    reads = ("reward",)

    def build(self) -> Nets:
        return make_nets(self.config["seed"])

    def loss(self, batch: Batch) -> Loss:
        return Loss({"loss": batch.reward.mean()}, {})

    def update(self, _batch: Batch) -> Metrics:
        self.grad_steps += 1
        return {"order": float(torch.randperm(99, generator=self.generator)[0])}

    def weights(self) -> Weights:
        return Weights({})

    def set_weights(self, weights: Weights) -> None:
        self.modules.net.load_state_dict(
            {k: torch.from_numpy(x) for k, x in weights.module.items()}
        )


def toy(seed: int, rank: int = 0) -> Toy:
    learner = Toy({"seed": 0}, policy_spec(env_spec("count")), world=World(rank=rank))
    learner.seed(seed)
    return learner


def test_counters_and_shuffles_survive_json() -> None:
    batch = Batch({"reward": torch.zeros(2)})
    one, two = toy(1), toy(2)
    for _ in range(3):
        one.update(batch)
    one.env_steps, one.version = 12, 3
    two.load_state(json.loads(json.dumps(one.state())))
    assert (two.env_steps, two.grad_steps, two.version) == (12, 3, 3)
    assert [one.update(batch) for _ in range(5)] == [two.update(batch) for _ in range(5)]


def test_ranks_shuffle_differently_and_seeds_repeat() -> None:
    batch = Batch({"reward": torch.zeros(2)})
    runs = [
        [learner.update(batch)["order"] for _ in range(6)]
        for learner in (toy(1), toy(1), toy(1, rank=1), toy(2))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0] != runs[3]


def test_a_world_of_one_changes_nothing() -> None:
    world, x = World(), torch.tensor([1.0, 2.0])
    world.average(x)
    assert x.tolist() == [1.0, 2.0]
    assert [part.tolist() for part in world.gather(x)] == [[1.0, 2.0]]


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from rl_ops.learner import World
from tests.rl_ops.test_learner import make_nets, snapshot
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
world = World(rank=rank, size=2)
gradient = torch.tensor([1.0, 4.0]) * (1 + 2 * rank)
world.average(gradient)
print(gradient.tolist())
print([part.tolist() for part in world.gather(torch.tensor([float(rank)]))])
nets = make_nets(rank)
own = snapshot(nets)["optimizers"]
world.synchronize(nets)
first = make_nets(0)
for name, tensor in first.state()["modules"].items():
    assert torch.equal(tensor, nets.state()["modules"][name]), name
assert torch.equal(nets.optimizer.flat, first.optimizer.flat)
# Threads of gloo that are left to the interpreter's end sometimes abort it.
torch.distributed.destroy_process_group()
"""


def test_ranks_average_gradients_gather_by_rank_and_start_alike(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        out, err = rank.communicate(timeout=60)
        assert rank.returncode == 0, err
        assert out.splitlines() == ["[2.0, 8.0]", "[[0.0], [1.0]]"]
