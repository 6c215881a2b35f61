"""What a comparison is: a task at matched settings, who takes part, and which ratios are wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.peers.matched import Settings

Figure = Literal["steps_per_s", "time_to_return_s", "first_result_s"]


@dataclass(frozen=True)
class Contestant:
    """Ours where `peer` is None, else that peer's script in benchmarks/peers, run by its python.

    Attributes:
        options: of the peer's script, as its command line spells them.
        overrides: of our configuration, on top of the workload's.
        max_env_steps: of its steady runs, where it is too slow for the workload's number.
    """

    name: str
    label: str
    peer: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    overrides: Mapping[str, object] = field(default_factory=dict)
    max_env_steps: int | None = None


@dataclass(frozen=True)
class Target:
    """Ours to the best of some peers: `bound` is the least ratio of a rate, the most of seconds."""

    what: str
    figure: Figure
    peers: Sequence[str]
    bound: float


@dataclass(frozen=True)
class Workload:
    """One comparison; its name is the command's, our algorithm's and the peer scripts' first word.

    Attributes:
        matched: the settings that all contestants share.
        overrides: dotted path of our configuration to value.
        peers: those that ours is run beside, pair by pair.
        information: those that take a turn of their own in each repeat.
        env_steps: of the steady runs.
        warmup_env_steps: steps before which no rate is taken, such as those before learning starts.
        stretch_env_steps: rates are taken over stretches of this many steps or more.
        target_return: mean over the latest matched.window_episodes episodes.
        max_env_steps, time_limit_s: of the runs to that return; over either it was never reached.
        trial_env_steps: of the unmeasured run that comes first.
    """

    name: str
    matched: Settings
    overrides: Mapping[str, object]
    ours: Contestant
    peers: Sequence[Contestant]
    targets: Sequence[Target]
    env_steps: int
    stretch_env_steps: int
    target_return: float
    max_env_steps: int
    trial_env_steps: int
    time_limit_s: float = 600.0
    warmup_env_steps: int = 0
    information: Sequence[Contestant] = ()

    @property
    def title(self) -> str:
        return f"{self.name.upper()} {self.matched.env}"

    @property
    def everyone(self) -> list[Contestant]:
        return [self.ours, *self.peers, *self.information]
