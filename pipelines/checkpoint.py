"""Checkpoints: a folder of safetensors and JSON with a manifest of checksums; never pickle."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import CheckpointError
from rl_ops.policy import Policy, PolicySpec, Weights

FORMAT_VERSION = 1
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
        tensors: {"modules" | "optimizers": {name: torch tensor}}.
        state: JSON-able: counters, random state, policy spec.
        config: the run's configuration.

    Returns:
        `folder`.
    """
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for group in ("modules", "optimizers"):
            copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors[group].items()}
            save_file(copies, temporary / f"{group}.safetensors")
        _write_json(temporary / "state.json", state)
        _write_json(temporary / "config.json", config)
        digests = {name: _sha256(temporary / name) for name in FILES}
        for name in FILES:
            _sync(temporary / name)
        _write_json(temporary / "manifest.json", {"format": FORMAT_VERSION, "sha256": digests})
        _sync(temporary / "manifest.json")
        _sync(temporary)
        os.rename(temporary, folder)
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
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        exists = (
            "has no manifest.json: it was not written completely"
            if folder.is_dir()
            else ("does not exist")
        )
        raise CheckpointError(f"checkpoint {folder} {exists}; use an earlier one")
    manifest = _read_json(manifest_path)
    version = manifest.get("format")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {folder} has format {version}; this version of millrace reads format "
            f"{FORMAT_VERSION}"
        )
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint {folder}: {name} is missing; use an earlier one")
        if manifest.get("sha256", {}).get(name) != _sha256(path):
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
        self.state: dict[str, Any] = _read_json(self.path / "state.json")
        self.config: dict[str, Any] = _read_json(self.path / "config.json")

    @property
    def policy(self) -> PolicySpec:
        """The policy's spec."""
        return PolicySpec.from_json(self.state["policy"])

    def tensors(self) -> dict[str, dict[str, Any]]:
        """{"modules" | "optimizers": {name: torch tensor}}."""
        from safetensors.torch import load_file

        groups = ("modules", "optimizers")
        return {group: load_file(self.path / f"{group}.safetensors") for group in groups}

    def weights(self) -> Weights:
        """What the policy acts with; reads no torch."""
        from safetensors.numpy import load_file

        arrays = load_file(self.path / "modules.safetensors")
        prefix = self.state["acts_with"] + "."
        module = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        statistics = self.state["statistics"]
        mean, std = (
            None if statistics[k] is None else np.asarray(statistics[k], np.float32)
            for k in ("obs_mean", "obs_std")
        )
        return Weights(module, mean, std, statistics["reward_std"])


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """The policy of a checkpoint, ready to act, without Ray.

    Raises:
        CheckpointError: it is missing, incomplete or altered.
    """
    checkpoint = Checkpoint(path)
    return Policy(checkpoint.policy, checkpoint.weights())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's checkpoints folder, skipping damaged ones."""
    for candidate in sorted(folder.glob("[0-9]*"), key=lambda p: int(p.name), reverse=True):
        try:
            verify_checkpoint(candidate)
        except CheckpointError:
            continue
        return candidate
    return None


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
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(value).__name__}")
    return value
