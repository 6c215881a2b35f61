"""Objects named by a path, "module:name": how a configuration names code of the user's own."""

import importlib
from typing import Any


def load_object(path: str) -> Any:
    """The object at "module:name".

    Raises:
        ValueError: malformed path, unknown module or unknown name; the message says which.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(f"{path!r} is not a path of the form 'module:name'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path!r}: no module {error.name!r}; is its folder on PYTHONPATH, or the working one?"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"{path!r}: module {module_name!r} has no {name!r}")
    return getattr(module, name)


def object_path(kind: type[Any]) -> str:
    """The path by which `load_object` finds a class again."""
    return f"{kind.__module__}:{kind.__qualname__}"
