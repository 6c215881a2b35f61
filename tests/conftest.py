"""Shared by all tests: hypothesis without deadlines, and one real Ray for the whole session."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from workflows.logs import LOGGERS

# These machines are shared: an example that is slow once says nothing about the code.
settings.register_profile("millrace", deadline=None)
settings.load_profile("millrace")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For `pytest -n 2`: files that use Ray first, for they wait longest and would end alone."""
    if hasattr(config, "workerinput"):
        on_ray = {item.path for item in items if item.get_closest_marker("ray")}
        items.sort(key=lambda item: item.path not in on_ray)


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """A command run in this process sets levels and handlers, which hide records from caplog."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray, started as a run starts it; pipelines join it and leave it running."""
    from pipelines.ray_session import start_ray, stop_ray

    start_ray()
    yield
    stop_ray()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """Storage options of a real S3 server on this machine, for the whole session."""
    from tests.offline.s3_kit import s3_options

    with s3_options() as options:
        yield options


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Its options, which are this process's environment too and the only ones there."""
    from tests.offline.s3_kit import set_environment

    set_environment(monkeypatch, s3_server)
    return s3_server


@pytest.fixture
def s3_folder(s3: dict[str, str], request: pytest.FixtureRequest) -> str:
    """An address of the test's own."""
    from tests.offline.s3_kit import address_of

    return address_of(request.node.nodeid)
