"""What the doctor finds, as values: how bad, which kind of damage, where, and what to do."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "info"]

MAX_OF_A_KIND: Final = 20


@dataclass(frozen=True)
class Finding:
    """One finding of `millrace lake doctor`.

    Attributes:
        severity: error where rows are lost, doubled, altered or unreadable; warning where
            something should be done; info where nothing needs to.
        kind: its name, as docs/lake.md lists them.
        table: which table; empty where it is about the lake.
        what: what is the matter.
        where: a file, version, run or fragment.
        fix: what to do.
    """

    severity: Severity
    kind: str
    table: str
    what: str
    where: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def limited(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first of each kind in each table, and one that counts the rest."""
    counts: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.table, finding.kind)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= MAX_OF_A_KIND:
            yield finding
        last[key] = finding
    for key, count in counts.items():
        if count > MAX_OF_A_KIND:
            one = last[key]
            what = f"and {count - MAX_OF_A_KIND:,} more of these, {count:,} in all"
            yield Finding(one.severity, one.kind, one.table, what, one.where, one.fix)


def ranges(numbers: Iterable[int], *, most: int = 8) -> str:
    """Whole numbers as 1-3, 7 in order; the first `most` parts of it."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in parts[:most]]
    return ", ".join(shown) + (", …" if len(parts) > most else "")
