"""The file of a spool by itself: rows, numbers, sizes and what is dropped, without a thread."""

import json
import sqlite3

import pytest

from fieldbus.clock import Clock
from fieldbus.durable.spool_file import (
    _DROP_AT_ONCE,
    _ROW_OVERHEAD,
    ROW_ITEMS,
    About,
    Acknowledge,
    Append,
    Mark,
    SpoolFile,
)


class Owner:
    """Whose samples are of one byte each."""

    @staticmethod
    def encode(items):
        return bytes(len(items))


class Bench:
    """One file, opened again and again."""

    def __init__(self, max_bytes=10**9, max_age_s=60.0):
        self.now_s = 1000.0
        self.clock = Clock(lambda: self.now_s, lambda: 10**18 + round(self.now_s * 1e9))
        self.limits = max_bytes, round(max_age_s * 1e9)
        self.floors = {}
        self.owners = {}
        self.connection = sqlite3.connect(":memory:")
        self.open()

    def open(self):
        self.file = SpoolFile(*self.limits, self.clock, lambda: self.floors)
        self.file.opened(self.connection)

    def begin_another_file(self):
        """Let the file be lost while it is used."""
        self.connection = sqlite3.connect(":memory:")
        self.file.opened(self.connection)

    def apply(self, *items, is_committed=True):
        result = self.file.apply(self.connection, items)
        if is_committed:
            self.connection.commit()
        else:
            self.connection.rollback()
        self.file.settled(is_committed=is_committed)
        return result

    def some(self, count, stream="s", gap=0):
        """Return so many samples for a stream."""
        return Append(stream, self.owners.setdefault(stream, Owner()), [0] * count, gap)

    def rows(self, stream="s", after=0, max_bytes=10**9):
        """Return the first and the last number and the gap of each row."""
        found = self.file.read(self.connection, stream, after, max_bytes)
        return [(row.first, row.last, row.gap) for row in found]

    def measure(self):
        """Return what the rows have together, as the file has them."""
        question = f"SELECT coalesce(sum(length(data) + {_ROW_OVERHEAD}), 0) FROM rows"
        return self.connection.execute(question).fetchone()[0]


@pytest.fixture
def bench():
    return Bench()


# --- rows and numbers


@pytest.mark.parametrize(
    ("counts", "rows"),
    [
        ([1], [(1, 1)]),
        ([250, 250], [(1, 500)]),
        ([250, 250, 1], [(1, 500), (501, 501)]),
        ([250, 251], [(1, 250), (251, 501)]),
        ([500, 500], [(1, 500), (501, 1000)]),
        ([1201, 1], [(1, 500), (501, 1000), (1001, 1202)]),
    ],
)
def test_a_row_is_as_full_as_it_may_be(bench, counts, rows):
    assert ROW_ITEMS == 500
    result = bench.apply(*(bench.some(count) for count in counts))
    assert [pair[:2] for pair in bench.rows()] == rows
    assert [(row.first, row.last) for row in result.rows[bench.owners["s"]]] == rows


def test_numbers_leave_room_for_what_was_dropped_before(bench):
    bench.apply(bench.some(2), bench.some(3, gap=10), bench.some(1), bench.some(1, gap=1))
    assert bench.rows() == [(1, 2, 0), (13, 16, 10), (18, 18, 1)]
    bench.apply(bench.some(1))
    assert bench.rows(after=18) == [(19, 19, 0)]


def test_rows_are_read_behind_a_number_and_up_to_a_size(bench):
    bench.apply(bench.some(1500))
    assert [first for first, _, _ in bench.rows(after=499)] == [1, 501, 1001]
    assert [first for first, _, _ in bench.rows(after=500)] == [501, 1001]
    assert [first for first, _, _ in bench.rows(after=1500)] == []
    assert [len(bench.rows(max_bytes=size)) for size in (1, 500, 501, 1000, 1001)] == [1, 1, 2, 2, 3]
    assert bench.rows("never written") == []


def test_after_a_restart_numbers_and_floors_go_on(bench):
    bench.apply(bench.some(3), bench.some(2, "t"), bench.some(1, "u", gap=4))
    bench.apply(Acknowledge("s", 2), Acknowledge("t", 2))
    bench.open()
    assert bench.file.known == {"s": (3, 2), "t": (2, 2), "u": (5, 0)}
    bench.apply(bench.some(1), bench.some(1, "t"), bench.some(1, "u"))
    assert [bench.rows(name, 3)[-1][0] for name in "su"] == [4, 6]
    assert bench.rows("t", 2) == [(3, 3, 0)]


def test_rows_that_are_not_there_do_not_move_the_floor(bench):
    """They are missing, and whoever reads on sees it by the numbers."""
    bench.apply(bench.some(500), bench.some(500), bench.some(1, gap=5))
    bench.connection.execute("DELETE FROM rows WHERE first < 1001")
    bench.open()
    assert bench.file.known == {"s": (1006, 0)}
    bench.connection.execute("DELETE FROM rows")
    bench.open()
    assert bench.file.known == {"s": (1006, 0)}


def test_a_stream_that_has_nothing_yet_begins_with_one(bench):
    bench.apply(About("s", "{}"))
    bench.open()
    assert bench.file.known == {"s": (0, 0)}
    bench.apply(bench.some(1))
    assert bench.rows() == [(1, 1, 0)]


def test_a_floor_that_cannot_be_is_where_the_oldest_row_begins(bench):
    bench.apply(bench.some(3, gap=4))
    bench.connection.execute("UPDATE streams SET floor = 7")
    bench.open()
    assert bench.file.known == {"s": (7, 0)}


# --- what is taken away


def test_sizes_are_those_of_the_rows_whatever_happens(bench):
    bench.apply(bench.some(1200), bench.some(7, "t"))
    assert bench.file.size == bench.measure() == 1207 + 4 * _ROW_OVERHEAD
    bench.apply(Acknowledge("s", 999), Acknowledge("nobody", 5))
    assert bench.file.size == bench.measure() == 707 + 3 * _ROW_OVERHEAD
    assert bench.rows() == [(501, 1000, 0), (1001, 1200, 0)]
    bench.apply(bench.some(10), is_committed=False)
    assert bench.file.size == bench.measure()
    bench.open()
    assert bench.file.size == bench.measure() == 707 + 3 * _ROW_OVERHEAD
    bench.apply(About("t", None), Acknowledge("s", 1200))
    assert bench.file.size == bench.measure() == 0


def test_acknowledgements_out_of_order_take_nothing_back(bench):
    bench.apply(bench.some(500), bench.some(500), bench.some(500))
    bench.apply(Acknowledge("s", 1000), Acknowledge("s", 500))
    assert bench.rows() == [(1001, 1500, 0)]
    bench.open()
    assert bench.file.known == {"s": (1500, 1000)}


def test_a_stream_that_is_forgotten_takes_no_other_one_with_it(bench):
    bench.apply(bench.some(3), bench.some(3, "t"))
    bench.apply(About("never written", None), About("t", None))
    assert bench.rows() == [(1, 3, 0)]
    assert bench.rows("t") == []


def test_what_comes_behind_the_end_of_a_stream_is_kept(bench):
    bench.apply(
        bench.some(3), About("s", '{"points": 1}'), About("t", "{}"), About("s", None),
        bench.some(2), About("u", None), bench.some(1),
    )  # fmt: skip
    assert bench.rows() == [(4, 5, 0), (6, 6, 0)]


def test_the_last_word_on_a_stream_counts(bench):
    """Its note does not come back with a note that was written just before the stream was forgotten."""
    bench.apply(About("s", '{"points": 1}'), bench.some(1), About("s", None))
    bench.apply(About("t", None), About("t", '{"points": 1}'), About("t", '{"points": 2}'))
    bench.open()
    assert bench.file.abouts == {"s": {}, "t": {"points": 2}}


def test_notes_and_marks_behind_an_odd_item_are_kept(bench):
    bench.apply(
        Acknowledge("nobody", 1), About("nobody", None), bench.some(1), Mark("a", 7, None), Mark("a", 5, None),
        About("s", '{"points": 1}'), Mark("b", 1, None),
    )  # fmt: skip
    bench.open()
    assert bench.file.marks == {"a": 7, "b": 1}
    assert bench.file.abouts["s"] == {"points": 1}


def test_the_spool_holds_exactly_what_it_may_hold():
    size = 500 + _ROW_OVERHEAD
    bench = Bench(max_bytes=3 * size)
    assert bench.apply(bench.some(1500)).dropped == {}
    assert len(bench.rows()) == 3
    assert bench.apply(bench.some(500)).dropped["s"][:2] == (500, 500)
    assert len(bench.rows()) == 3
    result = bench.apply(bench.some(1))
    assert result.dropped["s"][:2] == (500, 1000)
    assert "spool.max_size" in result.dropped["s"].why
    assert result.size == bench.measure() == 2 * size + 1 + _ROW_OVERHEAD
    result = bench.apply(bench.some(1500))
    assert result.dropped["s"][:2] == (1001, 2001)
    bench.open()
    assert bench.file.known == {"s": (3501, 2001)}


def test_of_several_streams_the_largest_one_makes_room():
    bench = Bench(max_bytes=2500)
    bench.apply(bench.some(500), bench.some(1000, "large"), bench.some(100, "small"))
    result = bench.apply(bench.some(1000, "large"))
    assert set(result.dropped) == {"large"}
    assert (bench.rows()[0][0], bench.rows("small")[0][0]) == (1, 1)


@pytest.mark.parametrize(("seconds", "dropped"), [(59.0, {}), (60.0, {}), (60.1, {"s": (2, 2)})])
def test_a_sample_may_be_as_old_as_the_spool_allows(bench, seconds, dropped):
    bench.apply(bench.some(2))
    bench.now_s += seconds
    result = bench.apply(bench.some(1))
    assert {name: found[:2] for name, found in result.dropped.items()} == dropped
    assert bench.file.size == bench.measure()


def test_old_samples_are_looked_for_once_a_second(bench):
    for stream in range(_DROP_AT_ONCE + 3):
        bench.apply(bench.some(1, f"s{stream}"))
    bench.now_s += 61
    counts = []
    for seconds in (0.0, 0.9, 0.1):
        bench.now_s += seconds
        result = bench.apply(bench.some(1))
        counts.append(sum(found.samples for found in result.dropped.values()))
    assert counts == [_DROP_AT_ONCE, 0, 3]


def test_of_each_stream_the_dropped_samples_are_counted(bench):
    for _ in range(3):
        bench.apply(bench.some(2), bench.some(1, "t"))
    bench.now_s += 61
    result = bench.apply(bench.some(1))
    assert {name: found[:2] for name, found in result.dropped.items()} == {"s": (6, 6), "t": (3, 3)}
    bench.open()
    assert bench.file.known == {"s": (7, 6), "t": (3, 3)}


# --- what fails


def test_a_transaction_that_fails_leaves_no_trace(bench):
    bench.apply(bench.some(2))
    bench.apply(bench.some(5), bench.some(1, "t"), is_committed=False)
    assert bench.rows() == [(1, 2, 0)]
    bench.apply(bench.some(1), bench.some(1, "t"))
    assert bench.rows(after=2) == [(3, 3, 0)]
    assert bench.rows("t") == [(1, 1, 0)]


def test_what_was_in_the_file_is_told_until_it_is_committed(bench):
    bench.apply(bench.some(2))
    bench.open()
    assert bench.apply(is_committed=False).loaded == {"s": (2, 0)}
    assert bench.apply().loaded == {"s": (2, 0)}
    assert bench.apply().loaded == {}


def test_a_lost_file_costs_what_nobody_had_and_no_number(bench):
    bench.apply(
        bench.some(9), bench.some(4, "had"), bench.some(2, "unwanted"), Mark("a", 3, None),
        About("s", '{"points": 1}'),
    )  # fmt: skip
    boot = bench.file.boot
    bench.file.marks = {"a": 3}
    bench.file.abouts = {"s": {"points": 1}}
    bench.floors = {"s": 5, "had": 4}
    bench.begin_another_file()
    result = bench.apply(bench.some(1))
    assert {name: found[:2] for name, found in result.dropped.items()} == {"s": (4, 9), "had": (0, 4)}
    assert bench.rows() == [(10, 10, 0)]
    bench.apply(bench.some(1, "unwanted"))
    assert bench.rows("unwanted") == [(3, 3, 0)]
    bench.open()
    assert (bench.file.first_boot, bench.file.marks) == (boot, {"a": 3})
    assert json.loads(bench.connection.execute("SELECT about FROM streams").fetchone()[0]) == {"points": 1}


def test_an_older_file_in_its_place_gives_no_number_twice(bench):
    bench.apply(bench.some(2))
    copy = sqlite3.connect(":memory:")
    bench.connection.backup(copy)
    bench.apply(bench.some(5))
    bench.connection = copy
    bench.file.opened(copy)
    bench.apply(bench.some(1))
    assert bench.rows() == [(1, 2, 0), (8, 8, 0)]
