"""A table's commit log through delta-rs: in object stores, and of tables with newer protocols."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offline.commit_info import INFO, VersionTakenError, info_of, token_of
from offline.commits import read_commits
from offline.failpoints import fail_point
from offline.journal import Batch
from offline.parts import Part
from offline.patience import asking
from offline.schemas import TABLES
from offline.storage import Storage

if TYPE_CHECKING:
    from deltalake import DeltaTable


class DeltaLog:
    """The log of a table anywhere, through delta-rs."""

    def __init__(self, storage: Storage, table: str, writer: str, opened: "DeltaTable") -> None:
        self._storage, self._name, self._writer, self._opened = storage, table, writer, opened
        self.seen: dict[int, tuple[str | None, int]] = {}
        self.version: int = opened.version()
        self.last: int = self._last()

    def _last(self) -> int:
        found = self._opened.transaction_version(self._writer)
        return -1 if found is None else int(found)

    def refresh(self) -> None:
        """Read what came after the known version; slow where the log is long."""
        before = self.version
        asking(self._storage, self._opened.update_incremental)
        self.version = self._opened.version()
        last = self._last()
        if last == self.last:
            return
        self.last = last
        for met in read_commits(self._storage, self._name, range(before + 1, self.version + 1)):
            seq = met.transactions.get(self._writer)
            if seq is not None:
                self.seen[seq] = token_of(met), met.version

    def append(self, parts: Sequence[Part], batch: Batch) -> int:
        """Commit after whatever others committed in between."""
        from deltalake.exceptions import CommitFailedError
        from deltalake.transaction import AddAction, CommitProperties, Transaction

        actions = [
            AddAction(p.path, p.size, dict(p.partition), p.modified_ms, True, p.stats)
            for p in parts
        ]
        properties = CommitProperties(
            app_transactions=[Transaction(batch.writer, batch.seq)],
            custom_metadata={INFO: info_of(self._name, batch)},
        )
        try:
            self._opened.create_write_transaction(
                actions,
                mode="append",
                schema=self._opened.schema(),
                partition_by=list(TABLES[self._name].partition_by),
                commit_properties=properties,
            )
        except CommitFailedError:
            raise VersionTakenError from None
        fail_point("commit.written")
        asking(self._storage, self._opened.update_incremental)
        self.version, self.last = self._opened.version(), batch.seq
        return self.version
