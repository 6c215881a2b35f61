"""Flow control: which fragment a rollout worker may make next, so that lag stays bounded."""

from dataclasses import dataclass, field


@dataclass
class FlowControl:
    """Grants claims on fragments in a sliding window over what the learner has consumed.

    Claim k is granted when k < consumed + window, window = F * (1 + max_policy_lag), and the
    learner consumes fragments in the order of their ids. A fragment claimed at version v has
    k < F * v + F * (1 + lag) and is consumed by the update at version k // F, so its lag
    k // F - v is at most max_policy_lag, whatever the schedule of workers and learner.

    Fragment k belongs to worker k mod num_workers: the same seed gives the same fragments
    however fast each worker is. A straggler therefore holds up the others once the window is full.

    Args:
        fragments_per_version: F, a multiple of num_workers.
        max_policy_lag: versions; 0 is synchronous.
        num_workers: rollout workers.
        start_version: version whose update comes next; positive after a resume.

    Attributes:
        budget: version at which claims stop being granted; None never. This is how a run pauses.
    """

    fragments_per_version: int
    max_policy_lag: int
    num_workers: int
    start_version: int = 0
    budget: int | None = None
    version: int = field(init=False)
    _next: list[int] = field(init=False)
    _claims: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.fragments_per_version % self.num_workers:
            raise ValueError(
                f"fragments_per_version={self.fragments_per_version} must be a multiple of "
                f"num_workers={self.num_workers}"
            )
        self.version = self.start_version
        first = self.start_version * self.fragments_per_version
        self._next = [first + worker for worker in range(self.num_workers)]

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
        fragment = self._next[worker]
        limit = self.consumed + self.window
        if self.budget is not None:
            limit = min(limit, self.budget * self.fragments_per_version)
        if fragment >= limit:
            return None
        self._next[worker] += self.num_workers
        self._claims[ticket] = fragment
        return fragment

    def advance(self, version: int) -> None:
        """The learner has consumed every fragment below `version` * F and published `version`."""
        if version < self.version:
            raise ValueError(f"version {version} published after {self.version}")
        self.version = version
        # Two windows back, for retries of tasks whose output was consumed already: their
        # fragment must keep its id, so that the learner recognises it as a duplicate.
        oldest = self.consumed - 2 * self.window
        self._claims = {t: k for t, k in self._claims.items() if k >= oldest}
