"""Code of the user's own that a configuration names by path, and where it lies."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.config import AlgorithmConfig

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w-]*")


def own_code(config: AlgorithmConfig) -> Path | None:
    """The working directory, if modules in it are named: env, model, connectors, callbacks.

    What is installed is on a cluster's nodes already, and is not shipped.
    """
    here = Path.cwd()
    named = {path.partition(":")[0].partition(".")[0] for path in _paths(config.model_dump())}
    return here if any(_is_below(here, module) for module in named) else None


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _paths(part)
    elif isinstance(value, str) and _PATH.fullmatch(value):
        yield value


def _is_below(folder: Path, module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    found = [Path(place).resolve() for place in places if place not in ("built-in", "frozen")]
    return any(
        path.is_relative_to(folder.resolve()) and "site-packages" not in path.parts
        for path in found
    )
