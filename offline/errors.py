"""Errors of the lake that callers may want to catch."""


class LakeError(ValueError):
    """A lake, a table or a version that cannot be read or written as asked; says which and why."""


class NoRowsError(LakeError):
    """No row is as asked for; says what there is."""


class LakeBusyError(LakeError):
    """Another process writes under the same name."""


class LakeStorageError(LakeError):
    """The storage refused: full, read-only, gone, or its credentials are wrong."""


class QueryError(ValueError):
    """A query that is refused, wrong, or took too long or too much."""


class ImportDataError(ValueError):
    """Data from outside that does not keep the contract; names file, rows and columns."""
