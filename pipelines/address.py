"""Addresses of object stores, told from paths without importing what reads them."""

import os


def is_address(storage: str | os.PathLike[str]) -> bool:
    """Whether it is the address of an object store."""
    return str(storage).lower().startswith("s3://")
