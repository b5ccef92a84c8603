"""The pump by its promises: in order, nothing left out, again what was lost, never more than a window."""

import asyncio

import pytest
from conftest import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.clock import Clock
from fieldbus.durable.spool_file import Row
from fieldbus.gateway.exchange import pump as pump_module
from fieldbus.gateway.exchange.pump import WINDOW, WINDOW_BYTES, Pump

NOW_NS = 10**18


class FakeStream:
    """Committed rows in memory."""

    def __init__(self, size=10):
        self.name = "s"
        self.rows = []
        self.skipped = []
        self.lives = [("boot", 0)]
        self.floor = 0
        self.committed = 0
        self.changed = asyncio.Event()
        self.size = size

    def append(self, samples=1, gap=0, time_ns=NOW_NS):
        first = self.committed + gap + 1
        self.rows.append(Row(first, samples, gap, time_ns, b"x" * self.size))
        self.committed = first + samples - 1
        self.changed.set()

    def age_s(self, row):
        return (NOW_NS - row.time_ns) / 1e9

    def acknowledge(self, seq):
        self.floor = max(self.floor, min(seq, self.committed))

    async def rows_after(self, seq, max_bytes=0):
        await asyncio.sleep(0)
        return [row for row in self.rows if row.last > max(seq, self.floor)][:7]

    def life_at(self, number):
        return next((life for life in reversed(self.lives) if life[1] < number), ("boot", 0))

    def skip(self, missing):
        self.skipped.append(missing)
        self.acknowledge(missing.last)


class FakeCarrier:
    """Takes rows, and what becomes of them is the test's to say."""

    def __init__(self, *, by_peer):
        self.is_ready = True
        self.is_acknowledged_by_peer = by_peer
        self.sent = []
        self.historical = []
        self.dones = []
        self.is_automatic = True
        self.cut = {}

    def pieces(self, row):
        return self.cut.get(row.first, (row,))

    def carry(self, row, done, *, is_historical):
        self.sent.append(row.first)
        self.historical.append(is_historical)
        if self.is_automatic:
            done(True)
        else:
            self.dones.append((row, done))


class Bench:
    def __init__(self, *, by_peer=True, size=10):
        self.stream = FakeStream(size)
        self.carrier = FakeCarrier(by_peer=by_peer)
        self.pump = Pump(self.stream, self.carrier, Clock(wall_ns=lambda: NOW_NS))
        self.task = None

    async def __aenter__(self):
        self.task = asyncio.create_task(self.pump.run())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def has_sent(self, count, timeout_s=3.0):
        await eventually(
            lambda: len(self.carrier.sent) >= count, timeout_s, f"{count} are sent, not {self.carrier.sent}"
        )


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(pump_module, "RESEND_S", 0.2)


async def test_rows_go_in_order_once_each():
    async with Bench() as bench:
        for _ in range(20):
            bench.stream.append(3)
        await bench.has_sent(20)
        bench.pump.acknowledged(60)
        bench.stream.append()
        await bench.has_sent(21)
        await asyncio.sleep(0.05)
        assert bench.carrier.sent == [*range(1, 60, 3), 61]


async def test_not_more_than_a_window_is_under_way():
    async with Bench() as bench:
        for _ in range(WINDOW * 2):
            bench.stream.append()
        await bench.has_sent(WINDOW)
        await asyncio.sleep(0.05)
        assert len(bench.carrier.sent) == WINDOW
        bench.pump.acknowledged(5)
        await bench.has_sent(WINDOW + 5)
        await asyncio.sleep(0.05)
        assert bench.carrier.sent == list(range(1, WINDOW + 6))


async def test_not_more_than_so_many_bytes_are_under_way():
    async with Bench(size=WINDOW_BYTES // 4) as bench:
        for _ in range(10):
            bench.stream.append()
        await bench.has_sent(4)
        await asyncio.sleep(0.05)
        assert bench.carrier.sent == [1, 2, 3, 4]


async def test_what_the_peer_does_not_acknowledge_is_sent_again_from_the_first_that_is_missing():
    async with Bench() as bench:
        for _ in range(5):
            bench.stream.append()
        await bench.has_sent(5)
        bench.pump.acknowledged(2)
        await bench.has_sent(8)
        assert bench.carrier.sent[:8] == [1, 2, 3, 4, 5, 3, 4, 5]


async def test_looking_every_now_and_then_does_not_put_the_repetition_off():
    async with Bench() as bench:
        bench.stream.append()
        await bench.has_sent(1)

        async def look():
            while True:
                await asyncio.sleep(0.05)
                bench.pump.wake()

        looker = asyncio.create_task(look())
        try:
            await bench.has_sent(2)
        finally:
            looker.cancel()


async def test_new_rows_do_not_put_the_repetition_of_old_ones_off():
    async with Bench() as bench:
        bench.stream.append()
        await bench.has_sent(1)
        for _ in range(15):
            bench.stream.append()
            await asyncio.sleep(0.05)
        assert bench.carrier.sent.count(1) >= 2
        assert len(bench.carrier.sent) > 15


async def test_while_the_broker_has_not_taken_it_nothing_is_sent_again():
    async with Bench() as bench:
        bench.carrier.is_automatic = False
        bench.stream.append()
        await bench.has_sent(1)
        await asyncio.sleep(0.6)
        assert bench.carrier.sent == [1]
        bench.carrier.is_automatic = True
        bench.carrier.dones[0][1](True)
        await bench.has_sent(2)


async def test_a_new_session_of_the_peer_gets_at_once_what_the_one_before_had_not():
    async with Bench() as bench:
        pump_module.RESEND_S = 60.0
        for _ in range(3):
            bench.stream.append()
        await bench.has_sent(3)
        bench.pump.acknowledged(1)
        bench.pump.begin_again()
        await bench.has_sent(5, 1.0)
        assert bench.carrier.sent == [1, 2, 3, 2, 3]


async def test_what_was_given_back_is_sent_again_but_not_in_a_hurry():
    async with Bench(by_peer=False) as bench:
        bench.carrier.is_automatic = False
        for _ in range(3):
            bench.stream.append()
        await bench.has_sent(3)
        _, done = bench.carrier.dones[0]
        done(True)
        for _, done in bench.carrier.dones[1:]:
            done(False)
        await bench.has_sent(5)
        assert bench.carrier.sent == [1, 2, 3, 2, 3]
        assert bench.stream.floor == 1


async def test_what_is_given_back_at_once_costs_no_processor():
    async with Bench(by_peer=False) as bench:

        def refuse(row, done, *, is_historical):
            bench.carrier.sent.append(row.first)
            done(False)

        bench.carrier.carry = refuse
        bench.stream.append()
        await asyncio.sleep(0.3)
        assert len(bench.carrier.sent) < 5


async def test_out_of_order_the_broker_may_acknowledge_but_only_all_up_to_a_row_counts():
    async with Bench(by_peer=False) as bench:
        bench.carrier.is_automatic = False
        for _ in range(4):
            bench.stream.append(2)
        await bench.has_sent(4)
        dones = [done for _, done in bench.carrier.dones]
        dones[2](True)
        assert bench.stream.floor == 0
        dones[0](True)
        assert bench.stream.floor == 2
        dones[0](True)
        dones[1](True)
        assert bench.stream.floor == 6
        dones[3](True)
        assert bench.stream.floor == 8


async def test_acknowledgements_that_come_late_twice_or_of_the_future_do_no_harm():
    async with Bench() as bench:
        for _ in range(10):
            bench.stream.append()
        await bench.has_sent(10)
        for seq in (7, 3, 7, 0, 10**9):
            bench.pump.acknowledged(seq)
        assert bench.stream.floor == 10
        bench.stream.append()
        await bench.has_sent(11)
        await asyncio.sleep(0.05)
        assert bench.carrier.sent == list(range(1, 12))


async def test_nothing_goes_while_the_other_side_is_away_and_all_of_it_in_order_when_it_is_back():
    async with Bench() as bench:
        bench.carrier.is_ready = False
        for _ in range(3):
            bench.stream.append()
        await asyncio.sleep(0.05)
        assert bench.carrier.sent == []
        assert bench.pump.is_behind
        bench.carrier.is_ready = True
        bench.pump.wake()
        await bench.has_sent(3)
        bench.carrier.is_ready = False
        bench.pump.wake()
        await asyncio.sleep(0.02)
        bench.carrier.is_ready = True
        bench.pump.wake()
        await bench.has_sent(6)
        assert bench.carrier.sent == [1, 2, 3, 1, 2, 3]


async def test_what_waited_is_historical_and_what_is_new_is_not():
    async with Bench() as bench:
        bench.stream.append(time_ns=NOW_NS - 10**10)
        bench.stream.append(time_ns=NOW_NS - 10**8)
        await bench.has_sent(2)
        assert bench.carrier.historical == [True, False]


class LossyPeer:
    """A receiver as `Intake` is one, behind a way that loses, doubles and disorders."""

    def __init__(self, bench, dice):
        self.bench = bench
        self.dice = dice
        self.has = 0
        self.got = []

    def carry(self, row, done, *, is_historical):
        fate = next(self.dice, 0)
        loop = asyncio.get_running_loop()
        if fate == 1:  # lost on the way
            done(True)
        elif fate == 2:  # the connection is lost
            done(False)
        elif fate == 3:  # twice, the second time later
            done(True)
            loop.call_soon(self.arrive, row, 0)
            loop.call_later(0.003, self.arrive, row, 0)
        else:
            loop.call_soon(done, True)
            loop.call_later(0.001 * (fate == 4), self.arrive, row, fate)

    def arrive(self, row, fate):
        if row.first - 1 - row.gap <= max(self.has, self.bench.stream.floor) and row.last > self.has:
            self.got += range(max(self.has + 1, row.first), row.last + 1)
            self.has = row.last
        if fate != 5:  # else the acknowledgement is lost
            self.bench.pump.acknowledged(self.has)
            if fate == 6:
                self.bench.pump.acknowledged(max(0, self.has - 5))


@settings(deadline=None, max_examples=examples(30), suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 6), max_size=40), st.lists(st.integers(1, 4), min_size=1, max_size=30))
def test_whatever_the_way_does_all_arrives_once_and_in_order(fates, rows):
    async def work():
        pump_module.RESEND_S = 0.02
        pump_module.PAUSE_S = 0.01
        bench = Bench()
        peer = LossyPeer(bench, iter(fates))
        bench.carrier.carry = peer.carry
        async with bench:
            for index, samples in enumerate(rows):
                bench.stream.append(samples, gap=index % 3)
                if index % 4 == 0:
                    await asyncio.sleep(0.002)
            await eventually(lambda: bench.stream.floor == bench.stream.committed, 5.0)
        wanted = [n for row in bench.stream.rows for n in range(row.first, row.last + 1)]
        assert peer.got == wanted

    kept = pump_module.RESEND_S, pump_module.PAUSE_S
    try:
        asyncio.run(work())
    finally:
        pump_module.RESEND_S, pump_module.PAUSE_S = kept
