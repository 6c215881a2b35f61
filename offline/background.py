"""A thread that gathers rows and writes them to a lake in batches, so that nobody waits for it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

import pyarrow as pa

from offline.errors import LakeError, LakeStorageError
from offline.failpoints import fail_point
from offline.storage import Storage

if TYPE_CHECKING:
    from offline.writer import LakeWriter

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 5.0
"""Between two tries to write to a storage that refused, when the policy is to wait."""


class Batch(NamedTuple):
    """What is to be written at once.

    Attributes:
        tables: table → rows of its schema.
        fragments: ids of the fragments in `steps`.
    """

    tables: Mapping[str, pa.Table]
    fragments: Sequence[int] = ()


@dataclass(frozen=True)
class WritePolicy:
    """When a batch is written, and what happens when it cannot be.

    Attributes:
        interval_s: at the latest so long after its first row.
        rows: at the latest with so many.
        max_queue_bytes: whoever puts more has to wait: the disk is slower than the run.
        compression: of data files: zstd, snappy or none.
        on_error: a storage that refuses (full, gone) stops the run, or is waited for.
    """

    interval_s: float = 5.0
    rows: int = 131_072
    max_queue_bytes: int = 256 * 2**20
    compression: str = "zstd"
    on_error: Literal["stop", "wait"] = "stop"


class BackgroundWriter(Generic[T]):
    """Batches items and writes them with one `LakeWriter` in one thread.

    Args:
        storage: of the lake.
        writer: name of the `LakeWriter`.
        make: items, in the order in which they were put → what is to be written of them.
        policy: when.

    What was put is in the lake after `flush` or `close`. Any method raises the error that ended
    the thread, and then nothing of the batch that failed is visible.
    """

    def __init__(
        self,
        storage: Storage,
        writer: str,
        *,
        make: Callable[[Sequence[T]], Batch],
        policy: WritePolicy,
    ) -> None:
        self._storage, self._name = storage, writer
        self._make, self._policy = make, policy
        self._changed = threading.Condition()
        self._items: deque[tuple[T, int, int]] = deque()
        self._rows = self._bytes = 0
        self._since = 0.0  # monotonic time of the oldest item
        self._opened = self._busy = self._closing = False
        self._flushing = 0
        self._error: Exception | None = None
        self._versions: dict[str, int] = {}
        # A daemon: what is not flushed when its process ends is lost either way.
        self._thread = threading.Thread(target=self._run, name=f"lake-{writer}", daemon=True)
        self._thread.start()

    def put(self, item: T, *, rows: int, num_bytes: int) -> None:
        """Queue an item; waits only while the queue holds more than the policy allows.

        Raises:
            LakeError: writing failed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._bytes < self._policy.max_queue_bytes or self._ended
            )
            self._raise()
            if not self._items:
                self._since = time.monotonic()
            self._items.append((item, rows, num_bytes))
            self._rows += rows
            self._bytes += num_bytes
            if self._is_due() or len(self._items) == 1:
                self._changed.notify_all()
        fail_point("sink.queued")

    def flush(self) -> dict[str, int]:
        """Wait until all that was put is in the lake.

        Returns:
            Table → the version that holds it, of those written so far.

        Raises:
            LakeError: writing failed.
        """
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_idle or self._ended)
            self._flushing -= 1
            self._raise()
            return dict(self._versions)

    def close(self) -> dict[str, int]:
        """Write what is left and end the thread; as `flush`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._raise()
        return dict(self._versions)

    def versions(self) -> dict[str, int]:
        """Table → newest version written so far; waits for nothing."""
        with self._changed:
            return dict(self._versions)

    @property
    def _is_idle(self) -> bool:
        """Nothing is left to write, and there is a writer: another of its name was refused."""
        return self._opened and not (self._items or self._busy)

    @property
    def _ended(self) -> bool:
        return self._error is not None or not self._thread.is_alive()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _is_due(self) -> bool:
        policy = self._policy
        if not self._items:
            return False
        full = self._rows >= policy.rows or self._bytes >= policy.max_queue_bytes
        old = time.monotonic() - self._since >= policy.interval_s
        return full or old or self._flushing > 0 or self._closing

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - raised in the threads that put and flush
            with self._changed:
                self._error = error if isinstance(error, LakeError) else _unexpected(error)
                self._changed.notify_all()

    def _work(self) -> None:
        # In this thread: it imports deltalake, for which nobody has to wait.
        from offline.writer import LakeWriter

        writer = LakeWriter(self._storage, self._name, compression=self._policy.compression)
        with self._changed:
            self._opened = True
            self._changed.notify_all()
        try:
            while (items := self._next()) is not None:
                self._write(writer, self._make([item for item, _, _ in items]))
                with self._changed:
                    self._busy = False
                    self._bytes -= sum(num_bytes for _, _, num_bytes in items)
                    self._changed.notify_all()
        finally:
            writer.close()

    def _next(self) -> list[tuple[T, int, int]] | None:
        """Wait for a batch to be due; None when there will be no more."""
        with self._changed:
            while not self._is_due():
                if self._closing:
                    return None
                left = self._since + self._policy.interval_s - time.monotonic()
                self._changed.wait(timeout=max(left, 0.0) if self._items else None)
            items = list(self._items)
            self._items.clear()
            self._rows, self._busy = 0, True
            return items

    def _write(self, writer: "LakeWriter", batch: Batch) -> None:
        tables = {name: table for name, table in batch.tables.items() if table.num_rows}
        if not tables:
            return
        while True:
            try:
                written = writer.write(tables, fragments=batch.fragments)
                break
            except LakeStorageError as error:
                if self._policy.on_error == "stop":
                    raise
                log.warning("%s; trying again in %.0f s", error, RETRY_S)
                time.sleep(RETRY_S)
        with self._changed:
            self._versions.update(written.versions)


def _unexpected(error: Exception) -> LakeError:
    wrapped = LakeError(f"writing to the lake failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
