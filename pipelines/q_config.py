"""Settings of Q networks, which every algorithm with one takes."""

from typing import Self

from pydantic import Field, model_validator

from pipelines.config_base import Group, PositiveInt
from rl_ops.model_spec import Atoms, QSpec


class QConfig(Group):
    """What the Q network gives, and how it is trained."""

    double: bool = True
    """The network chooses the action that its target values: double Q-learning."""
    dueling: bool = False
    """Q as the sum of a state's value and an action's advantage."""
    noisy: bool = False
    """Noise of learned size on the weights; set epsilon to 0 beside it."""
    atoms: Atoms = "none"
    """`none`: Q is a mean; `categorical`: probabilities of fixed values (C51); `quantile`: values
    of fixed probabilities (QR-DQN)."""
    num_atoms: PositiveInt = 51
    """Of a distribution."""
    v_min: float = -10.0
    """Least of the fixed values, in the units of the return that the learner sees."""
    v_max: float = 10.0
    """Greatest of the fixed values."""
    huber_delta: float | None = Field(default=1.0, gt=0)
    """|td_error| beyond which the loss grows linearly, of quantiles too; None is the squared error,
    and for quantiles the plain quantile loss."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.atoms == "categorical" and (self.num_atoms < 2 or self.v_min >= self.v_max):
            raise ValueError(
                f"categorical atoms need v_min < v_max and num_atoms of 2 or more; got "
                f"{self.v_min:g}, {self.v_max:g} and {self.num_atoms}"
            )
        return self

    def spec(self) -> QSpec:
        """The network's end."""
        return QSpec(
            num_actions=0,  # until the environment is known
            dueling=self.dueling,
            noisy=self.noisy,
            atoms=self.atoms,
            num_atoms=1 if self.atoms == "none" else self.num_atoms,
            v_min=self.v_min,
            v_max=self.v_max,
        )
