"""Factories for models of kind "custom", by name: model.factory = "tests.models:linear"."""

from typing import Any

import torch
from torch import nn

from rl_ops.model_spec import ModelSpec


class Linear(nn.Module):
    def __init__(self, spec: ModelSpec, *, bias: bool = True, wide_value: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.obs_shape[0], spec.param_size + 1, bias=bias)
        self.wide_value = wide_value

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.layer(obs.float())
        return out[:, :-1], out[:, -1:] if self.wide_value else out[:, -1]


def linear(spec: ModelSpec, **kwargs: Any) -> nn.Module:
    return Linear(spec, **kwargs)


def not_a_module(spec: ModelSpec) -> str:
    return spec.kind
