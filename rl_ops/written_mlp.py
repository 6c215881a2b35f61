"""Small fully connected networks evaluated and descended by hand, without autograd.

Legend: B rows, D inputs, H outputs, A actions, K critics.

A gradient step of DQN is a dozen products of 40 us and a hundred small operations around them,
and most of these are autograd's graph, its walk and its copies. What is written out here works in
buffers of its own and is checked against autograd in the tests. All of it is to be called under
`torch.no_grad`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from rl_ops.model_spec import Activation
from rl_ops.models import MLPActorCritic
from rl_ops.pullback import grad_of
from rl_ops.q_models import CriticEnsemble, QNetwork


class Layer(NamedTuple):
    """A layer's tensors, where they lie: matrix [D, H], bias [H], and their gradients or None."""

    matrix: Tensor
    bias: Tensor
    d_matrix: Tensor | None
    d_bias: Tensor | None


class WrittenMLP:
    """Layers with an activation between them.

        y = mlp(x);  d_x = mlp.backward(dL/dy)  →  p.grad = dL/dp of every parameter p

    Args:
        layers: views of a module's parameters, taken after their optimiser or target has moved
            them to a buffer of its own.
        activation: "relu" or "tanh".
    """

    def __init__(self, layers: Sequence[Layer], activation: Activation) -> None:
        self._layers = list(layers)
        self._is_relu = activation == "relu"
        self._forward: dict[int, list[Tensor]] = {}
        self._backward: dict[int, list[Tensor]] = {}
        self._tape: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """[B, D] → [B, H], in a buffer that the next call with as many rows overwrites."""
        rows, last = len(x), len(self._layers) - 1
        if rows not in self._forward:
            self._forward[rows] = [
                x.new_empty(rows, layer.matrix.shape[1]) for layer in self._layers
            ]
        tape = [x]
        for i, (layer, out) in enumerate(zip(self._layers, self._forward[rows], strict=True)):
            # not addmm, which copies the bias to every row first: 83 us of 256 x 256 against 12
            torch.mm(tape[-1], layer.matrix, out=out).add_(layer.bias)
            if i < last:
                self._activate(out)
            tape.append(out)
        self._tape = tape
        return tape[-1]

    def keep(self, rows: slice) -> None:
        """Let `backward` be of some rows of the last call."""
        self._tape = [x[rows] for x in self._tape]

    def backward(
        self, d: Tensor, *, parameters: bool = True, inputs: bool = False
    ) -> Tensor | None:
        """Go back through the last call.

        Args:
            d: [B, H] derivatives of the loss by its outputs.
            parameters: set the gradients of the parameters; they are overwritten, not added to.
            inputs: give the derivatives [B, D] by its inputs.
        """
        rows = len(d)
        if rows not in self._backward:
            self._backward[rows] = [d.new_empty(rows, len(layer.matrix)) for layer in self._layers]
        for i in reversed(range(len(self._layers))):
            layer, x = self._layers[i], self._tape[i]
            if parameters:
                assert layer.d_matrix is not None  # who trains it has an optimiser
                assert layer.d_bias is not None
                torch.mm(x.t(), d, out=layer.d_matrix)
                torch.sum(d, 0, out=layer.d_bias)
            if not i and not inputs:
                return None
            below = self._backward[rows][i]
            if d.shape[1] == 1:  # as a product it takes eight times as long
                torch.mul(d, layer.matrix.t(), out=below)
            else:
                torch.mm(d, layer.matrix.t(), out=below)
            if i:
                self._descend(below, x)
            d = below
        return d

    def _activate(self, x: Tensor) -> None:
        if self._is_relu:
            x.relu_()
        else:
            np.tanh(x.numpy(), x.numpy())  # a tenth of the time of torch's kernel (measured)

    def _descend(self, d: Tensor, y: Tensor) -> None:
        """The derivative by what was activated, from that by its outcome `y`, in place."""
        aten: Any = torch.ops.aten
        if self._is_relu:
            aten.threshold_backward.grad_input(d, y, 0, grad_input=d)
        else:
            aten.tanh_backward.grad_input(d, y, grad_input=d)


def written_q(model: nn.Module, *, trained: bool) -> WrittenMLP | None:
    """Obs [B, D] → Q [B, A] of a plain Q network of means; None where it is another."""
    if not isinstance(model, QNetwork) or not _is_plain(model, model.spec.activation):
        return None
    q = model.q
    if model.conv is not None or q.dueling or q.noisy or q.num_atoms > 1:
        return None
    layers = [cast(nn.Linear, layer) for layer in (*model.trunk, *model.advantage)]
    return WrittenMLP([_linear(layer, trained=trained) for layer in layers], model.spec.activation)


def written_actor(model: nn.Module, *, with_free: bool = False) -> WrittenMLP | None:
    """Obs [B, D] → params [B, P] of an actor alone; None where it is another.

    Args:
        model: whose parameters have gradients.
        with_free: allow parameters that no observation moves, which the caller puts in.
    """
    if type(model) is not MLPActorCritic or not _is_plain(model, model.spec.activation):
        return None
    if model.critic_head is not None or (model.spec.free_params and not with_free):
        return None
    names = range(len(model.spec.hidden))
    stacks = [(getattr(model, f"weight_{i}"), getattr(model, f"bias_{i}")) for i in names]
    layers = [_stacked(weight, bias, 0, trained=True) for weight, bias in stacks]
    return WrittenMLP([*layers, _linear(model.actor_head, trained=True)], model.spec.activation)


def written_critics(model: nn.Module, *, trained: bool) -> list[WrittenMLP] | None:
    """Obs and action [B, D] → outputs [B, H], one for each critic; None where they are others."""
    if not isinstance(model, CriticEnsemble) or not _is_plain(model, model.spec.activation):
        return None
    if model.conv is not None:
        return None
    stacks = [model.layer(i) for i in range(model.num_layers)]
    return [
        WrittenMLP([_stacked(*pair, k, trained=trained) for pair in stacks], model.spec.activation)
        for k in range(model.num_critics)
    ]


def _is_plain(model: nn.Module, activation: Activation) -> bool:
    """Whether tensors lie where they can be worked on, and fed as they come."""
    first, spec = next(model.parameters()), cast(Any, model).spec
    here = first.device.type == "cpu" and first.dtype == torch.float32
    return here and activation in ("relu", "tanh") and spec.obs_scale == 1.0


def _linear(layer: nn.Linear, *, trained: bool) -> Layer:
    grads = (grad_of(layer.weight).t(), grad_of(layer.bias)) if trained else (None, None)
    return Layer(layer.weight.detach().t(), layer.bias.detach(), *grads)


def _stacked(weight: nn.Parameter, bias: nn.Parameter, k: int, *, trained: bool) -> Layer:
    """Network k of [K, D, H] and [K, 1, H]."""
    grads = (grad_of(weight)[k], grad_of(bias)[k, 0]) if trained else (None, None)
    return Layer(weight.detach()[k], bias.detach()[k, 0], *grads)
