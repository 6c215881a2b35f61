"""How Millrace is run in the comparisons: `millrace train` at a workload's settings."""

import compileall
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.environments import ROOT
from benchmarks.workload import Workload

RUN_NAME = "bench"


def train_command(
    workload: Workload,
    *,
    storage: Path,
    seed: int,
    stop: Mapping[str, float],
    overrides: Mapping[str, object] | None = None,
    debug: bool = False,
) -> list[str]:
    """Training at the workload's settings; `overrides` go on top of them."""
    command = [sys.executable, "-m", "workflows", "train", workload.name]
    command += ["--env", workload.matched.env]
    command += ["--storage", str(storage), "--name", RUN_NAME, "--seed", str(seed)]
    for path, value in {**workload.overrides, **(overrides or {})}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        command += ["--set", f"{path}={text}"]
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
