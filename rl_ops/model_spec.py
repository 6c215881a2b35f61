"""What a network looks like, as data: the learner builds it in torch, who only acts in numpy."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Activation = Literal["tanh", "relu", "silu"]


@dataclass(frozen=True)
class ModelSpec:
    """An actor-critic over one observation array.

    Attributes:
        kind: "mlp" for vectors, "cnn" for images [H, W, C], "custom" for a factory of one's own.
        obs_shape: shape of one observation, after connectors.
        param_size: P, the number of distribution parameters the actor emits.
        free_params: indexes of parameters that do not depend on the observation (log_std).
        hidden: widths of the fully connected layers.
        activation: between layers.
        shared: one trunk for actor and critic, or one each.
        conv: (channels, kernel, stride) of each convolution, before the hidden layers.
        log_std_init: initial value of free parameters, in nats.
        obs_scale: observations are multiplied by it first; 1/255 for uint8 images.
        factory: "module:function", called with the spec, for kind "custom".
        factory_kwargs: JSON-able keyword arguments for the factory.
    """

    kind: Literal["mlp", "cnn", "custom"]
    obs_shape: tuple[int, ...]
    param_size: int
    free_params: tuple[int, ...] = ()
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    shared: bool = False
    conv: tuple[tuple[int, int, int], ...] = ()
    log_std_init: float = 0.0
    obs_scale: float = 1.0
    factory: str | None = None
    factory_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_towers(self) -> int:
        """1 when actor and critic share their trunk, else 2."""
        return 1 if self.shared else 2

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, spec: dict[str, Any]) -> "ModelSpec":
        """The inverse of `to_json`; lists become tuples again."""
        values = dict(spec)
        for name in ("obs_shape", "free_params", "hidden"):
            values[name] = tuple(values[name])
        values["conv"] = tuple(tuple(layer) for layer in values["conv"])
        return cls(**values)
