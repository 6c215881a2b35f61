"""A report as one HTML file: script, style and data within it, nothing fetched."""

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any, Final

from workflows.files import write_whole
from workflows.output import json_line
from workflows.reports.blocks import Report

_ASSETS: Final = "assets"
_SCRIPTS: Final = ("uPlot.iife.min.js", "charts.js", "traces.js", "report.js")
_STYLES: Final = ("uPlot.min.css", "report.css")


def html_page(report: Report) -> str:
    """The page.

    Whatever a lake says is data in it: script and style are allowed by their hash alone, and the
    page's script writes texts as texts.
    """
    from jinja2 import Environment, StrictUndefined

    script = "\n".join(_asset(name) for name in _SCRIPTS)
    style = "\n".join(_asset(name) for name in _STYLES)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        _asset("report.html.j2")
    )
    return template.render(
        title=report.title,
        script=_raw(script),
        style=_raw(style),
        data=_raw(embedded(report.to_json())),
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends or opens an element."""
    text = json_line(value)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def write_page(report: Report, path: Path) -> int:
    """Write the page, whole or not at all; its bytes.

    Raises:
        Failure: it cannot be written.
    """
    page = html_page(report).encode()
    write_whole(path, page)
    return len(page)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(_ASSETS, name).read_text(encoding="utf-8")


def _raw(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # our own files, and JSON without < and >


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"sha256-{digest}"
