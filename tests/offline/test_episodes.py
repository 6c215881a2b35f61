"""Episodes followed over fragments, against a loop over every row."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.episodes import EpisodeTracker
from rl_ops import columns as c

UTC = pa.timestamp("us", tz="UTC")


class Stream:
    """Fragments of one worker's environments, whose episodes end at given lengths."""

    def __init__(self, lengths: list[list[int]], steps: int, incarnation: int = 0) -> None:
        self.lengths, self.steps, self.incarnation = lengths, steps, incarnation
        self.t = [0] * len(lengths)
        self.number = [0] * len(lengths)
        self.fragment = 0

    def next(self) -> pa.Table:
        rows = [row for env in range(len(self.lengths)) for row in self._rows(env)]
        self.fragment += 1
        table = pa.Table.from_pylist(rows)
        column = table.column(c.SAMPLED_AT).cast(UTC)
        returns = table.column(c.EPISODE_RETURN).cast(pa.float64())
        table = table.set_column(table.column_names.index(c.SAMPLED_AT), c.SAMPLED_AT, column)
        return table.set_column(
            table.column_names.index(c.EPISODE_RETURN), c.EPISODE_RETURN, returns
        )

    def _rows(self, env: int) -> list[dict[str, Any]]:
        found = []
        for _ in range(self.steps):
            length = self.lengths[env][self.number[env] % len(self.lengths[env])]
            t = self.t[env]
            ends = t + 1 == length
            aborted = ends and length % 5 == 0
            found.append(
                {
                    c.ENV_ID: env,
                    c.EPISODE_ID: f"run/{env:05d}.{self.incarnation}/{self.number[env]:07d}",
                    c.T: t,
                    c.REWARD: float(t + env),
                    c.TERMINATED: ends and length % 2 == 1 and not aborted,
                    c.TRUNCATED: ends and (length % 2 == 0 or aborted),
                    c.ABORTED: aborted,
                    c.POLICY_VERSION: self.fragment // 2,
                    c.FRAGMENT_ID: self.fragment,
                    c.WORKER_ID: 0,
                    c.EPISODE_RETURN: (
                        sum(i + env for i in range(length)) * 1.0 if ends and not aborted else None
                    ),
                    c.SAMPLED_AT: 1_000_000 + self.fragment,
                }
            )
            self.t[env] = 0 if ends else t + 1
            self.number[env] += ends
        return found


def slow(tables: list[pa.Table], *, close: bool) -> dict[str, dict[str, Any]]:
    """The same by walking every row."""
    episodes: dict[str, dict[str, Any]] = {}
    of_env: dict[int, str] = {}
    for row in (row for table in tables for row in table.to_pylist()):
        name = row[c.EPISODE_ID]
        previous = of_env.get(row[c.ENV_ID])
        if previous not in (None, name) and not episodes[previous]["over"]:
            episodes[previous] |= {"over": True, "aborted": True}
        of_env[row[c.ENV_ID]] = name
        first = {"return": 0.0, "first": row[c.FRAGMENT_ID], "v0": row[c.POLICY_VERSION]}
        episode = episodes.setdefault(name, first)
        episode["return"] += row[c.REWARD]
        episode |= {
            "length": row[c.T] + 1,
            "last": row[c.FRAGMENT_ID],
            "v1": row[c.POLICY_VERSION],
            "terminated": row[c.TERMINATED],
            "truncated": row[c.TRUNCATED],
            "aborted": row[c.ABORTED],
            "over": row[c.TERMINATED] or row[c.TRUNCATED],
        }
    if close:
        for episode in episodes.values():
            if not episode["over"]:
                episode |= {"over": True, "aborted": True}
    return {name: e for name, e in episodes.items() if e["over"]}


def fast(table: pa.Table) -> dict[str, dict[str, Any]]:
    found = {}
    for row in table.to_pylist():
        assert row[c.EPISODE_ID] not in found
        assert row["kind"] == "train"
        assert row["run_id"] == "run"
        found[row[c.EPISODE_ID]] = {
            "return": row["return"],
            "first": row["fragment_first"],
            "v0": row["policy_version_first"],
            "length": row["length"],
            "last": row["fragment_last"],
            "v1": row["policy_version_last"],
            "terminated": row["terminated"],
            "truncated": row["truncated"],
            "aborted": row["aborted"],
            "over": True,
        }
    return found


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=4),
    steps=st.integers(1, 9),
    batches=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    dies_after=st.integers(0, 4),
)
def test_it_is_the_loop_over_rows(lengths, steps, batches, dies_after) -> None:
    stream, tracker = Stream(lengths, steps), EpisodeTracker("run", 0)
    given_tables, found = [], []
    for i, count in enumerate(batches):
        if i == dies_after and i:  # the worker is started again: its episodes never end
            fragment = stream.fragment
            stream = Stream(lengths, steps, incarnation=1)
            stream.fragment = fragment
        tables = [stream.next() for _ in range(count)]
        given_tables += tables
        found.append(tracker.track(tables))
    found.append(tracker.close())
    expected = slow(given_tables, close=True)
    rows = fast(pa.concat_tables(found))
    assert rows.keys() == expected.keys()
    for name, episode in expected.items():
        assert rows[name] == pytest.approx(episode), name


def test_an_episode_is_told_once_it_ended_and_not_before() -> None:
    stream, tracker = Stream([[4]], steps=3), EpisodeTracker("run", 7)
    assert tracker.track([stream.next()]).num_rows == 0
    ended = tracker.track([stream.next()]).to_pylist()
    assert [row["episode_id"] for row in ended] == ["run/00000.0/0000000"]
    assert ended[0]["session"] == 7
    assert ended[0]["started_at"].microsecond == 0
    assert ended[0]["ended_at"].microsecond == 1
    assert ended[0]["return"] == 6.0
    assert (ended[0]["terminated"], ended[0]["truncated"]) == (False, True)
    left = tracker.close().to_pylist()
    assert [(row["length"], row["aborted"]) for row in left] == [(2, True)]
    assert tracker.close().num_rows == 0


def test_returns_are_those_of_the_rollout_bit_for_bit() -> None:
    stream, tracker = Stream([[3]], steps=6), EpisodeTracker("run", 0)
    table = stream.next()
    odd = pa.array([None, None, 0.1 + 0.2, None, None, np.nextafter(1.0, 2.0)])
    table = table.set_column(table.column_names.index(c.EPISODE_RETURN), c.EPISODE_RETURN, odd)
    rows = tracker.track([table]).sort_by("episode_id").column("return").to_pylist()
    assert rows == [0.1 + 0.2, np.nextafter(1.0, 2.0)]
