"""Networks of values in torch: Q of every action, and ensembles of critics of given actions.

Legend: B rows, A actions, N atoms, D features, K critics.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from rl_ops.model_spec import ModelSpec
from rl_ops.models import ACTIVATIONS, ConvEncoder


class NoisyLinear(nn.Module):
    """A linear layer whose weights and biases carry factorised Gaussian noise of learned size.

        y = (mu_w + sigma_w * f(e_out) f(e_in)^T) x + mu_b + sigma_b * f(e_out),
        f(e) = sign(e) sqrt|e|

    It acts by its means until `draw` is called, and after `still`.

    Source: Fortunato et al. 2018, arXiv:1706.10295, eq. 9-11 and section 3.2. Differs: none.
    """

    def __init__(self, inputs: int, outputs: int, sigma_init: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        sigma = sigma_init * bound
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), sigma))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), sigma))
        self._noise: tuple[torch.Tensor, torch.Tensor] | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Act with new noise from now on."""
        outputs, inputs = self.weight.shape

        def scaled(size: int) -> torch.Tensor:
            e = torch.randn(size, generator=generator)  # on the CPU, where generators live
            return (e.sign() * e.abs().sqrt()).to(self.weight.device)

        self._noise = scaled(inputs), scaled(outputs)

    def still(self) -> None:
        """Act by the means from now on."""
        self._noise = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, inputs] → [B, outputs]."""
        y = nn.functional.linear(x, self.weight, self.bias)
        if self._noise is None:
            return y
        e_in, e_out = self._noise
        # The noise's outer product is never made: it is as large as the weights.
        noisy = nn.functional.linear(x * e_in, self.weight_sigma, self.bias_sigma)
        return y + noisy * e_out


class QNetwork(nn.Module):
    """Q values of every action, as means or as distributions; with `dueling`, by two streams.

    Fully connected layers start as torch's do (He et al. 2015 uniform), like the published DQNs.

    Source: Mnih et al. 2015; dueling Wang et al. 2016, arXiv:1511.06581, eq. 9; streams of atoms
    as in Hessel et al. 2018, arXiv:1710.02298, section 3.
    """

    support: torch.Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        if spec.q is None:
            raise ValueError("a Q network needs ModelSpec.q")
        self.spec, self.q = spec, spec.q
        self._activation = ACTIVATIONS[spec.activation]
        self.conv = ConvEncoder(spec) if spec.kind == "cnn" else None
        width = math.prod(spec.obs_shape) if self.conv is None else self.conv.size
        # With two streams the last hidden layer is each stream's own.
        split = len(spec.hidden) - 1 if spec.q.dueling and spec.hidden else len(spec.hidden)
        sizes = [width, *spec.hidden[:split]]
        self.trunk = nn.ModuleList(self._dense(a, b) for a, b in pairwise(sizes))
        own = [sizes[-1], *spec.hidden[split:]]
        self.advantage = self._stream(own, spec.q.num_actions * spec.q.num_atoms)
        self.value = self._stream(own, spec.q.num_atoms) if spec.q.dueling else None
        support = torch.linspace(spec.q.v_min, spec.q.v_max, spec.q.num_atoms)
        self.register_buffer("support", support, persistent=False)

    def _dense(self, inputs: int, outputs: int) -> nn.Module:
        if self.q.noisy:
            return NoisyLinear(inputs, outputs, self.q.sigma_init)
        return nn.Linear(inputs, outputs)

    def _stream(self, sizes: list[int], outputs: int) -> nn.ModuleList:
        return nn.ModuleList(self._dense(a, b) for a, b in pairwise([*sizes, outputs]))

    def draw_noise(self, generator: torch.Generator | None) -> None:
        """New noise for every noisy layer; None for none."""
        for layer in self.modules():
            if isinstance(layer, NoisyLinear):
                layer.still() if generator is None else layer.draw(generator)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Obs [B, *shape] → Q [B, A], and their largest [B]."""
        q_BA = self.mean(self.outputs(obs))
        return q_BA, q_BA.amax(1)

    def outputs(self, obs: torch.Tensor) -> torch.Tensor:
        """Obs [B, *shape] → [B, A, N]: logits of the fixed values, quantiles, or Q with N = 1."""
        shape = obs.shape[0], self.q.num_actions, self.q.num_atoms
        hidden = self._hidden(obs)
        advantage_BAN = self._run(self.advantage, hidden).view(shape)
        if self.value is None:
            return advantage_BAN
        value_B1N = self._run(self.value, hidden).unsqueeze(1)
        return value_B1N + advantage_BAN - advantage_BAN.mean(1, keepdim=True)

    def mean(self, outputs_BAN: torch.Tensor) -> torch.Tensor:
        """What `outputs` gave → expected values [B, A]."""
        if self.q.atoms == "categorical":
            q_BA: torch.Tensor = outputs_BAN.softmax(2) @ self.support
            return q_BA
        return outputs_BAN.squeeze(2) if self.q.num_atoms == 1 else outputs_BAN.mean(2)

    def streams(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Obs → V [B] and A [B, A] with Q = V + A.

        Of a dueling network of means they are its streams, A less its mean; of others V is the
        largest Q.
        """
        q_BA = self.forward(obs)[0]
        if self.value is None or self.q.num_atoms > 1:
            value_B = q_BA.amax(1)
        else:
            value_B = self._run(self.value, self._hidden(obs))[:, 0]
        return value_B, q_BA - value_B.unsqueeze(1)

    def _flat(self, obs: torch.Tensor) -> torch.Tensor:
        """What the first fully connected layer is fed."""
        if self.conv is not None:
            features: torch.Tensor = self.conv(obs)
            return features
        x = obs.float().reshape(obs.shape[0], math.prod(obs.shape[1:]))
        return x if self.spec.obs_scale == 1.0 else x * self.spec.obs_scale

    def _hidden(self, obs: torch.Tensor) -> torch.Tensor:
        x = self._flat(obs)
        for layer in self.trunk:
            x = self._activation(layer(x))
        return x

    def _run(self, stream: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        *hidden, last = stream
        for layer in hidden:
            x = self._activation(layer(x))
        y: torch.Tensor = last(x)
        return y


class CriticEnsemble(nn.Module):
    """K critics as one stack of matrices [K, D, H]: one batched product a layer for all.

    Args:
        spec: of the actor: what observations look like, widths, activation.
        num_critics: K.
        inputs: numbers of an action that are put beside the observation; 0 for critics that
            value every action.
        outputs: of each critic: 1, or atoms, or one for each action.

    Hidden layers and heads start as torch's linear layers do, as in SAC's and TD3's own code.
    """

    def __init__(self, spec: ModelSpec, *, num_critics: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.spec, self.num_critics = spec, num_critics
        self._scale = spec.obs_scale
        self._activation = ACTIVATIONS[spec.activation]
        self.conv = ConvEncoder(spec) if spec.kind == "cnn" else None
        width = math.prod(spec.obs_shape) if self.conv is None else self.conv.size
        sizes = [width + inputs, *spec.hidden, outputs]
        for i, (a, b) in enumerate(pairwise(sizes)):
            bound = 1 / math.sqrt(a)
            weight = torch.empty(num_critics, a, b).uniform_(-bound, bound)
            bias = torch.empty(num_critics, 1, b).uniform_(-bound, bound)
            self.register_parameter(f"weight_{i}", nn.Parameter(weight))
            self.register_parameter(f"bias_{i}", nn.Parameter(bias))
        self.num_layers = len(sizes) - 1

    def layer(self, i: int) -> tuple[Any, Any]:
        """Weight [K, D, H] and bias [K, 1, H]."""
        return getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}")

    def forward(self, obs: torch.Tensor, action: torch.Tensor | None = None) -> torch.Tensor:
        """Obs [B, *shape], and action [B, *shape] where critics take one → [K, B, outputs]."""
        if self.conv is not None:
            x: torch.Tensor = self.conv(obs)
        else:
            x = obs.float().reshape(len(obs), math.prod(obs.shape[1:]))
            if self._scale != 1.0:
                x = x * self._scale
        if action is not None:
            x = torch.cat([x, action.reshape(len(action), math.prod(action.shape[1:]))], 1)
        x = x.expand(self.num_critics, -1, -1)
        for i in range(self.num_layers):
            weight, bias = self.layer(i)
            x = torch.baddbmm(bias, x, weight)
            if i < self.num_layers - 1:
                x = self._activation(x)
        return x
