"""The intake by its promises: once each, in order, holes waited for or counted, loops ended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.gateway.exchange.intake import Intake
from fieldbus.link import Target
from fieldbus.model import Kind, Point, Quality, Sample
from fieldbus.mqtt.records import Item, Place
from fieldbus.routing.policy import Edge, Policy, When


class FakeKeeper:
    """Keeps samples in memory; what is `on_disk` survives `crash`."""

    def __init__(self):
        self.on_disk = []
        self.marks = {}
        self.waiting = []
        self.is_full = False
        self.place = object()

    def mark_of(self, source):
        return self.marks.get(source, 0)

    def has_room(self, count):
        return not self.is_full

    def take(self, deliveries, source, seq, done):
        self.waiting.append(([delivery.sample.value for delivery in deliveries], source, seq, done))

    def commit(self, count=None):
        now, self.waiting = self.waiting[:count], self.waiting[count or len(self.waiting) :]
        for values, source, seq, _ in now:
            self.on_disk += values
            self.marks[source] = max(seq, self.marks.get(source, 0))
        for *_, done in now:
            done()

    def crash(self):
        self.waiting = []
        self.place = object()


def edges(names=("a", "b"), keeper="store", when=When.SAMPLE):
    found = []
    for name in names:
        point = Point("line", f"press.{name}", Kind.INT, origin=f"tx/press.{name}", hops=1)
        found.append((Edge(point, Target(keeper, None, point.address), Policy(when=when)), "tx", keeper))
    return found


class Bench:
    def __init__(self, **keepers):
        self.keepers = keepers or {"store": FakeKeeper()}
        self.told = 0
        self.start()

    def start(self):
        self.intake = Intake("rx")
        self.wire()

    def wire(self):
        self.intake.set([edge for name in self.keepers for edge in edges(keeper=name)], self.keepers)

    def chunk(self, first, count, *, gap=0, floor=0, boot="boot", heads=None, historical=False):
        """A chunk whose samples have their numbers as values."""
        place = Place("tx", boot, "broker data rx", first, count, gap, floor, historical)
        items = [
            Item(
                ("press.a", "tx/press.a", 0) if heads is None else heads,
                Sample(n, Quality.GOOD, None, n),
            )
            for n in range(first, first + count)
        ]
        return self.intake.take("tx", place, items, float, self.committed)

    def committed(self):
        self.told += 1

    @property
    def acknowledged(self):
        return self.intake.committed("tx/boot/broker data rx", "tx")

    def counters(self):
        return tuple(self.intake.counters().values())


@pytest.fixture
def bench():
    return Bench()


def test_what_comes_is_kept_and_acknowledged_only_when_it_is_on_disk(bench):
    assert not bench.chunk(1, 3)
    assert (bench.acknowledged, bench.told) == (0, 0)
    bench.keepers["store"].commit()
    assert (bench.acknowledged, bench.told) == (3, 1)
    assert bench.keepers["store"].on_disk == [1, 2, 3]
    assert bench.counters() == (3, 0, 0, 0)


def test_what_comes_again_is_dropped_whether_it_is_on_disk_or_only_on_the_way(bench):
    bench.chunk(1, 3)
    assert bench.chunk(1, 3)
    bench.keepers["store"].commit()
    assert bench.chunk(1, 3)
    assert not bench.chunk(2, 4)
    bench.keepers["store"].commit()
    assert bench.keepers["store"].on_disk == [1, 2, 3, 4, 5]
    assert bench.counters() == (5, 8, 0, 0)


def test_behind_a_hole_that_can_be_filled_nothing_is_taken(bench):
    bench.chunk(1, 3)
    assert bench.chunk(7, 2)
    bench.chunk(4, 3)
    bench.chunk(7, 2)
    bench.keepers["store"].commit()
    assert bench.keepers["store"].on_disk == list(range(1, 9))
    assert bench.counters() == (8, 0, 0, 0)


def test_a_hole_that_its_sender_cannot_fill_is_counted_to_the_sample(bench):
    bench.chunk(1, 3)
    bench.chunk(10, 2, gap=6)  # dropped before it was written
    bench.chunk(20, 1, floor=19)  # dropped from its disk
    bench.keepers["store"].commit()
    assert bench.keepers["store"].on_disk == [1, 2, 3, 10, 11, 20]
    assert bench.counters() == (6, 0, 6 + 8, 0)


def test_a_hole_that_is_only_partly_lost_is_waited_for(bench):
    bench.chunk(1, 3)
    assert bench.chunk(10, 2, gap=5)
    assert bench.chunk(10, 2, floor=8)
    assert bench.counters() == (3, 0, 0, 0)


def test_who_has_nothing_begins_where_its_sender_does_and_misses_nothing(bench):
    bench.chunk(101, 2, floor=100)
    bench.keepers["store"].commit()
    assert bench.acknowledged == 102
    assert bench.counters() == (2, 0, 0, 0)


def test_in_another_incarnation_numbers_begin_anew(bench):
    bench.chunk(1, 5)
    bench.chunk(1, 2, boot="next")
    bench.keepers["store"].commit()
    assert bench.keepers["store"].on_disk == [1, 2, 3, 4, 5, 1, 2]


def test_after_a_crash_what_was_not_on_disk_is_taken_again_and_what_was_is_not(bench):
    keeper = bench.keepers["store"]
    bench.chunk(1, 3)
    keeper.commit()
    bench.chunk(4, 3)
    keeper.crash()
    bench.start()
    assert bench.chunk(7, 1)
    bench.chunk(1, 3)
    bench.chunk(4, 3)
    bench.chunk(7, 1)
    keeper.commit()
    assert keeper.on_disk == list(range(1, 8))


def test_a_reload_forgets_nothing_that_is_on_the_way_to_the_disk(bench):
    bench.chunk(1, 3)
    bench.wire()
    assert bench.chunk(1, 3)
    bench.chunk(4, 1)
    bench.keepers["store"].commit()
    assert bench.keepers["store"].on_disk == [1, 2, 3, 4]


def test_what_a_store_lost_that_was_closed_is_asked_for_again():
    """Opened anew, a store has no place until it is connected."""
    bench = Bench()
    bench.chunk(1, 3)
    bench.keepers["store"].crash()
    bench.keepers["store"].place = None
    bench.keepers = {"store": FakeKeeper()}
    bench.keepers["store"].place = None
    bench.wire()
    bench.chunk(1, 3)
    bench.keepers["store"].commit()
    assert bench.keepers["store"].on_disk == [1, 2, 3]


def test_without_room_nothing_is_taken_and_nothing_lost(bench):
    keeper = bench.keepers["store"]
    keeper.is_full = True
    assert bench.chunk(1, 3)
    keeper.is_full = False
    bench.chunk(1, 3)
    keeper.commit()
    assert keeper.on_disk == [1, 2, 3]
    assert bench.counters() == (3, 0, 0, 0)


def test_of_two_keepers_each_gets_all_once_and_the_slower_one_says_what_is_acknowledged():
    fast, slow = FakeKeeper(), FakeKeeper()
    bench = Bench(fast=fast, slow=slow)
    bench.chunk(1, 3)
    fast.commit()
    assert bench.acknowledged == 0
    slow.crash()
    bench.start()
    assert not bench.chunk(1, 3)
    assert fast.waiting == []
    slow.commit()
    assert bench.acknowledged == 3
    assert fast.on_disk == slow.on_disk == [1, 2, 3]


@pytest.mark.parametrize(
    ("heads", "is_loop"),
    [
        (("press.a", "rx/press.x", 2), True),
        (("press.a", "rx2/press.x", 2), False),
        (("press.a", "tx/press.a", 7), False),
        (("press.a", "tx/press.a", 8), True),
        (("press.a", "tx/press.a", 10**9), True),
    ],
)
def test_what_was_here_or_came_too_far_is_not_taken_but_acknowledged(bench, heads, is_loop):
    bench.chunk(1, 2, heads=heads)
    bench.keepers["store"].commit()
    assert bench.keepers["store"].on_disk == ([] if is_loop else [1, 2])
    assert bench.acknowledged == 2
    assert bench.intake.looped == 2 * is_loop


def test_what_nobody_wants_any_more_is_acknowledged_with_the_rest(bench):
    bench.chunk(1, 2, heads=("press.gone", "tx/press.gone", 0))
    bench.keepers["store"].commit()
    assert (bench.keepers["store"].on_disk, bench.acknowledged) == ([], 2)


def test_of_whom_nothing_is_wanted_nothing_is_said(bench):
    place = Place("other", "boot", "s", 1, 1, 0, 0, False)
    assert not bench.intake.take("other", place, [], float, bench.committed)
    assert bench.intake.committed(place.source, "other") is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("chunk"), st.integers(1, 12), st.integers(1, 5)),
            st.tuples(st.just("commit"), st.integers(1, 3), st.just(0)),
            st.tuples(st.sampled_from(["crash", "reload", "full", "room"]), st.just(0), st.just(0)),
        ),
        max_size=40,
    )
)
def test_whatever_order_chunks_come_in_the_store_has_each_once_and_in_order(steps):
    bench = Bench()
    keeper = bench.keepers["store"]
    for step, number, count in steps:
        if step == "chunk":
            bench.chunk(number, count)
        elif step == "commit":
            keeper.commit(number)
        elif step == "crash":
            keeper.crash()
            bench.start()
        elif step == "reload":
            bench.wire()
        else:
            keeper.is_full = step == "full"
        assert keeper.on_disk == list(range(1, len(keeper.on_disk) + 1))
        assert bench.acknowledged == len(keeper.on_disk)
    assert bench.intake.lost == 0
