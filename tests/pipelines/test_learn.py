"""The learner's loop over literal fragments, with a learner and a flow that only take notes."""

import time

import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import StopConfig
from pipelines.coordinator import END, Command, GoAhead
from pipelines.learn import EpisodeWindow, LearnLoop, Reached, Share, joined
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import World


def fragment(number, *, version=0, ended=(), rows=2):
    """A table of `rows` rows, of whose first ones episodes of the returns `ended` end."""
    pad = [None] * (rows - len(ended))
    lengths = [10 * (i + 1) for i in range(len(ended))]
    return pa.table(
        {
            c.FRAGMENT_ID: pa.array([number] * rows, pa.int64()),
            c.POLICY_VERSION: pa.array([version] * rows, pa.int64()),
            c.EPISODE_RETURN: pa.array([*ended, *pad], pa.float64()),
            c.EPISODE_LENGTH: pa.array([*lengths, *pad], pa.int32()),
        }
    )


class FakeLearner:
    """Remembers the fragments of each update; its weights are its version."""

    def __init__(self):
        self.world = World()
        self.env_steps = self.grad_steps = self.version = 0
        self.updates = []
        self.seconds = 0.0
        self.set_to = None

    def update(self, batch):
        time.sleep(self.seconds)
        ids = batch.fragment_id
        self.updates.append(list(dict.fromkeys(ids.tolist())))
        self.grad_steps += 1
        return {"loss": float(self.version)}

    def weights(self):
        return f"w{self.version}"

    def set_weights(self, weights):
        if weights == "of another shape":
            raise ValueError("wrong shape")
        self.set_to = weights


class FakeFlow:
    """Plays back what the coordinator would say; notes what the loop says."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.published, self.results, self.finished, self.replaced = [], [], [], []

    def answer(self):
        answer = self.answers.pop(0) if self.answers else GoAhead([], 0.0)
        return answer() if callable(answer) else answer

    def advance(self, version, weights, result):
        self.published.append((version, weights))
        if result is not None:
            self.results.append(result)
        return self.answer()

    def proceed(self):
        return self.answer()

    def replace_weights(self, version, weights):
        self.replaced.append((version, weights))

    def finish(self, command, output):
        self.finished.append((command.name, output))


def to_batch(tables):
    table = pa.concat_tables(tables)
    return Batch({c.FRAGMENT_ID: table.column(c.FRAGMENT_ID).to_numpy()})


def make_loop(*answers, per_version=1, window=100, save=None, **stop):
    return LearnLoop(
        learner=FakeLearner(),
        flow=FakeFlow(*answers),
        to_batch=to_batch,
        ids=lambda version: range(version * per_version, (version + 1) * per_version),
        reached=Reached(StopConfig(**stop)),
        window=EpisodeWindow(window),
        save=save or (lambda loop, folder: folder),
        started_at=time.time(),
    )


def command(name, payload=None):
    return Command(1, name, payload)


STOP = GoAhead([command("stop")], 0.0)


# --- order ---


def test_fragments_are_consumed_in_the_order_of_their_ids_whatever_order_they_come_in():
    loop = make_loop(per_version=2)
    loop.start()
    for number in (3, 1, 2, 0):
        loop.feed(fragment(number, version=number // 2))
    assert loop.learner.updates == [[0, 1], [2, 3]]
    assert [version for version, _ in loop.flow.published] == [0, 1, 2]


def test_an_update_waits_for_all_fragments_of_its_version():
    loop = make_loop(per_version=2)
    loop.start()
    loop.feed(fragment(1))
    loop.feed(fragment(2))
    assert loop.learner.updates == []
    loop.feed(fragment(0))
    assert loop.learner.updates == [[0, 1]]


def test_one_late_fragment_releases_every_version_that_waited_behind_it():
    loop = make_loop()
    loop.start()
    for number in (2, 1, 0):
        loop.feed(fragment(number))
    assert loop.learner.updates == [[0], [1], [2]]


@pytest.mark.parametrize("order", [(0, 0, 1), (0, 1, 1), (0, 1, 0)])
def test_a_fragment_that_comes_again_is_dropped_and_counted(order):
    loop = make_loop()
    loop.start()
    for number in order:
        loop.feed(fragment(number))
    assert loop.learner.updates == [[0], [1]]
    assert loop.duplicates == 1


def test_a_duplicate_that_waits_for_its_version_is_dropped_too():
    loop = make_loop(per_version=2)
    loop.start()
    for number in (1, 1, 0):
        loop.feed(fragment(number))
    assert loop.learner.updates == [[0, 1]]
    assert loop.flow.results[0]["faults/duplicate_fragments"] == 1


# --- what a result says ---


def test_counters_rows_and_lag_of_an_iteration():
    loop = make_loop(per_version=2)
    loop.start()
    for number, version in ((0, 0), (1, 0), (2, 0), (3, 1)):
        loop.feed(fragment(number, version=version, rows=3))
    first, second = loop.flow.results
    assert (first["training_iteration"], first["env_steps"], first["policy_version"]) == (1, 6, 1)
    assert (second["training_iteration"], second["env_steps"]) == (2, 12)
    assert (first["policy_lag_mean"], first["policy_lag_max"]) == (0, 0)
    assert (second["policy_lag_mean"], second["policy_lag_max"]) == (0.5, 1)
    assert (first["learner/loss"], second["learner/loss"]) == (0.0, 1.0)
    assert second["grad_steps"] == 2


def test_the_window_is_over_the_latest_episodes_and_the_count_over_all():
    loop = make_loop(window=3)
    loop.start()
    loop.feed(fragment(0, ended=[1.0, 2.0]))
    loop.feed(fragment(1, ended=[6.0, 4.0]))
    result = loop.flow.results[-1]
    assert result["episodes"] == 4
    assert result["episode_return_mean"] == 4.0  # of 2, 6 and 4
    assert (result["episode_return_min"], result["episode_return_max"]) == (2.0, 6.0)
    assert result["episode_length_mean"] == pytest.approx((20 + 10 + 20) / 3)


def test_before_an_episode_ends_there_is_no_return_to_report():
    loop = make_loop()
    loop.start()
    loop.feed(fragment(0))
    result = loop.flow.results[0]
    assert result["episodes"] == 0
    assert result["episode_return_mean"] is None
    assert result["episode_length_mean"] is None


def test_shares_of_the_ranks_join_by_summing_rows_and_averaging_metrics():
    first = Share.of([fragment(0, version=1, ended=[1.0])], {"loss": 1.0}, version=1)
    second = Share.of([fragment(1, version=0, rows=4)], {"loss": 3.0}, version=1)
    assert joined([first, second]) == Share(6, [0, 1], [1.0], [10], {"loss": 2.0})


def test_time_on_pause_and_on_commands_is_not_of_the_iteration():
    def save(loop, folder):
        time.sleep(0.2)
        return folder

    first = [lambda: GoAhead([], 0.0)]
    then = [GoAhead([command("save", "x")], 5.0), GoAhead([], 5.0)]
    loop = make_loop(*first, *then, save=save)
    loop.start()
    loop.feed(fragment(0))
    loop._clock -= 5.0  # the pauses above were only told of, not spent
    loop.feed(fragment(1))
    assert loop.flow.results[1]["time/iteration_s"] < 0.15
    assert loop.flow.results[1]["time/wait_s"] < 0.15


def test_times_add_up():
    loop = make_loop()
    loop.learner.seconds = 0.02
    loop.start()
    time.sleep(0.03)
    loop.feed(fragment(0))
    result = loop.flow.results[0]
    assert result["time/wait_s"] >= 0.03
    assert result["time/update_s"] >= 0.02
    total = result["time/wait_s"] + result["time/update_s"]
    assert result["time/iteration_s"] == pytest.approx(total)
    assert result["env_steps_per_s"] == pytest.approx(2 / total)
    assert result["time_s"] >= 0.05


# --- stop criteria ---


def test_no_criterion_no_stop():
    assert Reached(StopConfig())({"training_iteration": 10**9, "time_s": 1e9}) is None


@pytest.mark.parametrize(
    ("key", "below", "at"),
    [
        ("training_iteration", 4, 5),
        ("env_steps", 4, 5),
        ("episode_return_mean", 4.9, 5.0),
        ("time_s", 4.9, 5.1),
    ],
)
def test_a_criterion_holds_at_its_bound_and_not_below(key, below, at):
    reached = Reached(StopConfig(**{key: 5}))
    assert reached({key: below}) is None
    assert reached({key: at}) == f"{key} {at:.6g} >= 5"


def test_the_first_criterion_that_holds_is_named_in_the_order_of_the_configuration():
    reached = Reached(StopConfig(env_steps=10, training_iteration=3))
    assert reached({"training_iteration": 3, "env_steps": 99}).startswith("training_iteration")
    assert reached({"training_iteration": 2, "env_steps": 99}).startswith("env_steps")


def test_a_return_that_is_not_known_yet_does_not_stop():
    assert Reached(StopConfig(episode_return_mean=-1000))({"episode_return_mean": None}) is None


def test_a_result_says_which_criterion_ended_the_run():
    loop = make_loop(training_iteration=2)
    loop.start()
    loop.feed(fragment(0))
    loop.feed(fragment(1))
    assert [result["stopped_by"] for result in loop.flow.results] == [
        None,
        "training_iteration 2 >= 2",
    ]


# --- commands ---


def test_commands_run_before_the_next_update_until_there_are_none():
    saved = []
    loop = make_loop(
        GoAhead([], 0.0),
        GoAhead([command("save", "a"), command("save", "b")], 0.0),
        GoAhead([command("set_weights", "new")], 0.0),
        save=lambda loop, folder: saved.append((folder, loop.iteration)) or folder,
    )
    loop.start()
    loop.feed(fragment(0))
    assert saved == [("a", 1), ("b", 1)]
    assert loop.learner.set_to == "new"
    assert loop.flow.replaced == [(1, "w1")]
    assert loop.flow.finished == [("save", "a"), ("save", "b"), ("set_weights", None)]


def test_a_command_that_fails_is_handed_to_who_asked_and_the_run_goes_on():
    loop = make_loop(GoAhead([command("set_weights", "of another shape")], 0.0))
    loop.start()
    loop.feed(fragment(0))
    assert loop.learner.updates == [[0]]
    ((name, error),) = loop.flow.finished
    assert name == "set_weights"
    assert str(error) == "wrong shape"
    assert loop.flow.replaced == []


def test_an_unknown_command_is_an_error_of_who_asked():
    loop = make_loop()
    with pytest.raises(ValueError, match="unknown command 'dance'"):
        loop.output(command("dance"))


def test_stop_ends_the_loop_without_taking_another_fragment():
    loop = make_loop(GoAhead([], 0.0), STOP)
    fragments = iter([fragment(0), fragment(1)])
    loop.run(fragments)
    assert loop.learner.updates == [[0]]
    assert next(fragments)[c.FRAGMENT_ID][0].as_py() == 1


def test_a_stop_before_the_first_fragment_ends_the_loop():
    loop = make_loop(STOP)
    loop.run(iter([fragment(0)]))
    assert loop.learner.updates == []


def test_the_row_of_a_worker_that_was_told_to_end_ends_the_loop():
    loop = make_loop()
    loop.run(iter([fragment(0), fragment(END, rows=1), fragment(1)]))
    assert loop.learner.updates == [[0]]


def test_a_stream_that_ends_by_itself_is_an_error_that_names_the_version():
    loop = make_loop()
    with pytest.raises(RuntimeError, match="ended at version 1"):
        loop.run(iter([fragment(0)]))


def test_an_update_that_fails_ends_the_loop_with_its_error():
    loop = make_loop()
    loop.learner.update = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loop.run(iter([fragment(0)]))


# --- state ---


def test_state_brings_back_counters_window_and_time():
    loop = make_loop(window=3)
    loop.start()
    loop.feed(fragment(0, ended=[1.0, 2.0]))
    loop.feed(fragment(0))
    loop.feed(fragment(1, ended=[6.0, 4.0]))
    loop.started_at -= 100
    state = loop.state()
    again = make_loop(window=3)
    again.learner.version, again.learner.env_steps = 2, 4
    again.load_state(state)
    again.start()
    again.feed(fragment(2, version=2, ended=[5.0]))
    result = again.flow.results[0]
    assert result["training_iteration"] == 3
    assert result["episodes"] == 5
    assert result["episode_return_mean"] == 5.0  # of 6, 4 and 5
    assert result["env_steps"] == 6
    assert 100 < result["time_s"] < 110
    assert result["faults/duplicate_fragments"] == 1


def test_state_is_json_and_survives_it():
    import json

    loop = make_loop()
    loop.start()
    loop.feed(fragment(0, ended=[1.5]))
    state = loop.state()
    assert json.loads(json.dumps(state, allow_nan=False)) == state


def test_a_smaller_window_after_a_resume_keeps_the_latest_episodes():
    loop = make_loop(window=2)
    loop.load_state(make_loop().state() | {"returns": [1.0, 2.0, 3.0], "lengths": [1, 2, 3]})
    assert list(loop.window.returns) == [2.0, 3.0]
    assert np.mean(loop.window.lengths) == 2.5
