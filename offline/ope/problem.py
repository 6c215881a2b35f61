"""One policy and the logged episodes that are to tell what it is worth.

Legend: N rows, F final observations, M = N + F, E episodes, P numbers that say how a policy acts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline.ope.actions import Converted
from offline.ope.episodes import Beginnings, beginnings
from offline.ope.settings import OpeSettings
from offline.ope.target import Target
from offline.trajectories import Trajectories

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Problem:
    """What the estimators share.

    Attributes:
        used: the rows.
        target: the policy.
        features: [M, *S] what its network is fed.
        params: [M, P] how it acts there.
        action: the logged actions as it would have chosen them, [N, ...].
        fold: [E] 0..folds-1 of each episode.
        settings: which estimates, and how.
    """

    used: Beginnings
    target: Target
    features: Array
    params: Array
    action: Converted
    fold: npt.NDArray[np.int64]
    settings: OpeSettings

    @property
    def data(self) -> Trajectories:
        """The rows."""
        return self.used.data

    @property
    def no_density(self) -> str:
        """Why there are no importance weights; empty where there are."""
        return self.target.no_density or self.action.problem


def problem_of(data: Trajectories, target: Target, settings: OpeSettings) -> Problem:
    """Ask a policy about every observation.

    Raises:
        OpeError: too few episodes, or the spaces do not fit.
    """
    used = beginnings(data)
    action = target.actions(used.data)
    features = target.features(used.data)
    episodes = used.data.num_episodes
    folds = min(settings.folds, episodes)
    shuffled = np.random.default_rng([settings.seed, 0]).permutation(episodes)
    return Problem(
        used, target, features, target.params(features), action, shuffled % folds, settings
    )
