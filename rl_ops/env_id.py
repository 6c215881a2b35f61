"""The environment that is none; apart, because configurations do not import Gymnasium."""

from typing import Final

NO_ENV: Final = "lake"
"""Id of no environment: spaces are those of the rows that are learned from."""
