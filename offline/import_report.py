"""What an import found and did: counts while it reads, a report when it is done."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from offline.exchange import Episode, Source, Spaces
from offline.import_contract import REASONS, Contract, Rules, Violation
from rl_ops.tree import brief

_SHOWN: Final = 10


@dataclass(frozen=True)
class ImportReport:
    """What an import did, or would do.

    Attributes:
        run_id: under which the episodes are found.
        episodes, rows: imported, those of an earlier process of this import included.
        rejected: episodes and records that were not.
        reasons: violations by reason.
        violations: the first of them, in words.
        rows_cut: last steps of truncated episodes, dropped so that their observation is the final.
        ends_made: episodes without an end, cut as truncated.
        spaces: how they are known, and what they are.
        ignored: columns that were not taken.
        notes: what else there is to know.
        status: imported, resumed, already imported, or checked.
    """

    run_id: str
    episodes: int
    rows: int
    rejected: int
    reasons: Mapping[str, int]
    violations: tuple[str, ...]
    rows_cut: int
    ends_made: int
    spaces: Mapping[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    status: str

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


@dataclass
class Tally:
    """What is read of a source, counted as it goes by."""

    contract: Contract
    episodes: int = 0
    rows: int = 0
    rejected: int = 0
    violations: list[str] = field(default_factory=list)

    def outcomes(self, source: Source) -> Iterator[Episode | list[Violation]]:
        """Each record's episode, or why it is none."""
        for record in source.records(self.contract.spaces):
            outcome = self.contract.accept(record)
            if isinstance(outcome, list):
                self.rejected += 1
                self.violations += map(str, outcome[: _SHOWN - len(self.violations)])
            else:
                self.episodes += 1
                self.rows += len(outcome)
            yield outcome


def explained(tally: Tally, rules: Rules) -> str:
    """Why an import fails: counts, and the first breaches with file and row."""
    counts = tally.contract.counts
    total = tally.rejected + tally.episodes
    lines = [f"{tally.rejected:,} of {total:,} episodes break the contract; nothing was imported."]
    lines += [f"  {count:>8,} x {REASONS[reason]}" for reason, count in counts.most_common()]
    lines += ["The first of them:", *(f"  {text}" for text in tally.violations)]
    if rules.on_error == "fail":
        lines.append("--on-error skip imports the others, and keeps these in table `rejected`.")
    return "\n".join(lines if tally.rejected else ["The files hold no episodes."])


def report_of(
    run_id: str, tally: Tally, source: Source, spaces: Spaces, status: str
) -> ImportReport:
    """The report of what was counted."""
    contract = tally.contract
    return ImportReport(
        run_id=run_id,
        episodes=tally.episodes,
        rows=tally.rows,
        rejected=tally.rejected,
        reasons=dict(contract.counts),
        violations=tuple(tally.violations),
        rows_cut=contract.rows_cut,
        ends_made=contract.ends_made,
        spaces=described(spaces),
        ignored=tuple(sorted(source.ignored)),
        notes=tuple(sorted(source.notes)),
        status=status,
    )


def described(spaces: Spaces) -> dict[str, str]:
    """Spaces in a few words, and who stated them."""
    return {"obs": brief(spaces.obs), "action": brief(spaces.action), "origin": spaces.origin}
