"""Medians, ratios and verdicts of a comparison, and the two reports made of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contestants import Record
from benchmarks.figures import Spread, spread
from benchmarks.tables import markdown_table, number_text, plain_table, spread_text
from benchmarks.workload import Target

HEADER = (
    "contestant",
    "env steps/s",
    "ours / it",
    "pairs",
    "to return, s",
    "ours / it",
    "to return, k steps",
    "first result, s",
    "CPU s / 100k steps",
    "failed",
)
VERDICT_HEADER = ("target", "ours", "peer", "ratio", "must be", "verdict")


@dataclass(frozen=True)
class Row:
    """One contestant over all repeats; ratios are ours over it, of medians and pair by pair."""

    name: str
    label: str
    steps_per_s: Spread | None
    window_steps_per_s: Spread | None
    speed_ratio: float | None
    speed_pair_ratio: Spread | None
    time_to_return_s: Spread | None
    time_ratio: float | None
    steps_to_return: Spread | None
    first_result_s: Spread | None
    cpu_s_per_100k_steps: Spread | None
    num_failed: int


@dataclass(frozen=True)
class Verdict:
    """A target of peers.md against what was measured; `met` is None where something is missing."""

    what: str
    ours: float | None
    peer: float | None
    ratio: float | None
    bound: str
    met: bool | None


def summarize(names: Sequence[tuple[str, str]], records: Sequence[Record]) -> list[Row]:
    """A row for each (name, label); records carry the name."""
    plain = {name: _row(name, label, records) for name, label in names}
    ours = plain.get("ours")
    return [_with_ratios(row, ours, records) for row in plain.values()]


def verdicts(rows: Sequence[Row], targets: Sequence[Target]) -> list[Verdict]:
    """Each target against what was measured; of the peers it names the best counts."""
    return [_verdict(target, {row.name: row for row in rows}) for target in targets]


def plain_report(rows: Sequence[Row], found: Sequence[Verdict], records: Sequence[Record]) -> str:
    tables = (
        plain_table(HEADER, [_cells(row) for row in rows]),
        plain_table(VERDICT_HEADER, [_verdict_cells(verdict) for verdict in found]),
    )
    return "\n\n".join((*tables, load_line(records)))


def markdown_report(
    rows: Sequence[Row], found: Sequence[Verdict], records: Sequence[Record], *, title: str
) -> str:
    """The same for docs/benchmarks, with what a reader must know to judge it."""
    return "\n\n".join(
        (
            f"# {title}",
            "Medians (min–max) over the repeats, contestants in turn on one machine; how each"
            " figure is made: benchmarks/README.md. Quote ratios, not absolutes.",
            markdown_table(HEADER, [_cells(row) for row in rows]),
            markdown_table(VERDICT_HEADER, [_verdict_cells(verdict) for verdict in found]),
            load_line(records),
        )
    )


def load_line(records: Sequence[Record]) -> str:
    """How much of the machine other work took while the contestants ran."""
    used = spread([record.other_cores for record in records])
    return f"Cores that other work used during the runs: {spread_text(used, 2)}."


def _row(name: str, label: str, records: Sequence[Record]) -> Row:
    mine = [record for record in records if record.contestant == name]
    steady = [record.steady for record in mine if record.steady]
    timed = [record for record in mine if record.measure == "time" and not record.error]
    return Row(
        name=name,
        label=label,
        steps_per_s=spread([s.median_steps_per_s for s in steady]),
        window_steps_per_s=spread([s.window_steps_per_s for s in steady]),
        speed_ratio=None,
        speed_pair_ratio=None,
        time_to_return_s=spread([record.time_to_return_s for record in timed]),
        time_ratio=None,
        steps_to_return=spread(
            [r.env_steps if r.time_to_return_s is not None else None for r in timed]
        ),
        first_result_s=spread([r.first_result_s for r in mine if r.first_result_s is not None]),
        cpu_s_per_100k_steps=spread([s.cpu_s_per_100k_steps for s in steady]),
        num_failed=sum(record.error is not None for record in mine),
    )


def _with_ratios(row: Row, ours: Row | None, records: Sequence[Record]) -> Row:
    if ours is None or row.name == ours.name:
        return row
    return dataclasses.replace(
        row,
        speed_ratio=_ratio(_median(ours.steps_per_s), _median(row.steps_per_s)),
        speed_pair_ratio=spread(pair_ratios(records, row.name)),
        time_ratio=_ratio(_median(ours.time_to_return_s), _median(row.time_to_return_s)),
    )


def pair_ratios(records: Sequence[Record], peer: str) -> list[float]:
    """Ours over the peer in env steps/s, for each repeat in which both finished side by side."""
    speed = {
        (record.contestant, record.repeat): record.steady.median_steps_per_s
        for record in records
        if record.pair == peer and record.steady
    }
    repeats = sorted({repeat for name, repeat in speed if name == peer})
    return [
        speed["ours", repeat] / speed[peer, repeat]
        for repeat in repeats
        if ("ours", repeat) in speed
    ]


def _verdict(target: Target, rows: Mapping[str, Row]) -> Verdict:
    figures = {name: _median(getattr(row, target.figure)) for name, row in rows.items()}
    known = [value for name in target.peers if (value := figures.get(name)) is not None]
    is_rate = target.figure == "steps_per_s"
    best = (max if is_rate else min)(known, default=None)
    ours = figures.get("ours")
    ratio = _ratio(ours, best)
    bound = f"{'≥' if is_rate else '≤'} {target.bound}"
    if ratio is None:
        return Verdict(target.what, ours, best, None, bound, None)
    met = ratio >= target.bound if is_rate else ratio <= target.bound
    return Verdict(target.what, ours, best, ratio, bound, met)


def _median(value: Spread | None) -> float | None:
    return value.median if value else None


def _ratio(ours: float | None, peer: float | None) -> float | None:
    return None if ours is None or peer is None else ours / peer


def _cells(row: Row) -> list[str]:
    return [
        row.label,
        spread_text(row.steps_per_s),
        number_text(row.speed_ratio, 2),
        spread_text(row.speed_pair_ratio, 2),
        spread_text(row.time_to_return_s, 1),
        number_text(row.time_ratio, 2),
        spread_text(in_thousands(row.steps_to_return)),
        spread_text(row.first_result_s, 1),
        spread_text(row.cpu_s_per_100k_steps, 1),
        str(row.num_failed),
    ]


def in_thousands(value: Spread | None) -> Spread | None:
    if value is None:
        return None
    low, median, high = value.low / 1000, value.median / 1000, value.high / 1000
    return dataclasses.replace(value, low=low, median=median, high=high)


def _verdict_cells(verdict: Verdict) -> list[str]:
    said = {True: "met", False: "MISSED", None: "not measured"}[verdict.met]
    figures = [number_text(value, 2) for value in (verdict.ours, verdict.peer, verdict.ratio)]
    return [verdict.what, *figures, verdict.bound, said]
