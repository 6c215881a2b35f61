"""Errors of the operator layer that callers may want to catch."""


class ColumnError(ValueError):
    """An operator reads a column that the stream does not carry."""


class SpecError(ValueError):
    """A value does not fit the space, dtype or shape it was declared with."""


class EnvError(RuntimeError):
    """An environment failed more often in a row than the fault policy allows, or never ends."""
