"""FlatOptimizer against torch.optim on separate parameters."""

import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from rl_ops.optim import FlatOptimizer, flatten_parameters
from rl_ops.optim_spec import OptimSpec

LR = 0.02


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def losses(module: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 5, generator=generator)
    return (module(x) - x[:, :3] * 3).square().mean() * 4


def theirs(spec: OptimSpec, parameters: Any) -> torch.optim.Optimizer:
    decay = {"lr": LR, "weight_decay": spec.weight_decay}
    if spec.kind in ("adam", "adamw"):
        kind = torch.optim.Adam if spec.kind == "adam" else torch.optim.AdamW
        return kind(parameters, betas=spec.betas, eps=spec.eps, **decay)
    if spec.kind == "rmsprop":
        return torch.optim.RMSprop(
            parameters, alpha=spec.alpha, eps=spec.eps, momentum=spec.momentum, **decay
        )
    return torch.optim.SGD(parameters, momentum=spec.momentum, **decay)


@pytest.mark.parametrize("max_grad_norm", [None, 0.3, 1e6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"kind": "adam"},
        {"kind": "adam", "betas": (0.5, 0.9), "eps": 1e-3},
        {"kind": "adamw"},
        {"kind": "rmsprop"},
        {"kind": "rmsprop", "momentum": 0.9, "alpha": 0.9},
        {"kind": "sgd"},
        {"kind": "sgd", "momentum": 0.9},
    ],
)
def test_every_kind_is_torchs_own_over_twenty_steps(
    kwargs: dict[str, Any], weight_decay: float, max_grad_norm: float | None
) -> None:
    spec = OptimSpec(**kwargs, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
    module = net()
    twin = copy.deepcopy(module)
    ours, reference = FlatOptimizer([module], spec), theirs(spec, twin.parameters())
    for step in range(20):
        norm = ours.step(losses(module, step), lr=LR)
        reference.zero_grad()
        losses(twin, step).backward()
        limit = float("inf") if max_grad_norm is None else max_grad_norm
        expected = nn.utils.clip_grad_norm_(twin.parameters(), limit)
        reference.step()
        torch.testing.assert_close(norm, float(expected), rtol=1e-5, atol=1e-6)
    for mine, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_may_change_every_step() -> None:
    module = net()
    twin = copy.deepcopy(module)
    ours = FlatOptimizer([module], OptimSpec(max_grad_norm=None))
    reference = torch.optim.Adam(twin.parameters(), eps=1e-5)
    for step, lr in enumerate((0.1, 0.01, 0.0, 0.05)):
        ours.step(losses(module, step), lr=lr)
        reference.param_groups[0]["lr"] = lr
        reference.zero_grad()
        losses(twin, step).backward()
        reference.step()
    torch.testing.assert_close(module[0].weight, twin[0].weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adam", "adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: Any, bad: float) -> None:
    module = net()
    optimizer = FlatOptimizer([module], OptimSpec(kind=kind, momentum=0.9, weight_decay=0.1))
    optimizer.step(losses(module, 0), lr=LR)
    before = {name: x.clone() for name, x in (module.state_dict() | optimizer.state()).items()}
    norm = optimizer.step(losses(module, 1) * bad, lr=LR)
    assert not math.isfinite(norm)
    for name, x in (module.state_dict() | optimizer.state()).items():
        assert torch.equal(x, before[name]), name
    optimizer.step(losses(module, 2), lr=LR)
    assert not torch.equal(module[0].weight, before["0.weight"]), "the next step is a normal one"


@pytest.mark.parametrize("kind", ["adam", "adamw", "rmsprop", "sgd"])
def test_a_loaded_state_makes_the_next_step_bit_equal(kind: Any) -> None:
    spec = OptimSpec(kind=kind, momentum=0.9, weight_decay=0.01)
    module, other = net(), net()
    one, two = FlatOptimizer([module], spec), FlatOptimizer([other], spec)
    for step in range(5):
        one.step(losses(module, step), lr=LR)
    other.load_state_dict(module.state_dict())
    two.load({name: x.clone() for name, x in one.state().items()})
    for step in range(5, 8):
        one.step(losses(module, step), lr=LR)
        two.step(losses(other, step), lr=LR)
        for mine, yours in zip(module.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, yours)


def test_a_state_of_another_kind_or_size_is_refused_by_name() -> None:
    adam = FlatOptimizer([net()], OptimSpec())
    sgd = FlatOptimizer([net()], OptimSpec(kind="sgd"))
    with pytest.raises(ValueError, match="'slot_1': got nothing, expected"):
        adam.load(sgd.state())
    small = FlatOptimizer([nn.Linear(2, 2)], OptimSpec())
    with pytest.raises(ValueError, match=r"'slot_0': got \(32,\), expected \(112,\)"):
        adam.load(small.state())


def test_parameters_stay_views_of_one_buffer() -> None:
    module = net()
    weights = {name: x.clone() for name, x in module.state_dict().items()}
    optimizer = FlatOptimizer([module], OptimSpec())
    assert all(torch.equal(x, weights[name]) for name, x in module.state_dict().items())
    for step in range(3):
        optimizer.step(losses(module, step), lr=LR)
        module.load_state_dict(weights)
        for flat, tensors in (
            (optimizer.flat, [p.data for p in module.parameters()]),
            (optimizer.grad, [p.grad for p in module.parameters()]),
        ):
            low, high = flat.data_ptr(), flat.data_ptr() + 4 * flat.numel()
            assert all(low <= x.data_ptr() < high for x in tensors)
            assert all((x.data_ptr() - low) % 64 == 0 for x in tensors), "own cache lines"
    assert float(optimizer.flat.square().sum()) == pytest.approx(
        sum(float(x.square().sum()) for x in weights.values()), rel=1e-5
    )


def test_flattened_parameters_are_views_of_one_buffer_with_their_values() -> None:
    module = net()
    before = [p.detach().clone() for p in module.parameters()]
    flat = flatten_parameters(list(module.parameters()))
    assert flat.numel() % 16 == 0
    for parameter, expected in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), expected)
        assert (parameter.data_ptr() - flat.data_ptr()) % 64 == 0, "own cache lines"
    flat.fill_(2.0)
    assert all((p == 2.0).all() for p in module.parameters())


def test_a_flattened_copy_has_the_optimizers_layout() -> None:
    module = net()
    optimizer = FlatOptimizer([module], OptimSpec())
    twin = copy.deepcopy(module).requires_grad_(False)
    flat = flatten_parameters(list(twin.parameters()))
    assert torch.equal(flat, optimizer.flat)
    assert flat.data_ptr() != optimizer.flat.data_ptr()
    for step in range(3):
        optimizer.step(losses(module, step), lr=LR)
    flat.copy_(optimizer.flat)
    for mine, other in zip(twin.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, other.detach())
        assert not mine.requires_grad


def test_a_module_that_two_share_is_trained_once() -> None:
    shared, head = nn.Linear(5, 4), nn.Linear(4, 3)
    modules = [nn.Sequential(shared, head), nn.Sequential(shared)]
    optimizer = FlatOptimizer(modules, OptimSpec(kind="sgd", max_grad_norm=None))
    assert optimizer.flat.numel() == 32 + 16 + 16 + 16
    before = shared.weight.detach().clone()
    modules[0](torch.ones(1, 5)).sum().backward()
    gradient = shared.weight.grad.clone()
    optimizer.step(modules[0](torch.ones(1, 5)).sum(), lr=0.5)
    torch.testing.assert_close(shared.weight.detach(), before - 0.5 * gradient)


def test_frozen_parameters_stay_and_no_parameters_are_refused() -> None:
    module = net()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    FlatOptimizer([module], OptimSpec()).step(losses(module, 0), lr=LR)
    assert torch.equal(module[0].weight, before)
    with pytest.raises(ValueError, match="no trainable parameters"):
        FlatOptimizer([nn.Tanh()], OptimSpec())


def test_gradients_are_reduced_before_they_are_clipped() -> None:
    module = net()

    def reduce(gradient: torch.Tensor) -> None:
        gradient.mul_(1000.0)

    optimizer = FlatOptimizer([module], OptimSpec(kind="sgd"), reduce_gradient=reduce)
    before = optimizer.flat.clone()
    norm = optimizer.step(losses(module, 0), lr=1.0)
    assert float(norm) > 100
    assert float((optimizer.flat - before).norm()) == pytest.approx(0.5, rel=1e-3)


def test_stepping_does_not_import_the_compiler() -> None:
    script = (
        "import sys, torch\n"
        "from rl_ops.optim import FlatOptimizer\n"
        "from rl_ops.optim_spec import OptimSpec\n"
        "for kind in ('adam', 'adamw', 'rmsprop', 'sgd'):\n"
        "    m = torch.nn.Linear(2, 2)\n"
        "    FlatOptimizer([m], OptimSpec(kind=kind)).step(m(torch.ones(1, 2)).sum(), lr=0.1)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
