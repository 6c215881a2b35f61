"""A workflow's schedule for other schedulers, each of which only calls `millrace workflow`."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflows.runs import shell
from workflows.scheduled.places import Places

_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_NAMED = {day.lower(): number for number, day in enumerate(_DAYS)}
IMAGE = "rayproject/ray:2.60.0-py311"


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        places: of the workflow.
        ray_address: of a cluster's dashboard.
        image: of containers.
    """

    places: Places
    ray_address: str | None = None
    image: str | None = None

    @property
    def millrace(self) -> list[str]:
        """The command of this installation."""
        beside = Path(sys.executable).with_name("millrace")
        return [str(beside)] if beside.is_file() else [sys.executable, "-m", "workflows"]

    @property
    def once(self) -> list[str]:
        """Words that do what is due, behind the command."""
        places = self.places
        return [
            *("workflow", "serve", str(places.workflow.path), "--once"),
            *("--storage", str(places.storage)),
        ]


def exported(target: str, what: Exported) -> str:
    """The text for a target.

    Raises:
        ValueError: the target cannot say what the schedule says; names what.
    """
    return _TARGETS[target](what)


def _cron(what: Exported) -> str:
    schedule = what.places.workflow.schedule
    line = shell([*what.millrace, *what.once]).replace("%", "\\%")
    cwd = shell([str(Path.cwd())]).replace("%", "\\%")
    return (
        f"# crontab -e. Missed and unfinished runs are found in the lake's history.\n"
        f"CRON_TZ={schedule.timezone}\n"
        f"{' '.join(schedule.times.fields)} cd {cwd} && {line}\n"
    )


def _systemd(what: Exported) -> str:
    workflow = what.places.workflow
    name = f"millrace-{workflow.name}"
    command = " ".join(_unit_word(word) for word in [*what.millrace, *what.once])
    calendar = on_calendar(workflow.schedule.times.fields, workflow.schedule.timezone)
    return f"""\
# ~/.config/systemd/user/{name}.service
[Unit]
Description=Millrace workflow {workflow.name}

[Service]
Type=oneshot
WorkingDirectory={str(Path.cwd()).replace("%", "%%")}
ExecStart={command}
KillSignal=SIGTERM
TimeoutStopSec=180

# ~/.config/systemd/user/{name}.timer
# systemctl --user daemon-reload && systemctl --user enable --now {name}.timer
[Unit]
Description=When Millrace workflow {workflow.name} is due

[Timer]
OnCalendar={calendar}
Persistent=true

[Install]
WantedBy=timers.target
"""


def _unit_word(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(ch.isspace() for ch in word) or escaped != word else word


def on_calendar(fields: tuple[str, ...], timezone: str) -> str:
    """Cron's five fields as systemd.time(7) has them.

    Raises:
        ValueError: both days are restricted: cron takes either, systemd both.
    """
    minute, hour, day, month, weekday = fields
    if not day.startswith("*") and not weekday.startswith("*"):
        raise ValueError(
            "day of month and day of week are both restricted: cron runs on either, systemd on "
            "both; write two workflows, or use --target cron"
        )
    days = "" if weekday == "*" else f"{_week(weekday)} "
    date = f"*-{_part(month, first=1)}-{_part(day, first=1)}"
    return f"{days}{date} {_part(hour, first=0)}:{_part(minute, first=0)}:00 {timezone}"


def _part(text: str, *, first: int) -> str:
    parts = []
    for part in _months(text).split(","):
        span, slash, step = part.partition("/")
        span = str(first) if span == "*" and slash else span.replace("-", "..")
        parts.append(f"{span}/{step}" if slash else span)
    return ",".join(parts)


def _months(text: str) -> str:
    names = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
    found = text.lower()
    for number, name in enumerate(names, 1):
        found = found.replace(name, str(number))
    return found


def _week(text: str) -> str:
    chosen: set[int] = set()
    for part in text.lower().split(","):
        span, _, step = part.partition("/")
        low, dash, high = span.partition("-")
        first = 0 if span == "*" else _day(low)
        last = 6 if span == "*" or (step and not dash) else _day(high or low)
        chosen.update(number % 7 for number in range(first, last + 1, int(step or 1)))
    return ",".join(_DAYS[number] for number in sorted(chosen))


def _day(text: str) -> int:
    return _NAMED[text] if text in _NAMED else int(text)


def _ray_job(what: Exported) -> str:
    words = ["ray", "job", "submit"]
    words += ["--address", what.ray_address] if what.ray_address else []
    words += ["--working-dir", str(Path.cwd()), "--", "millrace", *_in_folder(what)]
    return (
        "# Does what is due, on the cluster; call it as often as runs may be due.\n"
        f"{shell(words)}\n"
    )


def _in_folder(what: Exported) -> list[str]:
    """Words that do what is due, with the file below the working directory that is shipped."""
    path = what.places.workflow.path
    cwd = Path.cwd()
    if not path.is_relative_to(cwd):
        raise ValueError(f"{path} is not below {cwd}, which is shipped to the cluster; call there")
    storage = ("--storage", str(what.places.storage))
    return ["workflow", "serve", str(path.relative_to(cwd)), "--once", *storage]


def _raycronjob(what: Exported) -> str:
    import yaml

    workflow = what.places.workflow
    image = what.image or IMAGE
    container: dict[str, Any] = {
        "name": "ray-head",
        "image": image,
        "resources": {"limits": {"cpu": "4", "memory": "16Gi"}},
        "volumeMounts": [{"name": "storage", "mountPath": str(what.places.storage)}],
    }
    claim = {"claimName": "millrace-storage"}
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": {"name": f"millrace-{workflow.name.replace('_', '-')}"},
        "spec": {
            "schedule": " ".join(workflow.schedule.times.fields),
            "timeZone": workflow.schedule.timezone,
            "jobTemplate": {
                "entrypoint": shell(["millrace", *_in_folder(what)]),
                "shutdownAfterJobFinishes": True,
                "rayClusterSpec": {
                    "headGroupSpec": {
                        "rayStartParams": {},
                        "template": {
                            "spec": {
                                "containers": [container],
                                "volumes": [{"name": "storage", "persistentVolumeClaim": claim}],
                            }
                        },
                    }
                },
            },
        },
    }
    text: str = yaml.safe_dump(manifest, sort_keys=False, width=1000)
    return (
        "# kubectl apply -f -. The image needs `pip install millrace`, and the workflow's folder\n"
        "# as its working directory; millrace-storage is a volume that outlives the jobs.\n" + text
    )


def _airflow(what: Exported) -> str:
    places = what.places
    schedule, name = places.workflow.schedule, places.workflow.name
    run = [*what.millrace, "workflow", "run", str(places.workflow.path)]
    command = shell([*run, "--storage", str(places.storage)])
    # Airflow's templates would take braces of the file's name for theirs.
    if "{{" in command or "{%" in command:
        raise ValueError(
            "Airflow would take braces in the file's or the storage's path for its own"
        )
    bash = f"{command} --logical-time '{{{{ logical_date.isoformat() }}}}'"
    return f'''\
"""Millrace workflow {name}: Airflow begins its runs, and Millrace does each of their steps once."""

import datetime

import pendulum
from airflow import DAG
from airflow.providers.standard.operators.bash import BashOperator

with DAG(
    dag_id={json.dumps(f"millrace-{name}")},
    schedule={json.dumps(" ".join(schedule.times.fields))},
    start_date=pendulum.parse({json.dumps(schedule.start)}, tz={json.dumps(schedule.timezone)}),
    catchup={schedule.catchup == "all"},
    max_active_runs={schedule.max_active},
):
    BashOperator(
        task_id="run",
        bash_command={json.dumps(bash)},
        cwd={json.dumps(str(Path.cwd()))},
        retries={schedule.retries},
        execution_timeout=datetime.timedelta(days=2),
    )
'''


_TARGETS: dict[str, Callable[[Exported], str]] = {
    "cron": _cron,
    "systemd": _systemd,
    "ray-job": _ray_job,
    "raycronjob": _raycronjob,
    "airflow": _airflow,
}
