"""What configuration groups are made of."""

import itertools
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rl_ops.schedules import Schedule as _Points


def _increasing(schedule: _Points) -> _Points:
    if isinstance(schedule, tuple):
        steps = [point[0] for point in schedule]
        if not steps or any(b <= a for a, b in itertools.pairwise(steps)):
            raise ValueError("a schedule needs points [env_steps, value] with growing env_steps")
    return schedule


Schedule = Annotated[_Points, AfterValidator(_increasing)]
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Group(BaseModel):
    """Base of configuration groups: immutable, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
