"""Acting with a torch module: convolutions, and whatever a user's factory builds."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rl_ops.inference import Weights, check_names
from rl_ops.model_spec import ModelSpec
from rl_ops.models import build_model
from rl_ops.q_models import QNetwork

Array = npt.NDArray[Any]


class TorchInference:
    """An `Inference` that runs the learner's own module without gradients.

    The value comes with the actor's output, because the trunk that both need is the costly part.
    """

    def __init__(self, spec: ModelSpec, *, device: str = "cpu") -> None:
        self.spec = spec
        self.computes_value = spec.has_value
        self.device = torch.device(device)
        self.module = build_model(spec).to(self.device).eval()

    def load(self, weights: Weights) -> None:
        """Copy `weights` into the module; see `Inference.load`."""
        check_names(weights, self.module.state_dict().keys())
        self.module.load_state_dict({k: torch.from_numpy(np.array(x)) for k, x in weights.items()})

    def forward(self, obs: Array) -> tuple[Array, Array | None]:
        """See `Inference.forward`."""
        with torch.inference_mode():
            params, value = self.module(self._tensor(obs))
        got = tuple(params.shape), None if value is None else tuple(value.shape)
        expected = (len(obs), self.spec.param_size), (len(obs),) if self.computes_value else None
        if got != expected:
            raise ValueError(
                f"the model gave params {got[0]} and value {got[1]}; "
                f"expected {expected[0]} and {expected[1]}"
            )
        return params.cpu().numpy(), None if value is None else value.cpu().numpy()

    def value(self, obs: Array) -> Array:
        """See `Inference.value`."""
        value = self.forward(obs)[1]
        if value is None:
            raise ValueError("this network is an actor alone: it knows no values")
        return value

    def draw_noise(self, rng: np.random.Generator | None) -> None:
        """See `Inference.draw_noise`."""
        if isinstance(self.module, QNetwork):
            seed = None if rng is None else int(rng.integers(2**63))
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            self.module.draw_noise(generator)

    def outputs(self, obs: Array) -> Array:
        """See `QNetwork.outputs`."""
        with torch.inference_mode():
            found: Array = self._q_network().outputs(self._tensor(obs)).cpu().numpy()
        return found

    def streams(self, obs: Array) -> tuple[Array, Array]:
        """See `QNetwork.streams`."""
        with torch.inference_mode():
            value, advantage = self._q_network().streams(self._tensor(obs))
        return value.cpu().numpy(), advantage.cpu().numpy()

    def _q_network(self) -> QNetwork:
        if not isinstance(self.module, QNetwork):
            raise ValueError(f"{type(self.module).__name__} is no QNetwork: it has no such streams")
        return self.module

    def _tensor(self, obs: Array) -> torch.Tensor:
        return torch.from_numpy(np.require(obs, requirements=["C", "W"])).to(self.device)
