"""Q networks of vectors in numpy: the twin of `q_models.QNetwork`, for who only acts.

Legend: B rows, A actions, N atoms, D features.
"""

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rl_ops.inference import ACTIVATIONS, Weights, check_names
from rl_ops.model_spec import ModelSpec, QSpec

Array = npt.NDArray[Any]
_Layer = tuple[Array, Array]
"""Weight [D, H] and bias [H]."""


def q_names(spec: ModelSpec) -> list[str]:
    """The names of an MLP Q network's parameters."""
    q = _q_of(spec)
    split = len(spec.hidden) - 1 if q.dueling and spec.hidden else len(spec.hidden)
    own = len(spec.hidden) - split + 1
    layers = [f"trunk.{i}" for i in range(split)]
    layers += [f"{stream}.{i}" for stream in _streams(q) for i in range(own)]
    kinds = ["weight", "bias"] + ["weight_sigma", "bias_sigma"] * q.noisy
    return [f"{layer}.{kind}" for layer in layers for kind in kinds]


class QInference:
    """An `Inference` whose params are Q values and whose value is the largest."""

    computes_value = True

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.q = spec, _q_of(spec)
        self._activation = ACTIVATIONS[spec.activation]
        self._names = q_names(spec)
        self._obs_size = prod(spec.obs_shape)
        self._support = np.linspace(self.q.v_min, self.q.v_max, self.q.num_atoms, dtype=np.float32)
        self._weights: Weights = {}
        self._layers: dict[str, list[_Layer]] = {}

    def load(self, weights: Weights) -> None:
        """See `Inference.load`; noisy layers act by their means until `draw_noise`."""
        check_names(weights, self._names)
        self._weights = weights
        self.draw_noise(None)

    def draw_noise(self, rng: np.random.Generator | None) -> None:
        """New noise for every noisy layer; None for none."""
        self._layers = {name: [] for name in ("trunk", *_streams(self.q))}
        for name in self._names:
            if name.endswith(".weight"):
                layer = name.removesuffix(".weight")
                self._layers[layer.partition(".")[0]].append(self._layer(layer, rng))

    def _layer(self, name: str, rng: np.random.Generator | None) -> _Layer:
        weight, bias = self._weights[f"{name}.weight"].T, self._weights[f"{name}.bias"]
        if rng is None or not self.q.noisy:
            return weight, bias
        e_in, e_out = (rng.standard_normal(size, dtype=np.float32) for size in weight.shape)
        e_in, e_out = (np.sign(e) * np.sqrt(np.abs(e)) for e in (e_in, e_out))
        sigma, bias_sigma = (self._weights[f"{name}.{x}_sigma"] for x in ("weight", "bias"))
        return weight + sigma.T * np.outer(e_in, e_out), bias + bias_sigma * e_out

    def forward(self, obs: Array) -> tuple[Array, Array]:
        """Obs [B, *shape] → Q [B, A], and their largest [B]."""
        q_BA = self._mean(self._outputs(self._hidden(obs)))
        return q_BA, q_BA.max(1)

    def value(self, obs: Array) -> Array:
        """See `Inference.value`."""
        return self.forward(obs)[1]

    def outputs(self, obs: Array) -> Array:
        """See `QNetwork.outputs`."""
        return self._outputs(self._hidden(obs))

    def streams(self, obs: Array) -> tuple[Array, Array]:
        """See `QNetwork.streams`."""
        hidden = self._hidden(obs)
        q_BA = self._mean(self._outputs(hidden))
        if not self.q.dueling or self.q.num_atoms > 1:
            value_B = q_BA.max(1)
        else:
            value_B = self._run("value", hidden)[:, 0]
        return value_B, q_BA - value_B[:, None]

    def _outputs(self, hidden: Array) -> Array:
        shape = (len(hidden), self.q.num_actions, self.q.num_atoms)
        advantage_BAN: Array = self._run("advantage", hidden).reshape(shape)
        if not self.q.dueling:
            return advantage_BAN
        value_B1N = self._run("value", hidden)[:, None]
        centred: Array = value_B1N + advantage_BAN - advantage_BAN.mean(1, keepdims=True)
        return centred

    def _mean(self, outputs_BAN: Array) -> Array:
        q_BA: Array
        if self.q.atoms == "categorical":
            p_BAN = np.exp(outputs_BAN - outputs_BAN.max(2, keepdims=True))
            q_BA = (p_BAN @ self._support) / p_BAN.sum(2)
        else:
            q_BA = outputs_BAN[..., 0] if self.q.num_atoms == 1 else outputs_BAN.mean(2)
        return q_BA

    def _hidden(self, obs: Array) -> Array:
        x = np.asarray(obs, dtype=np.float32).reshape(len(obs), self._obs_size)
        if self.spec.obs_scale != 1.0:
            x = x * np.float32(self.spec.obs_scale)
        for weight, bias in self._layers["trunk"]:
            x = self._dense(x, weight, bias)
        return x

    def _run(self, stream: str, x: Array) -> Array:
        *hidden, (weight, bias) = self._layers[stream]
        for each in hidden:
            x = self._dense(x, *each)
        y: Array = x @ weight
        y += bias
        return y

    def _dense(self, x: Array, weight: Array, bias: Array) -> Array:
        y: Array = x @ weight
        y += bias
        self._activation(y, out=y)
        return y


def _streams(q: QSpec) -> tuple[str, ...]:
    return ("advantage", "value") if q.dueling else ("advantage",)


def _q_of(spec: ModelSpec) -> QSpec:
    if spec.q is None:
        raise ValueError("a Q network needs ModelSpec.q")
    return spec.q
