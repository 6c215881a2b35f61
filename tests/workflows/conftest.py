"""The command, in this process and in one of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from workflows.cli import cli

ROOT = Path(__file__).parent.parent.parent


class Cli:
    """Runs `millrace` in this process, below a storage folder of the test's own."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage

    def __call__(self, *words: object) -> Result:
        return CliRunner().invoke(cli, [str(word) for word in words], prog_name="millrace")

    def train(self, *words: object, name: str = "run", iterations: int = 2) -> Result:
        """A short PPO run without Ray."""
        stop = json.dumps({"training_iteration": iterations})
        return self(*self.words(name=name), "--debug", "--stop", stop, *words)

    def words(self, *, env: str = "CartPole-v1", name: str = "run") -> list[object]:
        """A small PPO run without end."""
        start = ["train", "ppo", "--env", env, "--storage", self.storage, "--name", name]
        return [*start, "--set", "rollout.num_envs=4", "--set", "rollout.fragment_steps=16"]

    def run_folder(self, name: str = "run") -> Path:
        return self.storage / name


class Process:
    """`python -m workflows` as a process, which can be sent signals."""

    def __init__(
        self, words: list[object], *, pythonpath: Path | None = None, **options: object
    ) -> None:
        path = {} if pythonpath is None else {"PYTHONPATH": str(pythonpath)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workflows", *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **path},
            **options,
        )

    def wait_for(self, path: Path, *, timeout_s: float = 120) -> None:
        """Until a file is there and has something in it."""
        end = time.monotonic() + timeout_s
        while not path.exists() or path.stat().st_size == 0:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, f"{path} did not come"
            time.sleep(0.05)

    def end(self, *, timeout_s: float = 120) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_to_group(self, number: signal.Signals) -> None:
        """As a terminal does: to the process and all it started."""
        os.killpg(self.process.pid, number)


@pytest.fixture
def millrace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    # It would start Ray in the tests' process, for good.
    monkeypatch.setattr("workflows.train.prestart", lambda **_: None)
    return Cli(tmp_path / "storage")


@pytest.fixture
def root() -> Path:
    """Of the source tree, from which `python -m workflows` works."""
    return ROOT


@pytest.fixture
def start_millrace():
    """Starts processes, and ends those that the test left."""
    started: list[Process] = []

    def start(*words: object, **options: object) -> Process:
        started.append(Process(list(words), **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()
