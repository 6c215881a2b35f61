"""The lake: every episode in Delta tables, read back by version, in SQL and as Ray Datasets."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offline.lake import Lake as Lake

_EXPORTS = {"Lake": "offline.lake"}


def __getattr__(name: str) -> Any:
    # Learners import parts of this package at their start; what reads a lake can wait.
    if name not in _EXPORTS:
        raise AttributeError(f"module 'offline' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
