"""Off-policy estimates as an HTML page that needs nothing else."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offline.ope import Evaluation, OpeSettings

_STYLE = "body{font:14px system-ui,sans-serif;margin:2em;max-width:72em}li{margin:.3em 0}"


def write_page(
    path: Path, found: Sequence[tuple[str, "Evaluation"]], settings: "OpeSettings"
) -> None:
    """Write a page with each checkpoint's estimates, their intervals and the logged mean.

    Args:
        path: of the file; its folder is made.
        found: what each checkpoint is called, and its evaluation.
        settings: of all of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html_page(found, settings), encoding="utf-8")


def html_page(found: Sequence[tuple[str, "Evaluation"]], settings: "OpeSettings") -> str:
    """The page; plotly's script is in it (4 MB), and text of unknown origin is text there."""
    chart = _figure(found, settings).to_html(full_html=False, include_plotlyjs=True)
    warnings = "".join(
        f"<li>{html.escape(name)}: {html.escape(text)}</li>"
        for name, evaluation in found
        for text in evaluation.warnings
    )
    title = f"Off-policy estimates of the return, gamma {settings.gamma:g}"
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{chart}\n"
        f"<ul>{warnings}</ul>\n</body></html>\n"
    )


def _figure(found: Sequence[tuple[str, "Evaluation"]], settings: "OpeSettings") -> Any:
    import plotly.graph_objects as go  # type: ignore[import-untyped]

    figure = go.Figure()
    for name, evaluation in found:
        each = [x for x in evaluation.estimates if math.isfinite(x.value)]
        known = [math.isfinite(x.low) and math.isfinite(x.high) for x in each]
        bars = list(zip(each, known, strict=True))
        figure.add_scatter(
            x=[x.estimator for x in each],
            y=[x.value for x in each],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [x.high - x.value if has else 0.0 for x, has in bars],
                "arrayminus": [x.value - x.low if has else 0.0 for x, has in bars],
            },
            text=["" if x.ess is None else f"ESS {x.ess:,.1f}" for x in each],
            mode="markers",
            name=html.escape(name),
        )
    behavior = found[0][1].behavior
    figure.add_hline(y=behavior.value, line_dash="dot", annotation_text="logged episodes")
    figure.update_layout(
        template="plotly_white",
        height=520,
        scattermode="group",  # checkpoints side by side
        yaxis_title=f"estimate, {settings.level:.4g} interval",
    )
    return figure
