"""Acting by what came before: the window of steps that a policy carries, and its transformer.

Legend: B rows, K steps, P distribution parameters.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rl_ops.inference import Weights, check_names
from rl_ops.model_spec import ModelSpec
from rl_ops.transformer import DecisionTransformer

Array = npt.NDArray[Any]


class Window:
    """The last K steps of B environments, the newest at the end; each step writes to it.

    Attributes:
        obs: [B, K, *shape] what the module was fed.
        action: [B, K] int64, or [B, K, size] float32; the newest step's is not chosen yet.
        return_to_go: [B, K] float32: the target, less what was earned since.
        t: [B, K] int64.
        mask: [B, K] bool, False before the episode's first step.
    """

    def __init__(self, spec: ModelSpec, rows: int) -> None:
        assert spec.sequence is not None  # whose inference this is
        steps, size = spec.sequence.steps, spec.sequence.action_size
        self.obs = np.zeros((rows, steps, *spec.obs_shape), np.float32)
        is_discrete = bool(spec.sequence.num_actions)
        shape, dtype = ((), np.int64) if is_discrete else ((size,), np.float32)
        self.action: Array = np.zeros((rows, steps, *shape), dtype)
        self.return_to_go = np.zeros((rows, steps), np.float32)
        self.t = np.zeros((rows, steps), np.int64)
        self.mask = np.zeros((rows, steps), np.bool_)
        self._to_go = np.zeros(rows)

    def observe(self, obs: Array, *, is_first: Array, reward: Array, target: float) -> None:
        """Begin a step: of a new episode where `is_first` [B], for `reward` [B] elsewhere."""
        self.mask[is_first] = False
        self._to_go = np.where(is_first, target, self._to_go - reward)
        t = np.where(is_first, 0, self.t[:, -1] + 1)
        steps: list[tuple[Array, Array | bool]] = [
            (self.obs, obs),
            (self.action, np.zeros_like(self.action[:, 0])),
            (self.return_to_go, self._to_go),
            (self.t, t),
            (self.mask, True),
        ]
        for held, newest in steps:
            held[:, :-1] = held[:, 1:]
            held[:, -1] = newest

    def acted(self, action: Array) -> None:
        """Note the actions [B, ...] of the step that began last."""
        self.action[:, -1] = np.reshape(action, self.action[:, -1].shape)


class SequenceInference:
    """An `Inference` that needs a window; it runs the learner's own module without gradients."""

    computes_value = False

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.module = DecisionTransformer(spec).eval()

    def load(self, weights: Weights) -> None:
        """See `Inference.load`."""
        check_names(weights, self.module.state_dict().keys())
        self.module.load_state_dict({k: torch.from_numpy(np.array(x)) for k, x in weights.items()})

    def start(self, rows: int) -> Window:
        """The window of `rows` environments before their first step."""
        return Window(self.spec, rows)

    def forward_next(
        self, obs: Array, window: Window, *, is_first: Array, reward: Array
    ) -> tuple[Array, None]:
        """The next step's params [B, P]; the window has it from now on.

        Args:
            obs: [B, *shape] what the module is fed.
            window: of the steps before.
            is_first: [B] bool, where an episode begins here.
            reward: [B] of the step before, as the environment gave it; not looked at elsewhere.

        Raises:
            ValueError: nothing says which return to aim at.
        """
        target = float(self.module.target_return)
        if np.isnan(target):
            raise ValueError("this policy has no return to aim at: set target_return, or learn")
        window.observe(obs, is_first=is_first, reward=reward, target=target)
        with torch.inference_mode():
            params_B1P = self.module(
                *map(torch.from_numpy, (window.obs, window.action, window.return_to_go)),
                t=torch.from_numpy(window.t),
                mask=torch.from_numpy(window.mask),
                last=True,
            )
        return params_B1P[:, 0].numpy(), None

    def forward(self, obs: Array) -> tuple[Array, Array | None]:  # noqa: ARG002 - it only refuses
        """There is none of an observation alone."""
        raise ValueError("this policy acts by what came before; use act, with state and reward")

    def value(self, obs: Array) -> Array:  # noqa: ARG002 - likewise
        """There is none."""
        raise ValueError("this network is an actor alone: it knows no values")

    def draw_noise(self, rng: np.random.Generator | None) -> None:
        """See `Inference.draw_noise`; no layer has any."""
