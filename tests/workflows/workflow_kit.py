"""Small workflows of commands that count how often they ran."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from offline.lake import Lake
from workflows.scheduled.engine import Execution
from workflows.scheduled.places import Places
from workflows.scheduled.spec import load_workflow

AT = datetime(2026, 11, 24, 2, tzinfo=UTC)
HEAD = """\
workflow: small
schedule:
  {cron: "0 3 * * *", timezone: Europe/Berlin, start: 2026-11-24, retries: 1, retry_wait_s: 0}
"""
COUNT = """
import json, sys
path, name, *rest = sys.argv[1:]
with open(path, "a") as file:
    file.write(name + "\\n")
print("noise")
print(json.dumps({"name": name, "rest": rest, "number": len(rest)}))
"""


def counting(folder: Path, *rest: str) -> str:
    """The words of a command that notes that it ran, as YAML."""
    (folder / "count.py").write_text(COUNT)
    return json.dumps([sys.executable, str(folder / "count.py"), str(folder / "ran.txt"), *rest])


def python(code: str) -> str:
    """The words of Python code, as YAML."""
    return json.dumps([sys.executable, "-c", code])


def commands(**steps: str) -> str:
    """Steps that are commands, each with its words and perhaps further settings."""
    lines = [f"  {name}: {{do: command, run: {words}}}\n" for name, words in steps.items()]
    return "steps:\n" + "".join(lines)


def ran(folder: Path) -> list[str]:
    path = folder / "ran.txt"
    return path.read_text().split() if path.exists() else []


def places_of(folder: Path, steps: str, head: str = HEAD) -> Places:
    path = folder / "small.yaml"
    path.write_text(head + steps)
    return Places(load_workflow(path), folder / "storage")


def execute(places: Places, at: datetime = AT, **options: object) -> tuple[str, list[str]]:
    said: list[str] = []
    status = Execution(places, at, say=said.append, **options).run()
    return status, said


def events(places: Places) -> list[dict[str, object]]:
    """All rows of the history, in their order."""
    lake = Lake(places.lake)
    return lake.sql('SELECT * FROM workflow_runs ORDER BY "at"').to_pylist()


def statuses(places: Places) -> list[str]:
    return [f"{e['step'] or 'run'} {e['status']} {e['attempt']}" for e in events(places)]
