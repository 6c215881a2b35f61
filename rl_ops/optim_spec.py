"""Which optimiser, as data; apart from optim.py so that a configuration needs no torch."""

from dataclasses import dataclass
from typing import Literal

OptimKind = Literal["adam", "adamw", "rmsprop", "sgd"]


@dataclass(frozen=True)
class OptimSpec:
    """An optimiser's hyperparameters; `max_grad_norm` None leaves gradients as they are."""

    kind: OptimKind = "adam"
    eps: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    alpha: float = 0.99
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float | None = 0.5
