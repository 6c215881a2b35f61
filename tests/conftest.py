"""Shared by all tests: hypothesis without deadlines, and one real Ray for the whole session."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

# These machines are shared: an example that is slow once says nothing about the code.
settings.register_profile("millrace", deadline=None)
settings.load_profile("millrace")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray, started as a run starts it; pipelines join it and leave it running."""
    from pipelines.ray_session import start_ray, stop_ray

    start_ray()
    yield
    stop_ray()
