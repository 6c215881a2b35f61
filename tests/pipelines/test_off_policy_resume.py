"""Runs with a memory of rows, resumed: bit for bit where they were, wherever the rows come from."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from offline.compaction import compact
from offline.vacuum import vacuum
from pipelines import config_class
from pipelines.backend import LocalFlow
from pipelines.checkpoint import Checkpoint
from pipelines.config import AlgorithmConfig
from pipelines.coordinator import Command
from pipelines.errors import CheckpointError
from pipelines.learn import LearnLoop
from pipelines.tracing import Trace, open_lake
from pipelines.training import TrainTask, make_loop, plan_for
from rl_ops.learner import World
from rl_ops.rollout import Rollout

ROOT = Path(__file__).parents[2]

REPLAYED = {
    "dqn": ("dqn", "CartPole-v1", {}),
    "dqn prioritized": (
        "dqn",
        "CartPole-v1",
        {"replay": {"prioritized": True}, "n_step": 3, "connectors": {"clip_reward": 0.5}},
    ),
    "dqn noisy frames": (
        "dqn",
        "CartPole-v1",
        {
            "q": {"noisy": True, "atoms": "categorical"},
            "connectors": {
                "obs": [{"kind": "FrameStackObs", "num_frames": 2}],
                "normalize_obs": True,
            },
        },
    ),
    "sac": ("sac", "Pendulum-v1", {"connectors": {"normalize_obs": True}}),
    "td3": ("td3", "Pendulum-v1", {}),
    "apex": ("apex", "CartPole-v1", {}),
}
CAPACITY_ROWS = 150
"""Of three fragments or so, the oldest in part; runs below wrap the ring around."""


def make_config(algo="dqn", env="CartPole-v1", **values) -> AlgorithmConfig:
    rollout = {"num_workers": 1, "num_envs": 4, "fragment_steps": 16}
    small = {
        "rollout": rollout,
        "model": {"hidden": (8,)},
        "learning_starts_rows": 100,
        "minibatch_rows": 32,
        "updates_per_row": 0.1,
        "target": {"tau": 0.5, "period_updates": 3},
        **values,
    }
    small["replay"] = {"capacity_rows": CAPACITY_ROWS, **small.get("replay", {})}
    return config_class(algo)(env=env, **small)


def appo_config(**values):
    rollout = {"num_envs": 4, "fragment_steps": 16}
    return config_class("appo")(
        env="CartPole-v1", rollout=rollout, model={"hidden": (8,)}, **values
    )


def snapshot(loop: LearnLoop) -> dict[str, Any]:
    """Copies of all that decides what a learner does next, by name."""
    learner = loop.learner
    groups = {
        **learner.modules.state(),
        "memory": learner.memory.state(),
        "rows": learner.memory.contents(),
    }
    found = {
        f"{g}.{k}": x.detach().clone() for g, named in groups.items() for k, x in named.items()
    }
    told = {k: v for k, v in loop.state().items() if k not in ("time_s", "incarnation")}
    return {**found, "learner": learner.state(), "loop": told}


def digest(loop: LearnLoop) -> str:
    """Of a snapshot, for comparing processes."""
    whole = hashlib.sha256()
    for name, value in sorted(snapshot(loop).items()):
        is_tensor = isinstance(value, torch.Tensor)
        data = value.numpy().tobytes() if is_tensor else json.dumps(value, sort_keys=True).encode()
        whole.update(name.encode() + b"=" + data)
    return whole.hexdigest()


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    # In order, too: a replay's columns lie beside each other, and where decides the last bits.
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype, name
            assert found[name].shape == value.shape, name
            assert found[name].numpy().tobytes() == value.numpy().tobytes(), name
        else:
            assert found[name] == value, name


def figures_of(loop):
    result = loop.flow.results[-1]
    timed = ("time", "env_steps_per_s", "grad_steps_per_s", "lake/")
    return json.dumps({k: v for k, v in result.items() if not k.startswith(timed)}, sort_keys=True)


@dataclass
class Session:
    """A learner's loop, fed by a rollout worker of its own, in a run's folder."""

    config: AlgorithmConfig
    folder: Path
    resume: str | None = None
    number: int = 0
    fed: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan, trace = plan_for(self.config, run_id="run"), None
        if self.config.trace.enabled:
            trace = Trace(*open_lake(plan, self.folder), self.number)
        self.task = TrainTask(
            plan=plan, started_at=0.0, resume=self.resume, incarnation=self.number, trace=trace
        )
        self.storage = None if trace is None else trace.storage
        self.loop = make_loop(self.task, LocalFlow(), World())
        self.loop.start()
        self.rollout = Rollout(plan.rollout, incarnation=self.number)

    def train(self, versions: int) -> "Session":
        """Make that many versions, of fragments that act with the newest weights."""
        learner = self.loop.learner
        for _ in range(versions):
            self.rollout.load(learner.weights(), learner.version)
            for k in self.loop.ids(learner.version):
                table = self.rollout.fragment(k)
                for operator in self.task.plan.dataflow.source.then:
                    table = operator(table)
                self.fed.append(table)
                self.loop.feed(table)
        return self

    def save(self, name: str) -> str:
        return str(self.loop.output(Command(0, "save", str(self.folder / name))))

    def close(self) -> None:
        self.loop.close()
        self.rollout.close()

    def resumed(self, path: str, **overrides: Any) -> "Session":
        config = self.config.with_overrides(overrides) if overrides else self.config
        return Session(config, self.folder, path, self.number + 1)


def memory_of(path: str) -> tuple[bool, Any]:
    """Whether a checkpoint holds the rows itself, and else the fragments that they are of."""
    checkpoint = Checkpoint(path)
    assert checkpoint.memory()
    has_rows = any(name.startswith("0.rows.") for name in checkpoint.memory())
    (told,) = checkpoint.state["memory"]
    return has_rows, [(x["session"], x["first"], x["end"]) for x in told.get("segments", [])]


def check_resume(session: Session, name: str, *, between=lambda: None) -> str:
    """Save, train on and end; from the checkpoint, the same fragments lead to the same."""
    path = session.save(name)
    saved, count = snapshot(session.loop), len(session.fed)
    session.train(2)
    after, figures = snapshot(session.loop), figures_of(session.loop)
    session.close()
    between()
    resumed = session.resumed(path)
    assert_same(snapshot(resumed.loop), saved)
    for table in session.fed[count:]:
        resumed.loop.feed(table)
    assert_same(snapshot(resumed.loop), after)
    assert figures_of(resumed.loop) == figures
    resumed.close()
    return path


# --- one resume ---


@pytest.mark.parametrize("case", REPLAYED)
def test_a_memory_refilled_from_the_lake_is_bit_for_bit_what_it_was(case, tmp_path):
    algo, env, values = REPLAYED[case]
    session = Session(make_config(algo, env, **values), tmp_path).train(6)
    assert session.loop.learner.replay.num_added > 2 * CAPACITY_ROWS
    assert session.loop.learner.grad_steps > 0
    path = check_resume(session, "saved")
    assert memory_of(path) == (False, [(0, 3, 6)])


@pytest.mark.parametrize(
    ("case", "unlogged"),
    [
        *[(case, {"trace": {"enabled": False}}) for case in REPLAYED],
        ("dqn prioritized", {"connectors": {"normalize_reward": True}}),
        ("dqn", {"trace": {"columns": ("logp", "value")}}),
        ("sac", {"trace": {"episode_frac": 0.5}}),
    ],
)
def test_rows_that_no_lake_has_are_in_the_checkpoint_bit_for_bit(case, unlogged, tmp_path):
    algo, env, values = REPLAYED[case]
    session = Session(make_config(algo, env, **{**values, **unlogged}), tmp_path).train(6)
    path = check_resume(session, "saved")
    assert memory_of(path) == (True, [])


@pytest.mark.parametrize("versions", [1, 5], ids=["not full", "full"])
def test_the_versions_that_appo_goes_through_come_back(versions, tmp_path):
    session = Session(appo_config(), tmp_path).train(versions)
    path = check_resume(session, "saved")
    assert memory_of(path) == (True, [])


@pytest.mark.parametrize("rows", [0, 1])
def test_a_memory_with_no_row_or_few_comes_back(rows, tmp_path):
    session = Session(make_config(), tmp_path).train(rows)
    assert memory_of(check_resume(session, "saved")) == (False, [(0, 0, 1)] * rows)


def test_rows_come_back_from_a_lake_that_was_compacted_and_vacuumed_meanwhile(tmp_path):
    session = Session(make_config(trace={"commit_rows": 64}), tmp_path).train(6)

    def between():
        assert compact(session.storage, tables=["steps"])
        assert vacuum(session.storage, retention_hours=0, force=True, dry_run=False, safety_s=0)

    check_resume(session, "saved", between=between)


# --- one after the other ---


def test_a_memory_of_rows_of_several_sessions_comes_back(tmp_path):
    first = Session(make_config(replay={"prioritized": True}), tmp_path).train(3)
    path = first.save("first")
    first.train(1).close()  # of which the checkpoint knows nothing
    second = first.resumed(path).train(1)
    path = second.save("second")
    second.close()
    assert memory_of(path) == (False, [(0, 1, 3), (1, 3, 4)])
    third = second.resumed(path).train(1)
    assert memory_of(check_resume(third, "third")) == (False, [(0, 2, 3), (1, 3, 4), (2, 4, 5)])


def test_a_session_that_only_saves_passes_on_what_it_was_given(tmp_path):
    first = Session(make_config(), tmp_path).train(6)
    saved, path = snapshot(first.loop), first.save("first")
    first.close()
    again = first.resumed(path)
    passed_on = again.save("second")
    again.close()
    assert memory_of(passed_on) == memory_of(path)
    last = again.resumed(passed_on)
    assert_same(snapshot(last.loop), saved)
    last.close()


def test_rows_from_before_the_lake_stay_in_the_checkpoints_until_the_last_is_overwritten(tmp_path):
    first = Session(make_config(trace={"enabled": False}), tmp_path).train(6)
    path = first.save("first")
    first.close()
    second = first.resumed(path, **{"trace.enabled": True}).train(1)
    mixed, saved = second.save("mixed"), snapshot(second.loop)
    assert memory_of(mixed) == (True, [])
    assert memory_of(check_resume(second.train(2), "logged")) == (False, [(1, 6, 9)])
    third = second.resumed(mixed)
    assert_same(snapshot(third.loop), saved)
    third.close()


def test_fragments_of_a_version_may_become_fewer(tmp_path):
    """Ids begin again at lower ones then: the same id is of two sessions."""
    rollout = {"num_workers": 2, "num_envs": 4, "fragment_steps": 8}
    config = make_config(rollout=rollout, replay={"capacity_rows": 300})
    first = Session(config, tmp_path).train(4)
    path = first.save("first")
    first.close()
    second = first.resumed(path, **{"rollout.num_workers": 1}).train(2)
    path = second.save("second")
    second.close()
    expected = (False, [(0, 0, 8), (1, 4, 6)])
    assert memory_of(path) == expected
    assert memory_of(check_resume(second.resumed(path), "third")) == expected


# --- what cannot go on ---


@pytest.fixture(params=[True, False], ids=["lake", "file"])
def ended(request, tmp_path):
    """A run that ended, and its checkpoint."""
    config = make_config(trace={"enabled": request.param, "commit_rows": 64})
    session = Session(config, tmp_path).train(6)
    path = session.save("saved")
    session.close()
    return session, path


@pytest.mark.parametrize("capacity", [149, 151])
def test_a_memory_of_another_capacity_is_refused_with_both(capacity, ended):
    session, path = ended
    says = f"replay.capacity_rows=150, and here that is {capacity}; resume with the same"
    with pytest.raises(CheckpointError, match=says):
        session.resumed(path, **{"replay.capacity_rows": capacity})


def test_a_capacity_that_was_not_reached_may_grow(tmp_path):
    session = Session(make_config(), tmp_path).train(2)
    saved, path = snapshot(session.loop), session.save("saved")
    session.close()
    resumed = session.resumed(path, **{"replay.capacity_rows": 1000})
    assert_same(snapshot(resumed.loop), saved)
    resumed.close()


def test_a_uniform_memory_does_not_go_on_by_priority(ended):
    session, path = ended
    with pytest.raises(CheckpointError, match=r"replay memory: .* prioritized is True"):
        session.resumed(path, **{"replay.prioritized": True})


def test_a_lake_that_lost_rows_is_named_with_what_is_left(tmp_path):
    session = Session(make_config(), tmp_path).train(5)
    path = session.save("saved")
    session.train(1).close()
    for file in sorted((tmp_path / "lake" / "steps").rglob("*.parquet"))[:1]:
        file.unlink()
    with pytest.raises(CheckpointError) as caught:
        session.resumed(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: replay memory: ")
    assert "parquet is missing" in message


def test_a_lake_that_is_gone_is_named(tmp_path):
    session = Session(make_config(), tmp_path).train(5)
    path = session.save("saved")
    session.close()
    (tmp_path / "lake").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"replay memory: .*{tmp_path}/lake"):
        session.resumed(path, **{"trace.lake": str(tmp_path / "other")})


# --- real kills ---

_CHILD = """
import sys
from pathlib import Path
from pipelines import Pipeline, training
from pipelines.checkpoint import latest_checkpoint
from tests.pipelines.test_off_policy_resume import digest, make_config

storage, debug, end = Path(sys.argv[1]), sys.argv[2] == "debug", int(sys.argv[3])
notes = (storage / "digests.txt").open("a", buffering=1)
save, restore = training.Saver.__call__, training.restore

def noting_save(self, loop, folder):
    notes.write(f"saved {loop.incarnation} {loop.iteration} {digest(loop)}\\n")
    return save(self, loop, folder)

def noting_restore(loop, plan, checkpoint):
    restore(loop, plan, checkpoint)
    session = checkpoint.state["loop"]["incarnation"]
    notes.write(f"restored {session} {loop.iteration} {digest(loop)}\\n")

training.Saver.__call__, training.restore = noting_save, noting_restore
options = {"storage": storage, "name": "run"}
if (storage / "run").exists():
    options = {"resume": latest_checkpoint(storage / "run" / "checkpoints").path}
config = make_config(
    checkpoint={"period_iterations": 2, "keep": 3},
    replay={"prioritized": True},
    trace={"commit_interval_s": 0.05},
    resources={"rollout_cpus": 0.25},
    stop={"training_iteration": end},
)
with Pipeline(config, debug=debug, **options) as pipeline:
    for result in pipeline.stream():
        print(result["training_iteration"], flush=True)
"""


def start_child(storage, mode, end):
    storage.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(storage), mode, str(end)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def digests(storage, kind):
    """{(session, iteration): digest} of the states saved or restored."""
    lines = [line.split() for line in (storage / "digests.txt").read_text().splitlines()]
    return {(int(s), int(i)): noted for what, s, i, noted in lines if what == kind}


@pytest.mark.fault
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        pytest.param("debug", 2, id="quick"),
        pytest.param("debug", 10, id="debug"),
        pytest.param("ray", 3, id="ray", marks=pytest.mark.ray),
    ],
)
def test_a_killed_run_goes_on_from_what_an_uninterrupted_one_had(mode, kills, tmp_path):
    rng = random.Random(kills)
    whole, storage = tmp_path / "whole", tmp_path / "killed"
    process = start_child(whole, mode, 12)
    process.communicate(timeout=120)
    assert process.returncode == 0
    for _ in range(kills):
        process = start_child(storage, mode, 10_000)
        for _ in range(rng.randrange(3, 8)):  # past its first checkpoint
            assert process.stdout.readline().strip().isdecimal()
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = max(iteration for _, iteration in digests(storage, "saved"))
    process = start_child(storage, mode, last + 5)
    process.communicate(timeout=120)
    assert process.returncode == 0
    saved, restored = digests(storage, "saved"), digests(storage, "restored")
    assert len(restored) == kills
    assert restored == {key: saved[key] for key in restored}
    uninterrupted = digests(whole, "saved")
    begun = {key: noted for key, noted in saved.items() if key in uninterrupted}
    assert len(begun) >= 1
    assert begun == {key: uninterrupted[key] for key in begun}
