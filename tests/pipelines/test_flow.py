"""Flow control: a lag that no schedule can exceed, no deadlock, and ids that survive retries."""

import asyncio
import copy
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.flow import FlowControl
from tests.pipelines.test_coordinator import make_coordinator, result_of
from tests.pipelines.test_coordinator import start as start_task


def make_flow(*, workers=1, fragments=1, lag=0, lanes=None, start=0, budget=None):
    return FlowControl(
        fragments_per_version=fragments,
        max_policy_lag=lag,
        num_workers=workers,
        num_lanes=lanes,
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


def test_in_one_lane_whoever_is_free_takes_the_next_fragment():
    flow = make_flow(workers=2, fragments=2, lag=1, lanes=1)
    takers = [0, 0, 1, 0]
    assert [flow.claim(w, f"t{i}") for i, w in enumerate(takers)] == [0, 1, 2, 3]
    assert [flow.claim(w, f"u{w}") for w in range(2)] == [None, None]


def test_with_a_lane_for_each_rank_a_fragment_is_of_a_worker_of_the_rank_that_consumes_it():
    flow = make_flow(workers=4, fragments=4, lag=1, lanes=2)
    takers = [0, 2, 2, 1, 3, 3, 0, 1]
    fragments = [flow.claim(w, f"t{i}") for i, w in enumerate(takers)]
    assert fragments == [0, 2, 4, 1, 3, 5, 6, 7]
    assert [k % 2 for k in fragments] == [w % 2 for w in takers]


def test_a_retried_ticket_gets_its_old_fragment_although_others_shared_its_lane():
    flow = make_flow(workers=2, fragments=2, lag=1, lanes=1)
    assert [flow.claim(0, "a"), flow.claim(1, "b"), flow.claim(1, "c")] == [0, 1, 2]
    assert [flow.claim(0, "a"), flow.claim(0, "d")] == [0, 3]


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


def test_a_straggler_in_a_shared_lane_is_remembered_however_far_the_others_are():
    flow = make_flow(workers=2, fragments=1, lanes=1)
    assert flow.claim(0, "slow") == 0
    for version in range(1, 100):
        flow.advance(version)
        assert flow.claim(1, f"fast-{version}") == version
    assert flow.claim(0, "slow") == 0


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


@pytest.mark.parametrize(
    ("workers", "fragments", "lanes", "says"),
    [
        (3, 6, 2, r"num_workers=3 must be a multiple of 2 lanes"),
        (4, 6, 4, r"fragments_per_version=6 must be a multiple of num_workers=4"),
        (4, 5, 2, r"fragments_per_version=5 must be a multiple of num_lanes=2"),
    ],
)
def test_lanes_that_do_not_divide_are_refused_with_both_numbers(workers, fragments, lanes, says):
    with pytest.raises(ValueError, match=says):
        make_flow(workers=workers, fragments=fragments, lanes=lanes)


def test_a_version_cannot_go_back():
    flow = make_flow(start=5)
    with pytest.raises(ValueError, match="version 4 published after 5"):
        flow.advance(4)


# --- law ---


class Run:
    """Workers, learner ranks and driver of a run, of which any may move next."""

    def __init__(self, rng, *, ranks, per_rank, by_rank, rounds, lag, start):
        self.rng, self.ranks, self.lag = rng, ranks, lag
        self.workers = ranks * per_rank
        self.lanes = ranks if by_rank else self.workers
        self.fragments = self.lanes * rounds
        self.tickets = 0
        self.consumed = []
        self.resume(start)

    def resume(self, version):
        self.flow = make_flow(
            workers=self.workers,
            fragments=self.fragments,
            lag=self.lag,
            lanes=self.lanes,
            start=version,
        )
        self.consumed = [k for k in self.consumed if k < self.flow.consumed]
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
        assert fragment % self.lanes == worker % self.lanes
        assert fragment % self.ranks == worker % self.ranks, "a rank's stream has its own alone"
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
            self.consumed.append(k)
        self.flow.advance(self.flow.version + 1)

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
    ranks=st.integers(1, 3),
    per_rank=st.integers(1, 3),
    by_rank=st.booleans(),
    rounds=st.integers(1, 3),
    lag=st.integers(0, 3),
    start=st.integers(0, 3),
)
def test_any_schedule_with_crashes_pauses_and_resumes_keeps_the_bound_and_never_deadlocks(
    seed, ranks, per_rank, by_rank, rounds, lag, start
):
    run = Run(
        random.Random(seed),
        ranks=ranks,
        per_rank=per_rank,
        by_rank=by_rank,
        rounds=rounds,
        lag=lag,
        start=start,
    )
    for _ in range(300):
        run.step()
        run.check()
    run.go_on()
    made = run.flow.version
    while run.flow.version < made + 3:  # pytest's time-out would tell of a deadlock
        call, *args = run.rng.choice(run.moves())
        call(*args)
    # Once each and in order, but for what a resume from an earlier version made anew.
    last = run.consumed[-3 * run.fragments :]
    assert last == list(range(last[0], last[0] + len(last)))
    assert run.consumed == sorted(set(run.consumed))
    assert run.consumed[-1] + 1 == run.flow.consumed


def made_beside_a_straggler(*, lanes, slowness=10):
    """Fragments of a slow worker and of each fast one, when the fast ones make ten turns."""
    flow = make_flow(workers=4, fragments=8, lag=1, lanes=lanes)
    turns = [0, *[w for _ in range(slowness) for w in (1, 2, 3)]]
    holds, made, done = {}, [0] * 4, set()
    for turn, worker in enumerate(turns * 12):
        if worker in holds:
            done.add(holds.pop(worker))
            made[worker] += 1
            while done >= set(range(flow.consumed, flow.consumed + 8)):
                flow.advance(flow.version + 1)
        fragment = flow.claim(worker, f"{turn}")
        if fragment is not None:
            holds[worker] = fragment
    return made


def test_a_straggler_makes_fewer_fragments_in_a_shared_lane_and_holds_up_the_others_in_lanes():
    slow, *fast = made_beside_a_straggler(lanes=1)
    assert min(fast) >= 2 * slow > 0
    slow, *fast_in_lanes = made_beside_a_straggler(lanes=4)
    assert max(fast_in_lanes) <= slow + 4  # its share of the window, two versions of eight
    assert sum(fast) > 2 * sum(fast_in_lanes)


# --- law, through the coordinator ---


class LiveRun:
    """A run under asyncio, whose rollout workers are slow or fast and die at random moments."""

    def __init__(self, rng, *, ranks, per_rank, by_rank, rounds, lag, versions):
        self.rng, self.ranks, self.lag, self.versions = rng, ranks, lag, versions
        workers = ranks * per_rank
        lanes = ranks if by_rank else workers
        self.fragments = lanes * rounds
        self.coordinator = make_coordinator(
            workers=workers, fragments=self.fragments, lag=lag, lanes=lanes, ranks=ranks
        )
        self.actors = [(f"actor-{w}", w % ranks) for w in range(workers)]
        self.made = asyncio.Queue()
        self.has_ended = False

    async def pause(self, turns):
        for _ in range(self.rng.randrange(turns)):
            await asyncio.sleep(0)

    async def work(self, name, rank):
        """One actor of the pool: tickets one by one, each again when it died with it."""
        seat, turns = await self.coordinator.register(name, rank), self.rng.choice((2, 9))
        for number in itertools.count():
            claim = self.claim(seat, f"{name}/{number}")
            await self.pause(turns)
            if self.rng.random() < 0.2:
                # Its claim stays behind, waiting or granted, and says what it was given.
                seat = await self.coordinator.register(name, rank)
                again = self.claim(seat, f"{name}/{number}")
                ids = (await claim).fragment_id, (await again).fragment_id
                assert ids[0] in (None, ids[1]) or (self.has_ended and ids[1] is None)
                claim = again
            granted = await claim
            if granted.fragment_id is None:
                assert self.has_ended
                return
            await self.pause(turns)
            self.made.put_nowait((granted.fragment_id, granted.version, rank))

    def claim(self, seat, ticket):
        who = seat.worker_id, seat.incarnation
        return start_task(self.coordinator.claim(*who, ticket, None))

    async def learn(self):
        """Consume as `LearnLoop` does; the fragments of each version with the versions they saw."""
        await self.coordinator.advance(0, b"w", None)
        pending, used = {}, []
        for version in range(self.versions):
            ids = range(version * self.fragments, (version + 1) * self.fragments)
            while not pending.keys() >= set(ids):
                fragment, acted, rank = await self.made.get()
                assert fragment % self.ranks == rank
                assert fragment >= ids[0]
                assert fragment not in pending
                pending[fragment] = acted
            used += [(k, version - pending.pop(k)) for k in ids]
            await self.pause(9)
            await self.coordinator.advance(version + 1, b"w", result_of(version + 1))
            await self.coordinator.next_result()
        self.has_ended = True
        await self.coordinator.stop()
        assert [c.name for c in (await self.coordinator.proceed()).commands] == ["stop"]
        return used

    async def whole(self):
        async with asyncio.TaskGroup() as group:
            for actor in self.actors:
                group.create_task(self.work(*actor))
            learner = group.create_task(self.learn())
        return learner.result()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    ranks=st.integers(1, 2),
    per_rank=st.integers(1, 3),
    by_rank=st.booleans(),
    rounds=st.integers(1, 2),
    lag=st.integers(0, 2),
)
def test_whatever_dies_every_fragment_is_used_once_in_order_within_the_lag_and_all_end(
    seed, ranks, per_rank, by_rank, rounds, lag
):
    async def main():
        shape = {"ranks": ranks, "per_rank": per_rank, "by_rank": by_rank, "rounds": rounds}
        run = LiveRun(random.Random(seed), **shape, lag=lag, versions=6)
        return run, await asyncio.wait_for(run.whole(), timeout=60.0)

    run, used = asyncio.run(main())
    assert [k for k, _ in used] == list(range(6 * run.fragments))
    assert {0} <= {behind for _, behind in used} <= set(range(lag + 1))
