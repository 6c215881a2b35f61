"""The logged actions' probabilities where none were logged: a policy cloned from the data.

Legend: N rows, K folds, B rows of a minibatch, P distribution parameters.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offline.ope.standard import standardised
from rl_ops.distributions import Distribution
from rl_ops.model_spec import ModelSpec
from rl_ops.optim import FlatOptimizer
from rl_ops.optim_spec import OptimSpec
from rl_ops.q_models import CriticEnsemble
from rl_ops.tree import Tree, tree_map, tree_take

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_ROWS = 8192


@dataclass(frozen=True)
class CloneSettings:
    """How a policy is cloned.

    Attributes:
        hidden: widths of the network's layers.
        lr: of Adam.
        batch_rows: of a minibatch.
        max_epochs: passes over the data.
        patience: passes without a better held-out likelihood, after which it ends.
    """

    hidden: tuple[int, ...] = (64, 64)
    lr: float = 1e-3
    batch_rows: int = 256
    max_epochs: int = 100
    patience: int = 5


@dataclass(frozen=True, eq=False)
class Clone:
    """What a cloned policy says of the logged actions.

    Attributes:
        logp: [N] in nats, each row's by a network that did not see its episode.
        epochs: passes over the data.
        held_out: mean of logp.
    """

    logp: Floats
    epochs: int
    held_out: float


def clone_behavior(
    obs: Array,
    action: Tree,
    fold: npt.NDArray[np.int64],
    *,
    distribution: Distribution,
    model: ModelSpec,
    settings: CloneSettings,
    seed: int,
) -> Clone:
    """Maximum likelihood of the logged actions, held out by folds of episodes.

        theta_k = argmax sum_{n not in fold k} log mu_theta(a_n|x_n)

    Ends by the held-out likelihood of all folds, and gives what it was at its best.

    Args:
        obs: [N, *S] what the target policy's network is fed.
        action: batch tree [N, ...] in the target policy's space.
        fold: [N] 0..K-1 of each row's episode.
        distribution: family of the actions' distributions.
        model: of the target policy: how its observations look.
        settings: of the fit.
        seed: of initial parameters and minibatches.

    Source: Hanna, Niekum & Stone 2019, arXiv:1806.01347: estimated behaviour policies; held out,
    because an in-sample one follows the noise of what was chosen.
    """
    fit = _Clone(obs, action, fold, distribution, model, settings=settings, seed=seed)
    best, since, epochs = fit.held_out(), 0, 0
    while epochs < settings.max_epochs and since < settings.patience:
        fit.epoch()
        epochs += 1
        logp = fit.held_out()
        since = 0 if logp.mean() > best.mean() else since + 1
        best = logp if since == 0 else best
    return Clone(best, epochs, float(best.mean()))


class _Clone:
    """A network for each fold while they are fitted."""

    def __init__(
        self,
        obs: Array,
        action: Tree,
        fold: npt.NDArray[np.int64],
        distribution: Distribution,
        model: ModelSpec,
        *,
        settings: CloneSettings,
        seed: int,
    ) -> None:
        self._settings, self._distribution, self._fold = settings, distribution, fold
        self._rng = np.random.default_rng(seed)
        is_image = model.kind == "cnn"
        self._obs = torch.as_tensor(obs if is_image else standardised(obs, obs))
        self._action = tree_map(torch.as_tensor, action)
        self._folds = int(fold.max()) + 1
        learns = np.arange(self._folds)[:, None] != fold
        self._learns = torch.as_tensor(learns, dtype=torch.float32)
        spec = dataclasses.replace(
            model,
            kind="cnn" if is_image else "mlp",
            obs_shape=tuple(obs.shape[1:]),
            obs_scale=model.obs_scale if is_image else 1.0,
            hidden=settings.hidden,
            activation="relu",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._net = CriticEnsemble(
                spec, num_critics=self._folds, inputs=0, outputs=distribution.param_size
            )
        optim = OptimSpec(kind="adam", eps=1e-8, max_grad_norm=None)
        self._optimizer = FlatOptimizer([self._net], optim)

    def epoch(self) -> None:
        """One pass over the rows in a new order."""
        order = self._rng.permutation(len(self._obs))
        for low in range(0, len(order), self._settings.batch_rows):
            index = torch.as_tensor(order[low : low + self._settings.batch_rows])
            logp = self._logp(index)
            loss = -(self._learns[:, index] * logp).mean(1).sum()
            self._optimizer.step(loss, lr=self._settings.lr)

    def _logp(self, index: Tensor) -> Tensor:
        params, action = self._net(self._obs[index]), tree_take(self._action, index)
        return torch.stack([self._distribution.logp(params, action) for params in params])

    @torch.no_grad()
    def held_out(self) -> Floats:
        """Log-probabilities [N] by the network of each row's own fold."""
        found = np.empty(len(self._obs))
        for low in range(0, len(found), _ROWS):
            rows = np.arange(low, min(low + _ROWS, len(found)))
            logp = self._logp(torch.as_tensor(rows)).numpy()
            found[rows] = logp[self._fold[rows], np.arange(len(rows))]
        return found
