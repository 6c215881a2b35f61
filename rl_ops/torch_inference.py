"""Acting with a torch module: convolutions, and whatever a user's factory builds."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rl_ops.inference import Weights
from rl_ops.model_spec import ModelSpec
from rl_ops.models import build_model

Array = npt.NDArray[Any]


class TorchInference:
    """An `Inference` that runs the learner's own module without gradients.

    The value comes with the actor's output, because the trunk that both need is the costly part.
    """

    computes_value = True

    def __init__(self, spec: ModelSpec, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.module = build_model(spec).to(self.device).eval()

    def load(self, weights: Weights) -> None:
        """Copy `weights` into the module; see `Inference.load`."""
        own = self.module.state_dict()
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.from_numpy(np.array(weights[name])))

    def forward(self, obs: Array) -> tuple[Array, Array | None]:
        """See `Inference.forward`."""
        with torch.inference_mode():
            params, value = self.module(self._tensor(obs))
        return params.cpu().numpy(), value.cpu().numpy()

    def value(self, obs: Array) -> Array:
        """See `Inference.value`."""
        with torch.inference_mode():
            value: Array = self.module(self._tensor(obs))[1].cpu().numpy()
        return value

    def _tensor(self, obs: Array) -> torch.Tensor:
        return torch.from_numpy(np.require(obs, requirements=["C", "W"])).to(self.device)
