"""Off-policy estimates as a page, and as intervals on any page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from workflows.reports.blocks import Block, Facts, Intervals, Note, Report, Section, rounded, text

if TYPE_CHECKING:
    from offline.ope import Evaluation, OpeSettings


class Answer(NamedTuple):
    """An estimate with its interval, and the effective number of episodes where there is one."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    ess: float | None


def intervals(title: str, each: Sequence[Answer], *, logged: float | None) -> Intervals:
    """Estimates below each other, with the mean of the logged episodes through them."""
    rows = [
        (
            text(answer.name),
            rounded(answer.value),
            rounded(answer.low),
            rounded(answer.high),
            "" if answer.ess is None else f"ESS {answer.ess:,.1f}",
        )
        for answer in each
    ]
    reference = None if logged is None else ("logged episodes", logged)
    return Intervals(title, rows, "discounted return", reference)


def ope_report(found: Sequence[tuple[str, "Evaluation"]], settings: "OpeSettings") -> Report:
    """The page of `millrace ope --plot`.

    Args:
        found: what each checkpoint is called, and its evaluation; at least one.
        settings: of all of them.
    """
    sections = []
    for number, (name, evaluation) in enumerate(found):
        answers = [Answer(x.estimator, x.value, x.low, x.high, x.ess) for x in evaluation.estimates]
        facts = [
            ("episodes", f"{evaluation.episodes:,}", ""),
            ("rows", f"{evaluation.rows:,}", ""),
            *(
                (text(name), text(why, limit=200), "bad")
                for name, why in evaluation.refused.items()
            ),
        ]
        title = f"Estimates, {100 * settings.level:.4g} % intervals"
        blocks: list[Block] = [
            intervals(title, answers, logged=evaluation.behavior.value),
            Facts(facts, "from"),
            *(Note(text(warning), tone="warn") for warning in evaluation.warnings),
        ]
        sections.append(Section(f"checkpoint-{number}", text(name, limit=120), blocks))
    return Report(
        f"Off-policy estimates of the return, gamma {settings.gamma:g}",
        "What policies would earn, by episodes that others acted in; docs/ope.md says which "
        "estimate is worth what.",
        sections,
    )
