"""The coordinator as a plain object under asyncio: who waits, who is released, and by what."""

import asyncio
import pickle

import pytest

from pipelines.coordinator import MAX_UNTAKEN, Coordinator
from pipelines.flow import FlowControl

TIMEOUT_S = 5.0


def make_coordinator(
    *, workers=1, fragments=1, lag=0, lanes=None, budget=None, ranks=1, incarnation=0
):
    flow = FlowControl(
        fragments_per_version=fragments,
        max_policy_lag=lag,
        num_workers=workers,
        num_lanes=lanes,
        budget=budget,
    )
    return Coordinator(flow, ranks=ranks, incarnation=incarnation)


def scenario(test):
    """Run a coroutine function as a test, which fails where someone waits for ever."""

    def run():
        asyncio.run(asyncio.wait_for(test(), TIMEOUT_S))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def waits(task):
    """Whether `task` is still waiting once everyone who could move has moved."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


def result_of(version, *, stopped_by=None):
    return {"policy_version": version, "stopped_by": stopped_by}


async def seated(coordinator, actor="actor", rank=0):
    """A worker's claim function."""
    seat = await coordinator.register(actor, rank)
    worker_id, incarnation = seat.worker_id, seat.incarnation

    def claim(ticket, report=None):
        return asyncio.ensure_future(coordinator.claim(worker_id, incarnation, ticket, report))

    return claim


def start(coroutine):
    return asyncio.ensure_future(coroutine)


# --- claims ---


@scenario
async def test_a_claim_waits_for_the_first_weights_and_gets_them():
    coordinator = make_coordinator()
    claim = await seated(coordinator)
    waiting = claim("a")
    assert await waits(waiting)
    await coordinator.advance(0, b"w0", None)
    assert await waiting == (0, 0, b"w0", None)


@scenario
async def test_a_claim_beyond_the_window_is_released_by_the_version_that_makes_room():
    coordinator = make_coordinator()
    claim = await seated(coordinator)
    await coordinator.advance(0, b"w0", None)
    await claim("a")
    waiting = claim("b")
    assert await waits(waiting)
    await coordinator.advance(1, b"w1", result_of(1))
    assert await waiting == (1, 1, b"w1", None)


@scenario
async def test_weights_come_once_and_again_only_when_newer():
    coordinator = make_coordinator(fragments=3)
    claim = await seated(coordinator)
    await coordinator.advance(0, b"w0", None)
    assert [(await claim(t)).weights for t in "abc"] == [b"w0", None, None]


@scenario
async def test_weights_set_without_a_new_version_reach_workers_that_have_that_version():
    coordinator = make_coordinator(fragments=3)
    claim = await seated(coordinator)
    await coordinator.advance(0, b"w0", None)
    await claim("a")
    await coordinator.replace_weights(0, b"set by hand")
    assert await claim("b") == (1, 0, b"set by hand", None)
    assert (await claim("c")).weights is None


@scenario
async def test_a_pause_holds_claims_back_and_allow_releases_them():
    coordinator = make_coordinator(budget=0)
    claim = await seated(coordinator)
    publishing = start(coordinator.advance(0, b"w0", None))
    waiting = claim("a")
    assert await waits(waiting)
    assert await waits(publishing)
    assert await coordinator.allow(1) == 1
    assert (await waiting).fragment_id == 0
    assert (await publishing).commands == []


@scenario
async def test_stop_releases_workers_once_the_learner_has_heard_of_it():
    coordinator = make_coordinator(budget=0)
    claim = await seated(coordinator)
    publishing = start(coordinator.advance(0, b"w0", None))
    waiting = claim("a")
    await coordinator.stop()
    assert [command.name for command in (await publishing).commands] == ["stop"]
    assert (await waiting).fragment_id is None


@scenario
async def test_stop_lets_the_learner_finish_the_update_it_waits_with():
    coordinator = make_coordinator(workers=2, fragments=2)
    first, second = await seated(coordinator, "a"), await seated(coordinator, "b")
    await coordinator.advance(0, b"w0", None)
    await first("a0")
    await coordinator.stop()
    # The learner waits for both fragments: were the second refused, it would wait for ever.
    assert (await second("b0")).fragment_id == 1
    assert await waits(waiting := first("a1"))
    go = await coordinator.advance(1, b"w1", result_of(1))
    assert [command.name for command in go.commands] == ["stop"]
    assert (await waiting).fragment_id is None


# --- seats ---


@scenario
async def test_workers_of_each_rank_get_the_seats_of_that_rank():
    coordinator = make_coordinator(workers=4, fragments=4, ranks=2)
    seats = [await coordinator.register(f"actor-{i}", rank=i % 2) for i in range(4)]
    assert [seat.worker_id for seat in seats] == [0, 1, 2, 3]


@scenario
async def test_a_restarted_worker_gets_its_seat_again_with_the_next_incarnation():
    coordinator = make_coordinator(workers=2, fragments=2, incarnation=3)
    first = await coordinator.register("a", 0)
    assert (first.worker_id, first.incarnation) == (0, 3000)
    await coordinator.register("b", 0)
    again = await coordinator.register("a", 0)
    assert (again.worker_id, again.incarnation) == (0, 3001)


@scenario
async def test_one_worker_too_many_is_refused():
    coordinator = make_coordinator()
    await coordinator.register("a", 0)
    with pytest.raises(RuntimeError, match="rank 0 has 1 rollout workers and got one more"):
        await coordinator.register("b", 0)


@scenario
async def test_a_restarted_worker_gets_weights_again_and_its_ticket_the_old_fragment():
    coordinator = make_coordinator()
    claim = await seated(coordinator)
    await coordinator.advance(0, b"w0", None)
    assert (await claim("a")).fragment_id == 0
    claim = await seated(coordinator)
    assert await claim("a") == (0, 0, b"w0", None)


@scenario
async def test_a_worker_restarted_in_a_shared_lane_goes_on_behind_what_others_took_meanwhile():
    coordinator = make_coordinator(workers=2, fragments=4, lanes=1)
    first, second = await seated(coordinator, "a"), await seated(coordinator, "b")
    await coordinator.advance(0, b"w0", None)
    assert (await first("a0")).fragment_id == 0
    assert (await second("b0")).fragment_id == 1
    first = await seated(coordinator, "a")
    assert (await second("b1")).fragment_id == 2
    assert [(await first(ticket)).fragment_id for ticket in ("a0", "a1")] == [0, 3]
    assert await waits(waiting := second("b2"))
    await coordinator.advance(1, b"w1", result_of(1))
    assert (await waiting).fragment_id == 4


@scenario
async def test_the_claim_of_a_dead_worker_takes_neither_fragment_nor_command():
    coordinator = make_coordinator(budget=0)
    old = await seated(coordinator)
    publishing = start(coordinator.advance(0, b"w0", None))
    orphan = old("a")
    assert await waits(orphan)
    new = await seated(coordinator)
    assert (await orphan).fragment_id is None
    call = start(coordinator.command_worker(0, b"fn"))
    claim = await new("a")
    assert claim.command.payload == b"fn"
    await coordinator.finish(claim.command.id, b"output")
    assert await call == b"output"
    await coordinator.allow(1)
    await publishing
    assert (await new("a")).fragment_id == 0


# --- the learner ---


@scenario
async def test_the_learner_goes_on_at_once_unless_paused():
    coordinator = make_coordinator(budget=2)
    await coordinator.advance(0, b"w0", None)
    go = await coordinator.advance(1, b"w1", result_of(1))
    assert go.commands == []
    assert go.paused_s < 1
    assert await waits(start(coordinator.advance(2, b"w2", result_of(2))))


@scenario
async def test_a_result_that_ends_the_run_pauses_it_at_that_version():
    coordinator = make_coordinator()
    claim = await seated(coordinator)
    await coordinator.advance(0, b"w0", None)
    await claim("a")
    ended = start(coordinator.advance(1, b"w1", result_of(1, stopped_by="env_steps")))
    assert await waits(ended)
    assert await waits(claim("b"))
    assert (await coordinator.next_result())["stopped_by"] == "env_steps"
    await coordinator.allow(2)
    assert (await ended).commands == []


@scenario
async def test_the_pause_is_reported_to_the_learner_in_seconds():
    coordinator = make_coordinator(budget=0)
    publishing = start(coordinator.advance(0, b"w0", None))
    await asyncio.sleep(0.05)
    await coordinator.allow(None)
    assert 0.04 < (await publishing).paused_s < 2


@scenario
async def test_a_pause_below_the_version_under_way_holds_after_it():
    """Otherwise its fragments would be refused, and the learner waiting for them hear nothing."""
    coordinator = make_coordinator()
    claim = await seated(coordinator)
    await coordinator.advance(0, b"w0", None)
    assert await coordinator.allow(0) == 1
    assert (await claim("a")).fragment_id == 0
    saving = start(coordinator.command_learner("save", b"path"))
    (command,) = (await coordinator.advance(1, b"w1", result_of(1))).commands
    await coordinator.finish(command.id, b"saved")
    assert await saving == b"saved"
    assert await waits(start(coordinator.proceed()))
    assert await waits(claim("b"))


@scenario
async def test_a_learner_far_ahead_of_the_driver_waits_for_it():
    coordinator = make_coordinator()
    await coordinator.advance(0, b"w", None)
    for version in range(1, MAX_UNTAKEN):
        await coordinator.advance(version, b"w", result_of(version))
    waiting = start(coordinator.advance(MAX_UNTAKEN, b"w", result_of(MAX_UNTAKEN)))
    assert await waits(waiting)
    await coordinator.next_result()
    assert (await waiting).commands == []


# --- commands ---


@scenario
async def test_a_paused_learner_runs_commands_in_order_and_waits_again():
    coordinator = make_coordinator(budget=0)
    publishing = start(coordinator.advance(0, b"w0", None))
    calls = [start(coordinator.command_learner("save", bytes([i]))) for i in range(3)]
    heard = []
    go = await publishing
    while len(heard) < 3:
        for command in go.commands:
            heard.append(command.payload)
            await coordinator.finish(command.id, command.payload)
        if len(heard) < 3:
            go = await coordinator.proceed()
    assert heard == [b"\0", b"\1", b"\2"]
    assert [await call for call in calls] == heard
    assert await waits(start(coordinator.proceed()))


@scenario
async def test_a_worker_runs_a_command_between_fragments_with_the_newest_weights():
    coordinator = make_coordinator(fragments=2)
    claim = await seated(coordinator)
    await coordinator.advance(0, b"w0", None)
    await claim("a")
    call = start(coordinator.command_worker(0, b"fn"))
    await waits(call)
    granted = await claim("b")
    assert (granted.fragment_id, granted.command.name) == (None, "call")
    await coordinator.finish(granted.command.id, b"output")
    assert await call == b"output"
    assert (await claim("b")).fragment_id == 1


@scenario
async def test_a_worker_that_dies_running_a_command_fails_the_command_only():
    coordinator = make_coordinator()
    claim = await seated(coordinator)
    await coordinator.advance(0, b"w0", None)
    call = start(coordinator.command_worker(0, b"fn"))
    await waits(call)
    assert (await claim("a")).command is not None
    claim = await seated(coordinator)
    error = await call
    assert isinstance(error, RuntimeError)
    assert "worker 0 died while it ran the function" in str(error)
    assert (await claim("a")).fragment_id == 0


@scenario
async def test_a_command_for_a_worker_that_is_not_there_is_refused():
    coordinator = make_coordinator(workers=2, fragments=2)
    with pytest.raises(ValueError, match="no rollout worker 2; there are 2, from 0 on"):
        await coordinator.command_worker(2, b"fn")


@scenario
async def test_a_command_that_the_run_did_not_live_to_hear_says_so():
    coordinator = make_coordinator(budget=0)
    publishing = start(coordinator.advance(0, b"w0", None))
    await seated(coordinator)
    await coordinator.stop()
    await publishing
    with pytest.raises(RuntimeError, match="the run ended before it could call"):
        await coordinator.command_worker(0, b"fn")


# --- the driver ---


@scenario
async def test_results_come_in_order_and_each_once():
    coordinator = make_coordinator()
    await coordinator.advance(0, b"w", None)
    for version in (1, 2, 3):
        await coordinator.advance(version, b"w", result_of(version))
    taken = [(await coordinator.next_result())["policy_version"] for _ in range(3)]
    assert taken == [1, 2, 3]
    assert await waits(start(coordinator.next_result()))


@scenario
async def test_weights_wait_for_the_first_version():
    coordinator = make_coordinator()
    asking = start(coordinator.weights())
    assert await waits(asking)
    await coordinator.advance(0, b"w0", None)
    assert await asking == (0, b"w0")


@scenario
async def test_results_count_rollout_seconds_aborted_episodes_and_restarts_over_all_workers():
    coordinator = make_coordinator(workers=2, fragments=2)
    first, second = await seated(coordinator, "a"), await seated(coordinator, "b")
    await coordinator.advance(0, b"w", None)
    await first("a0")
    await second("b0")
    report = {"fragment_s": 2.0, "aborted_episodes": 3, "failures": [{"kind": "env"}]}
    waiting = [first("a1", report), second("b1", report)]
    await waits(waiting[0])
    # The restarted worker counts from 0 again; what it counted before stays counted.
    first = await seated(coordinator, "a")
    waiting.append(first("a1", report | {"aborted_episodes": 1}))
    await waits(waiting[-1])
    await coordinator.advance(1, b"w", result_of(1))
    figures = await coordinator.next_result()
    assert figures["time/rollout_s"] == 3.0
    assert figures["faults/aborted_episodes"] == 7
    assert figures["faults/worker_restarts"] == 1
    kinds = [failure["kind"] for failure in figures["failures"]]
    assert kinds == ["env", "env", "worker", "env"]
    await asyncio.gather(*waiting)


@scenario
async def test_what_the_coordinator_answers_can_be_pickled():
    coordinator = make_coordinator()
    seat = await coordinator.register("a", 0)
    await coordinator.advance(0, b"w", None)
    start(coordinator.command_worker(0, b"fn"))
    await asyncio.sleep(0)
    claim = await coordinator.claim(0, seat.incarnation, "a", None)
    assert pickle.loads(pickle.dumps(claim)) == claim
    assert pickle.loads(pickle.dumps(seat)) == seat


@scenario
async def test_workers_of_the_next_stream_take_the_seats_that_the_last_one_left():
    coordinator = make_coordinator(workers=2, fragments=2, ranks=2)
    await coordinator.register("a", 0)
    await coordinator.register("b", 1)
    await coordinator.vacate(0)
    seat = await coordinator.register("c", 0)
    assert (seat.worker_id, seat.incarnation) == (0, 1)
    with pytest.raises(RuntimeError, match="rank 1 has 1 rollout workers and got one more"):
        await coordinator.register("d", 1)
    # Their numbers make seeds and episode ids, so they are new; that nobody failed is known too.
    await coordinator.advance(0, b"w", None)
    await coordinator.advance(1, b"w", result_of(1))
    assert (await coordinator.next_result())["faults/worker_restarts"] == 0


@scenario
async def test_a_failed_worker_ends_the_run_for_all_and_the_first_reason_is_kept():
    coordinator = make_coordinator(workers=2, fragments=2, budget=0)
    first, second = await seated(coordinator, "a"), await seated(coordinator, "b")
    publishing = start(coordinator.advance(0, b"w", None))
    waiting = [first("a0"), second("b0")]
    assert await waits(waiting[0])
    assert await coordinator.failure() is None
    await coordinator.fail("SpecError: shape", "Traceback ...")
    await coordinator.fail("EnvError: later", "")
    assert [(await claim).fragment_id for claim in waiting] == [None, None]
    assert {command.name for command in (await publishing).commands} == {"stop"}
    assert await coordinator.failure() == ("SpecError: shape", "Traceback ...")


@scenario
async def test_results_made_before_a_failure_can_still_be_taken():
    coordinator = make_coordinator()
    await coordinator.advance(0, b"w", None)
    await coordinator.advance(1, b"w", result_of(1))
    await coordinator.fail("no", "")
    assert (await coordinator.next_result())["policy_version"] == 1
