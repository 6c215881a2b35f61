"""Episodes as RLlib's JSON: one SampleBatch a line, as its JsonWriter writes without packing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from offline.exchange import Episode, Spaces
from offline.exporting import Exported
from offline.rllib_columns import AGENT_INDEX, NAMES, UNROLL_ID
from rl_ops.tree import Tree, tree_concat, tree_take

_FILE_BYTES: Final = 64 << 20
"""After which JsonWriter begins another file too."""


def write_rllib(
    episodes: Iterator[Episode], folder: Path, spaces: Spaces, *, file_bytes: int = _FILE_BYTES
) -> Exported:
    """Write a line per episode; nested observations are objects of columns.

    RLlib needs `_disable_preprocessor_api` to read those, and `input_config` without
    postprocessing. `.offline_data(input_read_sample_batches=True)` reads the lines as episodes.

    Args:
        episodes: what to write.
        folder: where to.
        spaces: not used; they lie beside the files.
        file_bytes: after which another file begins.
    """
    del spaces
    files: list[str] = []
    file: TextIO | None = None
    written = 0
    try:
        for number, episode in enumerate(episodes):
            if file is None or written >= file_bytes:
                if file is not None:
                    file.close()
                files.append(f"output-millrace_worker-0_{len(files)}.json")
                file = (folder / files[-1]).open("w", encoding="utf-8")
                written = 0
            line = json.dumps(_sample_batch(number, episode), allow_nan=False)
            file.write(line + "\n")
            written += len(line)
    finally:
        if file is not None:
            file.close()
    return Exported(tuple(files), ("rllib: seeds are not in the format",) if files else ())


def _sample_batch(number: int, episode: Episode) -> dict[str, Any]:
    rows = len(episode)
    last = np.zeros(rows, np.bool_)
    last[-1] = True
    # RLlib repeats the last observation where none follows.
    final = episode.final_obs
    if final is None:
        final = tree_take(episode.obs, slice(rows - 1, rows))
    following = tree_concat([tree_take(episode.obs, slice(1, rows)), final])
    batch = {
        "type": "SampleBatch",
        NAMES["t"]: list(range(rows)),
        NAMES["episode_id"]: [episode.episode_id] * rows,
        AGENT_INDEX: [0] * rows,
        UNROLL_ID: [number] * rows,
        NAMES["obs"]: _lists(episode.obs),
        NAMES["action"]: _lists(episode.action),
        NAMES["reward"]: episode.reward.tolist(),
        NAMES["terminated"]: (last & episode.terminated).tolist(),
        NAMES["truncated"]: (last & episode.truncated).tolist(),
        NAMES["next_obs"]: _lists(following),
    }
    if episode.logp is not None:
        batch[NAMES["logp"]] = episode.logp.tolist()
        batch["action_prob"] = np.exp(episode.logp).tolist()
    return batch


def _lists(tree: Tree) -> Any:
    if isinstance(tree, dict):
        return {name: _lists(child) for name, child in tree.items()}
    if isinstance(tree, tuple):
        return [_lists(child) for child in tree]
    return tree.tolist()
