"""Operators: frozen values that turn a table of steps into a table with more columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from rl_ops import columns as c
from rl_ops.errors import ColumnError
from rl_ops.returns import gae, n_step


@runtime_checkable
class Operator(Protocol):
    """A pure step of the dataflow; `reads` and `adds` let a plan be checked before it runs."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns it needs."""

    @property
    def adds(self) -> tuple[str, ...]:
        """Columns it appends."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """The same rows with the columns `adds` appended."""


def fold_columns(columns: Sequence[str], operators: Iterable[Operator]) -> tuple[str, ...]:
    """The columns after all `operators`, or the first that cannot run.

    Raises:
        ColumnError: an operator misses a column, or adds one that is there already; names
            both, and what there is.
    """
    present, previous = list(columns), "the rollout"
    for operator in operators:
        name = getattr(operator, "name", type(operator).__name__)
        for column in operator.reads:
            if column not in present:
                raise ColumnError(
                    f"{name} reads {column!r}; the stream after {previous} has "
                    f"{', '.join(sorted(present))}. Put an operator that adds it before {name}"
                )
        for column in operator.adds:
            if column in present:
                raise ColumnError(
                    f"{name} adds {column!r}, which the stream after {previous} has already: "
                    f"{', '.join(sorted(present))}. Leave one of the two out"
                )
        present += operator.adds
        previous = name
    return tuple(present)


def next_values(value: np.ndarray, final_value: np.ndarray, is_last: np.ndarray) -> np.ndarray:
    """V(x_{t+1}) for env-major rows: the next row's value, or final_value where the row is last."""
    following = np.empty_like(value)
    following[:-1] = value[1:]
    return np.where(is_last, final_value, following)


@dataclass(frozen=True)
class AddGAE:
    """Generalised advantage estimates, and the value targets that go with them.

    Truncated rows and fragment ends bootstrap from V(final_obs); terminated rows do not.

    Args:
        gamma: discount per step.
        gae_lambda: 1 is the Monte-Carlo return, 0 one-step TD.
        reward: which reward column to use, `scaled_reward` when rewards are normalised.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """

    gamma: float
    gae_lambda: float
    reward: str = c.REWARD

    adds: ClassVar[tuple[str, ...]] = (c.ADVANTAGE, c.VALUE_TARGET)

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Operator.reads`."""
        return (self.reward, c.TERMINATED, c.IS_LAST, c.VALUE, c.FINAL_VALUE)

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `Operator.__call__`."""
        reward, terminated, is_last, value, final_value = (
            table.column(name).to_numpy() for name in self.reads
        )
        result = gae(
            reward.astype(np.float32),
            self.gamma * (1.0 - terminated.astype(np.float32)),
            value,
            next_values(value, final_value, is_last),
            is_last,
            gae_lambda=self.gae_lambda,
        )
        table = table.append_column(c.ADVANTAGE, pa.array(result.advantage))
        return table.append_column(c.VALUE_TARGET, pa.array(result.value_target))


@dataclass(frozen=True)
class ClipReward:
    """Rewards limited to [-limit, limit], the original column kept beside them."""

    limit: float
    reward: str = c.REWARD

    adds: ClassVar[tuple[str, ...]] = (c.CLIPPED_REWARD,)

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Operator.reads`."""
        return (self.reward,)

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `Operator.__call__`."""
        clipped = np.clip(table.column(self.reward).to_numpy(), -self.limit, self.limit)
        return table.append_column(c.CLIPPED_REWARD, pa.array(clipped))


@dataclass(frozen=True)
class AddDiscount:
    """The reward that the learner sees, and gamma * (1 - terminated).

    For learners that make their own returns, because their policy has moved on since.

    Args:
        gamma: discount per step.
        reward: which reward column to use.
    """

    gamma: float
    reward: str = c.REWARD

    adds: ClassVar[tuple[str, ...]] = (c.LEARNER_REWARD, c.DISCOUNT)

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Operator.reads`."""
        return (self.reward, c.TERMINATED)

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `Operator.__call__`."""
        reward, terminated = (table.column(name).to_numpy() for name in self.reads)
        discount = np.float32(self.gamma) * (1.0 - terminated.astype(np.float32))
        table = table.append_column(c.LEARNER_REWARD, pa.array(reward.astype(np.float32)))
        return table.append_column(c.DISCOUNT, pa.array(discount))


@dataclass(frozen=True)
class NStep:
    """Sums of up to n rewards, and the observation and discount to bootstrap with after them.

        return_n           = r_t + d_t r_t+1 + ... of m steps, m = n or fewer to the segment's end
        bootstrap_obs      = the module observation m steps on: final_model_obs at a cut
        bootstrap_discount = gamma^m, 0 where the episode terminated on the way

    Windows end where the fragment does, so the last n - 1 rows of a fragment have shorter ones.

    Args:
        n: steps.
        gamma: discount per step.
        reward: which reward column to use.
        obs: what the module is fed; a plan fills in the column that has it.

    Source: Sutton & Barto 2018, eq. 7.1; Hessel et al. 2018, arXiv:1710.02298, section 3.
    """

    n: int
    gamma: float
    reward: str = c.REWARD
    obs: str = c.MODEL_OBS

    adds: ClassVar[tuple[str, ...]] = (c.RETURN_N, c.BOOTSTRAP_OBS, c.BOOTSTRAP_DISCOUNT)

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Operator.reads`."""
        return (self.reward, c.TERMINATED, c.IS_LAST, self.obs, c.FINAL_MODEL_OBS)

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `Operator.__call__`."""
        reward, terminated, is_last = (table.column(name).to_numpy() for name in self.reads[:3])
        result = n_step(
            reward.astype(np.float32),
            self.gamma * (1.0 - terminated.astype(np.float32)),
            is_last,
            n=self.n,
        )
        # Where the window's last row is no cut, the next observation is the next row's own.
        end = result.bootstrap_index
        index = np.where(is_last[end], end + table.num_rows, end + 1)
        both = [*table.column(self.obs).chunks, *table.column(c.FINAL_MODEL_OBS).chunks]
        bootstrap_obs = pa.concat_arrays(both).take(pa.array(index))
        table = table.append_column(c.RETURN_N, pa.array(result.return_n))
        table = table.append_column(c.BOOTSTRAP_OBS, bootstrap_obs)
        return table.append_column(c.BOOTSTRAP_DISCOUNT, pa.array(result.bootstrap_discount))


@dataclass(frozen=True)
class AddTDPriority:
    """|td_error| by the network that acted, with which rows enter a prioritised replay.

        td = return_n + bootstrap_discount * max_a Q(bootstrap_obs, a) - Q(obs, action)

    The worker computed these values to act, so the priorities cost it next to nothing, and the
    learner no pass over rows that it has not drawn.

    Args:
        n: steps, as of the `NStep` before it.
        gamma: discount per step.
        reward: which reward column to use.

    Source: Horgan et al. 2018, arXiv:1803.00933, algorithm 1.
    """

    n: int
    gamma: float
    reward: str = c.REWARD

    adds: ClassVar[tuple[str, ...]] = (c.PRIORITY,)

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Operator.reads`."""
        return (self.reward, c.TERMINATED, c.IS_LAST, c.VALUE, c.FINAL_VALUE, c.Q_VALUE)

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `Operator.__call__`."""
        reward, terminated, is_last, value, final_value, q_value = (
            table.column(name).to_numpy() for name in self.reads
        )
        discount = self.gamma * (1.0 - terminated.astype(np.float32))
        found = n_step(reward.astype(np.float32), discount, is_last, n=self.n)
        bootstrap = next_values(value, final_value, is_last)[found.bootstrap_index]
        td_error = found.return_n + found.bootstrap_discount * bootstrap - q_value
        return table.append_column(c.PRIORITY, pa.array(np.abs(td_error).astype(np.float32)))
