"""Networks that act, in torch: each maps obs [B, *shape] to (params [B, P], value [B] or None).

Legend: B rows, P distribution parameters, D features, K towers (actor, critic).
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from rl_ops.model_spec import ModelSpec
from rl_ops.object_path import load_object


def build_model(spec: ModelSpec) -> nn.Module:
    """The module that `spec` describes.

    Raises:
        ValueError: the factory of kind "custom" does not exist or does not give an `nn.Module`.
    """
    if spec.head == "q" and spec.kind != "custom":
        from rl_ops.q_models import QNetwork  # which needs this module's layers

        return QNetwork(spec)
    if spec.sequence is not None and spec.kind != "custom":
        from rl_ops.transformer import DecisionTransformer  # likewise

        return DecisionTransformer(spec)
    if spec.kind == "mlp":
        return MLPActorCritic(spec)
    if spec.kind == "cnn":
        return CNNActorCritic(spec)
    if not spec.factory:
        raise ValueError("a model of kind 'custom' needs model.factory = 'module:function'")
    module = load_object(spec.factory)(spec, **spec.factory_kwargs)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{spec.factory} returned {type(module).__name__}, expected a nn.Module")
    return module


class _NumpyTanh(torch.autograd.Function):
    """tanh through numpy: 0.2 ns an element where torch's CPU kernel takes 2.3 (measured)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.from_numpy(np.tanh(x.detach().numpy()))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        result: torch.Tensor = torch.ops.aten.tanh_backward(grad, y)
        return result


def tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh, by the fastest kernel for where `x` lies."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return torch.tanh(x)
    return _NumpyTanh.apply(x)  # type: ignore[no-any-return, no-untyped-call]


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": tanh,
    "relu": torch.relu,
    "silu": nn.functional.silu,
}


def _head(width: int, size: int, gain: float) -> nn.Linear:
    head = nn.Linear(width, size)
    nn.init.orthogonal_(head.weight, gain)
    nn.init.zeros_(head.bias)
    return head


def _heads(spec: ModelSpec, width: int) -> tuple[nn.Linear, nn.Linear | None]:
    # A near-uniform first policy explores; Andrychowicz et al. 2021, arXiv:2006.05990, 3.2.
    actor = _head(width, spec.param_size, 0.01)
    actor.bias.data[list(spec.log_std_params)] = spec.log_std_init
    return actor, _head(width, 1, 1.0) if spec.has_value else None


class FreeParams(nn.Module):
    """Base of the actor-critics: replaces the parameters that no observation moves."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self._index = list(spec.free_params)
        if self._index:
            init = torch.full((len(self._index),), spec.log_std_init)
            self.free_params = nn.Parameter(init)

    def _with_free(self, params: torch.Tensor) -> torch.Tensor:
        if not self._index:
            return params
        rows = self.free_params.expand(params.shape[0], -1)
        return params.index_copy(1, torch.tensor(self._index, device=params.device), rows)


class MLPActorCritic(FreeParams):
    """Actor and critic as one stack of matrices [K, D, H]: one batched product a layer for both.

    With `shared`, K is 1 and both heads read the same trunk; an actor alone is one trunk and one
    head. Orthogonal initialisation with gain sqrt(2), as in Andrychowicz et al. 2021.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._activation = ACTIVATIONS[spec.activation]
        self._obs_size = width = math.prod(spec.obs_shape)
        for i, size in enumerate(spec.hidden):
            weight = torch.empty(spec.num_towers, width, size)
            for tower in weight:
                nn.init.orthogonal_(tower, math.sqrt(2))
            self.register_parameter(f"weight_{i}", nn.Parameter(weight))
            bias = nn.Parameter(torch.zeros(spec.num_towers, 1, size))
            self.register_parameter(f"bias_{i}", bias)
            width = size
        self.actor_head, self.critic_head = _heads(spec, width)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Obs [B, *shape] → params [B, P], value [B] unless the actor is alone."""
        x = obs.float().reshape(obs.shape[0], self._obs_size)
        if self.spec.obs_scale != 1.0:
            x = x * self.spec.obs_scale
        x = x.expand(self.spec.num_towers, -1, -1)
        for i in range(len(self.spec.hidden)):
            weight, bias = getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}")
            x = self._activation(torch.baddbmm(bias, x, weight))
        # One unbind, whose gradient is one stack; two indexings would each fill a buffer of zeros.
        towers = x.unbind(0)
        params = self._with_free(self.actor_head(towers[0]))
        return params, None if self.critic_head is None else self.critic_head(towers[-1])[:, 0]


class ConvEncoder(nn.ModuleList):
    """Convolutions over images [H, W, C], flattened.

    The default layers are those of Mnih et al. 2015 (Nature DQN).
    """

    def __init__(self, spec: ModelSpec) -> None:
        height, width, channels = spec.obs_shape
        layers = []
        for out, kernel, stride in spec.conv:
            if min(height, width) < kernel:
                raise ValueError(
                    f"model.conv: a kernel of {kernel} does not fit the {height}x{width} image "
                    f"that reaches it (observation {spec.obs_shape}); use smaller or fewer layers"
                )
            layers.append(nn.Conv2d(channels, out, kernel, stride))
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            channels = out
        super().__init__(layers)
        self._scale = spec.obs_scale
        self._activation = ACTIVATIONS[spec.activation]
        self.size = channels * height * width
        orthogonal(self)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Obs [B, H, W, C] → features [B, size]."""
        x = obs.float().permute(0, 3, 1, 2) * self._scale
        for layer in self:
            x = self._activation(layer(x))
        return x.flatten(1)


def orthogonal(layers: Iterable[Any]) -> None:
    """Orthogonal weights with gain sqrt(2), and biases of 0."""
    for layer in layers:
        nn.init.orthogonal_(layer.weight, math.sqrt(2))
        nn.init.zeros_(layer.bias)


class CNNActorCritic(FreeParams):
    """Convolutions, then fully connected layers; one trunk for both heads."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._activation = ACTIVATIONS[spec.activation]
        self.conv = ConvEncoder(spec)
        sizes = [self.conv.size, *spec.hidden]
        self.linear = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        orthogonal(self.linear)
        self.actor_head, self.critic_head = _heads(spec, sizes[-1])

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Obs [B, H, W, C] → params [B, P], value [B] unless the actor is alone."""
        x = self.conv(obs)
        for layer in self.linear:
            x = self._activation(layer(x))
        params = self._with_free(self.actor_head(x))
        return params, None if self.critic_head is None else self.critic_head(x)[:, 0]
