"""The pure parts of benchmarks/: statistics, parsing, tables, schedule; no peer is run."""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import comparison, debug_yardstick, overhead
from benchmarks.contestants import Record, Task, command_of, error_of, schedule, steady_of
from benchmarks.figures import (
    Iteration,
    Spread,
    Steady,
    cpu_at,
    parse_iterations,
    percentile,
    spread,
    steady,
    thinned,
    time_to_return_s,
)
from benchmarks.ours import train_command
from benchmarks.peers import matched
from benchmarks.peers.cleanrl_parts import Ring, crossed, sync_envs
from benchmarks.peers.environments import ENVIRONMENTS, ROOT, torch_pins
from benchmarks.peers.reporting import new_returns, parse_arguments, process_age_s
from benchmarks.processes import ProcessStat, Run, Sample, descendants, parse_stat
from benchmarks.summary import pair_ratios, plain_report, summarize, verdicts
from benchmarks.tables import markdown_table, number_text, plain_table, spread_text
from benchmarks.workload import Target, Workload
from benchmarks.workloads import DQN, PPO, WORKLOADS
from pipelines.loading import build_config, json_layer

STAT = "41 (a ) odd (name) S 7 41 41 0 -1 0 0 0 0 0 150 50 900 900 20 0 1 0 3210 9999 25 0"


def iterations(seconds: list[float], steps: int = 2048) -> list[Iteration]:
    return [Iteration(steps * (i + 1), wall_s, None, {}) for i, wall_s in enumerate(seconds)]


def record(name: str, **changes: object) -> Record:
    speed = changes.pop("speed", None)
    rate = Steady(speed, speed, 5.0) if isinstance(speed, float) else None
    fields: dict[str, object] = {
        "contestant": name,
        "measure": "steady" if rate else "time",
        "repeat": 0,
        "pair": name,
        "seed": 1,
        "exit_code": 0,
        "error": None,
        "run_wall_s": 10.0,
        "run_cpu_s": 9.0,
        "other_cores": 0.1,
        "env_steps": 1000,
        "last_return_mean": 300.0,
        "first_result_s": 3.0,
        "steady": rate,
        "time_to_return_s": None,
        **changes,
    }
    return Record(**fields)  # type: ignore[arg-type]


def test_lines_that_are_not_json_are_skipped_and_both_names_of_time_are_read() -> None:
    lines = [
        "a warning",
        '{"env_steps": 10, "wall_s": 1.5, "episode_return_mean": null}',
        '{"env_steps": 20, "time_s": 2, "time/update_s": 0.25, "episode_return_mean": 7.5}',
    ]
    assert parse_iterations(lines) == [
        Iteration(10, 1.5, None, {}),
        Iteration(20, 2.0, 7.5, {"update": 0.25}),
    ]


def test_nan_return_of_a_run_without_episodes_is_no_return() -> None:
    line = json.dumps({"env_steps": 10, "time_s": 1.0, "episode_return_mean": math.nan})
    assert parse_iterations([line])[0].episode_return_mean is None


def test_a_result_without_time_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks env_steps or wall_s"):
        parse_iterations(['{"env_steps": 10}'])


def test_env_steps_that_do_not_grow_are_refused() -> None:
    line = '{"env_steps": 10, "time_s": 1}'
    with pytest.raises(ValueError, match="does not grow"):
        parse_iterations([line, line])


def test_steady_rate_leaves_out_start_up_and_slow_first_iterations() -> None:
    seconds = [10.0, 15.0, 18.0, 20.0, 21.0] + [21.0 + 0.5 * i for i in range(1, 6)]
    samples = [Sample(0.0, 0.0, 0, 1), Sample(100.0, 200.0, 0, 1)]
    found = steady(iterations(seconds), samples)
    assert found.median_steps_per_s == pytest.approx(4096)
    assert found.window_steps_per_s == pytest.approx(4096)
    assert found.cpu_s_per_100k_steps == pytest.approx(100_000 * 2 / 4096)


def test_a_hiccup_shows_in_the_window_rate_and_not_in_the_median() -> None:
    seconds = [0.5 * i for i in range(1, 10)] + [10.0, 10.5, 11.0]
    found = steady(iterations(seconds), [Sample(0.0, 0.0, 0, 1)])
    assert found.median_steps_per_s == pytest.approx(4096)
    assert found.window_steps_per_s < 3000


def test_contestants_that_report_finely_and_coarsely_get_the_same_rate() -> None:
    burst = [0.1, 0.2, 0.3, 2.0]
    fine = [2.0 * i + offset for i in range(20) for offset in burst]
    coarse = [2.0 * i + 2.0 for i in range(20)]
    samples = [Sample(0.0, 0.0, 0, 1)]
    rates = [
        steady(iterations(seconds, steps), samples, stretch_env_steps=400).median_steps_per_s
        for seconds, steps in ((fine, 100), (coarse, 400))
    ]
    assert rates == pytest.approx([200.0, 200.0])


def test_steps_before_learning_starts_count_for_no_rate() -> None:
    seconds = [0.01 * i for i in range(1, 11)] + [0.1 + 1.0 * i for i in range(1, 11)]
    samples = [Sample(0.0, 0.0, 0, 1)]
    found = steady(iterations(seconds, 100), samples, warmup_env_steps=1000)
    assert found.window_steps_per_s == pytest.approx(100.0)
    assert steady(iterations(seconds, 100), samples).window_steps_per_s > 120.0


def test_thinning_keeps_the_first_iteration_and_whole_stretches() -> None:
    kept = thinned(iterations([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 100), 250)
    assert [iteration.env_steps for iteration in kept] == [100, 400]


def test_a_run_too_short_for_a_steady_rate_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="raise --env-steps"):
        steady(iterations([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), [Sample(0.0, 0.0, 0, 1)])


def test_cpu_seconds_are_linear_between_samples_and_constant_beyond() -> None:
    samples = [Sample(1.0, 2.0, 0, 1), Sample(3.0, 6.0, 0, 1)]
    assert [cpu_at(samples, wall_s) for wall_s in (0.0, 2.0, 9.0)] == [2.0, 4.0, 6.0]


def test_time_to_return_is_the_first_crossing_start_up_included() -> None:
    means = [None, 449.9, 450.0, 300.0, 500.0]
    rows = [Iteration(i + 1, 10.0 + i, mean, {}) for i, mean in enumerate(means)]
    assert time_to_return_s(rows, 450.0) == 12.0
    assert time_to_return_s(rows, 501.0) is None


def test_a_repeat_that_never_got_there_counts_as_the_worst() -> None:
    assert spread([3.0, None, 1.0]) == Spread(3.0, 1.0, 3.0, 3, 1)
    never = spread([None, 1.0, None])
    assert never is not None
    assert math.isinf(never.median)
    assert spread([None]) is None


def test_percentile_is_linear_between_ranks() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([1.0], 0.9) == 1.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_pairs_turn_round_in_odd_repeats() -> None:
    slots = schedule(PPO.ours, PPO.peers[:2], PPO.information[:1], 2)
    names = [slot.contestant.name for slot in slots]
    assert names[:5] == ["ours", "sb3", "ours", "cleanrl", "ours-lag1"]
    assert names[5:] == ["sb3", "ours", "cleanrl", "ours", "ours-lag1"]
    assert [slot.run for slot in slots if slot.contestant is PPO.ours] == [0, 1, 2, 3]
    assert [slot.pair for slot in slots[:4]] == ["sb3", "sb3", "cleanrl", "cleanrl"]


def test_pair_ratios_take_ours_from_the_same_pair() -> None:
    records = [
        record("ours", pair="sb3", speed=30.0),
        record("sb3", speed=10.0),
        record("ours", pair="cleanrl", speed=20.0),
        record("cleanrl", speed=20.0),
        record("sb3", repeat=1, speed=5.0),
    ]
    assert pair_ratios(records, "sb3") == [3.0]
    assert pair_ratios(records, "cleanrl") == [1.0]


def test_verdicts_compare_with_the_best_peer_and_say_what_is_missed() -> None:
    names = [("ours", "Ours"), ("sb3", "SB3"), ("cleanrl", "CleanRL"), ("rllib", "RLlib")]
    records = [
        record("ours", speed=20.0, first_result_s=6.0),
        record("sb3", speed=8.0, first_result_s=2.0),
        record("cleanrl", speed=11.0),
        record("rllib", speed=4.0, first_result_s=12.0),
        record("ours", time_to_return_s=8.0, first_result_s=6.0),
        record("cleanrl", time_to_return_s=10.0),
    ]
    rows = summarize(names, records)
    found = {verdict.what: verdict for verdict in verdicts(rows, PPO.targets)}
    assert [verdict.met for verdict in found.values()] == [False, True, True, True, False]
    assert found["time to return, fastest peer"].ratio == pytest.approx(0.8)
    report = plain_report(rows, list(found.values()), records)
    assert "MISSED" in report
    assert "0.10 (0.10–0.10)" in report
    assert rows[0].steps_to_return == Spread(1000, 1000, 1000, 1)


def test_a_rate_must_reach_its_bound_and_seconds_must_not_pass_it() -> None:
    names = [("ours", "Ours"), ("a", "A"), ("b", "B")]
    records = [
        record("ours", speed=30.0, first_result_s=6.0),
        record("a", speed=10.0, first_result_s=10.0),
        record("b", speed=15.0, first_result_s=12.0),
    ]
    targets = [
        Target("rate", "steps_per_s", ("a", "b"), 2.0),
        Target("rate of one", "steps_per_s", ("b",), 2.5),
        Target("seconds", "first_result_s", ("a", "b"), 0.6),
        Target("seconds of one", "first_result_s", ("a",), 0.5),
    ]
    found = verdicts(summarize(names, records), targets)
    assert [verdict.met for verdict in found] == [True, False, True, False]
    assert [verdict.peer for verdict in found] == [15.0, 15.0, 10.0, 10.0]
    assert [verdict.bound for verdict in found] == ["≥ 2.0", "≥ 2.5", "≤ 0.6", "≤ 0.5"]


def test_verdicts_without_ours_are_not_measured_and_nothing_breaks() -> None:
    rows = summarize([("sb3", "SB3")], [record("sb3", error="exit code 1", exit_code=1)])
    assert {verdict.met for verdict in verdicts(rows, PPO.targets)} == {None}
    assert rows[0].num_failed == 1
    assert "not measured" in plain_report(rows, verdicts(rows, PPO.targets), [])


def test_tables_align_and_escape() -> None:
    assert plain_table(("a", "bb"), [("x", "1")]) == "a  bb\n-  --\nx   1"
    assert markdown_table(("a", "b"), [("x|y", "1")]).splitlines()[2] == "| x\\|y | 1 |"
    with pytest.raises(ValueError, match="has 1 cells"):
        plain_table(("a", "b"), [("x",)])
    assert number_text(12345.678, 1) == "12 345.7"
    assert spread_text(Spread(2.0, 1.0, 2.0, 3, 1), 1) == "2.0 (1.0–2.0, 1 of 3 never)"


def test_infinities_become_null_in_the_written_report(tmp_path: Path) -> None:
    comparison.write(tmp_path / "deep" / "run", {"a": [math.inf, (1.0, math.nan)]}, "# table")
    assert json.loads((tmp_path / "deep" / "run.json").read_text()) == {"a": [None, [1.0, None]]}
    assert (tmp_path / "deep" / "run.md").read_text() == "# table\n"


def test_a_date_with_a_dot_in_the_out_path_is_kept(tmp_path: Path) -> None:
    comparison.write(tmp_path / "v0.1", {}, "")
    assert (tmp_path / "v0.1.json").exists()


def test_an_unknown_contestant_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="there are ours, sb3"):
        comparison.select(PPO, "ours,sb4")


def test_an_unknown_measure_is_refused() -> None:
    assert comparison.measures("steady, time") == ["steady", "time"]
    with pytest.raises(ValueError, match="steady, time or both"):
        comparison.measures("tme")


def test_our_command_carries_the_matched_settings_and_later_overrides_win(tmp_path: Path) -> None:
    command = train_command(
        PPO,
        storage=tmp_path,
        seed=3,
        stop={"env_steps": 5},
        overrides={"rollout.max_policy_lag": 1},
        debug=True,
    )
    assert f"minibatch_rows={matched.PPO.minibatch_rows}" in command
    assert "rollout.max_policy_lag=1" in command
    assert "rollout.max_policy_lag=0" not in command
    assert command[-1] == "--debug"


def test_lists_none_and_words_reach_our_command_line_as_it_reads_them(tmp_path: Path) -> None:
    command = train_command(DQN, storage=tmp_path, seed=1, stop={"env_steps": 5})
    settings = {"model.hidden=[120, 84]", "optim.max_grad_norm=null", "q.double=false"}
    assert settings | {"model.activation=relu", "updates_per_row=0.25"} <= set(command)


def test_target_copies_fall_on_the_same_env_steps_as_the_peers() -> None:
    overrides = DQN.overrides
    steps = overrides["target.period_updates"] / overrides["updates_per_row"]  # type: ignore[operator]
    assert steps == matched.DQN.target_period_steps


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_our_configuration_takes_every_override(workload: Workload) -> None:
    for contestant in (c for c in workload.everyone if c.peer is None):
        values = {"env": workload.matched.env, **workload.overrides, **contestant.overrides}
        config = build_config(workload.name, [json_layer(json.dumps(values))])
        assert config.rollout.num_workers == values["rollout.num_workers"]
        assert config.gamma == workload.matched.gamma


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_each_contestant_has_a_name_of_its_own_and_a_script_to_run(workload: Workload) -> None:
    names = [contestant.name for contestant in workload.everyone]
    assert len(set(names)) == len(names)
    assert {name for target in workload.targets for name in target.peers} <= set(names)
    for peer in {contestant.peer for contestant in workload.everyone if contestant.peer}:
        assert peer in ENVIRONMENTS
        assert (ROOT / "benchmarks" / "peers" / f"{workload.name}_{peer}.py").exists()


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_peer_scripts_read_the_options_that_the_harness_gives(
    workload: Workload, tmp_path: Path
) -> None:
    task = Task(workload, 1000, workload.target_return, 7)
    for contestant in (c for c in workload.everyone if c.peer):
        command = command_of(contestant, task, tmp_path)
        arguments = parse_arguments(command[3:])
        assert command[2] == f"benchmarks.peers.{workload.name}_{contestant.peer}"
        assert (arguments.env_steps, arguments.seed) == (1000, 7)
        assert arguments.stop_return == workload.target_return
        for option, value in contestant.options.items():
            assert getattr(arguments, option.replace("-", "_")) == value


def test_a_slow_peer_has_fewer_steady_steps_but_as_many_to_the_return() -> None:
    slow = next(contestant for contestant in DQN.peers if contestant.max_env_steps)
    tasks = {
        kind: comparison.task_for(DQN, slow, kind=kind, seed=1, limits=(40_000, 60_000))
        for kind in ("steady", "time")
    }
    assert tasks["steady"].env_steps == slow.max_env_steps
    assert tasks["time"].env_steps == 60_000
    assert tasks["time"].timeout_s == DQN.time_limit_s
    assert [tasks[kind].stop_return for kind in ("steady", "time")] == [None, 150.0]


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_steady_runs_are_long_enough_for_a_rate(workload: Workload) -> None:
    for contestant in workload.everyone:
        limits = (workload.env_steps, workload.max_env_steps)
        task = comparison.task_for(workload, contestant, kind="steady", seed=1, limits=limits)
        stretch = workload.stretch_env_steps
        seconds = [0.5 * i for i in range(1, task.env_steps // stretch + 1)]
        rate = steady(
            iterations(seconds, stretch),
            [Sample(0.0, 0.0, 0, 1)],
            warmup_env_steps=workload.warmup_env_steps,
            stretch_env_steps=stretch,
        )
        assert rate.median_steps_per_s == pytest.approx(2 * stretch)


def test_peer_scripts_run_all_steps_unless_told_a_return() -> None:
    assert math.isinf(parse_arguments([]).stop_return)
    assert parse_arguments(["--stop-return", "450"]).stop_return == 450.0


def test_the_ring_keeps_the_observation_that_ended_an_episode_and_bootstraps_truncation() -> None:
    envs = sync_envs("CartPole-v1", num_envs=2)
    ring = Ring(3, envs, seed=0)
    obs, reset_obs, last_obs = (np.full((2, 4), value, np.float32) for value in (1.0, 2.0, 3.0))
    infos = {"_final_obs": np.array([False, True]), "final_obs": [None, last_obs[1]]}
    ring.add(obs, np.zeros(2, int), np.ones(2), reset_obs, np.array([False, False]), infos)
    assert ring.next_obs[:2, 0].tolist() == [2.0, 3.0]
    assert ring.done[:2].tolist() == [0.0, 0.0]
    ring.add(obs, np.ones(2, int), np.ones(2), reset_obs, np.array([True, False]), {})
    assert (ring.rows, ring.next_row) == (3, 1)
    assert ring.action.tolist() == [1, 0, 1]
    assert ring.sample(64).done.max() == 1.0


@pytest.mark.parametrize("num_envs", [1, 3, 4, 8])
def test_updates_fall_due_once_per_period_however_many_environments_step(num_envs: int) -> None:
    taken = [crossed(4, env_steps, num_envs) for env_steps in range(num_envs, 241, num_envs)]
    assert sum(taken) == 240 // 4


def test_rllibs_mean_counts_once_for_each_episode_and_not_where_none_ended() -> None:
    assert new_returns({"num_episodes": 2, "episode_return_mean": 7.5}) == [7.5, 7.5]
    assert new_returns({"num_episodes": math.nan, "episode_return_mean": math.nan}) == []
    assert new_returns({}) == []


def test_only_torch_is_pinned_for_the_peers() -> None:
    assert torch_pins("# torch==1\ntorch==2.13.0  # cpu\ntorchrl==1\nray==2\n") == ["torch==2.13.0"]


def test_overhead_leaves_out_a_hidden_rollout_and_names_a_missing_stage() -> None:
    stages = {"iteration": 0.1, "rollout": 0.03, "update": 0.05}
    row = Iteration(1, 1.0, None, stages)
    assert overhead.overhead_ms(row, rollout_hidden=False) == pytest.approx(20.0)
    assert overhead.overhead_ms(row, rollout_hidden=True) == pytest.approx(50.0)
    with pytest.raises(ValueError, match="lacks time/update_s"):
        overhead.overhead_ms(
            Iteration(1, 1.0, None, {"iteration": 1.0, "rollout": 1.0}), rollout_hidden=False
        )


def test_a_mode_that_failed_every_time_has_a_row_of_dashes() -> None:
    assert debug_yardstick.cells("x", [None, None]) == ["x", "-", "-", "-", "2"]


def test_stat_lines_with_odd_names_are_parsed() -> None:
    stat = parse_stat(STAT)
    assert (stat.pid, stat.parent, stat.state, stat.key) == (41, 7, "S", (41, 3210))
    assert stat.cpu_s == 200 / os.sysconf("SC_CLK_TCK")


def test_descendants_follow_parents_through_several_generations() -> None:
    def process(pid: int, parent: int) -> ProcessStat:
        return parse_stat(STAT.replace("41 (", f"{pid} (", 1).replace("S 7", f"S {parent}", 1))

    tree = [process(4, 3), process(2, 1), process(3, 2), process(9, 8)]
    assert sorted(p.pid for p in descendants(tree, {1})) == [2, 3, 4]


def measured(command: list[str], folder: Path, timeout_s: float) -> dict[str, Any]:
    """run_measured in a process of its own: it adopts and ends whatever starts below it."""
    program = (
        "import json, pathlib, sys\n"
        "from benchmarks.processes import run_measured\n"
        "command, folder, timeout_s = json.loads(sys.argv[1])\n"
        "run = run_measured(command, cwd=pathlib.Path(folder), timeout_s=timeout_s)\n"
        "keys = ('exit_code', 'timed_out', 'stdout', 'cpu_s', 'wall_s')\n"
        "print(json.dumps({key: getattr(run, key) for key in keys}))"
    )
    arguments = json.dumps([command, str(folder), timeout_s])
    done = subprocess.run(
        [sys.executable, "-c", program, arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_daemon_that_left_its_session_is_counted_and_ended(tmp_path: Path) -> None:
    child = "import time\nwhile time.process_time() < 0.6: pass\ntime.sleep(60)"
    pid_file = tmp_path / "pid"
    parent = (
        "import subprocess, sys, time\n"
        f"c = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        f"open({str(pid_file)!r}, 'w').write(str(c.pid))\n"
        "print('hello'); time.sleep(2.5)"
    )
    run = measured([sys.executable, "-c", parent], tmp_path, timeout_s=30.0)
    assert (run["exit_code"], run["timed_out"], run["stdout"]) == (0, False, ["hello"])
    assert 0.3 <= run["cpu_s"] <= 3.0
    assert not Path("/proc", pid_file.read_text()).exists()


def test_a_command_over_its_time_is_ended_and_said_to_be(tmp_path: Path) -> None:
    run = measured(["sleep", "30"], tmp_path, timeout_s=0.3)
    assert run["timed_out"]
    assert run["exit_code"] != 0
    assert run["wall_s"] < 5.0


def test_out_of_time_is_an_error_of_a_steady_run_and_a_finding_on_the_way_to_a_return() -> None:
    rows = iterations([1.0, 2.0])
    late = Run(-15, True, 9.0, 8.0, 0.0, [], "", [Sample(0.0, 0.0, 0, 1)])
    failed = dataclasses.replace(late, exit_code=1, timed_out=False)
    assert error_of(rows, late, may_time_out=True) is None
    assert error_of(rows, late, may_time_out=False) == "timed out after 9 s"
    assert error_of([], late, may_time_out=True) == "timed out after 9 s"
    assert error_of(rows, failed, may_time_out=True) == "exit code 1: "


def test_a_run_too_short_for_rates_is_a_record_with_an_error() -> None:
    run = Run(0, False, 9.0, 8.0, 0.0, [], "", [Sample(0.0, 0.0, 0, 1)])
    figures, error = steady_of(iterations([1.0, 2.0]), run, DQN)
    assert figures is None
    assert error is not None
    assert "raise --env-steps" in error


def test_process_age_starts_at_process_start_not_at_import() -> None:
    assert process_age_s() > 0.0


def test_every_subcommand_has_defaults_that_parse() -> None:
    for module in (overhead, debug_yardstick):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        assert parser.parse_args([]).env_steps > 0
    for workload in WORKLOADS.values():
        parser = argparse.ArgumentParser()
        comparison.add_arguments(parser, workload)
        assert parser.parse_args([]).env_steps == workload.env_steps
