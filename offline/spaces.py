"""The spaces that a lake notes, and the key under which its rows name them."""

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from gymnasium.spaces import Space

from offline.errors import LakeError
from offline.schemas import STEPS
from offline.space_codec import Columns as Columns
from offline.space_codec import SpaceCodec as SpaceCodec
from offline.storage import Storage
from offline.tables import open_table, set_property
from rl_ops.errors import SpecError
from rl_ops.spaces import space_from_json, space_to_json

if TYPE_CHECKING:
    from deltalake import DeltaTable

SPACE_PROPERTY: Final = "millrace.space."
"""With a key behind it: the property of `steps` that says what the rows with that key hold."""


def register_space(storage: Storage, obs_space: Space, action_space: Space) -> str:
    """Note two spaces in the lake, and their key for column `space`.

    Any number of processes may register at once.

    Raises:
        LakeError: a space has no form in the lake.
    """
    key, text = describe_spaces(obs_space, action_space)
    set_property(storage, STEPS.name, SPACE_PROPERTY + key, text)
    return key


def describe_spaces(obs_space: Space, action_space: Space) -> tuple[str, str]:
    """The key of two spaces and what the lake notes under it: spaces and encodings as JSON."""
    spaces = {"obs": obs_space, "action": action_space}
    codecs = {name: SpaceCodec(space) for name, space in spaces.items()}
    try:
        described: dict[str, Any] = {n: space_to_json(space) for n, space in spaces.items()}
        text = _json(described)
    except (SpecError, ValueError) as error:
        raise LakeError(f"the lake cannot note these spaces: {error}") from error
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    described["encoding"] = {name: codec.spec() for name, codec in codecs.items()}
    return key, _json(described)


def spaces_of(storage_or_table: "Storage | DeltaTable", key: str) -> tuple[SpaceCodec, SpaceCodec]:
    """The codecs of observations and actions of the steps whose column `space` holds `key`.

    Raises:
        LakeError: the lake has no such key, or notes an encoding that this code does not have.
    """
    if isinstance(storage_or_table, Storage):
        storage_or_table = open_table(storage_or_table, STEPS.name)
    properties = storage_or_table.metadata().configuration
    text = properties.get(SPACE_PROPERTY + str(key))
    if text is None:
        start = len(SPACE_PROPERTY)
        known = sorted(name[start:] for name in properties if name.startswith(SPACE_PROPERTY))
        raise LakeError(
            f"table {STEPS.name!r} has no spaces {key!r}; it has {', '.join(known) or 'none'}."
        )
    try:
        noted = json.loads(text)
        obs, action = (SpaceCodec(space_from_json(noted[name])) for name in ("obs", "action"))
        encoding = noted["encoding"]
    except (ValueError, LookupError, TypeError) as error:
        raise LakeError(
            f"property {SPACE_PROPERTY}{key} of {STEPS.name!r} cannot be read: {error}"
        ) from error
    if encoding != {"obs": obs.spec(), "action": action.spec()}:
        raise LakeError(
            f"spaces {key!r} of {STEPS.name!r} are encoded in a way that this Millrace does not "
            "know. Update Millrace."
        )
    return obs, action


def _json(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
