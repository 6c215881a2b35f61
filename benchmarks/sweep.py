"""A sweep of CartPole PPO, ours beside RLlib's: `python -m benchmarks sweep`.

Eight learning rates, the settings of `peers/matched.py`, two trials side by side. Pairs run in
turn, the order turning round. Start-up ends with the first result of any trial; from then to the
last one the CPU-seconds of the whole process tree, over both cores' seconds, are the use of them.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import ENVIRONMENTS, ROOT, ensure
from benchmarks.peers.matched import PPO
from benchmarks.processes import Run, run_measured

LRS = (1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 2e-3, 3e-3)
WANTED_TIME, WANTED_USE = 0.7, 0.85


@dataclass(frozen=True)
class Sweep:
    """What a contestant's sweep took.

    Attributes:
        wall_s, cpu_s: of the whole command.
        start_s: from its start to the first result of a trial.
        use_frac: of all cores, from then to the last result.
        other_cores: what the rest of the machine used meanwhile.
    """

    wall_s: float
    cpu_s: float
    start_s: float
    use_frac: float
    other_cores: float


def sweep_file(folder: Path, env_steps: int) -> Path:
    """The file of ours, which is JSON and so YAML."""
    spec = {
        "algo": "ppo",
        "env": PPO.env,
        "base": {
            "rollout": {
                "num_workers": 0,
                "num_envs": PPO.num_envs,
                "fragment_steps": PPO.fragment_steps,
            },
            "minibatch_rows": PPO.minibatch_rows,
            "num_epochs": PPO.num_epochs,
            "optim": {"eps": PPO.adam_eps, "max_grad_norm": PPO.max_grad_norm},
            "value_coef": PPO.value_coef,
            "entropy_coef": PPO.entropy_coef,
            "gamma": PPO.gamma,
            "gae_lambda": PPO.gae_lambda,
            "clip_eps": PPO.clip_eps,
        },
        "sweep": {"optim.lr": {"grid": list(LRS)}},
        "stop": {"env_steps": env_steps},
    }
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(spec, indent=1))
    return path


def ours(folder: Path, env_steps: int) -> list[str]:
    """The command of ours."""
    path = sweep_file(folder, env_steps)
    words = [sys.executable, "-m", "workflows", "sweep", str(path), "--name", "s"]
    return [*words, "--storage", str(folder / "storage")]


def theirs(folder: Path, env_steps: int) -> list[str]:
    """The command of RLlib's."""
    python = str(ensure(ENVIRONMENTS["rllib"]))
    words = [python, "-m", "benchmarks.peers.sweep_rllib", "--env-steps", str(env_steps)]
    return [*words, "--storage", str(folder / "storage"), "--lrs", *map(str, LRS)]


CONTESTANTS = {"ours": ours, "rllib": theirs}


def run_once(who: str, env_steps: int) -> Sweep:
    """One sweep by one contestant.

    Raises:
        RuntimeError: it failed, or not every trial has results.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PYTHONPATH"], os.environ["OMP_NUM_THREADS"] = str(ROOT), "1"
        began = time.time()
        run = run_measured(CONTESTANTS[who](folder, env_steps), cwd=ROOT, timeout_s=900)
        results = [path for path in folder.rglob("result.json") if path.stat().st_size]
        trials = {path.parent for path in results if "tune" not in path.parts}
        if run.exit_code or len(trials) < len(LRS):
            raise RuntimeError(
                f"{who}: exit code {run.exit_code}, {len(trials)} trials\n{run.stderr_tail}"
            )
        told = [when for path in results for when in times_of(path)]
        return summed(run, first=min(told) - began, last=max(told) - began)


def times_of(path: Path) -> list[float]:
    """Epoch seconds of the first and the last result of a trial's result.json."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    stamps = [line["timestamp"] for line in lines if "timestamp" in line]
    if stamps:  # Tune's own
        return [float(stamps[0]), float(stamps[-1])]
    last = path.stat().st_mtime
    return [last - (lines[-1]["time_s"] - lines[0]["time_s"]), last]


def summed(run: Run, *, first: float, last: float) -> Sweep:
    """A run's figures, with the use of the cores between two moments of it."""
    start = min(run.samples, key=lambda sample: abs(sample.wall_s - first))
    end = min(run.samples, key=lambda sample: abs(sample.wall_s - last))
    seconds = (end.wall_s - start.wall_s) * (os.cpu_count() or 1)
    use = (end.cpu_s - start.cpu_s) / seconds if seconds else 0.0
    return Sweep(run.wall_s, run.cpu_s, first, use, run.other_cores)


def compare(repeats: int, env_steps: int) -> list[dict[str, Sweep]]:
    """Pairs of sweeps."""
    pairs = []
    for i in range(repeats):
        order = ("ours", "rllib") if i % 2 == 0 else ("rllib", "ours")
        pair = {who: run_once(who, env_steps) for who in order}
        pairs.append(pair)
        for who, found in pair.items():
            print(who, {key: round(value, 2) for key, value in asdict(found).items()}, flush=True)
    return pairs


def text_of(pairs: list[dict[str, Sweep]], env_steps: int) -> str:
    """The pairs as a Markdown page."""

    def median(who: str, name: str) -> float:
        return statistics.median(getattr(pair[who], name) for pair in pairs)

    ratios = [pair["ours"].wall_s / pair["rllib"].wall_s for pair in pairs]
    ratio, use = statistics.median(ratios), median("ours", "use_frac")
    lines = [
        f"# A sweep beside RLlib's, {date.today().isoformat()}",
        "",
        f"`python -m benchmarks sweep`: {len(LRS)} CartPole PPO trials of {env_steps:,} env steps "
        "at the matched settings, two side by side on 2 cores; medians.",
        "",
        "| | ours | RLlib |",
        "|---|---:|---:|",
    ]
    names = {"wall_s": "s", "cpu_s": "CPU s", "start_s": "s to the first result"}
    for name, title in names.items():
        lines.append(f"| {title} | {median('ours', name):.1f} | {median('rllib', name):.1f} |")
    lines += [
        f"| both cores used, from the first result to the last | {use:.0%} | "
        f"{median('rllib', 'use_frac'):.0%} |",
        f"| cores that other work used | {median('ours', 'other_cores'):.2f} | "
        f"{median('rllib', 'other_cores'):.2f} |",
        "",
        f"Time: {ratio:.2f} x RLlib's ({', '.join(f'{r:.2f}' for r in ratios)}), wanted <= "
        f"{WANTED_TIME:g}: {'ok' if ratio <= WANTED_TIME else 'MISSED'}.",
        f"Use of the cores: wanted >= {WANTED_USE:.0%}: {'ok' if use >= WANTED_USE else 'MISSED'}.",
    ]
    return "\n".join([*lines, ""])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `python -m benchmarks sweep`."""
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--env-steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="folder for the page and the numbers")


def main(args: argparse.Namespace) -> int:
    """Compare, print, and write where asked to."""
    ensure(ENVIRONMENTS["rllib"])
    pairs = compare(args.repeats, args.env_steps)
    page = text_of(pairs, args.env_steps)
    print(page)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"sweep-{date.today().isoformat()}"
        (args.out / f"{name}.md").write_text(page)
        numbers: list[Any] = [{who: asdict(x) for who, x in pair.items()} for pair in pairs]
        (args.out / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return 0
