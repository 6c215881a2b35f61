"""Operators: frozen values that turn a table of steps into a table with more columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from rl_ops import columns as c
from rl_ops.errors import ColumnError
from rl_ops.returns import gae


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
