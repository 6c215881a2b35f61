"""Checkpoints: a folder of safetensors and JSON with a manifest of checksums; never pickle."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offline.failpoints import fail_point
from pipelines.address import is_address
from pipelines.errors import CheckpointError, StorageError
from rl_ops.policy import Policy, PolicySpec, Weights

FORMAT_VERSION = 1
PARTIAL = ".partial-"
"""Begins the name of a checkpoint that is being written, or was when its process was killed."""
MEMORY = "memory.safetensors"
"""Of learners that remember rows; there is none in the others' checkpoints."""
FILES = ("modules.safetensors", "optimizers.safetensors", "state.json", "config.json")


def write_checkpoint(
    folder: Path,
    *,
    tensors: Mapping[str, Mapping[str, Any]],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    """Write a checkpoint so that it is there whole or not at all.

    Args:
        folder: where; must not exist.
        tensors: {"modules" | "optimizers" | "memory": {name: torch tensor}}; memory may be missing.
        state: JSON-able: counters, random state, policy spec.
        config: the run's configuration.

    Returns:
        `folder`.

    Raises:
        CheckpointError: there is something of that name.
        StorageError: it cannot be written, as on a full disk.
    """
    if os.path.lexists(folder):
        raise CheckpointError(f"{folder} exists already; choose another path")
    from safetensors import SafetensorError

    try:
        return _write(folder, tensors=tensors, state=state, config=config)
    except (OSError, SafetensorError) as error:  # safetensors wraps the OSErrors of its writes
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise StorageError(f"cannot write checkpoint {folder}: {why}") from error


def _write(
    folder: Path,
    *,
    tensors: Mapping[str, Mapping[str, Any]],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    from safetensors.torch import save_file

    fail_point("checkpoint.before")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{PARTIAL}{folder.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        for group, named in tensors.items():
            copies = {k: v.detach().cpu().contiguous().clone() for k, v in named.items()}
            save_file(copies, temporary / f"{group}.safetensors")
        _write_json(temporary / "state.json", state)
        _write_json(temporary / "config.json", config)
        names = (*FILES, MEMORY) if "memory" in tensors else FILES
        digests = {name: _sha256(temporary / name) for name in names}
        for name in names:
            _sync(temporary / name)
        fail_point("checkpoint.files_written")
        _write_json(temporary / "manifest.json", {"format": FORMAT_VERSION, "sha256": digests})
        _sync(temporary / "manifest.json")
        _sync(temporary)
        os.rename(temporary, folder)  # fails where meanwhile a folder with files is
        fail_point("checkpoint.renamed")
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def verify_checkpoint(folder: Path) -> None:
    """Check that a checkpoint is whole and unaltered.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    try:
        _verify(folder)
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error


def _verify(folder: Path) -> None:
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        what = "has no manifest.json: it was not written completely, or is none"
        what = what if folder.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {folder} {what}; use an earlier one")
    manifest = _read_json(manifest_path)
    version = manifest.get("format")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {folder} has format {version}; this version of millrace reads format "
            f"{FORMAT_VERSION}"
        )
    digests = manifest.get("sha256")
    for name in (*FILES, *[MEMORY] * (isinstance(digests, dict) and MEMORY in digests)):
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint {folder}: {name} is missing; use an earlier one")
        if not isinstance(digests, dict) or digests.get(name) != _sha256(path):
            raise CheckpointError(
                f"checkpoint {folder}: {name} is not what was written (its sha256 differs from "
                "the manifest's): truncated or altered. Use an earlier checkpoint"
            )


class Checkpoint:
    """A verified checkpoint, opened for reading.

    Args:
        path: the checkpoint's folder.

    Raises:
        CheckpointError: it is missing, incomplete or altered.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        verify_checkpoint(self.path)
        self.state = read_state(self.path)
        self.config: dict[str, Any] = _read_json(self.path / "config.json")

    @property
    def policy(self) -> PolicySpec:
        """The policy's spec.

        Raises:
            CheckpointError: there is none that this version can read.
        """
        try:
            return PolicySpec.from_json(self.state["policy"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint {self.path}: no policy can be read from state.json: "
                f"{type(error).__name__}: {error}"
            ) from error

    def tensors(self) -> dict[str, dict[str, Any]]:
        """{"modules" | "optimizers": {name: torch tensor}}.

        Raises:
            CheckpointError: a file is none of safetensors.
        """
        from safetensors.torch import load_file

        groups = ("modules", "optimizers")
        return {group: self._loaded(f"{group}.safetensors", load_file) for group in groups}

    def memory(self) -> dict[str, Any]:
        """What learners remembered beside their modules, {name: torch tensor}.

        Raises:
            CheckpointError: there is nothing of the kind, or its file is none of safetensors.
        """
        from safetensors.torch import load_file

        if not (self.path / MEMORY).is_file():
            raise CheckpointError(f"checkpoint {self.path} has no {MEMORY}: no learner's memory")
        return self._loaded(MEMORY, load_file)

    def _loaded(self, name: str, load_file: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        from safetensors import SafetensorError

        try:
            return load_file(self.path / name)
        except SafetensorError as error:
            raise CheckpointError(f"checkpoint {self.path}: {name}: {error}") from error

    def weights(self) -> Weights:
        """What the policy acts with; reads no torch.

        Raises:
            CheckpointError: its file is none of safetensors.
        """
        from safetensors.numpy import load_file

        arrays = self._loaded("modules.safetensors", load_file)
        prefix = self.state["acts_with"] + "."
        module = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        statistics = self.state["statistics"]
        mean, std = (
            None if statistics[k] is None else np.asarray(statistics[k], np.float32)
            for k in ("obs_mean", "obs_std")
        )
        env_steps = int(self.state["learner"]["env_steps"])
        return Weights(module, mean, std, statistics["reward_std"], env_steps)


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """The policy of a checkpoint, ready to act, without Ray.

    Raises:
        CheckpointError: it is missing, incomplete or altered.
    """
    # Imports pyarrow's file systems; a policy on disk needs none.
    if is_address(path):
        from pipelines.remote import fetched

        path = fetched(path)
    checkpoint = Checkpoint(path)
    return Policy(checkpoint.policy, checkpoint.weights())


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's counters, random state and policy, without looking at its other files.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _read_json(folder / "state.json")


class Latest(NamedTuple):
    """The newest whole checkpoint of a run.

    Attributes:
        path: its folder; None where there is none.
        skipped: what is wrong with newer ones.
    """

    path: Path | None
    skipped: tuple[str, ...]


def latest_checkpoint(folder: Path) -> Latest:
    """The newest whole checkpoint in a run's checkpoints folder, skipping damaged ones."""
    skipped: list[str] = []
    for candidate in reversed(numbered(folder)):
        try:
            verify_checkpoint(candidate)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        return Latest(candidate, tuple(skipped))
    return Latest(None, tuple(skipped))


def numbered(folder: Path) -> list[Path]:
    """The checkpoints in a run's checkpoints folder, the oldest first, whole or not."""
    found = [path for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(value).__name__}")
    return value
