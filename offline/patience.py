"""How often, and how long, a storage is asked again before its refusal is an error."""

import errno
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

import pyarrow as pa

from offline.storage import Storage
from offline.storage_errors import is_refusal

_ATTEMPTS: Final = 8
_LONGEST_WAIT_S: Final = 2.0
PATIENCE_S: Final = 20.0
"""No further attempt is begun after so long: a store that never answers takes 15 s for each."""
_PERMANENT: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
    | {errno.EFBIG, errno.ENAMETOOLONG, errno.ENOENT, errno.EISDIR}
)
"""Of a disk: trying again within seconds changes nothing."""

_T = TypeVar("_T")


def patiently(attempt: Callable[[], _T]) -> _T:
    """Try a few times, some seconds in all, as object stores and networks ask for.

    Raises:
        OSError, pyarrow.ArrowException: of the last attempt, or one that waiting cannot change.
    """
    end = time.monotonic() + PATIENCE_S
    for number in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except (OSError, pa.ArrowException) as error:
            if is_hopeless(error) or time.monotonic() > end:
                raise
        wait(number)
    return attempt()


def asking(storage: Storage, attempt: Callable[[], _T]) -> _T:
    """`patiently` where an object store is asked; a folder's errors are told at once."""
    return attempt() if storage.is_local else patiently(attempt)


def is_hopeless(error: BaseException) -> bool:
    """Whether trying again within seconds changes nothing."""
    return isinstance(error, OSError) and (error.errno in _PERMANENT or is_refusal(error))


def wait(attempt: int) -> None:
    """Back off: twice as long each time, by chance shorter, so that rivals do not keep step."""
    time.sleep(random.uniform(0.1, 1.0) * min(_LONGEST_WAIT_S, 0.05 * 2**attempt))
