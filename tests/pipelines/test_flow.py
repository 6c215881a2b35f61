"""Flow control: a lag that no schedule can exceed, no deadlock, and ids that survive retries."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.flow import FlowControl


def make_flow(*, workers=1, fragments=1, lag=0, start=0, budget=None):
    return FlowControl(
        fragments_per_version=fragments,
        max_policy_lag=lag,
        num_workers=workers,
        start_version=start,
        budget=budget,
    )


# --- literal ---


def test_synchronous_claims_wait_for_the_version_that_consumes_the_ones_before():
    flow = make_flow(workers=1, fragments=2)
    assert [flow.claim(0, t) for t in "abc"] == [0, 1, None]
    flow.advance(1)
    assert [flow.claim(0, t) for t in "cde"] == [2, 3, None]


def test_lag_widens_the_window_by_whole_versions():
    flow = make_flow(workers=2, fragments=2, lag=2)
    assert flow.window == 6
    assert [flow.claim(0, f"a{i}") for i in range(4)] == [0, 2, 4, None]
    assert [flow.claim(1, f"b{i}") for i in range(4)] == [1, 3, 5, None]


def test_a_fast_worker_does_not_take_the_fragments_of_a_slow_one():
    flow = make_flow(workers=2, fragments=4)
    assert [flow.claim(0, f"a{i}") for i in range(3)] == [0, 2, None]
    assert [flow.claim(1, f"b{i}") for i in range(3)] == [1, 3, None]


def test_a_retried_ticket_gets_its_old_fragment_even_when_the_window_is_full():
    flow = make_flow(workers=1, fragments=1)
    assert flow.claim(0, "a") == 0
    assert flow.claim(0, "b") is None
    assert flow.claim(0, "a") == 0


def test_a_retry_after_its_fragment_was_consumed_still_gets_its_old_id():
    flow = make_flow(workers=1, fragments=1)
    flow.claim(0, "a")
    flow.advance(1)
    assert flow.claim(0, "a") == 0  # which the learner drops as a duplicate


def test_budget_stops_claims_at_a_version_and_lifting_it_goes_on():
    flow = make_flow(workers=1, fragments=2, lag=3, budget=1)
    assert [flow.claim(0, t) for t in "abc"] == [0, 1, None]
    flow.budget = None
    assert flow.claim(0, "c") == 2


def test_a_resumed_run_begins_with_the_fragments_of_the_version_that_comes_next():
    flow = make_flow(workers=2, fragments=4, start=3)
    assert [flow.claim(1, "b"), flow.claim(0, "a")] == [13, 12]
    assert flow.consumed == 12
    assert len(flow.outstanding) == 2


def test_outstanding_counts_claims_that_were_not_consumed():
    flow = make_flow(workers=1, fragments=2, lag=1)
    for ticket in "abc":
        flow.claim(0, ticket)
    assert len(flow.outstanding) == 3
    flow.advance(1)
    assert len(flow.outstanding) == 1


def test_remembered_claims_stay_bounded_over_a_long_run():
    flow = make_flow(workers=2, fragments=2, lag=1)
    for version in range(500):
        for worker in range(2):
            flow.claim(worker, f"{worker}-{version}")
        flow.advance(version + 1)
    assert len(flow._claims) <= 3 * flow.window


def test_fragments_that_do_not_divide_among_the_workers_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"fragments_per_version=3 .* num_workers=2"):
        make_flow(workers=2, fragments=3)


def test_a_version_cannot_go_back():
    flow = make_flow(start=5)
    with pytest.raises(ValueError, match="version 4 published after 5"):
        flow.advance(4)


# --- law ---


class Run:
    """Workers, learner and driver of a run, of which any may move next."""

    def __init__(self, rng, *, workers, rounds, lag, start):
        self.rng, self.workers, self.lag = rng, workers, lag
        self.fragments = workers * rounds
        self.tickets = 0
        self.versions_made = 0
        self.resume(start)

    def resume(self, version):
        self.flow = make_flow(
            workers=self.workers, fragments=self.fragments, lag=self.lag, start=version
        )
        self.waiting = {}  # worker → ticket that was not granted yet
        self.holds = {}  # worker → ticket, fragment, version it acts with
        self.last = {}  # worker → ticket and fragment delivered last
        self.pending = {}  # fragment → version it acted with
        self.claimed = set()

    def ids(self):
        first = self.flow.version * self.fragments
        return range(first, first + self.fragments)

    def moves(self):
        idle = [w for w in range(self.workers) if w not in self.holds]
        return [
            *[(self.claim, w) for w in idle],
            *[(self.finish, w) for w in self.holds],
            *[(self.learn,)] * all(k in self.pending for k in self.ids()),
        ]

    def disturbances(self):
        return [
            *[(self.crash_and_retry, w) for w in self.holds],
            *[(self.retry_what_was_delivered, w) for w in self.last],
            (self.pause, self.rng.randrange(3)),
            (self.go_on,),
            (self.resume, max(0, self.flow.version - self.rng.randrange(2))),
        ]

    def step(self):
        calls = self.disturbances() if self.rng.random() < 0.1 else self.moves()
        if calls:
            call, *args = self.rng.choice(calls)
            call(*args)

    def claim(self, worker):
        if worker not in self.waiting:
            self.tickets += 1
            self.waiting[worker] = f"ticket-{self.tickets}"
        ticket = self.waiting[worker]
        fragment = self.flow.claim(worker, ticket)
        if fragment is None:
            return
        del self.waiting[worker]
        assert fragment % self.workers == worker
        assert fragment not in self.claimed
        assert self.flow.budget is None or fragment < self.flow.budget * self.fragments
        self.claimed.add(fragment)
        self.holds[worker] = ticket, fragment, self.flow.version

    def finish(self, worker):
        ticket, fragment, version = self.holds.pop(worker)
        assert not self.is_duplicate(fragment)
        self.pending[fragment] = version
        self.last[worker] = ticket, fragment

    def crash_and_retry(self, worker):
        ticket, fragment, _ = self.holds[worker]
        assert self.flow.claim(worker, ticket) == fragment
        self.holds[worker] = ticket, fragment, self.flow.version

    def retry_what_was_delivered(self, worker):
        ticket, fragment = self.last[worker]
        assert self.flow.claim(worker, ticket) == fragment
        assert self.is_duplicate(fragment)

    def is_duplicate(self, fragment):
        """As the learner decides it."""
        return fragment < self.ids()[0] or fragment in self.pending

    def learn(self):
        for k in self.ids():
            assert 0 <= self.flow.version - self.pending.pop(k) <= self.lag
        self.flow.advance(self.flow.version + 1)
        self.versions_made += 1

    def pause(self, ahead):
        self.flow.budget = self.flow.version + ahead

    def go_on(self):
        self.flow.budget = None

    def check(self):
        assert len(self.flow.outstanding) <= self.flow.window
        budget = self.flow.budget
        is_paused = budget is not None and self.flow.version >= budget
        if is_paused or self.holds or all(k in self.pending for k in self.ids()):
            return
        # Nobody is at work: then someone must be able to claim, or the run would hang.
        claims = [copy.deepcopy(self.flow).claim(w, f"probe-{w}") for w in range(self.workers)]
        assert any(fragment is not None for fragment in claims)


@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 4),
    rounds=st.integers(1, 3),
    lag=st.integers(0, 3),
    start=st.integers(0, 3),
)
def test_any_schedule_with_crashes_pauses_and_resumes_keeps_the_bound_and_never_deadlocks(
    seed, workers, rounds, lag, start
):
    run = Run(random.Random(seed), workers=workers, rounds=rounds, lag=lag, start=start)
    for _ in range(300):
        run.step()
        run.check()
    run.go_on()
    made = run.versions_made
    while run.versions_made < made + 3:  # pytest's time-out would tell of a deadlock
        call, *args = run.rng.choice(run.moves())
        call(*args)
