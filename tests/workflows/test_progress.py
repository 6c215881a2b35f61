"""What a run shows while it goes: rates, escapes, columns."""

import io
import json

import pytest
from rich.console import Console

from workflows.live_table import LiveTable
from workflows.output import json_line, safe_text
from workflows.progress import (
    LINE_PERIOD_S,
    TABLE_PERIOD_S,
    Sparse,
    faults,
    line_of,
    lines,
    number,
    time_split,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def result(iteration: int = 7, **figures):
    return {
        "run_id": "r",
        "training_iteration": iteration,
        "env_steps": 2048 * iteration,
        "env_steps_per_s": 41_234.5,
        "episodes": 33,
        "episode_return_mean": 123.456,
        "episode_return_min": 9.0,
        "episode_return_max": 500.0,
        "episode_length_mean": 123.456,
        "policy_lag_mean": 0.5,
        "policy_lag_max": 1,
        "queue_fragments": 2,
        "learner/policy_loss": -0.0123456,
        "learner/value_loss": 40.0,
        "learner/entropy": 0.6,
        "time_s": 12.34,
        "time/iteration_s": 0.1,
        "time/wait_s": 0.04,
        "time/update_s": 0.06,
        "faults/worker_restarts": 0,
        **figures,
    }


def test_at_most_two_lines_a_second_and_always_the_first_and_the_last():
    clock, stream = Clock(), io.StringIO()
    reporter = lines(stream, clock=clock)
    for iteration in range(1, 1001):  # 5 ms each, as A2C's are
        reporter.show(result(iteration))
        clock.now += 0.005
    reporter.close()
    printed = stream.getvalue().splitlines()
    assert len(printed) == 5 / LINE_PERIOD_S + 1
    assert printed[0].startswith("iteration 1  ")
    assert printed[-1].startswith("iteration 1,000  ")


def test_a_day_of_iterations_does_not_fill_the_disk_with_lines():
    clock, stream = Clock(), io.StringIO()
    reporter = lines(stream, clock=clock)
    for iteration in range(1, 24 * 3600):
        reporter.show(result(iteration))
        clock.now += 1.0
    assert 8_000 < len(stream.getvalue().splitlines()) < 9_500


def test_the_last_iteration_is_not_printed_twice():
    stream = io.StringIO()
    reporter = lines(stream)
    reporter.show(result(1))
    reporter.close()
    reporter.close()
    assert len(stream.getvalue().splitlines()) == 1


def test_a_table_is_drawn_at_most_four_times_a_second():
    clock, drawn = Clock(), []
    reporter = Sparse(drawn.append, period_s=TABLE_PERIOD_S, clock=clock)
    for iteration in range(1, 201):
        reporter.show(result(iteration))
        clock.now += 0.005
    assert len(drawn) == 4


def test_a_line_has_the_figures_that_tell_most():
    text = line_of(result(**{"faults/aborted_episodes": 3, "evaluation/episode_return_mean": 450}))
    for part in (
        "iteration 7",
        "env_steps 14,336",
        "41,234/s",
        "return 123.5",
        "policy_loss -0.01235",
        "lag 1",
        "aborted_episodes 3",
        "evaluated 450",
        "12.3 s",
    ):
        assert part in text
    assert "worker_restarts" not in text


def test_a_line_can_be_made_before_the_first_episode_ended():
    nothing = dict.fromkeys(
        ("episode_return_mean", "episode_return_min", "episode_return_max", "episode_length_mean")
    )
    assert "return -  length -" in line_of(result(**nothing))


def test_the_table_shows_every_figure_the_contract_names():
    console = Console(file=io.StringIO(), force_terminal=False, width=120)
    table = LiveTable("ppo on CartPole-v1", console)
    table.draw(result())
    table.close()
    text = console.file.getvalue()
    for part in (
        "ppo on CartPole-v1",
        "iteration",
        "14,336",
        "41,234",
        "123.5  (9 to 500)",
        "policy_loss -0.01235  value_loss 40",
        "mean 0.5, max 1",
        "2 fragments",
        "wait 40%  update 60%",
    ):
        assert part in text, text


def test_names_in_the_table_are_neither_markup_nor_escape_codes():
    console = Console(file=io.StringIO(), force_terminal=False, width=120)
    table = LiveTable("ppo on [bold red]x[/] \x1b[2J" + "y" * 500, console)
    table.draw(result())
    table.close()
    text = console.file.getvalue()
    assert "[bold red]x[/]" in text
    assert "\x1b[2J" not in text
    assert "y" * 200 not in text


def test_the_cursor_comes_back():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    table = LiveTable("x", console)
    table.draw(result())
    table.close()
    table.close()
    assert console.file.getvalue().count("\x1b[?25h") == 1


def test_shares_of_time_are_of_the_iteration():
    assert time_split(result()) == pytest.approx({"wait": 0.4, "update": 0.6})
    assert time_split({"time_s": 1.0}) == {}


def test_only_faults_that_happened_are_shown():
    assert faults(result(**{"faults/aborted_episodes": 2})) == {"aborted_episodes": 2}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (3, "3"), (12345, "12,345"), (0.00012346, "0.0001235"), (12345.6, "12,346")],
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


def test_json_has_null_for_what_json_cannot_say():
    value = {"a": float("nan"), "b": [1.0, float("inf")], "c": None, "d": "x"}
    assert json.loads(json_line(value)) == {"a": None, "b": [1.0, None], "c": None, "d": "x"}


def test_safe_text_escapes_and_cuts():
    text = safe_text("good\n\tindented\nbad\x1b[2J\x07\n" + "z" * 10_000)
    assert text.splitlines()[:3] == ["good", "    indented", "bad\\x1b[2J\\x07"]
    assert len(text.splitlines()[3]) == 2000
    assert len(safe_text("\n".join("abc" * 1000)).splitlines()) == 400
