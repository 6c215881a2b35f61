"""Optimisers over one flat buffer: a step is a handful of kernels for any number of layers."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

# The functional forms: building a torch.optim.Optimizer imports torch._dynamo, which costs every
# learner process 1.4 s of start-up (measured).
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from rl_ops.optim_spec import OptimSpec

_ALIGNMENT = 16  # floats: every parameter starts on its own cache line, which BLAS likes


def flatten_parameters(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Move parameters into one contiguous buffer, of which they become views.

    Parameters of the same shapes in the same order give buffers of the same layout, so that a
    copy of a network follows it by one operation on the two.
    """
    spans = list(_spans(parameters))
    first, size = parameters[0], -(-spans[-1][1].stop // _ALIGNMENT) * _ALIGNMENT
    flat = torch.zeros(size, dtype=first.dtype, device=first.device)
    for parameter, span in spans:
        view = flat[span].view(parameter.shape)
        view.copy_(parameter.detach())
        parameter.data = view
    return flat


def _spans(parameters: Sequence[nn.Parameter]) -> Iterator[tuple[nn.Parameter, slice]]:
    """Where each parameter lies in a flat buffer."""
    offset = 0
    for parameter in parameters:
        yield parameter, slice(offset, offset + parameter.numel())
        offset += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT


class FlatOptimizer:
    """Steps all parameters of some modules, which it moves into one contiguous buffer.

    Parameters and gradients become views of two flat tensors, so that zeroing, averaging over
    ranks, clipping and stepping are each one operation.

    Args:
        modules: their trainable parameters are optimised together.
        spec: which rule, and its constants.
        reduce_gradient: called with the flat gradient before clipping; data-parallel ranks
            average it there.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        spec: OptimSpec,
        *,
        reduce_gradient: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        self.spec = spec
        self._reduce = reduce_gradient
        trainable = (p for m in modules for p in m.parameters() if p.requires_grad)
        parameters = list(dict.fromkeys(trainable))  # modules may share some
        if not parameters:
            raise ValueError("FlatOptimizer: the modules have no trainable parameters")
        self.flat = flatten_parameters(parameters)
        self.grad = torch.zeros_like(self.flat)
        for parameter, span in _spans(parameters):
            parameter.grad = self.grad[span].view(parameter.shape)
        self._slots = [torch.zeros_like(self.flat) for _ in range(self._num_slots())]
        self._step = torch.zeros((), dtype=torch.float32, device=self.flat.device)

    def _num_slots(self) -> int:
        return {"adam": 2, "adamw": 2, "rmsprop": 2, "sgd": 1}[self.spec.kind]

    def step(self, loss: torch.Tensor, *, lr: float) -> float:
        """One descent step on a scalar loss.

        Returns:
            The norm of the gradient before clipping. When it is not finite the parameters were left
            as they are.
        """
        self.differentiate(loss)
        return self.descend(lr=lr)

    def differentiate(self, value: torch.Tensor, slope: torch.Tensor | None = None) -> None:
        """Put the gradient of sum(slope * value) in `grad`; of a scalar itself without a slope."""
        self.grad.zero_()
        torch.autograd.backward(value, slope)

    def descend(self, *, lr: float) -> float:
        """One descent step along the gradient that lies in `grad`; returns as `step` does."""
        if self._reduce is not None:
            self._reduce(self.grad)
        norm = float(torch.linalg.vector_norm(self.grad))
        if not math.isfinite(norm):
            return norm
        limit = self.spec.max_grad_norm
        if limit is not None and norm > limit:
            self.grad.mul_(limit / (norm + 1e-6))
        self._apply(lr)
        return norm

    @torch.no_grad()
    def _apply(self, lr: float) -> None:
        spec, (params, grads) = self.spec, ([self.flat], [self.grad])
        options: dict[str, Any] = {"lr": lr, "weight_decay": spec.weight_decay, "maximize": False}
        if spec.kind in ("adam", "adamw"):
            mean, square = self._slots
            options |= {"beta1": spec.betas[0], "beta2": spec.betas[1], "eps": spec.eps}
            options |= {"foreach": False, "fused": True, "amsgrad": False}
            rule = adam if spec.kind == "adam" else adamw
            rule(params, grads, [mean], [square], [], [self._step], **options)
        elif spec.kind == "rmsprop":
            square, momentum = self._slots
            options |= {"alpha": spec.alpha, "eps": spec.eps, "momentum": spec.momentum}
            options |= {"foreach": False, "centered": False}
            rmsprop(params, grads, [square], [], [momentum], [self._step], **options)
        else:
            options |= {"momentum": spec.momentum, "dampening": 0.0, "nesterov": False}
            # An empty slot would mean "first step" to sgd(); zeros give the same first step.
            sgd(params, grads, [self._slots[0]], **options, foreach=False, fused=False)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a bit-equal next step needs, by name."""
        slots = {f"slot_{i}": slot for i, slot in enumerate(self._slots)}
        return {**slots, "step": self._step}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            ValueError: a tensor is missing or of another size; the message names it.
        """
        for name, own in self.state().items():
            if name not in state or state[name].shape != own.shape:
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(
                    f"optimizer state {name!r}: got {got}, expected {tuple(own.shape)}; "
                    "the checkpoint is of another architecture or optimizer"
                )
            own.copy_(state[name])
