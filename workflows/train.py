"""`millrace train`: run a pipeline to its end, show how it goes, and say what it left behind."""

import json
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from workflows.exits import FAILED, Failure, Interrupted, is_ours
from workflows.logs import verbosity_options
from workflows.options import TrainRequest, storage_folder, train_options
from workflows.progress import Figures, Reporter, number, reporter_for
from workflows.signals import GracefulStop
from workflows.startup import Start, prestart

if TYPE_CHECKING:
    from pipelines.config import AlgorithmConfig
    from pipelines.pipeline import Pipeline
    from workflows.runs import Located


@click.command(short_help="Train an algorithm, or what a file says.")
@click.argument("algo", required=False)
@click.argument("file", required=False)
@train_options
@verbosity_options
@click.pass_obj
def train(start: Start | None, /, **given: Any) -> None:
    """Train ALGO on an environment, or what a file says: `train file F`.

    F is a path to YAML, JSON or Python, or an address of YAML or JSON; options win over it. With
    --resume, ALGO may be left out.
    """
    request = TrainRequest(**given)
    if request.algo == "file" and request.file is None:
        raise click.UsageError("which file? Write: millrace train file F")
    if request.algo == "file":
        request = TrainRequest(**given | {"algo": None})
    elif request.file is not None:
        raise click.UsageError(f"one argument too many: {request.file!r}. A file: train file F")
    run(request, start)


def run(request: TrainRequest, start: Start | None = None) -> None:
    """Train as asked; leaves by click's Exit with the signal's code when stopped by one.

    Args:
        request: the command line.
        start: of this process, when it is this one command; else time counts from now.

    Raises:
        Failure: the run failed; the message says where and how to go on.
    """
    start = start if start is not None else Start.of_a_call()
    with GracefulStop() as stop, _streams(request.as_json) as out:
        Training(request, start, stop, out).run()
    if stop.exit_code:
        raise click.exceptions.Exit(stop.exit_code)


@contextmanager
def _streams(as_json: bool) -> Iterator[TextIO]:
    from workflows.output import stdout_alone

    if not as_json:
        yield sys.stdout
        return
    with stdout_alone() as stream:
        yield stream


@dataclass
class Training:
    """One run of the command."""

    request: TrainRequest
    start: Start
    stop: GracefulStop
    out: TextIO

    def run(self) -> None:
        """From the request to the summary."""
        located, config = self._configured()
        # Imports torch, which --help and bad options must not wait for.
        from pipelines.pipeline import Pipeline

        request = self.request
        try:
            pipeline = Pipeline(
                config,
                storage=request.storage,
                name=request.name,
                resume=located.path if located is not None else None,
                ray_address=request.ray_address,
                debug=request.debug,
                started_at=self.start.at,
            )
        except SystemExit as error:  # by Ray's own handler of SIGTERM, in place while it starts
            raise Interrupted(128 + signal.SIGTERM) from error
        except Exception as error:
            if not is_ours(error):
                error.add_note("`millrace doctor` checks the installation")
            raise
        with pipeline:
            self.stop.hold()
            if located is not None:
                self._say_resumed(located, pipeline)
            try:
                self._follow(pipeline)
            except RuntimeError as error:
                if not is_ours(error):
                    raise
                raise Failure(self._failure(error, pipeline), code=FAILED) from error

    def _configured(self) -> "tuple[Located | None, AlgorithmConfig]":
        # Imports pydantic; `build` imports torch with the algorithm.
        from workflows.settings import check_not_ended, check_ray_address, read_settings

        request = self.request
        if request.resume is None:
            located = checkpoint = None
        else:
            from pipelines.checkpoint import Checkpoint
            from workflows.runs import locate

            located = locate(request.resume, request.storage)
            checkpoint = Checkpoint(located.path)
        settings = read_settings(request, saved=checkpoint.config if checkpoint else None)
        if request.ray_address is not None:
            check_ray_address(request.ray_address)
        prestart(ray_address=request.ray_address, debug=request.debug)
        config = settings.build()
        if checkpoint is not None:
            check_not_ended(config, checkpoint.state)
        return located, config

    def _say_resumed(self, located: "Located", pipeline: "Pipeline") -> None:
        for reason in located.skipped:
            click.echo(f"warning: {reason}", err=True)
        for path in pipeline.folder.set_aside:
            click.echo(f"warning: a later checkpoint is now {path}", err=True)
        click.echo(f"resuming {pipeline.run_id} from {_called(located.path)}", err=True)

    def _follow(self, pipeline: "Pipeline") -> None:
        reporter = self._reporter(pipeline)
        last: dict[str, Any] = {}
        try:
            for last in pipeline.stream():
                reporter.show(last)
                if self.stop.signal is not None:
                    break
            for last in pipeline.untold():
                reporter.show(last)
        finally:
            reporter.close()
        stopped = self.stop.signal is not None
        wanted = stopped or pipeline.config.checkpoint.at_end
        written = pipeline.save() if wanted else last.get("checkpoint")
        # By its number: a result names it by its address, which may be elsewhere.
        path = None if written is None else pipeline.folder.checkpoints / Path(written).name
        self._summarize(pipeline, last, path)

    def _reporter(self, pipeline: "Pipeline") -> Reporter:
        from pipelines.config_errors import printable

        config = pipeline.config
        title = f"{config.algo} on {printable(config.env.id)}"
        if not self.request.as_json:
            # Before the first result, which takes seconds: the learner and workers are starting.
            click.echo(f"{title}: {_called(pipeline.folder.path)}")
        reporter = reporter_for(self.out, as_json=self.request.as_json, title=title)
        self.stop.on_abrupt_end = reporter.close
        return reporter

    def _summarize(
        self, pipeline: "Pipeline", last: dict[str, Any], checkpoint: Path | None
    ) -> None:
        from workflows.output import json_line

        stopped_by = self.stop.signal.name if self.stop.signal else last.get("stopped_by")
        summary = {
            "run_id": pipeline.run_id,
            "folder": _called(pipeline.folder.path),
            "stopped_by": stopped_by,
            "lake": _lake_line(pipeline, last, checkpoint),
            "checkpoint": None if checkpoint is None else _called(checkpoint),
            "evaluate": None if checkpoint is None else self._evaluate_command(checkpoint),
            "resume": self._resume_command(pipeline) if self.stop.signal else None,
        }
        if self.request.as_json:
            self.out.write(json_line({"summary": summary | {"result": last}}) + "\n")
        else:
            lines = [f"{name:<11}{value}" for name, value in summary.items() if value is not None]
            click.echo("\n".join(["", *figures_of(last), *lines]))

    def _failure(self, error: Exception, pipeline: "Pipeline") -> str:
        from pipelines.checkpoint import numbered

        lines = [f"Error: the run failed: {error}", f"folder     {_called(pipeline.folder.path)}"]
        if self.request.debug and error.__cause__ is not None:
            lines.insert(0, "".join(traceback.format_exception(error.__cause__)).rstrip())
        if numbered(pipeline.folder.checkpoints):
            lines.append(f"resume     {self._resume_command(pipeline)}")
        return "\n".join(lines)

    def _evaluate_command(self, checkpoint: Path) -> str:
        from workflows.runs import shell

        return shell([*self.start.command, "evaluate", _called(checkpoint), "--episodes", "10"])

    def _resume_command(self, pipeline: "Pipeline") -> str:
        from workflows.runs import shell

        words = [*self.start.command, "train", "--resume", pipeline.run_id]
        parent = pipeline.folder.path.parent
        if parent != storage_folder(None):
            words += ["--storage", _called(parent)]
        if self.request.ray_address is not None:
            words += ["--ray-address", self.request.ray_address]
        return shell([*words, *(["--debug"] if self.request.debug else [])])


def _called(path: Path) -> str:
    from pipelines.remote import address_of

    return address_of(path)


def _lake_line(pipeline: "Pipeline", last: dict[str, Any], checkpoint: Path | None) -> str | None:
    """Where the steps are, and the table versions that hold what the checkpoint was trained on."""
    if pipeline.lake is None:
        return None
    names = {name: f"lake/{name}_version" for name in ("steps", "episodes", "consumption")}
    versions = {name: last[key] for name, key in names.items() if key in last}
    if checkpoint is not None:
        versions = json.loads((checkpoint / "state.json").read_text())["lake"]["versions"]
    at = ", ".join(f"{name} version {version}" for name, version in versions.items())
    return f"{pipeline.lake} ({at})" if at else pipeline.lake


def figures_of(last: Figures) -> list[str]:
    """The last result in lines."""
    low, mean, high = (number(last[f"episode_return_{of}"]) for of in ("min", "mean", "max"))
    spread = f"{mean} ({low} to {high}) over the latest training episodes"
    ended = last["episode_return_mean"] is not None
    return [
        f"env steps  {last['env_steps']:,} in {last['time_s']:.1f} s",
        f"return     {spread if ended else 'none yet: no episode has ended'}",
    ]
