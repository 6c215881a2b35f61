"""Critics at many actions of each observation, and the gradient of their log mass.

Legend: B rows, D features of an observation, A of an action, H hidden, K critics, N actions of a
row, M of them that the gradient goes through.

CQL values 30 actions of each row, and nearly all of its time goes there: for 256 rows that are
7680 rows through each critic. The observation's share of the first layer is computed once for all
actions of a row. Some rows at a time go forwards and, because their softmax needs no others, at
once backwards, while what they left is in the cache: [7680, 256] x [256, 256] takes 1.4 times as
long as the same in pieces of 480.
"""

import math
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from rl_ops.conservative_losses import sampled_log_mass
from rl_ops.models import ACTIVATIONS
from rl_ops.pullback import grad_of
from rl_ops.q_models import CriticEnsemble
from rl_ops.resampling import resample
from rl_ops.written_mlp import Layer, written_critics

_PIECE_ROWS: Final = 512
"""Rows times actions that go backwards at once, on the CPU."""


class _Rows(NamedTuple):
    """What critics are descended at.

    Attributes:
        obs: [B, *shape].
        action, log_density: [B, N, A] and [B, N].
        slope: [B].
        offset: [B]; None where the gradient goes through all actions.
        kept: actions of a row that it goes through.
    """

    obs: Tensor
    action: Tensor
    log_density: Tensor
    slope: Tensor
    offset: Tensor | None
    kept: int

    @property
    def at_once(self) -> int:
        """Rows of a piece that goes backwards within the cache."""
        return max(1, _PIECE_ROWS // self.kept)

    def part(self, rows: slice) -> "_Rows":
        """Some of the rows."""
        return _Rows(
            self.obs[rows],
            self.action[rows],
            self.log_density[rows],
            self.slope[rows],
            None if self.offset is None else self.offset[rows],
            self.kept,
        )


class SampledCritics:
    """Log masses of critics, as `conservative_losses.sampled_log_mass` has them, and their slopes.

        mass_k(x) = log 1/N sum_i exp(Q_k(x, a_i) - log density_i)
        d mass_k  = sum_i w_i dQ_k(x, a_i),  w = softmax of the same scores

    Two thirds of the products are the gradient's. It can go through M of the N actions alone, the
    heavy ones and some of the light ones in place of all (`resampling.resample`): the masses stay
    those of N, and the gradient is theirs on average.

    Args:
        critics: whose parameters have their `grad` already.
        kept: M; None for all.
    """

    def __init__(self, critics: CriticEnsemble, *, kept: int | None = None) -> None:
        self._critics, self._kept = critics, kept
        self._written: list[_WrittenCritic] | None = None
        plain = written_critics(critics, trained=True) is not None
        if plain and critics.spec.activation == "relu" and critics.num_layers > 1:
            self._written = [_WrittenCritic(critics, k) for k in range(critics.num_critics)]

    def descend(
        self,
        obs: Tensor,
        action_BNA: Tensor,
        log_density_BN: Tensor,
        *,
        slope_B: Tensor,
        offset_B: Tensor | None = None,
    ) -> Tensor:
        """The masses, whose gradient is added to the parameters' `grad`.

        Args:
            obs: [B, *shape].
            action_BNA: [B, N, A] constants.
            log_density_BN: [B, N] of each, in nats.
            slope_B: [B] derivative of the loss by each critic's mass.
            offset_B: [B] uniform in [0, 1), by which actions are kept where N is more than M.

        Returns:
            [K, B], detached.
        """
        samples = action_BNA.shape[1]
        kept = min(samples, self._kept or samples)
        if kept == samples:
            offset_B = None
        elif offset_B is None:
            raise ValueError(f"to keep {kept} of {samples} actions takes offsets")
        given = _Rows(obs, action_BNA, log_density_BN, slope_B, offset_B, kept)
        if self._written is not None:
            return torch.stack([critic.descend(given) for critic in self._written])
        count = given.at_once if obs.device.type == "cpu" else len(obs)
        pieces = (slice(low, low + count) for low in range(0, len(obs), count))
        return torch.cat([self._piece(given.part(rows)) for rows in pieces], 1)

    def _piece(self, given: _Rows) -> Tensor:
        """Masses [K, B] of some rows, whose gradient is added."""
        obs, action_BNA, log_density_BN, slope_B, offset_B, kept = given
        if offset_B is None:
            mass_KB = sampled_log_mass(sampled_q(self._critics, obs, action_BNA), log_density_BN)
            torch.autograd.backward((slope_B * mass_KB).sum())
            return mass_KB.detach()
        with torch.no_grad():
            score_KBN = sampled_q(self._critics, obs, action_BNA) - log_density_BN
            weight_BN = score_KBN.softmax(2).flatten(0, 1)
            count = len(score_KBN)
            which_BM, weight_BM = resample(weight_BN, kept, offset_B.repeat(count))
            which = which_BM.view(count, len(obs), kept, 1)
            action_KBNA = action_BNA.expand(count, -1, -1, -1)
            kept_KBMA = action_KBNA.gather(2, which.expand(-1, -1, -1, action_BNA.shape[2]))
            weight_KBM = weight_BM.view(count, len(obs), kept)
        q_KBM = sampled_q(self._critics, obs, kept_KBMA)
        torch.autograd.backward((slope_B.unsqueeze(1) * weight_KBM * q_KBM).sum())
        return score_KBN.logsumexp(2) - math.log(action_BNA.shape[1])


def sampled_q(critics: CriticEnsemble, obs: Tensor, action: Tensor) -> Tensor:
    """Q of N actions of each observation, which are features of but once.

    Args:
        critics: of K.
        obs: [B, *shape].
        action: [B, N, A] for all critics, or [K, B, N, A] for each.

    Returns:
        [K, B, N], with gradient.
    """
    rows, samples, size = action.shape[-3:]
    if critics.conv is not None:
        features: Tensor = critics.conv(obs)
    else:
        features = obs.float().reshape(rows, -1) * critics.spec.obs_scale
    activation, width = ACTIVATIONS[critics.spec.activation], features.shape[1]
    weight, bias = critics.layer(0)
    count = critics.num_critics
    of_obs = torch.baddbmm(bias, features.expand(count, -1, -1), weight[:, :width])
    flat = action.expand(count, -1, -1, -1).reshape(count, rows * samples, size)
    of_action = torch.bmm(flat, weight[:, width:]).view(count, rows, samples, -1)
    x = (of_obs.unsqueeze(2) + of_action).flatten(1, 2)
    for i in range(1, critics.num_layers):
        weight, bias = critics.layer(i)
        x = torch.baddbmm(bias, activation(x), weight)
    return x.view(count, rows, samples)


class _WrittenCritic:
    """One plain critic with relu between its layers, its gradient written out."""

    def __init__(self, critics: CriticEnsemble, k: int) -> None:
        stacks = [critics.layer(i) for i in range(critics.num_layers)]
        self._first, *self._rest = (
            Layer(weight.detach()[k], bias.detach()[k, 0], grad_of(weight)[k], grad_of(bias)[k, 0])
            for weight, bias in stacks
        )
        self._buffers: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def descend(self, given: _Rows) -> Tensor:
        """The masses [B]; adds their gradient."""
        obs, first = given.obs.flatten(1), self._first
        width, count = obs.shape[1], given.at_once
        of_obs_BH = torch.addmm(first.bias, obs, first.matrix[:width])
        d_of_obs_BH, mass_B = torch.empty_like(of_obs_BH), torch.empty_like(given.slope)
        for low in range(0, len(obs), count):
            rows = slice(low, low + count)
            mass_B[rows], d_of_obs_BH[rows] = self._piece(of_obs_BH[rows], given.part(rows))
        d_matrix, d_bias = _grads(first)
        d_matrix[:width].addmm_(obs.t(), d_of_obs_BH)
        d_bias.add_(d_of_obs_BH.sum(0))
        return mass_B

    def _piece(self, of_obs_BH: Tensor, given: _Rows) -> tuple[Tensor, Tensor]:
        """Of some rows: masses [B], and derivatives by the observation's share of layer 0."""
        rows, samples, size = given.action.shape
        action = given.action.reshape(rows * samples, size)
        tape = self._forward(of_obs_BH, action)
        *hidden, last = self._rest
        q_BN = torch.mv(tape[-1], last.matrix[:, 0]).add_(last.bias).view(rows, samples)
        score_BN = q_BN.sub_(given.log_density)
        mass_B = score_BN.logsumexp(1) - math.log(samples)
        weight_BN = score_BN.softmax(1)
        if given.offset is not None:
            which_BM, weight_BN = resample(weight_BN, given.kept, given.offset)
            first_B1 = samples * torch.arange(rows).unsqueeze(1)
            chosen = (which_BM + first_B1).view(-1)
            action = action[chosen]
            tape = [
                torch.index_select(x, 0, chosen, out=kept[: len(chosen)])
                for x, (*_, kept) in zip(tape, self._buffers, strict=True)
            ]
        d = weight_BN.mul_(given.slope.unsqueeze(1)).view(-1, 1)
        layers = [self._first, *hidden, last]
        for i in reversed(range(len(tape))):
            below = self._buffers[i][1][: len(d)]
            layer = layers[i + 1]
            _add(layer, tape[i], d)
            if d.shape[1] == 1:  # as a product it takes eight times as long
                torch.mul(d, layer.matrix.t(), out=below)
            else:
                torch.mm(d, layer.matrix.t(), out=below)
            aten: Any = torch.ops.aten
            d = aten.threshold_backward.grad_input(below, tape[i], 0, grad_input=below)
        d_matrix, _ = _grads(self._first)
        d_matrix[-size:].addmm_(action.t(), d)
        return mass_B, d.view(rows, given.kept, -1).sum(1)

    def _forward(self, of_obs_BH: Tensor, action: Tensor) -> list[Tensor]:
        """What each hidden layer gives of rows x samples, in buffers of their own."""
        rows, size = len(of_obs_BH), action.shape[1]
        layers = [self._first, *self._rest[:-1]]
        if not self._buffers or len(self._buffers[0][0]) < len(action):
            widths = [layer.matrix.shape[1] for layer in layers]
            self._buffers = [tuple(action.new_empty(3, len(action), width)) for width in widths]
        outs = [out[: len(action)] for out, *_ in self._buffers]
        torch.mm(action, self._first.matrix[-size:], out=outs[0])
        outs[0].view(rows, -1, outs[0].shape[1]).add_(of_obs_BH.unsqueeze(1)).relu_()
        for layer, x, out in zip(layers[1:], outs, outs[1:], strict=False):
            torch.mm(x, layer.matrix, out=out).add_(layer.bias).relu_()
        return outs


def _add(layer: Layer, x: Tensor, d: Tensor) -> None:
    """Add the gradient of x @ matrix + bias, from the derivatives by it."""
    d_matrix, d_bias = _grads(layer)
    d_matrix.addmm_(x.t(), d)
    d_bias.add_(d.sum(0))


def _grads(layer: Layer) -> tuple[Tensor, Tensor]:
    assert layer.d_matrix is not None  # who trains it has an optimiser
    assert layer.d_bias is not None
    return layer.d_matrix, layer.d_bias
