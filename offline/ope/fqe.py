"""Fitted Q evaluation: a critic of the target policy, fitted on logged steps.

Legend: N rows, F final observations, M = N + F, E episodes, K members, B rows of a minibatch,
A actions, D numbers of an action, C actions that stand for a distribution.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offline.ope.standard import standardised
from rl_ops.model_spec import ModelSpec
from rl_ops.optim import FlatOptimizer
from rl_ops.optim_spec import OptimSpec
from rl_ops.q_models import CriticEnsemble
from rl_ops.returns import linear_recurrence

Array = npt.NDArray[Any]

_FORWARD_ROWS: Final = 2**16
"""Of all members together: layers of 16 MB, which the allocator keeps; of 256 it gives back."""
_MIN_LEAVING: Final = 1e-6
"""Least mean of 1 - discount with which the constant part is solved for."""


@dataclass(frozen=True)
class FQESettings:
    """How a critic is fitted.

    Attributes:
        hidden: widths of its layers.
        lr: of Adam.
        batch_rows: of a minibatch.
        updates: gradient steps between two renewals of the targets.
        max_renewals: of the targets; the fit has not converged when they are all used.
        window: renewals whose values are averaged, and compared with those of the window before.
        tolerance: the fit ends when the two averages of V at the first observations differ by
            less than this share of their size, or of the spread of returns where that is more.
        samples: actions that stand for the policy where actions cannot be listed.
    """

    hidden: tuple[int, ...] = (64, 64)
    lr: float = 1e-3
    batch_rows: int = 256
    updates: int = 50
    max_renewals: int = 300
    window: int = 20
    tolerance: float = 0.005
    samples: int = 8


@dataclass(frozen=True, eq=False)
class Backups:
    """Logged steps as fitted Q evaluation reads them; observations are held once.

    Attributes:
        obs: [M, *S] what the policy's network is fed: at every row, then at final observations.
        action: [N] int64 or [N, D] float32, as a critic is fed them.
        reward: [N].
        discount: [N] gamma * (1 - terminated); a truncated step keeps gamma.
        next_row: [N] into obs: what the step led to; any where discount is 0.
        is_usable: [N] bool; other rows led to what was not logged, and are left out.
        start: [E] into obs: first observations.
        probabilities: [M, A] of the target policy; None where actions are sampled.
        sample: rows into obs [R] → actions [R, D] of the target policy; None where listed.
    """

    obs: Array
    action: Array
    reward: Array
    discount: Array
    next_row: Array
    is_usable: Array
    start: Array
    probabilities: Array | None
    sample: Callable[[Array], Array] | None


@dataclass(frozen=True, eq=False)
class FQEFit:
    """What each member of the critic says, in units of the return.

    Attributes:
        q: [K, N] float32 Q(x, a) of the logged actions.
        value: [K, M] float32 V(x) of the target policy: rows, then final observations.
        renewals: of the targets that it took.
        change: of V at the first observations between the last two windows, as `tolerance`.
        converged: whether it is below the tolerance.
    """

    q: Array
    value: Array
    renewals: int
    change: float
    converged: bool


def fit_fqe(
    data: Backups, weight: Array, model: ModelSpec, *, settings: FQESettings, seed: int
) -> FQEFit:
    """Fit Q of a policy to logged steps, for several weightings of the rows at once.

        Q_i+1 = argmin_Q  sum_n w_n (r_n + d_n sum_a pi(a|x'_n) Q_i(x'_n, a) - Q(x_n, a_n))^2

    Targets are renewed every `updates` minibatch steps and bootstrap where a step was truncated,
    not where it terminated. At each renewal the constant part of Q is solved for: c with
    sum_n w_n (r_n + d_n (V + c)(x'_n) - (Q + c)(x_n, a_n)) = 0, the mode that plain iteration
    brings in by a factor gamma a time only. It ends by the tolerance of `FQESettings`, and answers
    with the mean of its parameters over the last `window` renewals. Deterministic given the seed.

    Args:
        data: the steps.
        weight: [K, N] of each member: all rows 1, a fold's rows 0, or a bootstrap's counts.
        model: of the policy: how its observations look; images get its convolutions.
        settings: of the fit.
        seed: of initial parameters, minibatches and sampled actions.

    Raises:
        ValueError: a member is left without rows.

    Source: Le, Voloshin & Yue 2019, arXiv:1903.08738, algorithm 3; the constant part: Bertsekas &
    Castanon 1989, IEEE TAC 34(6), aggregation with one aggregate state.
    """
    if not ((weight > 0) & data.is_usable).any(1).all():
        raise ValueError("a member of the critic has no rows to be fitted on; take fewer folds")
    fit = _Fit(data, weight, model, settings=settings, seed=seed)
    starts: list[float] = []
    states: deque[Tensor] = deque(maxlen=settings.window)
    change = math.inf
    while len(starts) < settings.max_renewals and change >= settings.tolerance:
        fit.renew()
        starts.append(fit.start_value())
        states.append(fit.state())
        change = _change(starts, settings.window, fit.scale)
    fit.load(torch.stack(list(states)).mean(0))
    return FQEFit(
        q=fit.logged_q(),
        value=fit.values(np.arange(len(data.obs))),
        renewals=len(starts),
        change=change,
        converged=change < settings.tolerance,
    )


def _change(starts: list[float], window: int, scale: float) -> float:
    """How far the mean of the last window is from that of the one before, relative."""
    if len(starts) < 2 * window:
        return math.inf
    now = float(np.mean(starts[-window:]))
    before = float(np.mean(starts[-2 * window : -window]))
    return abs(now - before) / max(abs(now), scale)


class _Fit:
    """A critic while it is fitted: Q = scale * (network + constant), for each member."""

    def __init__(
        self, data: Backups, weight: Array, model: ModelSpec, *, settings: FQESettings, seed: int
    ) -> None:
        self._data, self._settings = data, settings
        self._rng = np.random.default_rng(seed)
        self.scale = _return_scale(data)
        is_image = model.kind == "cnn"
        self._obs = torch.as_tensor(data.obs if is_image else standardised(data.obs, data.obs))
        self._action = torch.as_tensor(self._fed(data.action))
        self._reward = torch.as_tensor(data.reward / self.scale, dtype=torch.float32)
        self._discount = torch.as_tensor(data.discount, dtype=torch.float32)
        self._weight = torch.as_tensor(weight, dtype=torch.float32)
        self._usable = np.flatnonzero(data.is_usable)
        spec = dataclasses.replace(
            model,
            kind="cnn" if is_image else "mlp",
            obs_shape=tuple(data.obs.shape[1:]),
            obs_scale=model.obs_scale if is_image else 1.0,
            hidden=settings.hidden,
            activation="relu",
        )
        listed = data.probabilities
        inputs = 0 if listed is not None else self._action.shape[1]
        outputs = 1 if listed is None else listed.shape[1]
        self._probabilities = None if listed is None else torch.as_tensor(listed).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._critic = CriticEnsemble(
                spec, num_critics=len(weight), inputs=inputs, outputs=outputs
            )
        optim = OptimSpec(kind="adam", eps=1e-8, max_grad_norm=None)
        self._optimizer = FlatOptimizer([self._critic], optim)
        self._constant = torch.zeros(len(weight), 1)

    def renew(self) -> None:
        """New targets for some rows, and gradient steps towards them."""
        settings, usable = self._settings, self._usable
        rows = settings.updates * settings.batch_rows
        pool = usable if len(usable) <= rows else self._rng.choice(usable, rows, replace=False)
        target = self._targets(pool)
        shape = settings.updates, min(settings.batch_rows, len(pool))
        for batch in self._rng.integers(len(pool), size=shape):
            index = torch.as_tensor(pool[batch])
            error = self._q(index) + self._constant - target[:, torch.as_tensor(batch)]
            loss = 0.5 * (self._weight[:, index] * error**2).mean(1).sum()
            self._optimizer.step(loss, lr=settings.lr)

    @torch.no_grad()
    def _targets(self, pool: Array) -> Tensor:
        """[K, rows of pool], after the constants were solved for."""
        index = torch.as_tensor(pool)
        discount, weight = self._discount[index], self._weight[:, index]
        q = self._chunks(lambda some: self._q(torch.as_tensor(some)), pool) + self._constant
        following = self._chunks(self._value, self._data.next_row[pool]) + self._constant
        target = self._reward[index] + discount * following
        leaving = (weight * (1 - discount)).sum(1)
        # Without any weight in the pool, as a small fold may be, there is nothing to solve.
        is_sound = leaving > _MIN_LEAVING * weight.sum(1)
        residual = (weight * (target - q)).sum(1)
        constant = torch.where(is_sound, residual / leaving, 0.0)
        self._constant += constant[:, None]
        return target + discount * constant[:, None]

    def _q(self, index: Tensor) -> Tensor:
        """[K, B] of logged actions, less the constant."""
        action = self._action[index]
        if self._probabilities is None:
            q: Tensor = self._critic(self._obs[index], action).squeeze(2)
            return q
        every = self._critic(self._obs[index])
        q = every.gather(2, action.expand(len(every), -1).unsqueeze(2)).squeeze(2)
        return q

    def _value(self, rows: Array) -> Tensor:
        """[K, B] of the target policy at rows of obs, less the constant."""
        index = torch.as_tensor(rows)
        if self._probabilities is not None:
            every = self._critic(self._obs[index])
            value: Tensor = (every * self._probabilities[index]).sum(2)
            return value
        sample = self._data.sample
        assert sample is not None  # Backups: one of the two is there
        repeated = np.repeat(rows, self._settings.samples)
        action = torch.as_tensor(self._fed(sample(repeated)))
        q = self._critic(self._obs[torch.as_tensor(repeated)], action)
        value = q.view(len(q), len(rows), -1).mean(2)
        return value

    def _chunks(self, of: Callable[[Array], Tensor], rows: Array) -> Tensor:
        samples = 1 if self._probabilities is not None else self._settings.samples
        count = max(1, _FORWARD_ROWS // (len(self._constant) * samples))
        found = [of(rows[low : low + count]) for low in range(0, len(rows), count)]
        return torch.cat(found, 1)

    def _fed(self, action: Array) -> Array:
        logged = self._data.action
        return action if logged.dtype.kind == "i" else standardised(action, logged)

    @torch.no_grad()
    def values(self, rows: Array) -> Array:
        """V [K, rows] in units of the return."""
        value = self._chunks(self._value, rows) + self._constant
        return (value * self.scale).numpy()

    @torch.no_grad()
    def logged_q(self) -> Array:
        """Q [K, N] of the logged actions, in units of the return."""
        rows = np.arange(len(self._data.reward))
        q = self._chunks(lambda some: self._q(torch.as_tensor(some)), rows) + self._constant
        return (q * self.scale).numpy()

    def start_value(self) -> float:
        """Of the first member: mean V at the first observations."""
        return float(self.values(self._data.start)[0].mean())

    def state(self) -> Tensor:
        """Parameters and constants in one vector."""
        return torch.cat([self._optimizer.flat.detach(), self._constant[:, 0]])

    def load(self, state: Tensor) -> None:
        """The inverse of `state`."""
        members = len(self._constant)
        with torch.no_grad():
            self._optimizer.flat.copy_(state[:-members])
            self._constant.copy_(state[-members:, None])


def _return_scale(data: Backups) -> float:
    """Spread of the returns to go; their size where they are all the same."""
    rows = np.arange(len(data.reward))
    carry = data.discount * (data.next_row == rows + 1)
    to_go = linear_recurrence(data.reward.astype(np.float64), carry)
    spread = float(to_go.std())
    return max(spread, 1e-3 * float(np.abs(to_go).max())) or 1.0
