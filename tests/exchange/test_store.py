"""The store: what it keeps, for how long, and what bad disks and bad files do to it."""

import asyncio
import sqlite3

import pytest
from conftest import eventually

from fieldbus.clock import Clock
from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, Target
from fieldbus.model import Kind, Point, Quality, Sample
from fieldbus.store import history
from fieldbus.store.history import Entry, Writer
from fieldbus.store.link import StoreLink

POINT = Point("press", "count", Kind.INT, unit="pcs")
FLAG = Point("press", "flag", Kind.BOOL)
TARGET = Target("history", None)
NOW_NS = 10**18


def good(value, time_ns=NOW_NS, point=POINT):
    return Delivery(TARGET, point, Sample(value, Quality.GOOD, None, time_ns))


class Bench:
    def __init__(self, folder):
        self.path = folder / "history.db"
        self.link = None
        self.said = []
        self.task = None

    async def open(self, **options):
        options = {"max_bytes": 1 << 30, "max_age_s": 1e9, "group_commit_s": 0.005, **options}
        self.link = StoreLink("history", self.path, **options)
        await self.link.connect()
        self.task = asyncio.create_task(self.link.run(lambda batch: None, self.said.append))
        await asyncio.sleep(0)
        return self.link

    async def close(self):
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None
            await self.link.close()

    async def settle(self):
        await eventually(lambda: not self.link.counters["queued"], what="all is on disk")

    def content(self, *names, **when):
        return [kept.sample.value for kept in history.read(self.path, names or ("press.count",), **when)]

    async def limit_pages(self, pages):
        await self.link._committer.ask(
            lambda connection: connection.execute(f"PRAGMA max_page_count={pages}").fetchone()
        )


@pytest.fixture
async def bench(tmp_path):
    subject = Bench(tmp_path)
    yield subject
    await subject.close()


async def test_what_was_stored_is_read_as_it_was_also_while_the_gateway_runs(bench):
    link = await bench.open()
    uncertain = Sample(7, Quality.UNCERTAIN, "out of range", NOW_NS + 2)
    bad = Sample(None, Quality.BAD, "timeout", NOW_NS + 3)
    link.send([good(5), good(True, NOW_NS + 1, FLAG), Delivery(TARGET, POINT, uncertain)])
    link.send([Delivery(TARGET, POINT, bad)])
    await bench.settle()
    kept = list(history.read(bench.path, ["press.count", "press.flag"]))
    assert [item.sample for item in kept] == [
        good(5).sample, Sample(True, Quality.GOOD, None, NOW_NS + 1), uncertain, bad,
    ]  # fmt: skip
    assert {(item.name, item.unit) for item in kept} == {("press.count", "pcs"), ("press.flag", None)}
    assert history.names(bench.path) == ["press.count", "press.flag"]
    assert bench.content(since_ns=NOW_NS + 2, until_ns=NOW_NS + 3) == [7]


async def test_samples_and_mark_of_a_stream_are_on_disk_together_or_not_at_all(bench):
    link = await bench.open()
    done = []
    link.take([good(1), good(2)], "tx/boot/s", 2, lambda: done.append(bench.content()))
    assert link.mark_of("tx/boot/s") == 0
    await bench.settle()
    assert done == [[1, 2]]
    assert link.mark_of("tx/boot/s") == 2
    await bench.close()
    link = await bench.open()
    assert link.mark_of("tx/boot/s") == 2


async def test_values_that_sqlite_has_not_are_kept_as_near_as_can_be(bench):
    link = await bench.open()
    link.send([good(1 << 63), good(-(1 << 64)), good((1 << 63) - 1), good("a\ud800b"), good("x\0y")])
    await bench.settle()
    assert bench.content() == [float(1 << 63), float(-(1 << 64)), (1 << 63) - 1, "a?b", "x\0y"]


async def test_the_oldest_go_when_there_is_too_much(bench):
    link = await bench.open(max_bytes=400_000)
    for first in range(0, 60_000, 1000):
        link.send([good(n, NOW_NS + n) for n in range(first, first + 1000)])
        link._trimmed_s = -1e9
        await bench.settle()
    kept = bench.content()
    assert kept == list(range(60_000 - len(kept), 60_000))
    assert 1000 < len(kept) < 40_000
    assert link.counters["expired"] == 60_000 - len(kept)
    assert bench.path.stat().st_size < 1_500_000


class Kept:
    """A writer, a file in memory, and a clock that is moved by hand."""

    def __init__(self, max_age_s=60.0):
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.s, self.ns = 1000.0, NOW_NS
        self.max_age_s = max_age_s
        self.open()

    def open(self):
        self.writer = Writer(1 << 30, self.max_age_s, Clock(lambda: self.s, lambda: self.ns))
        self.writer.opened(self.connection)

    def passes(self, seconds):
        self.s += seconds
        self.ns += round(seconds * 10**9)

    def write(self, *values, time_ns=None):
        stamp = self.ns if time_ns is None else time_ns
        entries = [Entry("p", Kind.INT, None, Sample(value, Quality.GOOD, None, stamp)) for value in values]
        self.writer.write(self.connection, entries)

    def left(self):
        return [value for (value,) in self.connection.execute("SELECT value FROM samples ORDER BY id")]


@pytest.fixture
def kept():
    found = Kept()
    yield found
    found.connection.close()


def test_what_is_too_old_goes_and_what_is_not_stays(kept):
    for second in range(100):
        kept.write(second)
        kept.passes(1)
    assert kept.writer.trim(kept.connection) == 40
    assert kept.left() == list(range(40, 100))
    assert kept.writer.trim(kept.connection) == 0
    kept.passes(30)
    assert kept.writer.trim(kept.connection) == 30
    kept.passes(100)
    kept.write(100)
    assert kept.writer.trim(kept.connection) == 30
    assert kept.left() == [100]


@pytest.mark.parametrize("stamp", [0, -(10**18), 7 * 10**18, NOW_NS])
def test_how_old_a_sample_is_says_when_it_came_not_its_source(kept, stamp):
    kept.write(1, time_ns=stamp)
    kept.passes(59)
    kept.write(2, time_ns=stamp)
    assert kept.writer.trim(kept.connection) == 0
    kept.passes(2)
    assert kept.writer.trim(kept.connection) == 1
    assert kept.left() == [2]


@pytest.mark.parametrize("days", [-10_000, -10, 10, 100, 10_000])
@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_clock_that_is_set_erases_nothing(days, is_restarted):
    kept = Kept(max_age_s=7 * 86400.0)
    for number, step in enumerate((days, -days, -days, days, 0)):
        kept.write(number)
        kept.passes(500)
        assert kept.writer.trim(kept.connection) == 0
        kept.ns += step * 86400 * 10**9
        if is_restarted:
            kept.open()
            assert (kept.writer.notice is None) is (step == 0)
    assert kept.left() == [0, 1, 2, 3, 4]
    kept.passes(7 * 86400 + 600)
    kept.write(5)
    kept.writer.trim(kept.connection)
    assert kept.left() == [5]
    kept.connection.close()


def test_a_file_of_before_it_had_its_own_time_keeps_what_it_has(kept):
    kept.write(1)
    kept.connection.execute("DROP TABLE arrivals")
    kept.connection.execute("DROP TABLE own_time")
    kept.ns += 10**18
    kept.open()
    kept.passes(59)
    kept.write(2)
    assert kept.writer.trim(kept.connection) == 0
    kept.passes(61)
    kept.write(3)
    kept.writer.trim(kept.connection)
    assert kept.left() == [3]


def test_when_samples_came_takes_no_room_of_its_own(kept):
    for _ in range(3000):
        kept.write(1)
        kept.passes(0.05)
        kept.writer.trim(kept.connection)
    (count,) = kept.connection.execute("SELECT count(*) FROM arrivals").fetchone()
    assert count <= 1002


async def test_a_full_disk_stops_nothing_and_what_routes_lose_is_counted_exactly(bench):
    link = await bench.open(max_waiting=100)
    link.send([good(0)])
    await bench.settle()
    await bench.limit_pages(1)
    sent = 1
    for _ in range(200):
        link.send([good(sent), good(sent + 1)])
        sent += 2
        await asyncio.sleep(0.0005)
    await eventually(lambda: bench.said)
    assert link.counters["queued"] <= 102
    await bench.limit_pages(1_000_000)
    await bench.settle()
    kept = bench.content()
    assert kept == sorted(set(kept))
    assert len(kept) + link.counters["tx_dropped"] == sent
    assert link.counters["tx_dropped"] > 0
    assert link.counters["stored"] == len(kept)


async def test_on_a_full_disk_a_stream_in_front_does_not_keep_routes_from_losing_their_oldest(bench):
    link = await bench.open(max_waiting=100)
    link.send([good("0")])
    await bench.settle()
    await bench.limit_pages(1)
    done = []
    long = "x" * 1000
    link.take([good(f"{n:03} {long}") for n in range(1, 51)], "tx/boot/s", 50, lambda: done.append(1))
    await eventually(lambda: bench.said)
    for n in range(100, 400):
        link.send([good(f"{n} {long}")])
        if n % 50 == 0:
            await asyncio.sleep(0.01)
        assert link.counters["queued"] <= 151
    assert not link.has_room(10)
    await bench.limit_pages(1_000_000)
    link.send([good("400")])
    await bench.settle()
    kept = [int(value[:3]) for value in bench.content()]
    assert kept[:51] == list(range(51))
    assert kept == sorted(set(kept))
    assert len(kept) + link.counters["tx_dropped"] == 352
    assert kept[-1] == 400
    assert done == [1]


async def test_a_damaged_file_is_set_aside_and_a_new_one_begun(bench):
    bench.path.write_bytes(b"this is no database" * 1000)
    link = await bench.open()
    link.send([good(1)])
    await bench.settle()
    assert bench.content() == [1]
    assert len(list(bench.path.parent.glob("history.db.damaged-*"))) == 1


async def test_a_file_that_is_damaged_while_it_is_used_costs_what_was_in_it(bench):
    link = await bench.open()
    link.take([good(n) for n in range(5000)], "tx/boot/s", 5000, lambda: None)
    await bench.settle()

    def spoil(connection):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with bench.path.open("r+b") as file:
            file.write(b"\xa5" * 65536)
        raise sqlite3.DatabaseError("database disk image is malformed")

    with pytest.raises(sqlite3.DatabaseError):
        await link._committer.ask(spoil)
    link.take([good(9999)], "tx/boot/s", 5001, lambda: None)
    await bench.settle()
    assert bench.content() == [9999]
    # What was lost with the file its sender does not have any more: it is not asked for.
    assert link.mark_of("tx/boot/s") == 5001
    assert any("damaged" in notice.text for notice in bench.said)


async def test_a_store_that_cannot_be_opened_is_a_link_that_is_down(bench):
    bench.path.mkdir()
    with pytest.raises(LinkDownError):
        await bench.open()
    bench.path.rmdir()
    link = await bench.open()
    link.send([good(1)])
    await bench.settle()
    assert bench.content() == [1]


async def test_what_comes_while_it_is_closed_is_counted_as_dropped(bench):
    link = StoreLink("history", bench.path, max_bytes=1 << 30, max_age_s=1e9)
    link.send([good(1), good(2)])
    assert link.counters["tx_dropped"] == 2
    assert not link.has_room(1)


async def test_reading_a_file_that_is_none_says_so(tmp_path):
    with pytest.raises(sqlite3.Error):
        history.names(tmp_path / "nothing.db")
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(sqlite3.Error):
        list(history.read(tmp_path / "text.db", ["a"]))


async def test_a_point_that_changes_its_unit_keeps_the_unit_of_what_it_had(bench):
    link = await bench.open()
    link.send([good(1)])
    await bench.settle()
    await bench.close()
    link = await bench.open()
    link.send([good(2, NOW_NS + 1, Point("press", "count", Kind.INT, unit="dozens")), good(3, NOW_NS + 2)])
    await bench.settle()
    kept = [(item.sample.value, item.unit) for item in history.read(bench.path, ["press.count"])]
    assert kept == [(1, "pcs"), (2, "dozens"), (3, "pcs")]
    assert history.names(bench.path) == ["press.count"]


async def test_what_is_lost_at_the_end_is_said_and_counted(bench, caplog):
    link = await bench.open()
    link.send([good(1)])
    await bench.settle()
    await bench.limit_pages(8)
    link.send([good(n) for n in range(5000)])
    await eventually(lambda: bench.said)
    await bench.close()
    lost = link.counters["tx_dropped"]
    assert lost + len(bench.content()) == 5001
    assert lost > 0
    [record] = [record for record in caplog.records if "are lost" in record.message]
    assert record.message.startswith(f"history: {lost} samples could not be written and are lost (")
