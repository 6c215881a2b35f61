"""The settings of a workflow's trainings, checked before anything runs."""

from typing import Any

from pipelines.config_errors import ConfigError, Problem
from workflows.options import TrainRequest
from workflows.scheduled.references import references
from workflows.scheduled.spec import Workflow
from workflows.scheduled.steps import Train


def check_trainings(workflow: Workflow) -> None:
    """Refuse settings that no run can train with; what a reference stands for is not known yet.

    Raises:
        ConfigError: everything that is wrong, with the step's name.
    """
    problems: list[Problem] = []
    for name, step in workflow.spec.steps.items():
        if isinstance(step, Train) and (step.algo or step.file) and step.resume is None:
            problems += [
                Problem(f"{workflow.path}: steps.{name}: {p.where}", p.what, p.fix)
                for p in _problems(step)
            ]
    if problems:
        raise ConfigError(*problems)


def _problems(step: Train) -> tuple[Problem, ...]:
    # Imports pydantic; building the configuration imports torch.
    from workflows.settings import read_settings

    known = [word for key, value in step.set.items() for word in _settings(key, value)]
    try:
        read_settings(
            TrainRequest(
                algo=step.algo,
                file=step.file,
                env=None if step.env is None or _refers(step.env) else step.env,
                settings=tuple(known),
                stop=None if step.stop is None or _refers(step.stop) else _json(step.stop),
            )
        ).build()
    except ConfigError as error:
        return error.problems
    return ()


def _settings(key: str, value: Any) -> list[str]:
    if _refers(value):
        return []
    return [f"{key}={value if isinstance(value, str) else _json(value)}"]


def _refers(value: Any) -> bool:
    return any(True for _ in references(value))


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
