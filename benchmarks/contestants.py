"""How one contestant of a comparison is run once, in which order, and what is kept of it."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Iteration, Steady, parse_iterations, steady, time_to_return_s
from benchmarks.ours import result_lines, train_command
from benchmarks.peers.environments import ENVIRONMENTS, ROOT
from benchmarks.processes import Run, run_measured
from benchmarks.workload import Contestant, Workload


@dataclass(frozen=True)
class Task:
    """What a contestant is asked to do in one run."""

    workload: Workload
    env_steps: int
    stop_return: float | None
    seed: int
    timeout_s: float = 600.0


@dataclass(frozen=True)
class Record:
    """One run's figures; `pair` names the peer that ours was paired with."""

    contestant: str
    measure: str
    repeat: int
    pair: str
    seed: int
    exit_code: int
    error: str | None
    run_wall_s: float
    run_cpu_s: float
    other_cores: float
    env_steps: int
    last_return_mean: float | None
    first_result_s: float | None
    steady: Steady | None
    time_to_return_s: float | None


@dataclass(frozen=True)
class Slot:
    """A place in the schedule; `run` counts the contestant's own runs and chooses the seed."""

    contestant: Contestant
    repeat: int
    pair: str
    run: int


def schedule(
    ours: Contestant, peers: Sequence[Contestant], information: Sequence[Contestant], repeats: int
) -> list[Slot]:
    """Ours beside each peer in every repeat; odd repeats turn each pair round, against drift."""
    slots: list[Slot] = []
    runs: Counter[str] = Counter()
    for repeat in range(repeats):
        turns = [(peer, (ours, peer)[:: 1 if repeat % 2 == 0 else -1]) for peer in peers]
        turns += [(contestant, (contestant,)) for contestant in information]
        for named, together in turns:
            for contestant in together:
                slots.append(Slot(contestant, repeat, named.name, runs[contestant.name]))
                runs[contestant.name] += 1
    return slots


def run_once(contestant: Contestant, task: Task) -> tuple[list[Iteration], Run]:
    """Run a contestant in a storage folder of its own and read what it reported."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        storage = Path(folder)
        command = command_of(contestant, task, storage)
        run = run_measured(command, cwd=ROOT, timeout_s=task.timeout_s)
        lines = run.stdout if contestant.peer else result_lines(storage)
    return parse_iterations(lines), run


def measure(slot: Slot, task: Task, *, kind: str) -> Record:
    """One run's record; a run that failed is a record with an error, not an exception."""
    iterations, run = run_once(slot.contestant, task)
    # to be out of time on the way to a return is a finding
    error = error_of(iterations, run, may_time_out=kind == "time")
    figures = None
    if kind == "steady" and error is None:
        figures, error = steady_of(iterations, run, task.workload)
    last = iterations[-1] if iterations else None
    target = task.workload.target_return
    return Record(
        contestant=slot.contestant.name,
        measure=kind,
        repeat=slot.repeat,
        pair=slot.pair,
        seed=task.seed,
        exit_code=run.exit_code,
        error=error,
        run_wall_s=run.wall_s,
        run_cpu_s=run.cpu_s,
        other_cores=run.other_cores,
        env_steps=last.env_steps if last else 0,
        last_return_mean=last.episode_return_mean if last else None,
        first_result_s=iterations[0].wall_s if iterations else None,
        steady=figures,
        time_to_return_s=None if error else time_to_return_s(iterations, target),
    )


def steady_of(
    iterations: Sequence[Iteration], run: Run, workload: Workload
) -> tuple[Steady | None, str | None]:
    """A run's rates, or why there are none: one run too short must not cost the other records."""
    try:
        figures = steady(
            iterations,
            run.samples,
            warmup_env_steps=workload.warmup_env_steps,
            stretch_env_steps=workload.stretch_env_steps,
        )
    except ValueError as error:
        return None, str(error)
    return figures, None


def said(run: Run) -> str:
    """The end of what a run printed, on both streams."""
    ends = {"stdout": "\n".join(run.stdout)[-800:], "stderr": run.stderr_tail[-1500:]}
    return "\n".join(f"[{stream}]\n{text}" for stream, text in ends.items() if text)


def error_of(iterations: Sequence[Iteration], run: Run, *, may_time_out: bool) -> str | None:
    """What went wrong in a run, if anything did."""
    if run.timed_out and not (may_time_out and iterations):
        return f"timed out after {run.wall_s:.0f} s"
    if run.exit_code != 0 and not run.timed_out:
        return f"exit code {run.exit_code}: {said(run)}"
    return None if iterations else f"reported no iteration: {said(run)}"


def command_of(contestant: Contestant, task: Task, storage: Path) -> list[str]:
    """The command line of one run: `millrace train`, or the peer's script of the workload."""
    workload = task.workload
    if contestant.peer is None:
        stop: dict[str, float] = {"env_steps": task.env_steps}
        if task.stop_return is not None:
            stop["episode_return_mean"] = task.stop_return
        return train_command(
            workload,
            storage=storage,
            seed=task.seed,
            stop=stop,
            overrides=contestant.overrides,
        )
    command = [str(ENVIRONMENTS[contestant.peer].python), "-m"]
    command += [f"benchmarks.peers.{workload.name}_{contestant.peer}"]
    command += ["--env-steps", str(task.env_steps), "--seed", str(task.seed)]
    for option, value in contestant.options.items():
        command += [f"--{option}", str(value)]
    if task.stop_return is not None:
        command += ["--stop-return", str(task.stop_return)]
    return command
