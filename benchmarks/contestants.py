"""Who takes part in the PPO comparison, and how one of them is run once."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Iteration, Steady, parse_iterations, steady, time_to_return_s
from benchmarks.ours import result_lines, train_command
from benchmarks.peers.environments import ENVIRONMENTS, ROOT
from benchmarks.processes import Run, run_measured


@dataclass(frozen=True)
class Contestant:
    """Ours where `peer` is None, else a script in benchmarks/peers run by that peer's python."""

    name: str
    label: str
    peer: str | None = None
    threads: int = 1
    vectorization: str = "sync"
    overrides: Mapping[str, object] = field(default_factory=dict)


OURS = Contestant("ours", "Millrace, lag 0")
# Each peer's faster setting on two cores (README.md).
PEERS = (
    Contestant("sb3", "Stable-Baselines3", peer="sb3"),
    Contestant("cleanrl", "CleanRL-like single file", peer="cleanrl"),
    Contestant("rllib", "RLlib, 1 env runner", peer="rllib", vectorization="vector_entry_point"),
)
FOR_INFORMATION = (
    Contestant("ours-lag1", "Millrace, lag 1", overrides={"rollout.max_policy_lag": 1}),
    Contestant(
        "cleanrl-native",
        "CleanRL-like, native envs",
        peer="cleanrl",
        vectorization="vector_entry_point",
    ),
)


@dataclass(frozen=True)
class Task:
    """What a contestant is asked to do in one run."""

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
        command = _command(contestant, task, storage)
        run = run_measured(command, cwd=ROOT, timeout_s=task.timeout_s)
        lines = run.stdout if contestant.peer else result_lines(storage)
    return parse_iterations(lines), run


def measure(slot: Slot, task: Task, *, kind: str, target_return: float) -> Record:
    """One run's record; a run that failed is a record with an error, not an exception."""
    iterations, run = run_once(slot.contestant, task)
    error = _error(iterations, run)
    last = iterations[-1] if iterations else None
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
        steady=steady(iterations, run.samples) if kind == "steady" and not error else None,
        time_to_return_s=None if error else time_to_return_s(iterations, target_return),
    )


def said(run: Run) -> str:
    """The end of what a run printed, on both streams."""
    ends = {"stdout": "\n".join(run.stdout)[-800:], "stderr": run.stderr_tail[-1500:]}
    return "\n".join(f"[{stream}]\n{text}" for stream, text in ends.items() if text)


def _error(iterations: Sequence[Iteration], run: Run) -> str | None:
    if run.timed_out:
        return f"timed out after {run.wall_s:.0f} s"
    if run.exit_code != 0:
        return f"exit code {run.exit_code}: {said(run)}"
    return None if iterations else f"reported no iteration: {said(run)}"


def _command(contestant: Contestant, task: Task, storage: Path) -> list[str]:
    if contestant.peer is None:
        stop: dict[str, float] = {"env_steps": task.env_steps}
        if task.stop_return is not None:
            stop["episode_return_mean"] = task.stop_return
        return train_command(
            storage=storage, seed=task.seed, stop=stop, overrides=contestant.overrides
        )
    command = [str(ENVIRONMENTS[contestant.peer].python), "-m"]
    command += [f"benchmarks.peers.ppo_{contestant.peer}", "--env-steps", str(task.env_steps)]
    command += ["--seed", str(task.seed), "--threads", str(contestant.threads)]
    command += ["--vectorization", contestant.vectorization]
    if task.stop_return is not None:
        command += ["--stop-return", str(task.stop_return)]
    return command
