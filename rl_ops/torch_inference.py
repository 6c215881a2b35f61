"""Acting with a torch module: convolutions, and whatever a user's factory builds."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rl_ops.inference import Weights, check_names
from rl_ops.model_spec import ModelSpec
from rl_ops.models import build_model

Array = npt.NDArray[Any]


class TorchInference:
    """An `Inference` that runs the learner's own module without gradients.

    The value comes with the actor's output, because the trunk that both need is the costly part.
    """

    computes_value = True

    def __init__(self, spec: ModelSpec, *, device: str = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.module = build_model(spec).to(self.device).eval()

    def load(self, weights: Weights) -> None:
        """Copy `weights` into the module; see `Inference.load`."""
        check_names(weights, self.module.state_dict().keys())
        self.module.load_state_dict({k: torch.from_numpy(np.array(x)) for k, x in weights.items()})

    def forward(self, obs: Array) -> tuple[Array, Array]:
        """See `Inference.forward`."""
        with torch.inference_mode():
            params, value = self.module(self._tensor(obs))
        expected = (len(obs), self.spec.param_size), (len(obs),)
        if (params.shape, value.shape) != expected:
            raise ValueError(
                f"the model gave params {tuple(params.shape)} and value {tuple(value.shape)}; "
                f"expected {expected[0]} and {expected[1]}"
            )
        return params.cpu().numpy(), value.cpu().numpy()

    def value(self, obs: Array) -> Array:
        """See `Inference.value`."""
        return self.forward(obs)[1]

    def _tensor(self, obs: Array) -> torch.Tensor:
        return torch.from_numpy(np.require(obs, requirements=["C", "W"])).to(self.device)
