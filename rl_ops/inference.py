"""Networks as functions of numpy arrays: how a policy acts wherever it acts.

Legend: B rows, P distribution parameters, D features.

A small MLP in numpy needs no torch: a rollout worker starts 1.3 CPU-seconds earlier and a step of
32 rows costs 11 us instead of 36 (measured; docs/decisions.md). All other kinds run in torch.
"""

from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rl_ops.model_spec import ModelSpec

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]


class Inference(Protocol):
    """A network that only acts."""

    computes_value: bool
    """True where `forward` gives the value at no cost; else ask `value` for many rows at once."""

    def load(self, weights: Weights) -> None:
        """Take new weights; arrays may be read-only and are not copied."""

    def forward(self, obs: Array) -> tuple[Array, Array | None]:
        """Obs [B, *shape] → distribution parameters [B, P] and value [B], None unless computed."""

    def value(self, obs: Array) -> Array:
        """Obs [B, *shape] → value [B]; only where the network has one."""

    def draw_noise(self, rng: np.random.Generator | None) -> None:
        """New noise for layers that have some; None for none."""


def inference_for(spec: ModelSpec) -> Inference:
    """The cheapest implementation of `spec`: numpy for an MLP, torch for everything else."""
    if spec.sequence is not None and spec.kind != "custom":
        from rl_ops.sequence_inference import SequenceInference  # imports torch

        return SequenceInference(spec)
    if spec.kind == "mlp" and spec.head == "q":
        from rl_ops.q_inference import QInference  # which needs this module's activations

        return QInference(spec)
    if spec.kind == "mlp":
        return MLPInference(spec)
    from rl_ops.torch_inference import TorchInference  # imports torch, which an MLP does without

    return TorchInference(spec)


def _relu(x: Array, out: Array) -> None:
    np.maximum(x, 0, out=out)


def _silu(x: Array, out: Array) -> None:
    # Below -80 the result is 0 to float32, and exp would overflow.
    np.divide(x, 1 + np.exp(-np.maximum(x, -80)), out=out)


ACTIVATIONS: dict[str, Callable[..., object]] = {"tanh": np.tanh, "relu": _relu, "silu": _silu}


def mlp_names(spec: ModelSpec) -> list[str]:
    """The names of an MLP's parameters."""
    names = [f"{kind}_{i}" for i in range(len(spec.hidden)) for kind in ("weight", "bias")]
    heads = ("actor", "critic") if spec.has_value else ("actor",)
    names += [f"{head}_head.{kind}" for head in heads for kind in ("weight", "bias")]
    return names + ["free_params"] * bool(spec.free_params)


def check_names(weights: Weights, names: Collection[str]) -> None:
    """Refuse weights of another model.

    Raises:
        ValueError: names are missing or too many; the message lists them.
    """
    if weights.keys() != set(names):
        missing, unexpected = set(names) - weights.keys(), weights.keys() - set(names)
        raise ValueError(
            f"weights of another model: missing {sorted(missing)}, unexpected {sorted(unexpected)}"
        )


class MLPInference:
    """The numpy twin of `models.MLPActorCritic`, reading the same weights by the same names."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.computes_value = spec.shared and spec.has_value
        self._activation = ACTIVATIONS[spec.activation]
        self._towers: list[list[tuple[Array, Array]]] = []
        self._free = np.asarray(spec.free_params, dtype=np.intp)
        self._obs_size = prod(spec.obs_shape)

    def load(self, weights: Weights) -> None:
        """Take the arrays of a state dict; see `Inference.load`."""
        check_names(weights, mlp_names(self.spec))
        layers = range(len(self.spec.hidden))
        self._towers = [
            [(weights[f"weight_{i}"][k], weights[f"bias_{i}"][k, 0]) for i in layers]
            for k in range(self.spec.num_towers)
        ]
        self._actor = weights["actor_head.weight"].T, weights["actor_head.bias"]
        if self.spec.has_value:
            self._critic = weights["critic_head.weight"].T, weights["critic_head.bias"]
        self._free_params = weights.get("free_params")

    def forward(self, obs: Array) -> tuple[Array, Array | None]:
        """See `Inference.forward`."""
        hidden = self._trunk(obs, 0)
        weight, bias = self._actor
        params = hidden @ weight
        params += bias
        if self._free_params is not None:
            params[:, self._free] = self._free_params
        if not self.computes_value:
            return params, None
        return params, self._head_value(hidden)

    def value(self, obs: Array) -> Array:
        """See `Inference.value`."""
        return self._head_value(self._trunk(obs, self.spec.num_towers - 1))

    def draw_noise(self, rng: np.random.Generator | None) -> None:
        """See `Inference.draw_noise`; no layer has any."""

    def _head_value(self, hidden: Array) -> Array:
        weight, bias = self._critic
        value: Array = (hidden @ weight)[:, 0] + bias[0]
        return value

    def _trunk(self, obs: Array, tower: int) -> Array:
        x = np.asarray(obs, dtype=np.float32).reshape(len(obs), self._obs_size)
        if self.spec.obs_scale != 1.0:
            x = x * np.float32(self.spec.obs_scale)
        for weight, bias in self._towers[tower]:
            x = x @ weight
            x += bias
            self._activation(x, out=x)
        return x
