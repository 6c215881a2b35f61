"""Runs of workflows: each step once, with what earlier ones gave it, whatever went wrong."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

from offline.workflow_log import ClaimError, WorkflowLog
from tests.workflows.workflow_kit import (
    AT,
    HEAD,
    commands,
    counting,
    events,
    execute,
    places_of,
    python,
    ran,
    statuses,
)
from workflows.scheduled.engine import Execution
from workflows.scheduled.places import RunLock
from workflows.scheduled.server import Server, due
from workflows.scheduled.steps import Gate


def two_steps(folder):
    second = counting(folder, "second", "${steps.one.number}")
    return commands(one=counting(folder, "first", "a"), two=second)


def test_steps_run_in_turn_with_what_earlier_ones_gave(tmp_path):
    places = places_of(tmp_path, two_steps(tmp_path))
    status, said = execute(places)
    assert status == "succeeded"
    assert ran(tmp_path) == ["first", "second"]
    assert statuses(places) == [
        "run started 1",
        "one started 1",
        "one succeeded 1",
        "two started 1",
        "two succeeded 1",
        "run succeeded 1",
    ]
    outputs = [json.loads(e["outputs"]) for e in events(places) if e["status"] == "succeeded"]
    assert outputs[:2] == [
        {"name": "first", "rest": ["a"], "number": 1},
        {"name": "second", "rest": ["1"], "number": 1},
    ]
    assert {e["logical_time"] for e in events(places)} == {AT}
    assert said[0].endswith("started")


def test_a_run_that_is_over_is_never_done_again(tmp_path):
    places = places_of(tmp_path, two_steps(tmp_path))
    execute(places)
    with pytest.raises(ClaimError, match="has succeeded already"):
        execute(places)
    with pytest.raises(ClaimError, match="has succeeded already"):
        execute(places, again=True)
    assert ran(tmp_path) == ["first", "second"]
    status, _ = execute(places, AT + timedelta(days=1))
    assert status == "succeeded"
    assert ran(tmp_path) == ["first", "second"] * 2


def test_a_failed_step_is_tried_again_and_then_ends_the_run_which_can_be_begun_anew(tmp_path):
    flag = tmp_path / "flag"
    code = (
        "import os, sys\nprint('no flag', file=sys.stderr)\n"
        f"sys.exit(not os.path.exists({str(flag)!r}))"
    )
    places = places_of(tmp_path, commands(one=counting(tmp_path, "one"), two=python(code)))
    status, said = execute(places)
    assert status == "failed"
    assert [s for s in statuses(places) if s.startswith("two")] == [
        *("two started 1", "two failed 1", "two started 2", "two failed 2"),
    ]
    assert "no flag" in events(places)[-2]["message"]
    assert any("exit code 1" in line for line in said)
    with pytest.raises(ClaimError, match="has failed already"):
        execute(places)
    flag.touch()
    assert execute(places, again=True)[0] == "succeeded"
    assert ran(tmp_path) == ["one"]  # what had succeeded is not done again
    assert statuses(places)[-2:] == ["two succeeded 3", "run succeeded 2"]


def test_a_step_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '97']); time.sleep(97)"
    slow = f"{python(code)}, timeout_s: 0.5, retries: 0"
    places = places_of(tmp_path, commands(one=slow))
    assert execute(places)[0] == "failed"
    assert "longer than 0.5 s" in events(places)[-2]["message"]
    RunLock(places.folder(AT)).__exit__(None, None, None)  # nobody holds it any more


def test_asked_to_stop_the_run_goes_on_later_at_the_same_step(tmp_path):
    code = (
        f"import pathlib, time\np = pathlib.Path({str(tmp_path / 'begun')!r})\n"
        "is_first = not p.exists()\np.touch()\ntime.sleep(97 * is_first)"
    )
    places = places_of(tmp_path, commands(one=counting(tmp_path, "one"), two=python(code)))
    status, _ = execute(places, should_stop=(tmp_path / "begun").exists)
    assert status == "stopped"
    assert execute(places)[0] == "succeeded"
    assert ran(tmp_path) == ["one"]
    assert statuses(places)[-3:] == ["two started 2", "two succeeded 2", "run succeeded 2"]


def test_two_processes_that_begin_one_run_do_it_once(tmp_path):
    places = places_of(tmp_path, two_steps(tmp_path))
    ended: list[str] = []

    def one():
        try:
            ended.append(Execution(places, AT).run())
        except ClaimError:
            ended.append("claimed")

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["claimed"] * 3 + ["succeeded"]
    assert ran(tmp_path) == ["first", "second"]


def test_a_run_of_another_host_is_left_alone_until_its_lease_is_over(tmp_path):
    places = places_of(tmp_path, two_steps(tmp_path))
    elsewhere = Execution(places, AT)
    elsewhere._owner = "elsewhere:/storage:1:abc"
    log = WorkflowLog(places.lake, "small")
    log.claim(elsewhere._event("", 1, "started"), lease_s=60, is_dead=lambda _: False)
    with pytest.raises(ClaimError, match="is being run by process"):
        execute(places)
    assert ran(tmp_path) == []
    mine = Execution(places, AT)
    mine._owner = "here:/storage:2:def"
    log.claim(mine._event("", 1, "started"), lease_s=0, is_dead=lambda _: False)
    with pytest.raises(ClaimError, match="was taken over by here"):
        log.add(elsewhere._event("one", 1, "started"))


def test_a_gate_that_does_not_pass_skips_the_rest_and_the_run_succeeds(tmp_path, monkeypatch):
    promote, tidy = counting(tmp_path, "promote"), counting(tmp_path, "tidy")
    gate = "  gate: {do: gate, model: m, checkpoint: x}\n"
    steps = commands(promote=promote, tidy=f"{tidy}, always: true")
    places = places_of(tmp_path, steps.replace("steps:\n", f"steps:\n{gate}"))
    query = "SELECT false AS passed, 'no' AS why"
    # What two policies returned is the subject of test_registry_command.py.
    monkeypatch.setattr(
        Gate, "command", lambda self, at: ["sql", query, "--format", "json", *at.of_lake()]
    )
    assert execute(places)[0] == "succeeded"
    assert ran(tmp_path) == ["tidy"]
    assert "promote skipped 1" in statuses(places)
    assert events(places)[-1]["message"] == "the gate did not pass"


def test_an_output_that_has_no_value_fails_the_step_that_wants_it(tmp_path):
    two = '["echo", "${steps.one.nothing}"], retries: 0'
    places = places_of(tmp_path, commands(one=counting(tmp_path, "one"), two=two))
    assert execute(places)[0] == "failed"
    assert "step one gave name, rest, number" in events(places)[-2]["message"]


# --- which runs are due ---


def states_of(*pairs):
    class State:
        def __init__(self, status):
            self.is_over = status in ("succeeded", "failed")

    return {at: State(status) for at, status in pairs}


def days(*numbers):
    return [datetime(2026, 11, d, 2, tzinfo=UTC) for d in numbers]


@pytest.mark.parametrize(
    ("catchup", "known", "now", "wanted"),
    [
        ("all", [], 27, [24, 25, 26, 27]),
        ("all", [(25, "succeeded"), (24, "failed")], 27, [26, 27]),
        ("latest", [], 27, [27]),
        ("latest", [(25, "succeeded")], 27, [27]),
        ("latest", [(27, "succeeded")], 27, []),
        ("latest", [(25, "started")], 27, [25, 27]),
        ("none", [], 27, []),
        ("none", [(24, "started")], 27, [24]),
        # the clock was set back: what is over stays over, what is ahead waits
        ("all", [(24, "succeeded"), (25, "succeeded"), (26, "started")], 25, []),
        ("latest", [(26, "succeeded")], 25, [25]),
        ("all", [], 23, []),
    ],
)
def test_what_is_due(tmp_path, catchup, known, now, wanted):
    head = HEAD.replace("start:", f"catchup: {catchup}, start:")
    schedule = places_of(tmp_path, two_steps(tmp_path), head).workflow.schedule
    before = states_of(*[(days(d)[0], status) for d, status in known])
    at = days(now)[0] + timedelta(hours=1)
    assert due(schedule, before, at) == days(*wanted)


def test_without_catching_up_a_run_may_be_a_little_late(tmp_path):
    head = HEAD.replace("start:", "catchup: none, grace_s: 120, start:")
    schedule = places_of(tmp_path, two_steps(tmp_path), head).workflow.schedule
    (tick,) = days(26)
    assert due(schedule, {}, tick + timedelta(seconds=119)) == [tick]
    assert due(schedule, {}, tick + timedelta(seconds=121)) == []


def test_a_server_does_what_is_due_once_and_two_servers_no_run_twice(tmp_path):
    head = HEAD.replace("start:", "catchup: all, max_active: 2, start:")
    places = places_of(tmp_path, two_steps(tmp_path), head)
    (now,) = days(26)
    servers = [Server([places], lambda _: None, now=lambda: now) for _ in range(2)]
    threads = [threading.Thread(target=server.once) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran(tmp_path)) == ["first"] * 3 + ["second"] * 3
    runs = WorkflowLog(places.lake, "small").runs()
    assert {at: state.status for at, state in runs.items()} == dict.fromkeys(
        days(24, 25, 26), "succeeded"
    )
    assert servers[0].once()
    assert len(ran(tmp_path)) == 6


def test_a_server_wakes_up_and_stops(tmp_path):
    places = places_of(tmp_path, two_steps(tmp_path))
    (now,) = days(24)
    server = Server([places], lambda _: None, now=lambda: now)
    thread = threading.Thread(target=server.serve)
    thread.start()
    for _ in range(300):
        if len(ran(tmp_path)) == 2:
            break
        server.stopping.wait(0.1)
    server.stopping.set()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert ran(tmp_path) == ["first", "second"]
