"""Streams with rows that are not as they were written: what arrives, what does not, and that both sides count it."""

import asyncio
import random
import sqlite3

import pytest
from conftest import eventually

from fieldbus.durable.spool import Spool
from fieldbus.gateway.exchange.intake import Intake
from fieldbus.gateway.exchange.sinks import PeerSink
from fieldbus.link import Delivery, Handover, Target
from fieldbus.model import Kind, Point, Quality, Sample
from fieldbus.mqtt.records import (
    Acknowledgement,
    RecordError,
    chunk_items,
    decode_acknowledgement,
    decode_place,
    encode_acknowledgement,
    encode_row,
)
from fieldbus.routing.policy import Edge, Policy, When

NOW_NS = 10**18
ROW = 500


class Keeper:
    """Has what it took on disk at once."""

    def __init__(self):
        self.values = []
        self.marks = {}
        self.place = self

    def mark_of(self, source):
        return self.marks.get(source, 0)

    def has_room(self, count):
        return True

    def take(self, deliveries, source, seq, done):
        self.values += [delivery.sample.value for delivery in deliveries]
        self.marks[source] = seq
        done()


class Wire:
    """A broker that brings each chunk to the receiver, and what that says back."""

    is_sending = True

    def __init__(self, room=1 << 20):
        self.keeper = Keeper()
        self.intake = Intake("rx")
        point = Point("line", "press.text", Kind.STRING, origin="tx/press.text", hops=1)
        edge = Edge(point, Target("store", None, point.address), Policy(when=When.SAMPLE))
        self.intake.set([(edge, "tx", "store")], {"store": self.keeper})
        self.room = room
        self.longest = 0
        self.pump = None
        self.unreadable = set()
        """Values that the receiver, which is of another version, cannot read."""

    def room_for(self, topic):
        return self.room

    def publish(self, topic, payload, done, *, is_retained=False, expiry_s=None):
        self.longest = max(self.longest, len(payload))
        loop = asyncio.get_running_loop()
        loop.call_soon(done, Handover.TAKEN)
        loop.call_soon(self.arrive, payload)

    def arrive(self, payload):
        place, row = decode_place(payload)
        refused = None
        try:
            items = chunk_items(place, row)
            if self.unreadable & {item.sample.value for item in items}:
                raise RecordError("not of this version")
        except RecordError:
            refused = place.first, place.last
            self.intake.met("tx", place)
        else:
            if not self.intake.take("tx", place, items, float, lambda: self.acknowledge(place)):
                return
        self.acknowledge(place, refused)

    def acknowledge(self, place, refused=None):
        said = Acknowledgement(place.boot, place.stream, self.intake.committed(place.source, "tx"), refused)
        said = decode_acknowledgement(encode_acknowledgement(said))
        stream = self.pump.stream
        self.pump.acknowledged(stream.number_of(said.boot, said.seq))
        if said.refused is not None:
            self.pump.refused(*(stream.number_of(said.boot, seq) for seq in said.refused))


class Bench:
    def __init__(self, folder, wire=None):
        self.path = folder / "spool.db"
        self.said = []
        self.wire = wire or Wire()
        self.task = None
        self.open()

    def open(self):
        self.spool = Spool(
            self.path, group_commit_s=0.005, say=lambda text, is_bad: self.said.append((text, is_bad))
        )
        self.spool.open()
        self.stream = self.spool.stream("broker data rx", encode_row)
        self.sink = PeerSink(self.wire, "tx", "rx", self.stream, lambda: True)
        self.wire.pump = self.sink.pump

    async def write(self, values):
        point = Point("press", "text", Kind.STRING)
        target = Target("x", None, point.address)
        self.sink.send(
            [Delivery(target, point, Sample(value, Quality.GOOD, None, NOW_NS)) for value in values]
        )
        await eventually(lambda: self.stream.waiting == 0)

    def change(self, *statements):
        """Change the file behind the spool's back, and open it again."""
        self.spool.close()
        with sqlite3.connect(self.path) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        self.open()

    async def send_all(self):
        self.task = asyncio.create_task(self.sink.pump.run())
        await eventually(lambda: self.stream.backlog == 0, 10.0, "all is acknowledged or skipped")

    async def close(self):
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.spool.close()


@pytest.fixture
async def bench(tmp_path):
    subject = Bench(tmp_path)
    yield subject
    await subject.close()


async def write_rows(bench, count):
    for number in range(count):
        await bench.write([f"{number}:{place}" for place in range(ROW)])


DAMAGES = [
    "UPDATE rows SET data = CAST('rubbish' AS BLOB) WHERE id = {}",
    "UPDATE rows SET data = substr(data, 2) WHERE id = {}",
    "UPDATE rows SET data = 'text' WHERE id = {}",
    "UPDATE rows SET data = replace(data, '0', '1') WHERE id = {}",
    "UPDATE rows SET first = first + 1 WHERE id = {}",
    "UPDATE rows SET first = 250 WHERE id = {}",
    "UPDATE rows SET first = 1 << 60 WHERE id = {}",
    "UPDATE rows SET first = x'0102' WHERE id = {}",
    "UPDATE rows SET first = 'a' WHERE id = {}",
    "UPDATE rows SET count = count - 1 WHERE id = {}",
    "UPDATE rows SET count = 'b' WHERE id = {}",
    "UPDATE rows SET gap = 7 WHERE id = {}",
    "UPDATE rows SET time_ns = 'c' WHERE id = {}",
    "UPDATE rows SET crc = crc + 1 WHERE id = {}",
    "UPDATE rows SET crc = 'd' WHERE id = {}",
    "UPDATE rows SET stream = 77 WHERE id = {}",
    "DELETE FROM rows WHERE id = {}",
]


@pytest.mark.parametrize("place", [1, 3, 5], ids=["the first row", "one in the middle", "the last row"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_row_costs_itself_and_both_sides_count_it(bench, damage, place):
    await write_rows(bench, 5)
    bench.change(damage.format(place))
    await bench.send_all()
    await bench.write(["new"])
    await eventually(lambda: bench.stream.backlog == 0)
    wanted = [f"{number}:{item}" for number in range(5) if number != place - 1 for item in range(ROW)]
    assert bench.wire.keeper.values == [*wanted, "new"]
    assert (bench.stream.dropped, bench.wire.intake.lost) == (ROW, ROW)
    assert [is_bad for text, is_bad in bench.said if "damaged on the disk" in text] == [True]


async def test_what_no_file_should_hold_costs_itself_only(bench):
    await write_rows(bench, 5)
    columns = ("stream", "first", "count", "gap", "time_ns", "data")
    bench.change(
        "ALTER TABLE rows RENAME TO kept",
        f"CREATE TABLE rows(id INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(columns)}, crc)",  # also nothing
        "INSERT INTO rows SELECT * FROM kept",
        "DROP TABLE kept",
        "UPDATE rows SET data = NULL WHERE id = 2",
        "UPDATE rows SET gap = NULL WHERE id = 4",
    )
    await bench.send_all()
    wanted = [f"{number}:{item}" for number in (0, 2, 4) for item in range(ROW)]
    assert bench.wire.keeper.values == wanted
    assert bench.stream.dropped == 2 * ROW


@pytest.mark.parametrize("seed", range(3))
async def test_rows_damaged_at_random_cost_themselves_only(tmp_path, seed):
    dice = random.Random(seed)
    bench = Bench(tmp_path)
    await write_rows(bench, 30)
    damaged = set(dice.sample(range(1, 31), 10))
    bench.change(*(dice.choice(DAMAGES).format(number) for number in damaged))
    await bench.send_all()
    await bench.write(["new"])
    await eventually(lambda: bench.stream.backlog == 0)
    assert bench.wire.keeper.values == [
        *(f"{number}:{item}" for number in range(30) if number + 1 not in damaged for item in range(ROW)),
        "new",
    ]
    assert (bench.stream.dropped, bench.wire.intake.lost) == (10 * ROW, 10 * ROW)
    await bench.close()


async def test_a_row_of_a_version_without_checksums_that_cannot_be_read_is_refused_and_skipped(bench):
    await write_rows(bench, 3)
    bench.change("UPDATE rows SET crc = NULL", "UPDATE rows SET data = CAST('rubbish' AS BLOB) WHERE id = 2")
    await bench.send_all()
    assert bench.wire.keeper.values == [f"{n}:{item}" for n in (0, 2) for item in range(ROW)]
    assert (bench.stream.dropped, bench.wire.intake.lost) == (ROW, ROW)


async def test_what_the_peer_cannot_read_is_skipped_and_what_is_behind_it_arrives(bench):
    bench.wire.unreadable = {"1:7"}
    await write_rows(bench, 3)
    await bench.send_all()
    assert bench.wire.keeper.values == [f"{n}:{item}" for n in (0, 2) for item in range(ROW)]
    assert (bench.stream.dropped, bench.wire.intake.lost) == (ROW, ROW)
    assert any("the peer cannot take them" in text for text, _ in bench.said)


@pytest.mark.parametrize("room", [65_536, 5_000, 1_000])
async def test_rows_are_split_to_what_the_broker_accepts(tmp_path, room):
    bench = Bench(tmp_path, Wire(room))
    values = [f"{number} " * (number % 40) for number in range(1, 1500)]
    await bench.write(values)
    await bench.send_all()
    assert bench.wire.longest <= room
    assert bench.wire.keeper.values == values
    assert bench.stream.dropped == bench.wire.intake.lost == 0
    await bench.close()


async def test_a_sample_that_no_packet_can_hold_costs_itself_only(tmp_path):
    bench = Bench(tmp_path, Wire(2_000))
    values = ["x" * 5_000 if number in (0, 700, 999) else str(number) for number in range(1000)]
    await bench.write(values)
    await bench.send_all()
    await bench.write(["new"])
    await eventually(lambda: bench.stream.backlog == 0)
    assert bench.wire.keeper.values == [value for value in [*values, "new"] if len(value) < 5_000]
    assert (bench.stream.dropped, bench.wire.intake.lost) == (3, 3)
    assert any("longer than the broker accepts" in text for text, _ in bench.said)
    await bench.close()


async def test_a_peer_can_only_refuse_what_was_sent_to_it(bench):
    await write_rows(bench, 2)
    bench.sink.pump.refused(1, ROW)
    bench.sink.pump.refused(1, 10**9)
    await bench.send_all()
    bench.sink.pump.refused(1, ROW)
    await bench.write(["new"])
    await eventually(lambda: bench.stream.backlog == 0)
    assert len(bench.wire.keeper.values) == 2 * ROW + 1
    assert bench.stream.dropped == 0


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE streams SET last_seq = 1200",
        "UPDATE streams SET floor = 1400",
        "UPDATE streams SET floor = 500",
        "UPDATE streams SET about = '{'",
        "UPDATE streams SET about = x'00'",
    ],
)
async def test_numbers_of_a_stream_that_do_not_fit_its_rows_are_corrected_by_them(bench, damage):
    await write_rows(bench, 3)
    bench.change(damage)
    assert (bench.stream.committed, bench.stream.floor) == (3 * ROW, 0)
    await bench.send_all()
    await bench.write(["new"])
    await eventually(lambda: bench.stream.backlog == 0)
    assert len(bench.wire.keeper.values) == 3 * ROW + 1
    assert bench.wire.intake.doubled == 0


@pytest.mark.parametrize("damage", ["UPDATE streams SET last_seq = 3", "UPDATE streams SET floor = 'x'"])
async def test_a_file_whose_numbers_might_begin_anew_is_set_aside(bench, damage):
    await bench.write([str(number) for number in range(9)])
    await bench.send_all()
    bench.task.cancel()
    boot = bench.spool.boot
    bench.change(damage)
    assert bench.spool.boot != boot
    await bench.send_all()
    await bench.write(["new"])
    await eventually(lambda: bench.stream.backlog == 0)
    assert bench.wire.keeper.values[-1] == "new"
    assert len(list(bench.path.parent.glob("spool.db.damaged-*"))) >= 1
