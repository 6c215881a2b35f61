"""Shared by the tests that run pipelines."""

import pytest

from pipelines.learn import LearnLoop
from rl_ops import columns as c


@pytest.fixture
def consumed(monkeypatch):
    """What the learner consumes: (fragment ids, episode ids with t) of each version, in order."""
    seen = []
    iterate = LearnLoop._iterate

    def note(self, tables):
        ids = [table.column(c.FRAGMENT_ID)[0].as_py() for table in tables]
        steps = [
            step
            for table in tables
            for step in zip(
                *(table.column(n).to_pylist() for n in (c.EPISODE_ID, c.T)), strict=True
            )
        ]
        seen.append((ids, steps))
        iterate(self, tables)

    monkeypatch.setattr(LearnLoop, "_iterate", note)
    return seen
