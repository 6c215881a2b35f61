"""What of a chain of errors is told to the user."""

from pipelines.errors import cause_of


class CausedError(Exception):
    def __init__(self, text, cause=None, failures=None):
        super().__init__(text)
        self.cause = cause
        if failures is not None:
            self.worker_failures = failures


def chained(outer, inner):
    outer.__cause__ = inner
    return outer


def test_an_error_without_a_cause_is_told_itself():
    assert cause_of(ValueError("no")) == "ValueError: no"


def test_the_innermost_cause_is_told_through_attributes_chains_and_ranks():
    inner = chained(RuntimeError("outer"), KeyError("inner"))
    failure = CausedError("train", failures={1: CausedError("task", cause=inner)})
    assert cause_of(failure) == "KeyError: 'inner'"


def test_a_cause_that_says_nothing_is_not_told():
    assert cause_of(chained(RuntimeError("actor died"), Exception())) == "RuntimeError: actor died"


def test_an_error_that_is_its_own_cause_ends():
    error = CausedError("round")
    error.cause = error
    assert cause_of(error) == "CausedError: round"
