"""References as ${steps.train.checkpoint}: checked when a file is read, filled in at a step."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

REFERENCE: Final = re.compile(r"\$\{([^{}]*)\}")
TIMES: Final = ("logical_time", "logical_date", "stamp")
"""Those that are of the run."""


class Reference(NamedTuple):
    """What a value refers to.

    Attributes:
        path: as it was written: ("steps", "train", "checkpoint").
        where: keys to the value that has it.
    """

    path: tuple[str, ...]
    where: tuple[Any, ...]


def references(value: Any, where: tuple[Any, ...] = ()) -> Iterator[Reference]:
    """All of them, in the order of the text."""
    if isinstance(value, str):
        for found in REFERENCE.finditer(value):
            yield Reference(tuple(found[1].strip().split(".")), where)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from references(part, (*where, key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from references(part, (*where, index))


def resolved(value: Any, find: Callable[[tuple[str, ...]], Any]) -> Any:
    """The same value with every reference replaced.

    Args:
        value: of JSON's kinds. Text that is one reference and nothing else takes its value's type;
            within other text it becomes text.
        find: gives a reference's value.
    """
    if isinstance(value, str):
        whole = REFERENCE.fullmatch(value)
        if whole is not None:
            return find(tuple(whole[1].strip().split(".")))
        return REFERENCE.sub(lambda m: str(find(tuple(m[1].strip().split(".")))), value)
    if isinstance(value, dict):
        return {key: resolved(part, find) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(part, find) for part in value]
    return value
