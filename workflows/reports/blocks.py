"""What a report's page is made of, as values: Python decides what is shown, the page draws it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pipelines.config_errors import printable

MAX_CHARS: Final = 400
"""Of a text from a lake; what is longer is cut."""

Number = int | float | None


def text(value: Any, *, limit: int = MAX_CHARS) -> str:
    """A value from a lake as text on one line: no control characters, not too long."""
    return "" if value is None else printable(str(value), limit=limit)


def rounded(value: Any, *, digits: int = 6) -> float | None:
    """A number in a few digits; None for what is none."""
    return float(f"{value:.{digits}g}") if isinstance(value, int | float) else None


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: in the legend.
        x, y: of the same length, x ascending; a y of None is a gap.
        low, high: of a band around it.
        points: marks without a line between them.
        group: lines of one group have one colour.
        faint: drawn behind the others, without an entry in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    points: bool = False
    group: int | None = None
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over one x axis.

    Attributes:
        x_label, y_label: with units.
        note: below it.
        stacked: y values add up.
        time: x is seconds since 1970.
        log_x: x on a logarithmic axis.
    """

    title: str
    series: Sequence[Series]
    x_label: str = ""
    y_label: str = ""
    note: str = ""
    stacked: bool = False
    time: bool = False
    log_x: bool = False
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True)
class Facts:
    """Names and values, in lines; `tone` of a value is good, bad or empty."""

    rows: Sequence[tuple[str, str, str]]
    title: str = ""
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Table:
    """Rows that can be sorted and filtered.

    Attributes:
        columns: names.
        rows: a cell is a text or a number; `{"text", "tone"}` has a colour, `{"text", "href"}`
            leads elsewhere on the page.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Parallel:
    """Trials as lines through an axis for each setting and one for the result.

    Attributes:
        axes: name, and the values of the trials: numbers, or texts for an axis of names.
        labels: of the trials.
        log: names of axes on a logarithmic scale.
        target: the axis that colours the lines.
    """

    title: str
    axes: Sequence[tuple[str, Sequence[Any]]]
    labels: Sequence[str]
    log: Sequence[str]
    target: str
    note: str = ""
    kind: str = field(default="parallel", init=False)


@dataclass(frozen=True)
class Intervals:
    """Values with intervals, below each other on one axis.

    Attributes:
        rows: name, value, low, high, and a remark; a value or bound of None is not drawn.
        x_label: with units.
        reference: name and value of a line through all of them.
    """

    title: str
    rows: Sequence[tuple[str, Number, Number, Number, str]]
    x_label: str
    reference: tuple[str, float] | None = None
    note: str = ""
    kind: str = field(default="intervals", init=False)


@dataclass(frozen=True)
class Grid:
    """Cells of a status each: a line for each logical time, a column for each step.

    Attributes:
        columns, rows: their names.
        cells: by row; None is empty, otherwise `{"status", "text", "detail"}`.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Mapping[str, str] | None]]
    note: str = ""
    kind: str = field(default="grid", init=False)


@dataclass(frozen=True)
class Videos:
    """Films within the page: title and data URI."""

    films: Sequence[tuple[str, str]]
    note: str = ""
    kind: str = field(default="videos", init=False)


@dataclass(frozen=True)
class Note:
    """A paragraph; `code` is shown as it would be typed."""

    text: str
    code: str = ""
    tone: str = ""
    kind: str = field(default="note", init=False)


@dataclass(frozen=True)
class Details:
    """A long text that opens when it is asked for."""

    title: str
    body: str
    kind: str = field(default="details", init=False)


@dataclass(frozen=True)
class Traces:
    """The trace browser; `data` is what `workflows.reports.episodes` made."""

    data: Mapping[str, Any]
    kind: str = field(default="traces", init=False)


Block = Chart | Facts | Table | Parallel | Intervals | Grid | Videos | Note | Details | Traces


@dataclass(frozen=True)
class Section:
    """A part of the page, with an entry in its navigation; without blocks it is left out."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A whole page."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        sections = [asdict(section) for section in self.sections if section.blocks]
        return {"title": self.title, "subtitle": self.subtitle, "sections": sections}
