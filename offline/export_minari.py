"""Episodes as a Minari 0.5 dataset in its arrow layout, written without minari."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from gymnasium.spaces import Dict, Discrete, Space, Tuple

from offline import minari_layout as m
from offline.exchange import Episode, Spaces
from offline.exporting import Exported
from rl_ops.tree import Tree, tree_concat, tree_map, tree_take

_PART: Final = "part-0.arrow"
_VERSIONS: Final = "~=0.5"
"""Which Minari may read it: a version specifier, which Minari checks itself against."""


def write_minari(
    episodes: Iterator[Episode],
    folder: Path,
    spaces: Spaces,
    *,
    dataset_id: str,
    env_spec: str | None = None,
) -> Exported:
    """Write data/metadata.json and a folder with one arrow file for each episode.

    Args:
        episodes: what to write.
        folder: of the dataset; Minari finds it when it lies at <datasets>/<dataset_id>.
        spaces: of the episodes.
        dataset_id: as Minari calls it: "(namespace/)name(-v0)".
        env_spec: of the environment, as Gymnasium's EnvSpec.to_json gives it.

    Raises:
        ImportDataError: Minari has no form for a space.
    """
    data = folder / m.DATA
    data.mkdir()
    files = [f"{m.DATA}/{m.METADATA}"]
    total_episodes = total_steps = total_bytes = 0
    has_logp = False
    for number, episode in enumerate(episodes):
        written = _write_episode(data, number, episode, spaces)
        files += [f"{m.DATA}/{number}/{_PART}", f"{m.DATA}/{number}/{m.METADATA}"]
        total_episodes, total_steps = number + 1, total_steps + len(episode)
        total_bytes, has_logp = total_bytes + written, has_logp | (episode.logp is not None)
    metadata = {
        "total_episodes": total_episodes,
        "total_steps": total_steps,
        "dataset_size": round(total_bytes / 1e6, 1),
        **_about(spaces, dataset_id, env_spec),
    }
    (data / m.METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    notes = ("minari: log-probabilities of actions are not in the format",) if has_logp else ()
    return Exported(tuple(files), notes)


def _about(spaces: Spaces, dataset_id: str, env_spec: str | None) -> dict[str, Any]:
    return {
        "observation_space": json.dumps(m.space_to_minari(spaces.obs)),
        "action_space": json.dumps(m.space_to_minari(spaces.action)),
        "data_format": "arrow",
        "dataset_id": dataset_id,
        "minari_version": _VERSIONS,
        **({} if env_spec is None else {"env_spec": env_spec}),
    }


def _write_episode(data: Path, number: int, episode: Episode, spaces: Spaces) -> int:
    """Write an episode's folder; the bytes of its data."""
    path = data / str(number)
    path.mkdir()
    _write_arrow(path / _PART, episode, spaces)
    about = {"id": number, "total_steps": len(episode), "episode_id": episode.episode_id}
    if episode.seed is not None:
        about["seed"] = episode.seed
    (path / m.METADATA).write_text(json.dumps(about), encoding="utf-8")
    return (path / _PART).stat().st_size


def _write_arrow(path: Path, episode: Episode, spaces: Spaces) -> None:
    rows = len(episode)
    last = np.zeros(rows + 1, np.bool_)
    last[rows - 1] = True
    final = episode.final_obs
    if final is None:
        final = tree_take(episode.obs, slice(rows - 1, rows))
    # The row of the final observation is padded with zeros in all other columns.
    padding = tree_map(lambda leaf: np.zeros_like(leaf[:1]), episode.action)
    batch = pa.RecordBatch.from_pydict(
        {
            m.OBSERVATIONS: _encoded(spaces.obs, tree_concat([episode.obs, final])),
            m.ACTIONS: _encoded(spaces.action, tree_concat([episode.action, padding])),
            m.REWARDS: pa.array(np.append(episode.reward, 0.0)),
            m.TERMINATIONS: pa.array(last & episode.terminated),
            m.TRUNCATIONS: pa.array(last & episode.truncated),
        }
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _encoded(space: Space, tree: Tree) -> pa.Array:
    if isinstance(space, Dict | Tuple):
        children = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        named = [(str(name), _encoded(child, tree[name])) for name, child in children]
        return pa.StructArray.from_arrays([a for _, a in named], names=[n for n, _ in named])
    values = np.asarray(tree)
    if isinstance(space, Discrete):
        return pa.array(values)
    flat = values.reshape(len(values), -1)
    kind = pa.list_(pa.from_numpy_dtype(flat.dtype), flat.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), type=kind)
