"""From accepted and rejected episodes to batches of lake rows, the same on every replay."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from offline import schemas as s
from offline.exchange import Episode
from offline.import_contract import Violation
from offline.space_codec import SpaceCodec
from rl_ops import columns as c
from rl_ops.tree import tree_concat, tree_leaves, tree_map, tree_set, tree_take

IMPORT: Final = "import"
MAX_ROWS: Final = 65_536
MAX_BYTES: Final = 64 << 20
_MAX_REJECTED: Final = 10_000


@dataclass(frozen=True)
class Batch:
    """What is written at once.

    Attributes:
        tables: steps, episodes and rejected, those that have rows.
        fragments: the one that the steps are, or none.
    """

    tables: dict[str, pa.Table]
    fragments: tuple[int, ...]


@dataclass(frozen=True)
class _Piece:
    """Steps of one episode that go into one batch."""

    episode: Episode
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_end(self) -> bool:
        return self.stop == len(self.episode)

    def obs(self) -> Any:
        return tree_take(self.episode.obs, slice(self.start, self.stop))

    def final_obs(self) -> Any:
        if self.is_end:
            return self.episode.final_obs
        return tree_take(self.episode.obs, slice(self.stop, self.stop + 1))


@dataclass
class Batcher:
    """Fills fragments with whole episodes; only an episode larger than one is split.

    Args:
        run_id: of the import.
        space: key of the spaces.
        obs_codec, action_codec: of the spaces.
        max_rows, max_bytes: of a batch. Another value makes other batches, so that an import
            begun with one cannot go on with another.
    """

    run_id: str
    space: str
    obs_codec: SpaceCodec
    action_codec: SpaceCodec
    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES
    _pieces: list[_Piece] = field(default_factory=list)
    _rejected: list[dict[str, Any]] = field(default_factory=list)
    _rows: int = 0
    _fragment: int = 0
    _first_of: dict[str, int] = field(default_factory=dict)

    def batches(self, outcomes: Iterable[Episode | list[Violation]]) -> Iterator[Batch]:
        """Every batch but what is left at the end, which `rest` has."""
        for outcome in outcomes:
            if isinstance(outcome, list):
                self._rejected += [_rejected_row(self.run_id, one) for one in outcome]
                if len(self._rejected) >= _MAX_REJECTED:
                    yield self._flush()
                continue
            limit = self._rows_of(outcome)
            if self._pieces and self._rows + len(outcome) > limit:
                yield self._flush()
            for start in range(0, len(outcome), limit):
                piece = _Piece(outcome, start, min(start + limit, len(outcome)))
                self._pieces.append(piece)
                self._rows += len(piece)
                if not piece.is_end:
                    self._first_of.setdefault(outcome.episode_id, self._fragment)
                    yield self._flush()

    def rest(self) -> Batch:
        """What is left; may have no rows at all."""
        return self._flush()

    def _rows_of(self, episode: Episode) -> int:
        """How many such rows make a batch."""
        size = sum(
            leaf.nbytes for tree in (episode.obs, episode.action) for leaf in tree_leaves(tree)
        )
        most: int = min(self.max_rows, self.max_bytes * len(episode) // max(size, 1))
        return max(1, most)

    def _flush(self) -> Batch:
        pieces, self._pieces, self._rows = self._pieces, [], 0
        rejected, self._rejected = self._rejected, []
        tables: dict[str, pa.Table] = {}
        fragments: tuple[int, ...] = ()
        if pieces:
            tables[s.STEPS.name] = self._steps(pieces)
            tables[s.EPISODES.name] = self._episodes(pieces)
            fragments = (self._fragment,)
            self._fragment += 1
        if rejected:
            schema = s.REJECTED.schema
            tables[s.REJECTED.name] = pa.Table.from_pylist(rejected, schema=schema)
        return Batch(tables, fragments)

    def _steps(self, pieces: list[_Piece]) -> pa.Table:
        rows = sum(len(piece) for piece in pieces)
        last = np.cumsum([len(piece) for piece in pieces]) - 1
        flags = {name: np.zeros(rows, np.bool_) for name in (c.TERMINATED, c.TRUNCATED, c.IS_LAST)}
        flags[c.IS_LAST][last] = True
        flags[c.TERMINATED][last] = [p.episode.terminated and p.is_end for p in pieces]
        flags[c.TRUNCATED][last] = [p.episode.truncated and p.is_end for p in pieces]
        obs = self.obs_codec.columns(tree_concat([piece.obs() for piece in pieces]))
        action = self.action_codec.columns(
            tree_concat([tree_take(p.episode.action, slice(p.start, p.stop)) for p in pieces])
        )
        final = self._final_obs(pieces, last, rows)
        reward = np.concatenate([p.episode.reward[p.start : p.stop] for p in pieces])
        t = np.concatenate([np.arange(p.start, p.stop, dtype=np.int32) for p in pieces])
        arrays = {
            c.RUN_ID: pa.repeat(self.run_id, rows),
            s.SESSION: pa.repeat(pa.scalar(0, pa.int32()), rows),
            c.FRAGMENT_ID: pa.repeat(pa.scalar(self._fragment, pa.int64()), rows),
            c.WORKER_ID: pa.repeat(pa.scalar(0, pa.int32()), rows),
            c.ENV_ID: pa.repeat(pa.scalar(0, pa.int32()), rows),
            c.EPISODE_ID: _repeated_ids(pieces),
            c.T: pa.array(t),
            s.SPACE: pa.repeat(self.space, rows),
            c.OBS: obs.values,
            s.OBS_BYTES: obs.bytes_,
            c.ACTION: action.values,
            s.ACTION_BYTES: action.bytes_,
            c.REWARD: pa.array(reward),
            **{name: pa.array(values) for name, values in flags.items()},
            c.ABORTED: pa.repeat(False, rows),
            c.FINAL_OBS: final[0],
            s.FINAL_OBS_BYTES: final[1],
            c.LOGP: _logp(pieces),
            c.POLICY_VERSION: pa.repeat(pa.scalar(-1, pa.int64()), rows),
        }
        return _table(arrays, s.STEPS.schema, rows)

    def _final_obs(self, pieces: list[_Piece], last: Any, rows: int) -> tuple[Any, Any]:
        known = [(int(row), piece) for row, piece in zip(last, pieces, strict=True)]
        known = [(row, piece) for row, piece in known if piece.final_obs() is not None]
        if not known:
            return None, None
        valid = np.zeros(rows, np.bool_)
        index = np.array([row for row, _ in known])
        valid[index] = True
        finals = tree_concat([piece.final_obs() for _, piece in known])
        tree = tree_map(lambda leaf: np.zeros((rows, *leaf.shape[1:]), leaf.dtype), finals)
        tree_set(tree, index, finals)
        found = self.obs_codec.columns(tree, valid)
        return found.values, found.bytes_

    def _episodes(self, pieces: list[_Piece]) -> pa.Table:
        rows = []
        for piece in pieces:
            if not piece.is_end:
                continue
            episode = piece.episode
            rows.append(
                {
                    c.RUN_ID: self.run_id,
                    s.SESSION: 0,
                    c.EPISODE_ID: episode.episode_id,
                    s.KIND: IMPORT,
                    c.WORKER_ID: 0,
                    c.ENV_ID: 0,
                    s.SEED: episode.seed,
                    s.RETURN: float(episode.reward.sum()),
                    s.LENGTH: len(episode),
                    c.TERMINATED: episode.terminated,
                    c.TRUNCATED: episode.truncated,
                    c.ABORTED: False,
                    s.POLICY_VERSION_FIRST: -1,
                    s.POLICY_VERSION_LAST: -1,
                    s.FRAGMENT_FIRST: self._first_of.pop(episode.episode_id, self._fragment),
                    s.FRAGMENT_LAST: self._fragment,
                }
            )
        return pa.Table.from_pylist(rows, schema=s.EPISODES.schema)


def _repeated_ids(pieces: list[_Piece]) -> pa.Array:
    codes = np.repeat(np.arange(len(pieces), dtype=np.int32), [len(piece) for piece in pieces])
    names = pa.array([piece.episode.episode_id for piece in pieces], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes), names)


def _logp(pieces: list[_Piece]) -> pa.Array:
    parts, known = [], []
    for piece in pieces:
        logp = piece.episode.logp
        known.append(np.full(len(piece), logp is not None))
        parts.append(np.zeros(len(piece)) if logp is None else logp[piece.start : piece.stop])
    values = np.concatenate(parts).astype(np.float32)
    return pa.array(values, mask=~np.concatenate(known))


def _table(arrays: dict[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    columns = [
        pa.nulls(rows, f.type) if arrays.get(f.name) is None else arrays[f.name] for f in schema
    ]
    return pa.table(columns, names=schema.names)


def _rejected_row(run_id: str, violation: Violation) -> dict[str, Any]:
    content = {"unit": violation.unit, "message": violation.message, "step": violation.content}
    return {
        c.RUN_ID: run_id,
        s.SESSION: 0,
        "source": violation.file,
        c.EPISODE_ID: violation.episode_id,
        "row": violation.row,
        s.REASON: violation.reason,
        "content": json.dumps(content)[:2000],
        s.AT: time.time_ns() // 1000,
    }
