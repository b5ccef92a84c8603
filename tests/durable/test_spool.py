"""The spool by its promises: order, numbers, exact counts of what was dropped, bad disks and bad files."""

import asyncio
import contextlib
import json
import sqlite3

import pytest
from conftest import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.clock import Clock
from fieldbus.durable import committer as committer_module
from fieldbus.durable.spool import Spool
from fieldbus.durable.spool_file import ROW_ITEMS


def encode(items):
    return json.dumps(list(items)).encode()


class Bench:
    """Spools on one file, one after the other."""

    def __init__(self, folder):
        self.path = folder / "spool.db"
        self.said = []
        self.spool = None

    def open(self, **options):
        options = {"group_commit_s": 0.005, **options}
        self.spool = Spool(self.path, say=lambda text, is_bad: self.said.append((text, is_bad)), **options)
        self.spool.open()
        return self.spool

    def stream(self, name="s"):
        return self.spool.stream(name, encode)

    async def settle(self, stream):
        await eventually(lambda: stream.waiting == 0, what="all is on disk")

    async def content(self, stream, after=None):
        """All items behind a number, with their numbers, as they would be sent."""
        found = {}
        position = stream.floor if after is None else after
        while rows := await stream.rows_after(position, 2000):
            for row in rows:
                assert row.last > position
                items = json.loads(row.data)
                assert len(items) == row.samples
                found.update(zip(range(row.first, row.last + 1), items, strict=True))
                position = row.last
        # A row is given out whole: whoever gets it knows by the numbers what it has already.
        start = stream.floor if after is None else after
        return {number: item for number, item in found.items() if number > start}


@pytest.fixture
def bench(tmp_path):
    subject = Bench(tmp_path)
    yield subject
    if subject.spool is not None:
        subject.spool.close()


async def test_what_was_appended_is_there_after_a_restart_in_order_and_numbered(bench):
    bench.open()
    stream = bench.stream()
    for n in range(0, 3000, 3):
        stream.append([n, n + 1, n + 2])
    await bench.settle(stream)
    boot = bench.spool.boot
    bench.spool.close()
    bench.open()
    again = bench.stream()
    assert again.backlog == 3000
    assert again.life_at(3000) == (boot, 0)
    assert bench.spool.boot != boot
    assert await bench.content(again) == {n + 1: n for n in range(3000)}
    again.append(["new"])
    await bench.settle(again)
    assert (await bench.content(again, 3000)) == {3001: "new"}


async def test_nothing_is_given_out_before_it_is_on_disk(bench):
    bench.open(group_commit_s=0.2)
    stream = bench.stream()
    stream.append([1, 2])
    assert await stream.rows_after(0) == ()
    await bench.settle(stream)
    with sqlite3.connect(bench.path) as other:
        (stored,) = other.execute("SELECT data FROM rows").fetchone()
    rows = await stream.rows_after(0)
    assert [row.data for row in rows] == [stored]


async def test_what_was_acknowledged_is_gone_also_after_a_restart(bench):
    bench.open()
    stream = bench.stream()
    stream.append(range(ROW_ITEMS * 3))
    await bench.settle(stream)
    stream.acknowledge(ROW_ITEMS * 2)
    assert stream.backlog == ROW_ITEMS
    assert min(await bench.content(stream, 0)) == ROW_ITEMS * 2 + 1
    bench.spool.close()
    bench.open()
    again = bench.stream()
    assert again.backlog == ROW_ITEMS
    assert min(await bench.content(again, 0)) == ROW_ITEMS * 2 + 1


async def test_an_acknowledgement_of_what_was_never_sent_takes_nothing_away(bench):
    bench.open()
    stream = bench.stream()
    stream.append([1])
    stream.acknowledge(10)
    await bench.settle(stream)
    assert await bench.content(stream) == {1: 1}


async def test_in_the_middle_of_a_row_nothing_is_deleted(bench):
    bench.open()
    stream = bench.stream()
    stream.append([1, 2, 3])
    await bench.settle(stream)
    stream.acknowledge(2)
    await eventually(lambda: bench.spool.committer.commits >= 2)
    with sqlite3.connect(bench.path) as other:
        assert other.execute("SELECT count(*) FROM rows").fetchone() == (1,)


async def test_the_oldest_go_first_and_each_is_counted(bench):
    bench.open(max_bytes=20_000)
    stream = bench.stream()
    for n in range(200):
        stream.append([f"{n:0100d}"] * 10)
        await bench.settle(stream)
    kept = await bench.content(stream, 0)
    assert bench.spool.bytes <= 20_000
    assert stream.dropped > 0
    assert sorted(kept) == list(range(stream.dropped + 1, 2001))
    assert stream.backlog == len(kept) == 2000 - stream.dropped


async def test_who_asks_for_a_lot_pushes_nobody_else_out_and_that_samples_go_is_said_once(bench):
    bench.open(max_bytes=20_000)
    small, large = bench.stream("small"), bench.stream("large")
    small.append([f"{n:0100d}" for n in range(10)])
    for n in range(200):
        large.append([f"{n:0100d}"] * 10)
        await bench.settle(large)
    assert bench.spool.bytes <= 20_000
    assert (small.dropped, sorted(await bench.content(small, 0))) == (0, list(range(1, 11)))
    assert large.dropped > 0
    assert sorted(await bench.content(large, 0)) == list(range(large.dropped + 1, 2001))
    told = (
        "stream large: more waits than the spool may hold (`spool.max_size`); the oldest samples are dropped",
        True,
    )
    assert bench.said == [told]
    # The other side has all: what is lost after that is another loss.
    large.acknowledge(2000)
    for _ in range(40):
        large.append(["x" * 100] * 10)
        await bench.settle(large)
    assert bench.said == [told, told]


class Time:
    """A clock that is moved by hand."""

    def __init__(self):
        self.s, self.ns = 1000.0, 10**18
        self.clock = Clock(lambda: self.s, lambda: self.ns)

    def passes(self, seconds):
        self.s += seconds
        self.ns += round(seconds * 10**9)

    def is_set(self, seconds):
        self.ns += round(seconds * 10**9)


async def test_what_is_too_old_is_dropped_and_the_reason_is_the_true_one(bench):
    time = Time()
    bench.open(max_age_s=60, clock=time.clock)
    stream = bench.stream()
    stream.append([1, 2])
    await bench.settle(stream)
    time.passes(59)
    stream.append([3])
    await bench.settle(stream)
    assert stream.dropped == 0
    time.passes(2)
    stream.append([4])
    await eventually(lambda: stream.dropped == 2)
    assert await bench.content(stream, 0) == {3: 3, 4: 4}
    assert bench.said == [
        ("stream s: samples are older than 60 s (`spool.max_age`); the oldest samples are dropped", True)
    ]


@pytest.mark.parametrize("days", [-10_000, -10, -0.01, 0.01, 10, 100, 10_000])
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_clock_that_is_set_drops_nothing(bench, days, is_restarted):
    """Neither when it goes wrong nor when it is put right again."""
    time = Time()
    bench.open(max_age_s=7 * 86400, clock=time.clock)
    stream = bench.stream()
    for step in (days, -days, -days, days):
        for _ in range(3):
            stream.append([1])
            await bench.settle(stream)
            time.passes(2)
        time.is_set(step * 86400)
        if is_restarted:
            bench.spool.close()
            time.passes(5)
            bench.open(max_age_s=7 * 86400, clock=time.clock)
            stream = bench.stream()
    stream.append([1])
    await bench.settle(stream)
    assert len(await bench.content(stream, 0)) == 13
    assert not any("dropped" in text for text, _ in bench.said)
    if is_restarted and abs(days) > 1:
        assert {text.partition(" days ahead")[0] for text, _ in bench.said if "days ahead" in text} == {
            f"the clock is {abs(days):.1f}"
        }
        assert (
            sum("behind of when the file was written last" in text and is_bad for text, is_bad in bench.said)
            == 2
        )


async def test_what_waited_while_nobody_used_the_file_becomes_older(bench):
    time = Time()
    bench.open(max_age_s=3600, clock=time.clock)
    bench.stream().append([1])
    await bench.settle(bench.stream())
    bench.spool.close()
    time.passes(3601)
    bench.open(max_age_s=3600, clock=time.clock)
    stream = bench.stream()
    stream.append([2])
    await eventually(lambda: stream.dropped == 1)
    assert await bench.content(stream, 0) == {2: 2}


async def test_what_is_too_old_is_dropped_in_pieces(bench):
    time = Time()
    bench.open(max_age_s=60, clock=time.clock)
    stream = bench.stream()
    for _ in range(3):
        for number in range(200):
            bench.stream(f"s{number}").append([1])
        await bench.settle(bench.stream("s199"))
    time.passes(61)
    for turn in range(1, 4):
        stream.append([1])
        await bench.settle(stream)
        await asyncio.sleep(0)
        assert sum(found.dropped for found in bench.spool.streams.values()) == min(600, 256 * turn)
        time.passes(1)


async def test_a_file_of_before_it_had_its_own_time_goes_on(bench):
    time = Time()
    bench.open(max_age_s=3600, clock=time.clock)
    bench.stream().append([1])
    await bench.settle(bench.stream())
    bench.spool.close()
    with contextlib.closing(sqlite3.connect(bench.path)) as connection:
        connection.execute("DROP TABLE own_time")
        connection.commit()
    time.passes(100)
    bench.open(max_age_s=3600, clock=time.clock)
    [row] = await bench.stream().rows_after(0)
    assert bench.stream().age_s(row) == pytest.approx(100, abs=1)


async def limit_pages(bench, pages):
    """Let the file grow to so many pages only: what a full disk looks like from inside."""
    await bench.spool.committer.ask(
        lambda connection: connection.execute(f"PRAGMA max_page_count={pages}").fetchone()
    )


async def test_a_full_disk_stops_nothing_and_what_is_dropped_is_counted_exactly(bench):
    bench.open(max_waiting=1000)
    stream = bench.stream()
    sent = 0
    stream.append([sent])
    await bench.settle(stream)
    await limit_pages(bench, 20)
    for _ in range(500):
        stream.append([f"{sent + n:0200d}" for n in range(1, 11)])
        sent += 10
        if sent % 500 == 0:
            await asyncio.sleep(0.01)
    await eventually(lambda: bench.spool.trouble is not None)
    for _ in range(300):
        stream.append([f"{sent + n:0200d}" for n in range(1, 11)])
        sent += 10
    assert stream.dropped > 0
    assert stream.waiting <= 1010 + 500 * 10
    await limit_pages(bench, 1_000_000)
    await eventually(lambda: stream.waiting == 0)
    kept = await bench.content(stream, 0)
    assert len(kept) + stream.dropped == sent + 1
    # A sample's number is what it was appended as, whatever was dropped before it.
    assert all(number == int(value) + 1 for number, value in kept.items())
    assert [is_bad for _, is_bad in bench.said] == [True, False]
    assert "full" in bench.said[0][0]


async def test_a_damaged_file_is_set_aside_and_a_new_one_begun(bench):
    bench.path.write_bytes(b"this is not SQLite at all" * 400)
    bench.open()
    stream = bench.stream()
    stream.append([1])
    await bench.settle(stream)
    assert await bench.content(stream) == {1: 1}
    await eventually(lambda: bench.said)
    assert "set aside" in bench.said[0][0]
    assert len(list(bench.path.parent.glob("spool.db.damaged-*"))) == 1


async def test_pages_that_were_overwritten_are_found_when_the_file_is_opened(bench):
    bench.open()
    stream = bench.stream()
    stream.append(["x" * 200] * 2000)
    await bench.settle(stream)
    boot = bench.spool.boot
    bench.spool.close()
    with bench.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 40_000)
    bench.open()
    assert bench.spool.boot != boot
    stream = bench.stream()
    stream.append([1])
    await bench.settle(stream)
    assert await bench.content(stream) == {1: 1}


async def test_a_file_that_is_lost_while_it_is_used_costs_what_was_in_it_and_no_number_twice(bench):
    bench.open()
    stream = bench.stream()
    stream.append(["x" * 200] * 2000)
    await bench.settle(stream)

    def spoil(connection):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with bench.path.open("r+b") as file:
            file.seek(0)
            file.write(b"\xa5" * 200_000)
        raise sqlite3.DatabaseError("database disk image is malformed")

    with pytest.raises(sqlite3.DatabaseError):
        await bench.spool.committer.ask(spoil)
    stream.append(["after"])
    await bench.settle(stream)
    assert stream.dropped == 2000
    assert await bench.content(stream, 0) == {2001: "after"}


async def test_a_folder_that_cannot_be_had_stops_nothing_and_is_used_when_it_can(bench, tmp_path):
    bench.open()
    stream = bench.stream()
    stream.append([1, 2])
    await bench.settle(stream)
    bench.spool.close()
    hidden = bench.path.with_name("elsewhere")
    bench.path.rename(hidden)
    bench.path.mkdir()  # a folder in its place cannot be opened
    bench.open()
    late = bench.stream()
    late.append([3])
    await eventually(lambda: bench.spool.trouble is not None)
    bench.path.rmdir()
    hidden.rename(bench.path)
    await bench.settle(late)
    assert await bench.content(late, 0) == {1: 1, 2: 2, 3: 3}


async def test_numbers_go_on_when_a_stream_is_forgotten_and_wanted_again(bench):
    bench.open()
    stream = bench.stream()
    stream.append([1, 2, 3])
    await bench.settle(stream)
    stream.forget()
    again = bench.stream()
    again.append(["new"])
    await bench.settle(again)
    assert await bench.content(again, 0) == {4: "new"}


async def test_a_mark_is_told_when_it_is_on_disk_with_what_was_appended_before(bench):
    bench.open()
    stream = bench.stream()
    seen = []
    stream.append([1])
    bench.spool.mark("a/boot/s", 7, lambda: seen.append(stream.committed))
    await eventually(lambda: seen)
    assert seen == [1]
    bench.spool.close()
    bench.open()
    assert bench.spool.marks == {"a/boot/s": 7}


async def test_notes_beside_streams_survive(bench):
    bench.open()
    bench.stream().set_about({"points": ["a.b"]})
    await eventually(lambda: bench.spool.committer.commits >= 1)
    bench.spool.close()
    bench.open()
    assert bench.spool.abouts == {"s": {"points": ["a.b"]}}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from("ab"), st.integers(1, 700)),
        st.tuples(st.just("acknowledge"), st.sampled_from("ab"), st.integers(0, 3000)),
        st.tuples(st.just("settle"), st.just("a"), st.just(0)),
        st.tuples(st.just("restart"), st.just("a"), st.just(0)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=examples(25), suppress_health_check=list(HealthCheck))
@given(steps)
def test_whatever_happens_what_is_kept_is_what_was_not_acknowledged(tmp_path_factory, what):
    async def work():
        bench = Bench(tmp_path_factory.mktemp("spool"))
        bench.open(group_commit_s=0.001)
        sent = {"a": 0, "b": 0}
        acknowledged = {"a": 0, "b": 0}
        for step, name, number in what:
            stream = bench.stream(name)
            if step == "append":
                stream.append(list(range(sent[name] + 1, sent[name] + number + 1)))
                sent[name] += number
            elif step == "acknowledge":
                if number <= stream.committed:
                    stream.acknowledge(number)
                    acknowledged[name] = max(acknowledged[name], number)
            else:
                for each in list(bench.spool.streams.values()):
                    await bench.settle(each)
                if step == "restart":
                    bench.spool.close()
                    bench.open(group_commit_s=0.001)
        for name in "ab":
            stream = bench.stream(name)
            await bench.settle(stream)
            kept = await bench.content(stream, acknowledged[name])
            assert kept == {n: n for n in range(acknowledged[name] + 1, sent[name] + 1)}
        bench.spool.close()

    asyncio.run(work())


async def test_while_a_commit_is_under_way_the_oldest_go_all_the_same_and_each_keeps_its_number(
    bench, monkeypatch
):
    """What fails comes back in front of what was appended meanwhile: then it is the oldest."""
    bench.open(max_waiting=1000)
    stream = bench.stream()
    stream.append([1])
    await bench.settle(stream)
    await limit_pages(bench, 20)
    sent = 1
    for _ in range(400):
        stream.append([f"{sent + n:0400d}" for n in range(1, 26)])
        sent += 25
        await asyncio.sleep(0.002)
        assert stream.waiting <= 1000 + 25 or bench.spool.trouble is None
    assert bench.spool.trouble is not None
    await limit_pages(bench, 1_000_000)
    await bench.settle(stream)
    kept = await bench.content(stream, 0)
    assert len(kept) + stream.dropped == sent
    assert all(number == int(value) for number, value in kept.items())
    assert max(kept) == sent
    stream.append([str(sent + 1)])
    await bench.settle(stream)
    bench.spool.close()
    bench.open()
    again = bench.stream()
    assert max(await bench.content(again, 0)) == again.committed == sent + 1


async def test_what_was_dropped_at_the_very_end_is_counted_before_what_comes_next(bench):
    bench.open(max_waiting=10)
    stream = bench.stream()
    stream.append(["1"])
    await bench.settle(stream)
    await limit_pages(bench, 9)
    stream.append(["x" * 4000] * 30)
    await eventually(lambda: bench.spool.trouble is not None)
    stream.append(["y" * 4000] * 30)  # too many even alone
    assert stream.waiting <= 10 + 30
    await limit_pages(bench, 1_000_000)
    stream.append(["last"])
    await bench.settle(stream)
    kept = await bench.content(stream, 0)
    assert kept[62] == "last"
    assert len(kept) + stream.dropped == 62


@pytest.mark.parametrize(
    "error", ["disk I/O error", "attempt to write a readonly database", "database is locked"]
)
async def test_errors_of_the_disk_at_any_moment_cost_nothing_that_is_not_counted(bench, error):
    bench.open(max_waiting=300)
    stream = bench.stream()
    apply = bench.spool.apply
    fails = False

    def failing(connection, items):
        result = apply(connection, items)
        if fails:
            raise sqlite3.OperationalError(error)
        return result

    bench.spool.apply = failing
    sent = 0
    for step in range(300):
        fails = step % 100 >= 30
        stream.append([str(sent + n) for n in range(1, 8)])
        sent += 7
        await asyncio.sleep(0.002)
    fails = False
    await bench.settle(stream)
    stream.append([str(sent + 1)])
    await bench.settle(stream)
    kept = await bench.content(stream, 0)
    assert stream.dropped > 0
    assert len(kept) + stream.dropped == sent + 1
    assert all(number == int(value) for number, value in kept.items())
    assert bench.spool.trouble is None


async def test_samples_that_cannot_be_encoded_cost_themselves_and_no_number_but_their_own(bench, monkeypatch):
    monkeypatch.setattr(committer_module, "RETRY_S", 0.02)
    bench.open(group_commit_s=0.05)
    stream = bench.stream()
    other = bench.stream("other")
    stream.append([1, 2])
    other.append([1])
    stream.append([object()])  # nothing that JSON knows
    other.append([2])
    await eventually(lambda: other.waiting == 0 and stream.waiting == 0)
    assert await bench.content(other) == {1: 1, 2: 2}
    stream.append([3])
    await bench.settle(stream)
    assert await bench.content(stream) == {1: 1, 2: 2, 4: 3}
    assert stream.dropped == 1
    assert any("entries cannot be written and are dropped" in text for text, _ in bench.said)
