"""How Millrace is run in the comparisons: the matched overrides, in this one place."""

import compileall
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.environments import ROOT
from benchmarks.peers.reporting import MATCHED

RUN_NAME = "bench"
PPO_OVERRIDES: tuple[tuple[str, object], ...] = (
    ("rollout.num_workers", 1),
    ("rollout.num_envs", MATCHED.num_envs),
    ("rollout.fragment_steps", MATCHED.fragment_steps),
    ("rollout.max_policy_lag", 0),
    ("minibatch_rows", MATCHED.minibatch_rows),
    ("num_epochs", MATCHED.num_epochs),
    ("optim.lr", MATCHED.lr),
    ("optim.eps", MATCHED.adam_eps),
    ("optim.max_grad_norm", MATCHED.max_grad_norm),
    ("value_coef", MATCHED.value_coef),
    ("entropy_coef", MATCHED.entropy_coef),
    ("gamma", MATCHED.gamma),
    ("gae_lambda", MATCHED.gae_lambda),
    ("clip_eps", MATCHED.clip_eps),
)


def train_command(
    *,
    storage: Path,
    seed: int,
    stop: Mapping[str, float],
    overrides: Mapping[str, object] | None = None,
    debug: bool = False,
) -> list[str]:
    """`millrace train ppo` at the matched settings; `overrides` go on top of them."""
    command = [sys.executable, "-m", "workflows", "train", "ppo", "--env", MATCHED.env]
    command += ["--storage", str(storage), "--name", RUN_NAME, "--seed", str(seed)]
    for path, value in {**dict(PPO_OVERRIDES), **(overrides or {})}.items():
        command += ["--set", f"{path}={value}"]
    command += ["--stop", json.dumps(dict(stop))]
    return [*command, "--debug"] if debug else command


def result_lines(storage: Path) -> list[str]:
    """The run's result.json, one JSON object a line; empty where the run wrote none."""
    path = storage / RUN_NAME / "result.json"
    return path.read_text().splitlines() if path.exists() else []


def compile_project() -> None:
    """Write the project's own bytecode, so that no measured run has to."""
    for package in ("rl_ops", "offline", "pipelines", "workflows"):
        compileall.compile_dir(ROOT / package, quiet=2)
