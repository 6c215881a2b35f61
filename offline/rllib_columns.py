"""RLlib's column names, for import and export, and the columns of it that are pickles."""

from typing import Final, NoReturn

from offline.errors import ImportDataError

NAMES: Final = {
    "obs": "obs",
    "action": "actions",
    "reward": "rewards",
    "next_obs": "new_obs",
    "terminated": "terminateds",
    "truncated": "truncateds",
    "episode_id": "eps_id",
    "t": "t",
    "logp": "action_logp",
}
"""Ours → RLlib's, of `ray.rllib.core.columns.Columns`."""

UNROLL_ID: Final = "unroll_id"
AGENT_INDEX: Final = "agent_index"
KNOWN: Final = frozenset({*NAMES.values(), "action_prob", UNROLL_ID, AGENT_INDEX})


def refuse_packed(file: str, where: str, column: str) -> NoReturn:
    """Refuse a column that RLlib compressed, which it does by pickling it.

    Raises:
        ImportDataError: says which option writes it otherwise.
    """
    raise ImportDataError(
        f"{file}, {where}: column {column!r} is compressed, which in RLlib is a base64 text of an "
        "lz4-packed pickle; reading it can run code of whoever wrote it, so it is never read. "
        "Record again with output_config={'compress_columns': []} (JsonWriter), or "
        ".offline_data(output_compress_columns=[]) (parquet)"
    )
