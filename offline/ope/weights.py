"""Log-ratios of two policies' probabilities of the logged actions, and what is odd about them.

Legend: N rows, E episodes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from offline.ope.behavior import Clone, clone_behavior
from offline.ope.errors import OpeError
from offline.ope.problem import Problem
from offline.trajectories import Trajectories
from rl_ops import columns as c
from rl_ops.tree import tree_map

Floats = npt.NDArray[np.float64]

_SURE_ERRORS: Final = 6.0
_FAR: Final = 0.02
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

    def oddity(self) -> str:
        """What speaks against the probabilities; empty for nothing.

        The mean of pi/mu over what mu does is 1, wherever mu does all that pi does.
        """
        ratio = np.exp(self.rows.clip(max=300.0))
        mean, error = float(ratio.mean()), float(ratio.std()) / np.sqrt(len(ratio))
        if abs(mean - 1) <= max(_FAR, _SURE_ERRORS * error):
            return ""
        return (
            f"the mean of pi/mu over all rows is {mean:.3f} ± {error:.3f} and should be 1: the "
            "behaviour never does some of what the policy does, or the logged probabilities are "
            "not those of the logged actions"
        )


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
