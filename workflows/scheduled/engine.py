"""One run of a workflow: its steps in turn, each noted before and after, each once."""

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from offline import workflow_log as w
from offline.errors import LakeError
from offline.failpoints import fail_point
from offline.registry import Registry
from workflows.output import safe_text
from workflows.runs import shell
from workflows.scheduled.places import Places, RunLock
from workflows.scheduled.process import Attempt, Ended, tail_of
from workflows.scheduled.references import resolved
from workflows.scheduled.spec import stamp
from workflows.scheduled.steps import At, Command, Gate, Step, Train

MAX_WAIT_S: Final = 600.0
_LEASE_GRACE_S: Final = 600.0
_MAX_MESSAGE: Final = 2000
_POLL_S: Final = 0.1

Say = Callable[[str], None]


class StepError(ValueError):
    """A step that cannot be begun, or whose command did not give what was expected."""


@dataclass
class Execution:
    """One process's work on one run.

    Args:
        places: of the workflow.
        logical_time: of the run, in UTC.
        should_stop: asked many times a second; the run can go on later.
        say: gets a line for each thing that happens.
        again: also where the run failed: its failed steps are tried anew.
    """

    places: Places
    logical_time: datetime
    should_stop: Callable[[], bool] = lambda: False
    say: Say = lambda _line: None
    again: bool = False
    _owner: str = ""
    _outputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def run(self) -> str:
        """Do what is left of the run.

        Returns:
            "succeeded", "failed" or "stopped".

        Raises:
            ClaimError: it is over, or another process has it.
            LakeError: the history cannot be read or written.
        """
        self.places.storage.mkdir(parents=True, exist_ok=True)
        folder = self.places.folder(self.logical_time)
        with RunLock(folder) as lock:
            # Names this lock, too: whoever holds it knows that earlier owners of it are dead.
            prefix = f"{socket.gethostname()}:{folder}:"
            self._owner = f"{prefix}{os.getpid()}:{uuid.uuid4().hex[:8]}"
            state = self._log.claim(
                self._event(w.WHOLE, 1, w.STARTED),
                lease_s=self._lease_s,
                is_dead=lambda event: event.owner.startswith(prefix),
                again=self.again,
            )
            fail_point("workflow.claimed")
            self._say("resumed" if state.whole else "started")
            return self._steps(state, lock)

    @property
    def _log(self) -> w.WorkflowLog:
        return w.WorkflowLog(self.places.lake, self.places.workflow.name)

    @property
    def _lease_s(self) -> float:
        """No step is silent for longer, unless its scheduler is gone."""
        workflow = self.places.workflow
        return max(map(workflow.timeout_s, workflow.spec.steps)) + MAX_WAIT_S + _LEASE_GRACE_S

    def _steps(self, state: w.RunState, lock: RunLock) -> str:
        held_back = False
        for name, step in self.places.workflow.spec.steps.items():
            known = state.steps.get(name)
            if known is not None and known.status in (w.SUCCEEDED, w.SKIPPED):
                self._outputs[name] = known.outputs
                status = known.status
            elif held_back and not step.always:
                status = w.SKIPPED
                self._log.add(self._event(name, 1, w.SKIPPED, message="the gate did not pass"))
                self._say(f"{name}: skipped")
            else:
                status = self._step(name, step, state, lock)
            if status in (w.FAILED, w.STOPPED):
                return self._end(status, state, f"at step {name}")
            passed = self._outputs.get(name, {}).get("passed")
            held_back = held_back or (isinstance(step, Gate) and passed is False)
        fail_point("workflow.steps_done")
        return self._end(w.SUCCEEDED, state, "the gate did not pass" if held_back else None)

    def _end(self, status: str, state: w.RunState, message: str | None) -> str:
        attempt = 1 if state.whole is None else state.whole.attempt + 1
        self._log.add(self._event(w.WHOLE, attempt, status, message=message))
        self._say(status + ("" if message is None else f": {message}"))
        return status

    def _step(self, name: str, step: Step, state: w.RunState, lock: RunLock) -> str:
        """Attempts until one succeeds or there are no more; how it ended."""
        workflow = self.places.workflow
        failures = 0 if self.again else state.failures.get(name, 0)
        attempt = state.attempts.get(name, 0)
        while True:
            attempt += 1
            status = self._attempt(name, step, attempt, lock)
            if status != w.FAILED:
                return status
            failures += 1
            if failures > workflow.retries(name):
                return w.FAILED
            wait_s = min(workflow.schedule.retry_wait_s * 2 ** (failures - 1), MAX_WAIT_S)
            self._say(f"{name}: again in {wait_s:g} s")
            if self._waited(wait_s):
                return w.STOPPED

    def _waited(self, seconds: float) -> bool:
        """Wait; True if asked to stop meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.should_stop():
                return True
            time.sleep(_POLL_S)
        return self.should_stop()

    def _attempt(self, name: str, step: Step, attempt: int, lock: RunLock) -> str:
        if self.should_stop():
            return w.STOPPED
        run_id = self.places.run_id(self.logical_time, name)
        try:
            filled = self._filled(name, step)
            words, done = self._words(filled, run_id)
        except (ValueError, LakeError) as error:
            self._log.add(self._event(name, attempt, w.STARTED))
            return self._failed(name, attempt, str(error), run_id)
        text = shell(words if isinstance(step, Command) else ["millrace", *words])
        self._log.add(self._event(name, attempt, w.STARTED, run_id=run_id, command=text))
        fail_point("workflow.step_started")
        self._say(f"{name}: {text}")
        if done is not None:
            return self._succeeded(name, attempt, done, run_id)
        base = self.places.folder(self.logical_time) / f"{name}.{attempt}"
        process = Attempt(
            self._executable(filled, words),
            Path.cwd(),
            base.with_name(f"{base.name}.out"),
            base.with_name(f"{base.name}.log"),
            self.places.workflow.timeout_s(name),
            lock.fd,
        )
        try:
            ended = process.run(
                began=lambda _pid: fail_point("workflow.step_running"),
                should_stop=self.should_stop,
            )
        except OSError as error:
            return self._failed(name, attempt, f"cannot be started: {error}", run_id)
        fail_point("workflow.step_ended")
        return self._judged(name, filled, attempt, ended, process, run_id)

    def _judged(
        self,
        name: str,
        step: Step,
        attempt: int,
        ended: Ended,
        process: Attempt,
        run_id: str,
    ) -> str:
        if ended.how == "stopped":
            self._say(f"{name}: stopped")
            return w.STOPPED
        if ended.how == "timeout":
            what = f"took longer than {process.timeout_s:g} s and was ended"
            return self._failed(name, attempt, f"{what}\n{tail_of(process.log)}", run_id)
        if ended.exit_code:
            said = tail_of(process.log) or tail_of(process.out)
            what = f"exit code {ended.exit_code}; {process.log}\n{said}"
            return self._failed(name, attempt, what, run_id)
        try:
            outputs = step.found(last_json(process.out))
        except ValueError as error:
            return self._failed(name, attempt, f"{error}; {process.out}", run_id)
        return self._succeeded(name, attempt, outputs, run_id)

    def _succeeded(self, name: str, attempt: int, outputs: Mapping[str, Any], run_id: str) -> str:
        self._outputs[name] = outputs
        event = self._event(name, attempt, w.SUCCEEDED, outputs=outputs, run_id=run_id)
        self._log.add(event)
        fail_point("workflow.step_logged")
        known = {k: v for k, v in outputs.items() if v is not None}
        self._say(f"{name}: succeeded {json.dumps(known, default=str)}")
        return w.SUCCEEDED

    def _failed(self, name: str, attempt: int, why: str, run_id: str) -> str:
        message = safe_text(why)[:_MAX_MESSAGE]
        self._log.add(self._event(name, attempt, w.FAILED, message=message, run_id=run_id))
        self._say(f"{name}: failed: {message}")
        return w.FAILED

    def _filled(self, name: str, step: Step) -> Step:
        """The step with what its references stand for.

        Raises:
            StepError: one has no value, or a value that the step does not take.
        """
        values = resolved(step.model_dump(exclude_unset=True), self._find)
        try:
            return type(step).model_validate(values)
        except ValueError as error:
            raise StepError(f"{name} cannot be begun: {error}") from None

    def _find(self, path: tuple[str, ...]) -> Any:
        if path[0] == "registry":
            return Registry(self.places.lake).require(path[1], path[2]).checkpoint
        if path[0] != "steps":
            return self._times[path[0]]
        outputs = self._outputs.get(path[1], {})
        value = outputs.get(path[2])
        if value is None:
            there = ", ".join(k for k, v in outputs.items() if v is not None) or "nothing"
            raise StepError(f"${{{'.'.join(path)}}} has no value; step {path[1]} gave {there}")
        return value

    @property
    def _times(self) -> dict[str, str]:
        local = self.logical_time.astimezone(self.places.workflow.schedule.zone)
        return {
            "logical_time": self.logical_time.isoformat(),
            "logical_date": local.date().isoformat(),
            "stamp": stamp(self.logical_time),
        }

    def _words(self, step: Step, run_id: str) -> tuple[list[str], dict[str, Any] | None]:
        """The command of a step; and its outputs, if an attempt that was cut short had done all."""
        at = At(
            run_id=run_id,
            storage=str(self.places.storage),
            lake=self.places.workflow.spec.lake,
            workflow=self.places.workflow.name,
            logical_time=self._times["logical_time"],
        )
        if not isinstance(step, Train):
            return step.command(at), None
        found = trained(self.places.storage / run_id)
        if found is None:
            return step.command(at), None
        checkpoint, result = found
        again = step.command(at.model_copy(update={"resume": checkpoint}))
        if result.get("stopped_by") is None:
            return again, None
        summary = {"run_id": run_id, "checkpoint": checkpoint, "result": result}
        folder = str(self.places.storage / run_id)
        return again, step.found({"summary": {**summary, "folder": folder}})

    def _executable(self, step: Step, words: list[str]) -> list[str]:
        return words if isinstance(step, Command) else [sys.executable, "-m", "workflows", *words]

    def _event(self, step: str, attempt: int, status: str, **values: Any) -> w.Event:
        return w.Event(
            workflow=self.places.workflow.name,
            logical_time=self.logical_time,
            step=step,
            attempt=attempt,
            status=status,
            owner=self._owner,
            spec_sha256=self.places.workflow.sha256,
            host=socket.gethostname(),
            pid=os.getpid(),
            **values,
        )

    def _say(self, line: str) -> None:
        first, *rest = safe_text(line).splitlines() or [""]
        self.say(f"{self.places.workflow.name} {self._times['logical_time']}  {first}")
        for each in rest:
            self.say(f"    {each}")


def trained(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """What a training that was begun has left: its latest whole checkpoint, and its last result.

    None where there is no checkpoint to go on from; the folder, which holds the run's name, is
    then moved out of the way.
    """
    from pipelines.checkpoint import latest_checkpoint

    if not folder.is_dir():
        return None
    latest = latest_checkpoint(folder / "checkpoints")
    if latest.path is None:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.cut{number}")).exists():
            number += 1
        folder.rename(aside)
        return None
    last: dict[str, Any] = {}
    results = folder / "result.json"
    for line in results.read_text().splitlines() if results.is_file() else ():
        try:
            last = json.loads(line)
        except ValueError:
            break  # a kill cut it short
    if last.get("training_iteration") != int(latest.path.name):
        last = {}  # the checkpoint is of an earlier iteration
    return str(latest.path), last


def last_json(path: Path) -> dict[str, Any]:
    """The JSON object on the last line of a file; empty where the line is none.

    Raises:
        ValueError: the line begins as one and is none.
    """
    lines = tail_of(path, lines=1).strip()
    if not lines.startswith("{"):
        return {}
    try:
        found: dict[str, Any] = json.loads(lines)
    except ValueError as error:
        raise ValueError(f"the last line of the output is no JSON: {error}") from None
    return found
