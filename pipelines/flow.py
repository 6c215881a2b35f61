"""Flow control: which fragment a rollout worker may make next, so that lag stays bounded."""

from dataclasses import dataclass, field


@dataclass
class FlowControl:
    """Grants claims on fragments in a sliding window over what the learner has consumed.

    Claim k is granted when k < consumed + window, window = F * (1 + max_policy_lag), and the
    learner consumes fragments in the order of their ids. A fragment claimed at version v has
    k < F * v + F * (1 + lag) and is consumed by the update at version k // F, so its lag
    k // F - v is at most max_policy_lag, whatever the schedule of workers and learner.

    Fragment k belongs to lane k mod num_lanes, and worker w takes the next of lane w mod
    num_lanes. With a lane for each worker the same seed gives the same fragments however fast each
    is, and a straggler holds up the others once the window is full. With fewer lanes, one for each
    learner rank, whoever is free takes the next fragment, and a straggler makes fewer of them.

    Args:
        fragments_per_version: F, a multiple of num_lanes.
        max_policy_lag: versions; 0 is synchronous.
        num_workers: rollout workers.
        num_lanes: a divisor of num_workers; None is a lane for each.
        start_version: version whose update comes next; positive after a resume.

    Attributes:
        budget: version at which claims stop being granted; None never. This is how a run pauses.
    """

    fragments_per_version: int
    max_policy_lag: int
    num_workers: int
    num_lanes: int | None = None
    start_version: int = 0
    budget: int | None = None
    version: int = field(init=False)
    _next: list[int] = field(init=False)
    _claims: dict[str, int] = field(init=False, default_factory=dict)
    _recent: dict[int, tuple[str, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        lanes = self.num_workers if self.num_lanes is None else self.num_lanes
        if self.num_workers % lanes:
            raise ValueError(f"num_workers={self.num_workers} must be a multiple of {lanes} lanes")
        if self.fragments_per_version % lanes:
            what = "num_workers" if lanes == self.num_workers else "num_lanes"
            raise ValueError(
                f"fragments_per_version={self.fragments_per_version} must be a multiple of "
                f"{what}={lanes}"
            )
        self.version = self.start_version
        first = self.start_version * self.fragments_per_version
        self._next = [first + lane for lane in range(lanes)]

    @property
    def window(self) -> int:
        """Fragments that may be claimed and not yet consumed."""
        return self.fragments_per_version * (1 + self.max_policy_lag)

    @property
    def consumed(self) -> int:
        """Fragments consumed since the run began, over all resumes."""
        return self.version * self.fragments_per_version

    @property
    def outstanding(self) -> list[int]:
        """Fragments claimed and not yet consumed."""
        return [k for k in self._claims.values() if k >= self.consumed]

    def claim(self, worker: int, ticket: str) -> int | None:
        """The id of the fragment to make for `ticket`, or None when the worker has to wait.

        A ticket that was granted before, because its task is being retried, gets its old id.
        """
        if ticket in self._claims:
            return self._claims[ticket]
        lane = worker % len(self._next)
        fragment = self._next[lane]
        limit = self.consumed + self.window
        if self.budget is not None:
            limit = min(limit, self.budget * self.fragments_per_version)
        if fragment >= limit:
            return None
        self._next[lane] += len(self._next)
        self._claims[ticket] = fragment
        self._recent[worker] = (*self._recent.get(worker, ())[-1:], ticket)
        return fragment

    def advance(self, version: int) -> None:
        """The learner has consumed every fragment below `version` * F and published `version`."""
        if version < self.version:
            raise ValueError(f"version {version} published after {self.version}")
        self.version = version
        # Two windows back, for retries of tasks whose output was consumed already: their
        # fragment must keep its id, so that the learner recognises it as a duplicate. What a
        # straggler in a shared lane delivered last, and what it makes, may be older.
        oldest = self.consumed - 2 * self.window
        recent = {ticket for tickets in self._recent.values() for ticket in tickets}
        self._claims = {t: k for t, k in self._claims.items() if k >= oldest or t in recent}
