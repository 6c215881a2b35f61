"""Processes that write to a lake are killed, again and again; every fragment is there once."""

import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from offline.errors import LakeError
from offline.failpoints import WRITER_POINTS
from offline.journal import read_journals
from offline.storage import Storage
from offline.tables import create_tables, open_table
from offline.writer import LakeWriter, recover
from tests.offline.flaky_proxy import Fault, proxy_of
from tests.offline.s3_kit import BUCKET, s3_options
from tests.offline.writer_kit import (
    ROWS,
    TABLES,
    Nursery,
    batch_of,
    check,
    fragments_of,
    new_lake,
    nursery,
    read,
)

pytestmark = pytest.mark.fault

TOTAL = 8
"""Fragments, two a batch: batches enough that each point is passed four times."""

OURS_ONLY = {"commit.partial", "commit.linked", "log_checkpoint.before", "log_checkpoint.after"}
"""Points that delta-rs does not pass when it commits."""


@pytest.fixture(scope="module")
def children() -> Iterator[Nursery]:
    with nursery() as made:
        yield made


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty lake whose logs get a checkpoint every second commit."""
    folder = tmp_path_factory.mktemp("template") / "lake"
    new_lake(folder, checkpoint_period=2)
    return folder


@pytest.fixture
def storage(template: Path, tmp_path: Path) -> Storage:
    shutil.copytree(template, tmp_path / "lake")
    return Storage.at(tmp_path / "lake")


def again(template: Path, folder: Path) -> Storage:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    return Storage.at(folder)


@pytest.mark.parametrize("point", WRITER_POINTS)
def test_quick_kill_at_each_point(point: str, storage: Storage, children: Nursery) -> None:
    assert not children.run(storage, total=TOTAL, fail_point=point)
    assert children.run(storage, total=TOTAL)
    check(storage, {"run": range(TOTAL)})


@pytest.mark.parametrize("hit", [2, 3, 4])
@pytest.mark.parametrize("point", WRITER_POINTS)
def test_kill_at_a_later_hit(point: str, hit: int, storage: Storage, children: Nursery) -> None:
    assert not children.run(storage, total=TOTAL, fail_point=f"{point}:{hit}")
    assert children.run(storage, total=TOTAL)
    check(storage, {"run": range(TOTAL)})


@pytest.mark.parametrize("first", WRITER_POINTS)
def test_kill_again_while_the_next_process_recovers(
    first: str, template: Path, tmp_path: Path, children: Nursery
) -> None:
    # Half of all pairs, each point in both places, for the sake of time.
    parity = WRITER_POINTS.index(first) % 2
    for second in WRITER_POINTS[parity::2]:
        storage = again(template, tmp_path / "lake")
        assert not children.run(storage, total=TOTAL, fail_point=f"{first}:2")
        children.run(storage, total=TOTAL, fail_point=second)
        assert children.run(storage, total=TOTAL)
        check(storage, {"run": range(TOTAL)})


@pytest.mark.parametrize("point", [p for p in WRITER_POINTS if p not in OURS_ONLY])
def test_kill_at_each_point_when_delta_rs_commits(
    point: str, storage: Storage, children: Nursery
) -> None:
    for hit in (1, 3):
        assert not children.run(
            storage, total=TOTAL, fail_point=f"{point}:{hit}", delta_rs=True, batch=1
        )
    assert children.run(storage, total=TOTAL, delta_rs=True)
    check(storage, {"run": range(TOTAL)})


@pytest.mark.parametrize("seed", range(4))
def test_kill_at_random_times(seed: int, storage: Storage, children: Nursery) -> None:
    rng = random.Random(seed)
    total = 0
    for _ in range(20):
        total += 4
        children.run(storage, total=total, batch=1, kill_after_s=rng.uniform(0.02, 0.15))
    assert children.run(storage, total=total)
    check(storage, {"run": range(total)})


def test_kill_writers_side_by_side_while_files_are_compacted(storage: Storage) -> None:
    failed: list[BaseException] = []
    stop = threading.Event()

    def write(name: str, seed: int) -> None:
        rng = random.Random(seed)
        try:
            with nursery() as own:
                for total in range(3, 31, 3):
                    own.run(
                        storage,
                        total=total,
                        batch=1,
                        writer=name,
                        kill_after_s=rng.uniform(0.05, 0.2),
                    )
                assert own.run(storage, total=30, batch=3, writer=name)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    def compact() -> None:
        while not stop.wait(0.05):
            for name in TABLES:
                open_table(storage, name).optimize.compact()

    names = ["run/0", "other/0", "run/1"]
    writers = [threading.Thread(target=write, args=(n, i)) for i, n in enumerate(names)]
    compactor = threading.Thread(target=compact)
    for thread in [*writers, compactor]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    compactor.join()
    assert not failed
    # Two writers of one run write the same fragments in this test, so both count.
    check(storage, {"run": [*range(30)] * 2, "other": range(30)}, orphans=True)


class Kills(RuleBasedStateMachine):
    """Two writers that are killed anywhere, compactions and recoveries between, and a dict.

    The model says of each fragment whether its writer knows that it is in the lake; what was
    under way when the writer was killed may be there or not, but whole and once.
    """

    children: ClassVar[Nursery]
    template: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.TemporaryDirectory()
        self._storage = again(self.template, Path(self._temporary.name, "lake"))
        self._known: dict[str, int] = {"run": 0, "other": 0}
        self._asked: dict[str, int] = {"run": 0, "other": 0}

    @rule(
        run_id=st.sampled_from(["run", "other"]),
        more=st.integers(1, 4),
        batch=st.integers(1, 3),
        point=st.none() | st.sampled_from(WRITER_POINTS),
        hit=st.integers(1, 4),
        delta_rs=st.booleans(),
    )
    def write(
        self, run_id: str, more: int, batch: int, point: str | None, hit: int, delta_rs: bool
    ) -> None:
        self._asked[run_id] += more
        fail_point = None if point is None else f"{point}:{hit}"
        if self._run(run_id, fail_point, batch=batch, delta_rs=delta_rs):
            self._known[run_id] = self._asked[run_id]

    def _run(self, run_id: str, fail_point: str | None = None, **options: Any) -> bool:
        return self.children.run(
            self._storage,
            total=self._asked[run_id],
            writer=f"{run_id}/0",
            fail_point=fail_point,
            **options,
        )

    @rule(table=st.sampled_from(TABLES))
    def compact(self, table: str) -> None:
        open_table(self._storage, table).optimize.compact()

    @rule()
    def finish_the_dead(self) -> None:
        recover(self._storage)

    @invariant()
    def fragments_are_whole_and_there_once(self) -> None:
        fragments = read(self._storage, "steps").select(["run_id", "fragment_id"])
        rows = Counter(zip(*(column.to_pylist() for column in fragments.columns), strict=True))
        assert set(rows.values()) <= {ROWS}
        for run_id, known in self._known.items():
            there = {number for name, number in rows if name == run_id}
            assert set(range(known)) <= there <= set(range(self._asked[run_id]))

    def teardown(self) -> None:
        for run_id in self._asked:
            assert self._run(run_id)
        expected = {run_id: range(asked) for run_id, asked in self._asked.items()}
        check(self._storage, expected, orphans=True)
        self._temporary.cleanup()


def test_any_order_of_writes_kills_compactions_and_recoveries(
    children: Nursery, template: Path
) -> None:
    Kills.children, Kills.template = children, template
    run_state_machine_as_test(
        Kills, settings=settings(max_examples=25, stateful_step_count=12, deadline=None)
    )


@pytest.mark.parametrize("kind", ["busy", "forgotten"])
def test_an_object_store_that_fails_now_and_then_has_each_batch_once(
    kind: Literal["busy", "forgotten"],
) -> None:
    with s3_options() as options, proxy_of(options) as proxy:
        storage = Storage.at(f"s3://{BUCKET}/lake", options)
        create_tables(storage)
        proxy.fail(Fault(kind, frac=0.1))
        _insist(Storage.at(storage.uri, proxy.options), "run", total=4)
        assert proxy.heal() > 0
        assert read_journals(storage) == []
        check(storage, {"run": range(4)})


def _insist(storage: Storage, run_id: str, *, total: int) -> None:
    """Write fragments, from the start again after each error, as a driver would."""
    for _ in range(10):
        try:
            there = set(fragments_of(storage, f"{run_id}/0"))
            with LakeWriter(storage, f"{run_id}/0") as lake:
                there |= {f for written in lake.recovered for f in written.fragments}
                for fragment in set(range(total)) - there:
                    lake.write(batch_of([fragment], run_id), fragments=[fragment])
            return
        except (LakeError, OSError):
            continue
    pytest.fail("it failed too often")
