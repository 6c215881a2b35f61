"""Schedules at literal points."""

import pytest

from rl_ops.schedules import value_at

LINE = ((100, 1.0), (200, 3.0), (400, 0.0))


@pytest.mark.parametrize(
    ("env_steps", "value"),
    [
        (0, 1.0),
        (100, 1.0),
        (150, 2.0),
        (199, 2.98),
        (200, 3.0),
        (300, 1.5),
        (400, 0.0),
        (9**9, 0.0),
    ],
)
def test_points_are_joined_by_straight_lines(env_steps: int, value: float) -> None:
    assert value_at(LINE, env_steps) == pytest.approx(value)


def test_a_number_is_constant() -> None:
    assert [value_at(0.3, n) for n in (0, 7)] == [0.3, 0.3]


def test_one_point_is_constant() -> None:
    assert [value_at(((50, 0.1),), n) for n in (0, 50, 99)] == [0.1] * 3


def test_two_points_at_one_place_are_a_jump() -> None:
    schedule = ((0, 1.0), (10, 1.0), (10, 5.0), (20, 5.0))
    assert [value_at(schedule, n) for n in (9, 10, 15)] == [1.0, 5.0, 5.0]


def test_json_gives_lists_for_tuples() -> None:
    assert value_at([[0, 0.0], [10, 1.0]], 5) == 0.5  # type: ignore[arg-type]
