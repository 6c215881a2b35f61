"""RLlib's recordings: JSON lines of SampleBatches here, parquet in `import_rllib_parquet`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Space

from offline.errors import ImportDataError
from offline.exchange import BadRecord, Fault, Record, Spaces
from offline.import_rllib_parquet import parquet_rows
from offline.import_rows import RowGrouper, Rows
from offline.import_spaces import spaces_beside
from offline.rllib_columns import KNOWN, NAMES, refuse_packed
from rl_ops.tree import Tree, tree_leaves

Array = npt.NDArray[Any]

_REQUIRED: Final = ("obs", "action", "reward")
_DONES: Final = "dones"


@dataclass
class RllibSource:
    """JSON and parquet files as RLlib's `output` writes them.

    Args:
        files: read in this order.
    """

    files: tuple[str, ...]
    ignored: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    kind: str = "rllib"
    untyped: bool = False

    def stated_spaces(self) -> Spaces | None:
        """The spaces of spaces.json beside the files."""
        return spaces_beside(self.files)

    def records(self, spaces: Spaces | None) -> Iterator[Record]:
        """See Source."""
        grouper = RowGrouper()
        for file in self.files:
            parts = (
                parquet_rows(file, spaces, self.ignored)
                if Path(file).suffix.lower() == ".parquet"
                else self._json(file, spaces)
            )
            for part in parts:
                if isinstance(part, BadRecord):
                    yield part
                else:
                    yield from grouper.add(part)
        yield from grouper.finish()

    def _json(self, file: str, spaces: Spaces | None) -> Iterator[Rows | BadRecord]:
        try:
            with open(file, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield self._line(file, number, line, spaces)
        except UnicodeDecodeError as error:
            raise ImportDataError(f"{file} is no text, so no RLlib JSON: {error}") from error

    def _line(self, file: str, number: int, line: str, spaces: Spaces | None) -> Rows | BadRecord:
        try:
            batch = _sample_batch(json.loads(line), f"{file}, line {number}")
        except (json.JSONDecodeError, RecursionError) as error:
            return BadRecord(file, number, f"no JSON: {error}", line[:200], "line")
        if batch is None:
            what = "no SampleBatch: expected an object with obs, actions and rewards"
            return BadRecord(file, number, what, line[:200], "line")
        for name in set(batch) & KNOWN:
            if isinstance(batch[name], str):
                refuse_packed(file, f"line {number}", name)
        batch = self._with_terminateds(batch)
        self.ignored |= batch.keys() - KNOWN - {"type", "count", _DONES}
        try:
            return _rows(batch, file, number, spaces)
        except ValueError as error:
            return BadRecord(file, number, str(error), line[:200], "line")

    def _with_terminateds(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if _DONES not in batch or "terminateds" in batch:
            return dict(batch)
        self.notes.add(
            "`dones` of an old RLlib is taken as terminated, as RLlib itself does; episodes that "
            "a time limit cut are terminated in it too"
        )
        return {**batch, "terminateds": batch[_DONES]}


def _sample_batch(data: Any, where: str) -> dict[str, Any] | None:
    if isinstance(data, dict) and data.get("type") == "MultiAgentBatch":
        policies = data.get("policy_batches")
        if not isinstance(policies, dict) or len(policies) != 1:
            names = sorted(policies) if isinstance(policies, dict) else policies
            raise ImportDataError(
                f"{where} is a MultiAgentBatch of {names}; episodes of one agent can be imported. "
                "Write each policy's batches to files of their own"
            )
        data = next(iter(policies.values()))
    if not isinstance(data, dict) or not {NAMES[name] for name in _REQUIRED} <= data.keys():
        return None
    return data


def _rows(batch: Mapping[str, Any], file: str, number: int, spaces: Spaces | None) -> Rows:
    faults: list[Fault] = []

    def read(name: str, space: Space | None = None) -> Tree:
        value = batch.get(NAMES[name])
        return None if value is None else json_tree(value, space, NAMES[name], faults)

    obs_space = None if spaces is None else spaces.obs
    trees = {
        "obs": read("obs", obs_space),
        "action": read("action", None if spaces is None else spaces.action),
        "next_obs": read("next_obs", obs_space),
        **{name: read(name) for name in ("reward", "terminated", "truncated", "t", "logp")},
    }
    if trees["logp"] is None and "action_prob" in batch:
        with np.errstate(divide="ignore"):
            trees["logp"] = np.log(np.asarray(batch["action_prob"], np.float64))
    rows = len(trees["reward"])
    for name, tree in trees.items():
        lengths = {len(leaf) for leaf in tree_leaves(tree)} if tree is not None else {rows}
        if lengths != {rows}:
            raise ValueError(f"{name} has {sorted(lengths)} rows, reward {rows}")
    return Rows(
        file=file,
        numbers=np.full(rows, number),
        episode_ids=_names(batch.get(NAMES["episode_id"]), rows),
        faults=tuple(faults),
        unit="line",
        **trees,
    )


def _names(values: Any, rows: int) -> Array | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != rows:
        raise ValueError(f"eps_id is not one id for each of {rows} rows")
    names = np.empty(rows, dtype=object)
    names[:] = ["" if value is None else str(value) for value in values]
    return names


def json_tree(value: Any, space: Space | None, name: str, faults: list[Fault]) -> Tree:
    """A JSON column as a tree; rows of other lengths than most are faults, and zeros."""
    children = getattr(space, "spaces", None)
    if isinstance(value, dict):
        of = children if isinstance(children, dict) else {}
        return {
            key: json_tree(part, of.get(key), f"{name}.{key}", faults)
            for key, part in value.items()
        }
    if isinstance(children, tuple) and isinstance(value, list) and len(value) == len(children):
        pairs = enumerate(zip(value, children, strict=True))
        return tuple(json_tree(v, s, f"{name}.{i}", faults) for i, (v, s) in pairs)
    if not isinstance(value, list):
        raise ValueError(f"{name} is {type(value).__name__}, expected a list")
    try:
        array = np.asarray(value)
    except ValueError:
        return _ragged(value, name, faults)
    if array.dtype.kind != "O":
        return array
    try:
        return np.asarray(value, np.float64)  # null is NaN
    except (ValueError, TypeError):
        raise ValueError(f"{name} holds something other than numbers") from None


def _ragged(value: list[Any], name: str, faults: list[Fault]) -> Array:
    rows: list[Array | None] = []
    for row in value:
        try:
            rows.append(np.asarray(row, np.float64))
        except (ValueError, TypeError):
            rows.append(None)
    shapes = [None if row is None else row.shape for row in rows]
    usual = max(set(shapes) - {None}, key=shapes.count, default=())
    whole = np.zeros((len(rows), *(usual or ())))
    for index, (row, shape) in enumerate(zip(rows, shapes, strict=True)):
        if row is not None and shape == usual:
            whole[index] = row
        else:
            got = "no numbers" if shape is None else f"shape {list(shape)}"
            what = f"{name} has {got}, other rows {list(usual or ())}"
            faults.append(Fault(index, "mixed_lengths", what))
    return whole
