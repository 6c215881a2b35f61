"""SIGINT and SIGTERM: a graceful stop with a checkpoint, and an end at once."""

import json
import signal
import time

import pytest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_ends_with_a_checkpoint_and_how_to_resume(
    start_millrace, millrace, number, code
):
    process = start_millrace(*millrace.words(), "--debug")
    process.wait_for(millrace.run_folder() / "result.json")
    process.send(number)
    found, out, err = process.end()
    assert found == code, err
    assert f"{number.name}: stopping after this iteration" in err
    assert f"stopped_by {number.name}" in out
    assert "--resume run" in out
    count = len((millrace.run_folder() / "result.json").read_text().splitlines())
    assert (millrace.run_folder() / "checkpoints" / str(count) / "manifest.json").is_file()
    words = ("train", "--resume", "run", "--storage", millrace.storage, "--debug")
    stop = json.dumps({"training_iteration": count + 1})
    assert millrace(*words, "--stop", stop).exit_code == 0


TELLING_ENV = """
from pathlib import Path
from gymnasium.envs.classic_control import CartPoleEnv

class Telling(CartPoleEnv):
    def step(self, action):
        Path({path!r}).write_text("stepped")
        return super().step(action)
"""


def test_the_second_signal_ends_at_once(start_millrace, millrace, tmp_path):
    # One iteration of minutes: the first signal has to wait for it.
    long = ("--set", "num_epochs=100000")
    stepped = tmp_path / "stepped"
    (tmp_path / "telling_env.py").write_text(TELLING_ENV.format(path=str(stepped)))
    words = millrace.words(env="telling_env:Telling")
    process = start_millrace(*words, *long, "--debug", pythonpath=tmp_path)
    process.wait_for(stepped)
    process.send(signal.SIGINT)
    time.sleep(1)
    assert process.process.poll() is None
    process.send(signal.SIGINT)
    code, _, err = process.end(timeout_s=5)
    assert code == 130
    assert "again: ended at once" in err
    assert not (millrace.run_folder() / "checkpoints").exists()


def test_a_signal_before_the_run_starts_ends_it(start_millrace, millrace):
    process = start_millrace(*millrace.words(), "--debug")
    time.sleep(0.5)  # torch is being imported
    process.send(signal.SIGTERM)
    code, out, err = process.end(timeout_s=30)
    assert code in (143, -signal.SIGTERM), (out, err)
    assert not (millrace.run_folder() / "checkpoints").exists()


@pytest.mark.ray
def test_control_c_at_a_terminal_stops_a_run_on_ray_gracefully(start_millrace, millrace):
    process = start_millrace(*millrace.words(), start_new_session=True)
    process.wait_for(millrace.run_folder() / "result.json", timeout_s=200)
    process.send_to_group(signal.SIGINT)
    code, out, err = process.end(timeout_s=60)
    assert code == 130, err
    assert "stopped_by SIGINT" in out
    count = len((millrace.run_folder() / "result.json").read_text().splitlines())
    assert (millrace.run_folder() / "checkpoints" / str(count) / "manifest.json").is_file()
