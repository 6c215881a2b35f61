"""Errors of pipelines that callers may want to catch."""


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, altered, or of something else."""


class RunExistsError(ValueError):
    """A run of that name exists, or is running."""


class StorageError(ValueError):
    """The storage folder cannot be used."""


class TrainingError(RuntimeError):
    """A run failed; the message says in which stage and why."""


class CallbackError(RuntimeError):
    """A callback raised, or gave something else than figures; the message says which and where."""


def cause_of(failure: BaseException) -> str:
    """The innermost cause, which is what the user can act on."""
    cause = failure
    while True:
        if isinstance(cause, CallbackError):  # says whose code it was, which its cause does not
            return str(cause)
        ranks = getattr(cause, "worker_failures", {})  # of Ray Train: by rank
        inner = next(iter(ranks.values()), None) or getattr(cause, "cause", None) or cause.__cause__
        # Ray chains some errors to one of its own that says nothing.
        if not isinstance(inner, BaseException) or inner is cause or not str(inner):
            return f"{type(cause).__name__}: {cause}"
        cause = inner
