"""Log-ratios of two policies' probabilities of the logged actions, and what is odd about them.

Legend: N rows, E episodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from offline.ope.behavior import Clone, clone_behavior
from offline.ope.errors import OpeError
from offline.ope.estimators import by_episode
from offline.ope.problem import Problem
from offline.trajectories import Trajectories
from rl_ops import columns as c
from rl_ops.tree import tree_map

Floats = npt.NDArray[np.float64]

_SURE_ERRORS: Final = 6.0
_FAR: Final = 0.02
_SURE_ERRORS_WHOLE: Final = 3.0
_FAR_WHOLE: Final = 0.2
_NAMED: Final = 3


@dataclass(frozen=True, eq=False)
class LogRatios:
    """log pi(a|x) - log mu(a|x), in nats.

    Attributes:
        rows: [N].
        clone: what stands for mu; None where it was logged.
    """

    rows: Floats
    clone: Clone | None = None

    def oddities(self, episode: npt.NDArray[np.int64]) -> Iterator[str]:
        """What speaks against the probabilities, or for their tail not having been seen.

        Over what mu does, both the mean of pi/mu and that of the whole episodes' weights are 1,
        wherever mu does all that pi does.

        Args:
            episode: [N] 0..E-1 of each row.
        """
        mean, error = _mean_and_error(self.rows)
        if abs(mean - 1) > max(_FAR, _SURE_ERRORS * error):
            yield (
                f"the mean of pi/mu over all rows is {mean:.3f} ± {error:.3f} and should be 1: the "
                "behaviour never does some of what the policy does, or the logged probabilities "
                "are not those of the logged actions"
            )
        mean, error = _mean_and_error(by_episode(self.rows, episode).sum(1))
        if abs(mean - 1) > max(_FAR_WHOLE, _SURE_ERRORS_WHOLE * error):
            yield (
                f"the mean weight of whole episodes is {mean:.3f} ± {error:.3f} and should be 1: "
                "episodes that the policy would often see are missing; do not use is and pdis, "
                "whose intervals do not know of it"
            )


def _mean_and_error(log_weight: Floats) -> tuple[float, float]:
    weight = np.exp(log_weight.clip(max=300.0))
    return float(weight.mean()), float(weight.std() / np.sqrt(len(weight)))


def log_ratios(problem: Problem) -> LogRatios:
    """Compare the policy's probabilities of the logged actions with the logged, or cloned, ones.

    Raises:
        OpeError: some were not logged; says of which rows, and what to do.
    """
    data, rows = problem.data, problem.data.rows
    target = problem.target.logp(problem.params[:rows], problem.action.action)
    if problem.settings.behavior == "estimate":
        clone = clone_behavior(
            problem.features[:rows],
            tree_map(np.ascontiguousarray, problem.action.action),
            problem.fold[data.episode],
            distribution=problem.target.distribution,
            model=problem.target.model,
            settings=problem.settings.clone,
            seed=problem.settings.seed,
        )
        return LogRatios(target - clone.logp, clone)
    logged = _logged(data) + problem.action.log_scale
    return LogRatios(np.where(np.isneginf(target), -np.inf, target - logged))


def _logged(data: Trajectories) -> Floats:
    logp = data.columns.get(c.LOGP)
    if logp is None:
        raise OpeError(f"the data was read without {c.LOGP}: name it in DataSpec.columns.")
    missing = ~np.isfinite(logp)
    if not missing.any():
        return logp.astype(np.float64)
    episodes = np.unique(data.episode[missing])
    named = ", ".join(data.name(int(i)) for i in episodes[:_NAMED])
    more = f" and {len(episodes) - _NAMED:,} more" if len(episodes) > _NAMED else ""
    raise OpeError(
        f"{int(missing.sum()):,} of {data.rows:,} rows have no {c.LOGP}, the "
        f"probability of the logged action: of episodes {named}{more}. Give --behavior estimate to "
        "clone the behaviour from the data, leave such rows out with --where, or ask for "
        "--estimators dm,fqe, which need none."
    )
