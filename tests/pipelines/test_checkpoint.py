"""Checkpoints: whole or not there, refused by the name of what is wrong, never run as code."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import Pipeline, PPOConfig, load_policy
from pipelines.checkpoint import (
    FILES,
    PARTIAL,
    Checkpoint,
    latest_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from pipelines.errors import CheckpointError, StorageError

ROOT = Path(__file__).parents[2]


def write(folder, *, fill=1.0):
    """A small checkpoint, of nothing that acts."""
    tensors = {"model.weight": torch.full((3, 4), fill), "model.step": torch.tensor(7)}
    return write_checkpoint(
        folder,
        tensors={"modules": tensors, "optimizers": {"optimizer.slot_0": torch.ones(5)}},
        state={"fill": fill, "returns": [1.5, -2.0]},
        config={"algo": "ppo"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of PPO on CartPole; tests copy it before they damage it."""
    config = PPOConfig(
        env="CartPole-v1",
        rollout={"num_envs": 4, "fragment_steps": 16},
        model={"hidden": (8,)},
        connectors={"normalize_obs": True},
    )
    storage = tmp_path_factory.mktemp("trained")
    with Pipeline(config, storage=storage, name="run", debug=True) as pipeline:
        pipeline.train()
        return pipeline.save()


@pytest.fixture
def copied(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def reseal(folder):
    """Make the manifest fit what the files hold now, as an attacker would."""
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "sha256": digests}))


# --- round trip ---


def test_what_was_written_is_read_back(tmp_path):
    checkpoint = Checkpoint(write(tmp_path / "runs" / "7", fill=0.25))
    assert checkpoint.state == {"fill": 0.25, "returns": [1.5, -2.0]}
    assert checkpoint.config == {"algo": "ppo"}
    tensors = checkpoint.tensors()
    assert torch.equal(tensors["modules"]["model.weight"], torch.full((3, 4), 0.25))
    assert tensors["modules"]["model.step"].dtype == torch.int64
    assert torch.equal(tensors["optimizers"]["optimizer.slot_0"], torch.ones(5))


def test_a_checkpoint_holds_no_pickle_and_nothing_beside_its_files(trained):
    assert sorted(p.name for p in trained.iterdir()) == sorted([*FILES, "manifest.json"])
    for path in trained.iterdir():
        assert b"\x80\x04" not in path.read_bytes()[:2]
        assert path.suffix in (".json", ".safetensors")


def test_it_can_be_read_by_whoever_may_read_the_folder_around_it(tmp_path):
    old = os.umask(0o022)
    try:
        folder = write(tmp_path / "1")
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("what", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_that_is_there_is_written_over(what, tmp_path):
    target = tmp_path / "1"
    if what == "folder":
        write(target, fill=3.0)
    elif what == "empty folder":
        target.mkdir()
    elif what == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="exists already; choose another path"):
        write(target)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_disk_that_takes_no_more_is_a_storage_error_and_leaves_nothing(tmp_path):
    script = f"""
import resource, signal, sys
from pathlib import Path
import torch
from pipelines.checkpoint import write_checkpoint
from pipelines.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint(
        Path({str(tmp_path / "1")!r}),
        tensors={{"modules": {{"w": torch.zeros(100_000)}}, "optimizers": {{}}}},
        state={{}}, config={{}},
    )
except StorageError as error:
    sys.exit(str(error))
"""
    done = python(script)
    assert done.returncode == 1, done.stderr
    assert "cannot write checkpoint" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write checkpoint"):
        write(tmp_path / "file" / "1")


# --- damage ---


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing", "a folder"])
def test_a_damaged_file_is_refused_by_name(name, damage, copied):
    path = copied / name
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        Checkpoint(copied)
    assert str(copied) in str(caught.value)
    with pytest.raises(CheckpointError):
        load_policy(copied)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "expected an object, got list"),
        (b"{}", "has format None"),
        (b'{"format": 1}', "is not what was written"),
        (b'{"format": 1, "sha256": []}', "is not what was written"),
        (b'{"format": 1, "sha256": {}}', "is not what was written"),
        (b'{"format": 2, "sha256": {}}', "has format 2; this version of millrace reads format 1"),
        (b'{"format": "1"}', "has format 1; this version"),
    ],
)
def test_a_manifest_that_is_none_is_refused_with_the_reason(manifest, says, copied):
    (copied / "manifest.json").write_bytes(manifest)
    with pytest.raises(CheckpointError, match=says):
        verify_checkpoint(copied)


def test_a_folder_without_a_manifest_was_not_written_completely(copied):
    (copied / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no manifest\.json: it was not written completely"):
        Checkpoint(copied)


@pytest.mark.parametrize("path", ["nothing/there", "plain file"])
def test_what_is_no_checkpoint_does_not_exist(path, tmp_path):
    (tmp_path / "plain file").write_text("x")
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint(tmp_path / path)


# --- hostile ---


class Exploit:
    """Unpickled, it leaves a file."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (Path(self.proof),))


@pytest.mark.parametrize("is_resealed", [False, True], ids=["as found", "with a fitting manifest"])
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("written_by", ["pickle", "torch"])
def test_a_pickle_in_place_of_a_file_is_refused_and_never_run(
    written_by, name, is_resealed, copied, tmp_path
):
    proof = tmp_path / "it ran"
    if written_by == "pickle":
        (copied / name).write_bytes(pickle.dumps(Exploit(proof)))
    else:
        torch.save({"model": Exploit(proof)}, copied / name)
    if is_resealed and name != "manifest.json":
        reseal(copied)
    for read in (load_policy, read_all):
        if is_resealed and name == "optimizers.safetensors" and read is load_policy:
            continue  # which acting does not read
        with pytest.raises(CheckpointError):
            read(copied)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Exploit(proof)))
    assert proof.exists()  # the weapon was loaded


def read_all(folder):
    checkpoint = Checkpoint(folder)
    return checkpoint.tensors(), checkpoint.policy


@pytest.mark.parametrize("key", ["policy", "obs_space", "model"])
def test_a_sealed_state_without_what_a_policy_needs_is_refused(key, copied):
    state = json.loads((copied / "state.json").read_text())
    del (state if key == "policy" else state["policy"])[key]
    (copied / "state.json").write_text(json.dumps(state))
    reseal(copied)
    with pytest.raises(CheckpointError, match=r"no policy can be read from state\.json"):
        load_policy(copied)


# --- kills ---

_KILLED_WRITES = """
import os, shutil, signal, sys
from pathlib import Path
import safetensors.torch
import torch
from pipelines.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint

torch.set_num_threads(1)
storage = Path(sys.argv[1])

def write(number):
    write_checkpoint(
        storage / str(number),
        tensors={"modules": {"w": torch.ones(3)}, "optimizers": {}}, state={"n": number}, config={},
    )

def deadly(call):
    def before_it(*args, **kwargs):
        global survive
        if survive == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        survive -= 1
        return call(*args, **kwargs)
    return before_it

write(1)
# Every call by which a checkpoint changes the disk.
os.fsync, os.rename = deadly(os.fsync), deadly(os.rename)
Path.mkdir, Path.write_text = deadly(Path.mkdir), deadly(Path.write_text)
safetensors.torch.save_file = deadly(safetensors.torch.save_file)
for survived in range(100):
    survive = survived
    pid = os.fork()
    if pid == 0:
        write(2)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    latest = latest_checkpoint(storage).path
    print(os.WTERMSIG(status), Checkpoint(latest).state["n"], flush=True)
    if os.WIFEXITED(status):
        break
    shutil.rmtree(storage / "2", ignore_errors=True)
"""


def python(script, *args, env=None, timeout=60):
    """Run a script in a process of its own, from the repository's root."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_killed_before_any_step_of_a_write_the_one_before_is_the_latest(tmp_path):
    done = python(_KILLED_WRITES, tmp_path)
    assert done.returncode == 0, done.stderr
    deaths = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    # 2 mkdir, 2 tensor files, 3 JSON, 6 fsync, the rename; killed before the last fsync, which is
    # of the folder around it, it is there already.
    assert deaths[:-2] == [(signal.SIGKILL, 1)] * 14
    assert deaths[-2:] == [(signal.SIGKILL, 2), (0, 2)]
    assert all(p.name.startswith(PARTIAL) for p in tmp_path.iterdir() if not p.name.isdecimal())


def test_the_latest_checkpoint_is_the_highest_number_that_is_whole(tmp_path):
    assert latest_checkpoint(tmp_path) == (None, ())
    for name in ("2", "9", "10", "11"):
        write(tmp_path / name)
    (tmp_path / "11" / "state.json").write_text("{}")
    (tmp_path / "10" / "manifest.json").unlink()
    write(tmp_path / "12-best")
    write(tmp_path / f"{PARTIAL}13.abcd")
    (tmp_path / "14").write_text("")
    latest = latest_checkpoint(tmp_path)
    assert latest.path == tmp_path / "9"
    assert len(latest.skipped) == 3
    assert "10 has no manifest.json" in latest.skipped[2]


# --- load_policy ---

_LOAD_WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2].split(","):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from pipelines import load_policy
policy = load_policy(sys.argv[1])
obs = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
action, _, extras = policy.act(obs)
print(action.tolist(), extras["logp"].tobytes().hex())
"""


def test_an_mlp_policy_loads_and_acts_without_ray_and_without_torch(trained):
    done = python(_LOAD_WITHOUT, trained, "ray,torch")
    assert done.returncode == 0, done.stderr
    action, _, extras = load_policy(trained).act(
        np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    )
    assert done.stdout.split("] ") == [
        str(action.tolist())[:-1],
        extras["logp"].tobytes().hex() + "\n",
    ]


def test_the_statistics_of_normalised_observations_are_part_of_the_policy(trained):
    weights = load_policy(trained).get_weights()
    assert weights.obs_mean is not None
    assert weights.obs_mean.any()
    assert (weights.obs_std > 0).all()
