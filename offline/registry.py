"""The model registry: what an alias such as `champion` names, and everything that it named."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from offline import schemas as s
from offline.errors import LakeError
from offline.lake import Lake
from offline.storage import Storage
from offline.transact import has_table, later_than, transact

WRITER: Final = "registry"
CHAMPION: Final = "champion"
"""The alias of the policy that is in use."""


class RegistryError(LakeError):
    """An alias that does not exist, or was changed by somebody else meanwhile."""


@dataclass(frozen=True)
class Entry:
    """One change of an alias.

    Attributes:
        model: the line of policies.
        alias: as "champion".
        checkpoint: its folder; None where the alias was removed.
        sha256: of its manifest.json.
        run_id: that wrote it.
        action: set, rollback or remove.
        reason: figures that led to it.
        workflow, logical_time: of the scheduled run that did it.
        at: when.
    """

    model: str
    alias: str
    checkpoint: str | None
    sha256: str | None
    run_id: str | None = None
    action: str = "set"
    reason: Mapping[str, Any] | None = None
    workflow: str | None = None
    logical_time: datetime | None = None
    at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        times = {name: getattr(self, name) for name in ("logical_time", "at")}
        return {**self.__dict__, **{k: v and v.isoformat() for k, v in times.items()}}


class Registry:
    """Aliases of models in a lake.

    Args:
        storage: of the lake.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def history(self, model: str | None = None, alias: str | None = None) -> list[Entry]:
        """Every change, the oldest first; none where there is no lake yet."""
        lake = Lake(self._storage)
        return _entries(lake, model, alias) if has_table(lake, s.REGISTRY.name) else []

    def get(self, model: str, alias: str = CHAMPION) -> Entry | None:
        """What an alias names now; None for nothing."""
        return _newest(self.history(model, alias))

    def require(self, model: str, alias: str = CHAMPION) -> Entry:
        """What an alias names now.

        Raises:
            RegistryError: nothing; says what there is.
        """
        found = self.get(model, alias)
        if found is None:
            known = sorted({f"{e.model} {e.alias}" for e in self.history()})
            there = f"there is {', '.join(known)}" if known else "the registry is empty"
            raise RegistryError(f"{model!r} has no {alias!r}; {there}.")
        return found

    def set(self, entry: Entry) -> tuple[Entry, bool]:
        """Let an alias name a checkpoint.

        Args:
            entry: with its checkpoint; one that a scheduled run sets a second time is left as it
                is, so that a step that was killed can be done again.

        Returns:
            The newest entry, and whether it was added now.

        Raises:
            RegistryError: the checkpoint is not there, or is another one than `sha256` says.
        """
        assert entry.checkpoint is not None
        digest = manifest_sha256(entry.checkpoint)
        if entry.sha256 not in (None, digest):
            raise RegistryError(
                f"{entry.checkpoint} is not the checkpoint that was to be set: its manifest.json "
                f"has sha256 {digest[:12]}, expected {str(entry.sha256)[:12]}."
            )
        wanted = _with(entry, sha256=digest)

        def decide(before: list[Entry]) -> Entry | None:
            done = [e for e in before if e.action == wanted.action and _same(e, wanted)]
            return None if done else wanted

        return self._change(wanted.model, wanted.alias, decide)

    def rollback(self, model: str, alias: str = CHAMPION, *, reason: str = "") -> Entry:
        """Let an alias name what it named before its present checkpoint.

        Raises:
            RegistryError: it names nothing, or nothing else before; or that is no longer there.
        """

        def decide(before: list[Entry]) -> Entry:
            stack = standing(before)
            if len(stack) < 2:
                raise RegistryError(
                    f"{model!r} {alias!r} has nothing to go back to: "
                    + (f"it names {stack[0].checkpoint} since it was set." if stack else "not set.")
                )
            now, earlier = stack[-1], stack[-2]
            assert earlier.checkpoint is not None
            if manifest_sha256(earlier.checkpoint) != earlier.sha256:
                raise RegistryError(f"{earlier.checkpoint} was changed since it was set.")
            why = {"from": now.checkpoint, **({"reason": reason} if reason else {})}
            return Entry(
                model, alias, earlier.checkpoint, earlier.sha256, earlier.run_id, "rollback", why
            )

        return self._change(model, alias, decide)[0]

    def _change(self, model: str, alias: str, decide: Any) -> tuple[Entry, bool]:
        found: list[tuple[Entry, bool]] = []

        def rows(lake: Lake) -> dict[str, pa.Table]:
            before = _entries(lake, model, alias)
            new = decide(before)
            if new is None:
                newest = _newest(before)
                assert newest is not None
                found[:] = [(newest, False)]
                return {}
            new = _with(new, at=later_than(before[-1].at if before else None))
            found[:] = [(new, True)]
            return {s.REGISTRY.name: _table([new])}

        transact(self._storage, WRITER, rows)
        return found[0]


def standing(entries: list[Entry]) -> list[Entry]:
    """What an alias named in turn and would go back to: a rollback takes away what it left."""
    stack: list[Entry] = []
    for entry in entries:
        if entry.action == "rollback" and len(stack) > 1:
            stack.pop()
        elif entry.checkpoint is None:
            stack.clear()
        elif not stack or stack[-1].sha256 != entry.sha256:
            stack.append(entry)
    return stack


def manifest_sha256(checkpoint: str) -> str:
    """The digest that says which checkpoint a folder is.

    Raises:
        RegistryError: there is none.
    """
    path = Path(checkpoint) / "manifest.json"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RegistryError(f"{checkpoint} is no checkpoint: {path}: {error.strerror}.") from None


def _same(one: Entry, other: Entry) -> bool:
    """Whether both are of one step of one scheduled run, or name the same and are the newest."""
    if other.workflow is None:
        return False
    return (one.workflow, one.logical_time, one.sha256) == (
        other.workflow,
        other.logical_time,
        other.sha256,
    )


def _newest(entries: list[Entry]) -> Entry | None:
    return entries[-1] if entries and entries[-1].checkpoint is not None else None


def _with(entry: Entry, **values: Any) -> Entry:
    return Entry(**{**entry.__dict__, **values})


def _entries(lake: Lake, model: str | None, alias: str | None) -> list[Entry]:
    where = [(k, "=", v) for k, v in (("model", model), ("alias", alias)) if v is not None]
    rows = lake.registry(where=where or None).to_arrow().sort_by([(s.AT, "ascending")]).to_pylist()
    return [Entry(**{**row, s.REASON: json.loads(row[s.REASON] or "{}")}) for row in rows]


def _table(entries: list[Entry]) -> pa.Table:
    rows = [{**e.__dict__, s.REASON: json.dumps(e.reason or {})} for e in entries]
    return pa.Table.from_pylist(rows, schema=s.REGISTRY.schema)
