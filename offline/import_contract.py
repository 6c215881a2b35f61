"""The data contract: what an episode from outside must be, and how each breach of it is named.

Importers yield `RawEpisode` and `BadRecord`; `Contract` turns the former into `Episode` or into
violations. Exporters consume `Episode`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from gymnasium.spaces import Space

from offline.exchange import BadRecord, Episode, RawEpisode, Record, Spaces
from offline.import_checks import (
    Breach,
    check_values,
    fit,
    fit_numbers,
    flags,
    is_unknown,
    next_breaches,
    rows_of,
    t_breaches,
)
from rl_ops.tree import Tree, tree_map, tree_take

OnError = Literal["fail", "skip"]
MissingEnd = Literal["fail", "reject", "truncate"]

_MAX_ID: Final = 1024

REASONS: Final = {
    "bad_record": "a record that cannot be read",
    "bad_episode_id": "an episode id that is none",
    "duplicate_episode": "an episode id that came before",
    "empty_episode": "an episode without steps",
    "lengths_differ": "columns of different lengths",
    "mixed_lengths": "rows of different lengths in one column",
    "wrong_structure": "entries other than the space's",
    "wrong_shape": "values of another shape than the space's",
    "wrong_dtype": "values that the space's dtype cannot hold",
    "not_finite": "NaN, Inf or nothing where a number is needed",
    "out_of_bounds": "values outside the space",
    "t_order": "t that does not count 0, 1, 2, ...",
    "end_inside": "an end before the last row",
    "no_end": "no terminated or truncated on the last row",
    "next_obs_differs": "a next observation that is not the next row's observation",
    "no_final_obs": "a truncated step without an observation after it",
}
"""Every breach of the contract."""


@dataclass(frozen=True)
class Violation:
    """One breach: the first row of it, with the rows' number in the message where more."""

    reason: str
    message: str
    file: str
    row: int
    unit: str = "row"
    episode_id: str | None = None
    content: str = ""

    def __str__(self) -> str:
        episode = "" if self.episode_id is None else f" (episode {self.episode_id!r})"
        return f"{self.file}, {self.unit} {self.row}{episode}: {self.message}"


@dataclass(frozen=True)
class Rules:
    """What may pass.

    Attributes:
        on_error: fail imports nothing unless all is well, skip leaves bad episodes out.
        missing_end: an episode without an end is cut as truncated, rejected, or a failure of
            the whole import even where on_error is skip.
        bounds: refuse actions, and observations that are integers, outside the space.
        next_obs: refuse a next observation that is not the next row's observation.
    """

    on_error: OnError = "fail"
    missing_end: MissingEnd = "fail"
    bounds: bool = True
    next_obs: bool = True


@dataclass
class Contract:
    """Checks episodes one after the other; counts what it finds.

    Attributes:
        counts: violations by reason.
        rows_cut: last rows of truncated episodes that were dropped, so that their observation
            is the final one.
        ends_made: episodes without an end that were cut as truncated.
    """

    spaces: Spaces
    rules: Rules
    counts: Counter[str] = field(default_factory=Counter)
    rows_cut: int = 0
    ends_made: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def accept(self, record: Record) -> Episode | list[Violation]:
        """The episode, or why it is none; the first violation of each reason."""
        if isinstance(record, BadRecord):
            self.counts["bad_record"] += 1
            bad = (record.message, record.file, record.row, record.unit, None, record.content)
            return [Violation("bad_record", *bad)]
        breaches: list[Breach] = []
        episode = self._checked(record, breaches)
        if episode is not None and not breaches:
            return episode
        reported: dict[str, Breach] = {}
        for breach in breaches:
            self.counts[breach.reason] += 1
            reported.setdefault(breach.reason, breach)
        return [_violation(record, breach) for breach in reported.values()]

    def _checked(self, raw: RawEpisode, breaches: list[Breach]) -> Episode | None:
        breaches += [Breach(fault.reason, fault.message, fault.index) for fault in raw.faults]
        breaches += self._id_breaches(raw.episode_id)
        try:
            rows = rows_of(_columns(raw))
        except Breach as breach:
            breaches.append(breach)
            return None
        obs = self._fitted(self.spaces.obs, raw.obs, "obs", breaches)
        action = self._fitted(self.spaces.action, raw.action, "action", breaches)
        following = self._fitted(self.spaces.obs, raw.next_obs, "next_obs", breaches)
        final = self._fitted(self.spaces.obs, raw.final_obs, "final_obs", breaches)
        if following is not None and obs is not None and self.rules.next_obs:
            breaches += next_breaches(obs, following)
        reward = fit_numbers(raw.reward, "reward", breaches)
        logp = None if is_unknown(raw.logp) else fit_numbers(raw.logp, "logp", breaches)
        breaches += t_breaches(raw.t)
        terminated, truncated = self._end(raw, rows, breaches)
        if breaches or reward is None:
            return None
        if final is None and following is not None:
            final = tree_take(following, slice(rows - 1, rows))
        whole = Episode(
            raw.episode_id, obs, action, reward, terminated, truncated, final, logp, raw.seed
        )
        return self._with_final(whole, breaches)

    def _id_breaches(self, episode_id: str) -> Iterator[Breach]:
        if not episode_id or "\0" in episode_id or len(episode_id) > _MAX_ID:
            what = f"episode id {episode_id[:40]!r} is empty, too long or has a NUL in it"
            yield Breach("bad_episode_id", what)
        digest = hashlib.blake2b(episode_id.encode("utf-8", "replace"), digest_size=16).digest()
        if digest in self._seen:
            yield Breach(
                "duplicate_episode",
                f"episode id {episode_id!r} came before: its rows go on after its end or are not "
                "next to each other, or two files count alike. Sort the rows by episode and t; "
                "import such files each under its own --name",
            )
        self._seen.add(digest)

    def _fitted(self, space: Space, tree: Tree, name: str, breaches: list[Breach]) -> Tree:
        if tree is None:
            return None
        try:
            fitted = fit(space, tree, name)
            check_values(space, fitted, name, bounds=self.rules.bounds)
        except Breach as breach:
            breaches.append(breach)
            return None
        return fitted

    def _end(self, raw: RawEpisode, rows: int, breaches: list[Breach]) -> tuple[bool, bool]:
        try:
            terminated = flags(raw.terminated, rows, "terminated")
            truncated = flags(raw.truncated, rows, "truncated")
        except Breach as breach:
            breaches.append(breach)
            return False, False
        early = np.flatnonzero((terminated | truncated)[:-1])
        if early.size:
            what = f"the episode ends here, and {rows - 1 - early[0]} rows of it follow"
            breaches.append(Breach("end_inside", what, int(early[0])))
        if terminated[-1] or truncated[-1]:
            return bool(terminated[-1]), bool(truncated[-1])
        if self.rules.missing_end == "truncate":
            self.ends_made += 1
            return False, True
        fix = "decide with --missing-end truncate|reject"
        breaches.append(Breach("no_end", f"the episode's last row is no end; {fix}", rows - 1))
        return False, False

    def _with_final(self, episode: Episode, breaches: list[Breach]) -> Episode | None:
        """A truncated step bootstraps from the observation after it, so it must have one."""
        if episode.final_obs is not None or episode.terminated:
            return episode
        rows = len(episode) - 1
        if rows == 0:
            what = "a truncated episode of one step has no observation after it"
            breaches.append(Breach("no_final_obs", what))
            return None
        self.rows_cut += 1
        kept = slice(0, rows)
        return Episode(
            episode_id=episode.episode_id,
            obs=tree_take(episode.obs, kept),
            action=tree_take(episode.action, kept),
            reward=episode.reward[kept],
            terminated=False,
            truncated=True,
            final_obs=tree_take(episode.obs, slice(rows, rows + 1)),
            logp=None if episode.logp is None else episode.logp[kept],
            seed=episode.seed,
        )


def _columns(raw: RawEpisode) -> dict[str, Tree]:
    return {
        **{"reward": raw.reward, "obs": raw.obs, "action": raw.action, "next_obs": raw.next_obs},
        **{"terminated": raw.terminated, "truncated": raw.truncated},
        **{"t": raw.t, "logp": raw.logp},
    }


def _violation(raw: RawEpisode, breach: Breach) -> Violation:
    origin = raw.origin
    reason, message, row = breach.reason, breach.message, origin.at(breach.index)
    content = _content(raw, breach.index)
    return Violation(reason, message, origin.file, row, origin.unit, raw.episode_id, content)


def _content(raw: RawEpisode, index: int) -> str:
    """The step at fault, in words short enough for a table's cell."""

    def shown(name: str, tree: Tree) -> str:
        try:
            step = tree_map(lambda leaf: np.asarray(np.asarray(leaf)[index]).tolist(), tree)
        except (IndexError, TypeError):
            return f"{name}=?"
        return f"{name}={str(step)[:120]}"

    return ", ".join(shown(n, v) for n, v in (("obs", raw.obs), ("action", raw.action)))
