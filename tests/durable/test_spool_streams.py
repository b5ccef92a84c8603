"""Streams of a spool in memory: what waits, what is kept at hand, and what is dropped, without a thread."""

import pytest

from fieldbus.clock import Clock
from fieldbus.durable import spool as module
from fieldbus.durable.spool import Spool
from fieldbus.durable.spool_file import Acknowledge, Append, Dropped, Mark, Missing, Result, Row


def encode(items):
    return bytes(len(items))


def row(first, samples=1, gap=0, size=1):
    return Row(first, samples, gap, 0, bytes(size))


class Bench:
    """A spool whose disk is the test."""

    def __init__(self, folder, **options):
        self.said = []
        self.spool = Spool(
            folder / "spool.db", say=lambda text, is_bad: self.said.append((text, is_bad)), **options
        )

    def stream(self, name="s"):
        return self.spool.stream(name, encode)

    def waiting(self):
        """Return what waits, oldest first: samples with their gaps, and other items."""
        return [
            (item.stream, list(item.items), item.gap) if isinstance(item, Append) else item
            for item in self.spool.committer._waiting
        ]

    def commit(self, *items, dropped=None, loaded=None, size=0, **rows):
        """Say that the disk took items; rows are given by the name of their stream."""
        rows = {self.stream(name): found for name, found in rows.items()}
        self.spool.committed(items, Result(rows, dropped or {}, loaded or {}, size))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


# --- what the other side has


def test_acknowledgements_out_of_order_take_nothing_back(bench):
    stream = bench.stream()
    bench.commit(s=[row(1, 5), row(6, 5), row(11, 5)])
    stream.acknowledge(10)
    stream.acknowledge(5)
    stream.acknowledge(10)
    assert (stream.floor, stream.backlog) == (10, 5)
    assert bench.waiting() == [Acknowledge("s", 10)]
    stream.acknowledge(99)
    assert (stream.floor, stream.backlog) == (15, 0)


def test_what_waits_for_the_disk_belongs_to_the_backlog(bench):
    stream = bench.stream()
    stream.append([1, 2])
    assert (stream.waiting, stream.backlog) == (2, 2)
    bench.commit(Append("s", stream, [1, 2]), s=[row(1, 2)])
    assert (stream.waiting, stream.committed, stream.backlog) == (0, 2, 2)
    stream.append([])
    assert len(bench.waiting()) == 1


async def test_rows_are_given_out_behind_a_number_and_up_to_a_size(bench):
    stream = bench.stream()
    bench.commit(s=[row(1, 5, size=10), row(6, 5, size=10), row(14, 5, gap=3, size=10)])

    async def firsts(*arguments):
        return [found.first for found in await stream.rows_after(*arguments)]

    assert await firsts(0) == [1, 6, 14]
    assert await firsts(4) == [1, 6, 14]
    assert await firsts(5) == [6, 14]
    assert await firsts(17) == [14]
    assert await firsts(18) == []
    assert [await firsts(0, size) for size in (1, 10, 11, 20, 21)] == [[1], [1], [1, 6], [1, 6], [1, 6, 14]]
    stream.acknowledge(10)
    assert await firsts(0) == [14]


async def test_what_is_not_at_hand_is_read_back(bench, monkeypatch):
    monkeypatch.setattr(module, "_FRESH_BYTES", 20)
    asked = []

    async def read(name, seq, max_bytes):
        asked.append((name, seq))
        return [row(1, size=10)]

    monkeypatch.setattr(bench.spool, "read", read)
    stream = bench.stream()
    bench.commit(s=[row(1, size=10), row(2, size=10)])
    assert [found.first for found in await stream.rows_after(0)] == [1, 2]
    bench.commit(s=[row(3, size=1)])
    assert await stream.rows_after(0) == [row(1, size=10)]
    assert [found.first for found in await stream.rows_after(1)] == [2, 3]
    assert asked == [("s", 0)]


def test_the_rows_at_hand_are_bounded_whatever_is_taken_away(bench, monkeypatch):
    monkeypatch.setattr(module, "_FRESH_BYTES", 100)
    stream = bench.stream()
    for number in range(1, 200):
        bench.commit(s=[row(number, size=20)])
        if number % 7 == 0:
            stream.acknowledge(number - 2)
        if number % 11 == 0:
            bench.commit(dropped={"s": Dropped(1, number - 1, "too much")})
        size = sum(len(found.data) for found in stream._fresh)
        assert stream._fresh_bytes == size <= 100
        assert all(found.last > stream.floor for found in stream._fresh)


def test_numbers_of_a_name_that_comes_again_make_no_backlog(bench):
    stream = bench.stream()
    bench.commit(s=[row(8, 2)])  # seven are of the stream that had this name before
    assert (stream.floor, stream.backlog) == (7, 2)
    bench.commit(s=[row(13, 1, gap=3)])
    assert (stream.floor, stream.backlog) == (7, 6)


def test_what_was_dropped_before_a_name_came_again_makes_no_backlog_either(bench):
    stream = bench.stream()
    bench.commit(s=[row(12, 2, gap=4)])  # seven are of the stream before, four of this one were dropped
    assert (stream.floor, stream.backlog) == (7, 6)


async def test_rows_that_are_dropped_while_they_are_read_are_not_given_out_nor_missing(bench, monkeypatch):
    monkeypatch.setattr(module, "_FRESH_BYTES", 0)
    stream = bench.stream()
    rows = [row(1, 5), row(6, 5), row(11, 5)]
    bench.commit(s=rows)

    async def read(name, seq, max_bytes):
        stream.lost(10, 10)  # there was too much on the disk
        return rows

    monkeypatch.setattr(bench.spool, "read", read)
    assert await stream.rows_after(0) == [rows[2]]


async def test_what_is_missing_is_told_by_its_numbers(bench, monkeypatch):
    monkeypatch.setattr(module, "_FRESH_BYTES", 0)
    stream = bench.stream()
    bench.commit(s=[row(1, 5), row(6, 5), row(14, 5, gap=3), row(19, 2)])
    found = []

    async def read(name, seq, max_bytes):
        return found

    monkeypatch.setattr(bench.spool, "read", read)
    why = "damaged on the disk"
    assert await stream.rows_after(0) == [Missing(1, 20, why)]
    found = [row(6, 5)]
    assert await stream.rows_after(0) == [Missing(1, 5, why), found[0]]
    found = [row(6, 5), row(14, 5, gap=3)]
    assert await stream.rows_after(7) == found
    found = [row(7, 4)]
    assert await stream.rows_after(5) == [Missing(6, 1, why), found[0]]
    found = [row(14, 5, gap=3)]
    assert await stream.rows_after(5) == [Missing(6, 5, why), found[0]]
    found = []
    assert await stream.rows_after(18) == [Missing(19, 2, why)]
    assert await stream.rows_after(20) == ()


def test_what_is_skipped_is_counted_at_once_and_said_now_and_then(bench):
    stream = bench.stream()
    bench.commit(s=[row(1, 100)])
    now_s = 50.0
    bench.spool.clock = Clock(lambda: now_s)
    for last, later_s in ((1, 0.0), (3, 9.9), (6, 0.1), (10, 5.0), (15, 5.0)):
        now_s += later_s
        stream.skip(Missing(stream.floor + 1, last - stream.floor, "damaged"))
    assert (stream.dropped, stream.floor) == (15, 15)
    assert bench.said == [
        ("stream s: 1 sample dropped, up to number 1 (damaged)", True),
        ("stream s: 5 samples dropped, up to number 6 (damaged)", True),
        ("stream s: 9 samples dropped, up to number 15 (damaged)", True),
    ]
    assert bench.waiting() == [Acknowledge("s", last) for last in (1, 3, 6, 10, 15)]


# --- what the disk says


def test_what_was_in_a_file_that_opens_late_is_taken_up(bench):
    stream = bench.stream()
    bench.commit(loaded={"unknown": (9, 1), "s": (7, 3)})
    assert (stream.committed, stream.floor, stream.backlog) == (7, 3, 4)
    bench.commit(loaded={"s": (5, 2)})
    assert (stream.committed, stream.floor) == (7, 3)


def test_marks_only_grow_and_each_is_told(bench):
    told = []
    items = [
        Acknowledge("s", 1),
        Mark("a", 7, lambda: told.append("a")),
        Mark("b", 2, None),
        Mark("a", 5, lambda: told.append("late")),
    ]
    bench.commit(*items)
    assert bench.spool.marks == {"a": 7, "b": 2}
    assert told == ["a", "late"]


def test_that_samples_are_dropped_is_said_once_until_all_are_had(bench):
    stream = bench.stream()
    said = [("stream s: too much; the oldest samples are dropped", True)]
    bench.commit(s=[row(number) for number in range(1, 11)], size=77)
    assert bench.spool.bytes == 77
    for floor in (2, 4):
        bench.commit(dropped={"unknown": Dropped(1, 1, "?"), "s": Dropped(2, floor, "too much")})
    assert (stream.dropped, stream.floor, bench.said) == (4, 4, said)
    stream.acknowledge(9)
    assert stream.is_dropping
    stream.acknowledge(10)
    assert not stream.is_dropping
    bench.commit(dropped={"s": Dropped(1, 3, "too much")})
    assert (stream.dropped, stream.floor, bench.said) == (5, 10, said * 2)


def test_who_waits_for_rows_hears_of_them_and_of_losses(bench):
    stream = bench.stream()
    assert not stream.changed.is_set()
    bench.commit(s=[row(1)])
    assert stream.changed.is_set()
    stream.changed.clear()
    bench.commit(dropped={"s": Dropped(1, 1, "too much")})
    assert stream.changed.is_set()


# --- what waits in memory is bounded


@pytest.mark.parametrize(("trouble", "limit"), [(None, 40), ("no space left", 10)])
def test_a_disk_that_takes_nothing_is_waited_for_less(tmp_path, trouble, limit):
    bench = Bench(tmp_path, max_waiting=10)
    bench.spool.committer.trouble = trouble
    stream = bench.stream()
    for number in range(100):
        stream.append([number])
        assert stream.waiting == min(number + 1, limit)
    assert stream.dropped == 100 - limit
    assert bench.waiting()[0] == ("s", [100 - limit], 100 - limit)
    assert [items for _, items, _ in bench.waiting()] == [[number] for number in range(100 - limit, 100)]


@pytest.mark.parametrize(("hangs_s", "limit"), [(5.0, 40), (5.1, 10)])
def test_a_disk_that_hangs_takes_nothing_after_a_while(tmp_path, hangs_s, limit, monkeypatch):
    bench = Bench(tmp_path, max_waiting=10)
    monkeypatch.setattr(bench.spool.committer, "hangs_s", lambda: hangs_s)
    for _ in range(60):
        bench.stream().append([1])
    assert bench.stream().waiting == limit


def test_what_is_no_sample_is_never_dropped_and_keeps_its_place(tmp_path):
    bench = Bench(tmp_path, max_waiting=4)
    bench.spool.committer.trouble = "no space left"
    one, two = bench.stream("one"), bench.stream("two")
    one.append([1])
    bench.spool.mark("a", 1)
    two.append([1, 2])
    one.append([2])
    bench.spool.mark("a", 2)
    two.append([3])
    assert bench.waiting() == [
        Mark("a", 1, None), ("two", [1, 2], 0), ("one", [2], 1), Mark("a", 2, None), ("two", [3], 0)
    ]  # fmt: skip
    two.append([4, 5])
    assert bench.waiting() == [
        Mark("a", 1, None), ("one", [2], 1), Mark("a", 2, None), ("two", [3], 2), ("two", [4, 5], 0)
    ]  # fmt: skip
    assert (one.waiting, one.dropped, two.waiting, two.dropped) == (1, 1, 3, 2)


def test_what_was_dropped_twice_is_missing_once_each(tmp_path):
    bench = Bench(tmp_path, max_waiting=2)
    bench.spool.committer.trouble = "no space left"
    stream = bench.stream()
    stream.append([1])
    stream.append([2, 3, 4])  # too many even alone
    assert (bench.waiting(), stream.gap, stream.dropped, stream.waiting) == ([], 4, 4, 0)
    stream.append([5])
    stream.append([6])
    assert bench.waiting() == [("s", [5], 4), ("s", [6], 0)]
    stream.append([7])
    assert bench.waiting() == [("s", [6], 5), ("s", [7], 0)]
    assert (stream.gap, stream.dropped) == (0, 5)
