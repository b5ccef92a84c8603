"""The exchange among its links: what it remembers, says again, and leads through in one transaction."""

import asyncio
import json
import logging

import pytest
from conftest import eventually

from fieldbus.clock import SYSTEM
from fieldbus.durable.spool import Spool
from fieldbus.gateway.exchange.exchange import Exchange, _SpoolKeeper
from fieldbus.gateway.exchange.sinks import PeerSink
from fieldbus.link import Delivery, Target
from fieldbus.model import NO_FLAWS, Batch, Group, HeldBatch, Kind, Point, Quality, Sample
from fieldbus.mqtt import peering
from fieldbus.mqtt.peering import Want
from fieldbus.mqtt.records import (
    Acknowledgement,
    Item,
    Place,
    decode_live,
    encode_acknowledgement,
    encode_chunk,
    encode_row,
)
from fieldbus.routing.policy import Edge, Policy, When
from fieldbus.routing.router import Router

OWN = Point("press", "count", Kind.INT)
NOW_NS = 10**18


class FakeLink:
    """A broker, as the gateway sees it."""

    beat_s = 10.0
    clock_tolerance_s = 10.0

    def room_for(self, topic):
        return 1 << 20

    def __init__(self, peers=()):
        self.correspondent = None
        self.is_sending = True
        self.peers = dict(peers)
        self.published = []
        self.looked_after = []
        self.emitted = []
        self.wanted = []

    def publish(self, topic, payload, done, *, is_retained=False, expiry_s=None):
        self.published.append((topic, payload))
        if done is not None:
            done(True)

    def look_after(self, peer):
        self.looked_after.append(peer)

    def forget_unwanted(self, peer, wanted):
        self.wanted.append((peer, sorted(wanted)))

    def take_samples(self, peer, samples):
        self.emitted += samples

    def send(self, deliveries):
        return ()

    def heard(self, *rest):
        """Payloads on a topic below ours, oldest first."""
        topic = peering.topic(*rest)
        return [payload for where, payload in self.published if where == topic]


class Around:
    def __init__(self, points):
        self.group = Group("press", (OWN,))
        self.points = {point.address: point for point in points}
        self.router = Router((), [self.group, *(Group(p.address, (p,)) for p in points if p is not OWN)])
        self.reloads = []

    def reload_soon(self, why):
        self.reloads.append(why)

    def births_changed(self):
        pass


class Bench:
    """A gateway's exchange, again and again on one spool."""

    def __init__(self, folder):
        self.folder = folder
        self.exchange = None

    def open(self, points=(OWN,), peers=(), edges=()):
        self.spool = Spool(self.folder / "spool.db", group_commit_s=0.005)
        self.spool.open()
        self.around = Around(points)
        self.exchange = Exchange("me", "1", self.folder, self.spool, self.around)
        self.link = FakeLink(peers)
        self.exchange.set_plant({"broker": self.link}, edges, (), {})
        self.exchange.rewire()
        self.exchange.start()
        return self.exchange

    async def close(self):
        if self.exchange is not None:
            await self.exchange.stop()
            self.spool.close()
            self.exchange = None

    def take(self, *values):
        for value in values:
            batch = Batch(self.around.group, NOW_NS + value, 0.0, (value,), NO_FLAWS, (0,))
            for name, deliveries in self.around.router.dispatch(batch, 0.0).items():
                self.exchange.takers[name].send(deliveries)

    def want(self, want, peer="rx"):
        self.exchange.wanted("broker", peer, peering.encode_want(want))

    @property
    def stream(self):
        return self.spool.streams["broker data rx"]


@pytest.fixture
async def bench(tmp_path):
    subject = Bench(tmp_path)
    yield subject
    await subject.close()


ALL = Want({"press.count": False}, {"press.count": True})


async def test_what_a_peer_wants_for_sure_is_kept_for_it_also_after_a_restart_without_it(bench):
    bench.open()
    bench.want(ALL)
    bench.take(1, 2)
    await eventually(lambda: bench.stream.committed == 2)
    boot = bench.spool.boot
    await bench.close()
    bench.open()
    bench.take(3)
    await eventually(lambda: bench.stream.committed == 3)
    assert bench.stream.backlog == 3
    assert bench.link.heard("me", "data", "rx") == []
    bench.exchange.connected("broker")
    bench.exchange.peer_is("broker", "rx", is_online=True)
    await eventually(lambda: len(bench.link.heard("me", "data", "rx")) == 1)
    await asyncio.sleep(0.05)
    assert len(bench.link.heard("me", "data", "rx")) == 1  # of the incarnation before; the present one waits
    bench.exchange.acknowledged(
        "broker", "rx", encode_acknowledgement(Acknowledgement(boot, "broker data rx", 2))
    )
    await eventually(lambda: len(bench.link.heard("me", "data", "rx")) == 2)
    assert bench.stream.backlog == 1
    bench.exchange.acknowledged(
        "broker", "rx", encode_acknowledgement(Acknowledgement(bench.spool.boot, "broker data rx", 1))
    )
    assert bench.stream.backlog == 0


async def test_a_peer_that_comes_anew_gets_what_it_has_not_acknowledged_at_once(bench):
    bench.open()
    bench.want(ALL)
    bench.exchange.peer_is("broker", "rx", is_online=True)
    bench.take(1)
    await eventually(lambda: len(bench.link.heard("me", "data", "rx")) == 1)
    bench.want(ALL)
    await eventually(lambda: len(bench.link.heard("me", "data", "rx")) == 2, 1.0)
    bench.exchange.peer_is("broker", "rx", is_online=False)
    bench.exchange.peer_is("broker", "rx", is_online=True)
    await eventually(lambda: len(bench.link.heard("me", "data", "rx")) == 3, 1.0)


async def test_after_the_broker_was_away_nobody_is_there_until_the_broker_says_so(bench):
    bench.open()
    bench.want(ALL)
    bench.exchange.peer_is("broker", "rx", is_online=True)
    bench.exchange.connected("broker")
    bench.take(1)
    await eventually(lambda: bench.stream.committed == 1)
    assert bench.link.heard("me", "data", "rx") == []
    assert bench.link.looked_after[-1] == "rx"


async def test_acknowledgements_of_another_incarnation_stream_or_peer_count_for_nothing(bench):
    bench.open()
    bench.want(ALL)
    bench.take(1, 2)
    await eventually(lambda: bench.stream.committed == 2)
    boot = bench.spool.boot
    for link, peer, payload in (
        ("broker", "rx", encode_acknowledgement(Acknowledgement("other", "broker data rx", 2))),
        ("broker", "rx", encode_acknowledgement(Acknowledgement(boot, "broker data other", 2))),
        ("broker", "other", encode_acknowledgement(Acknowledgement(boot, "broker data rx", 2))),
        ("other", "rx", encode_acknowledgement(Acknowledgement(boot, "broker data rx", 2))),
        ("broker", "rx", b"rubbish"),
    ):
        bench.exchange.acknowledged(link, peer, payload)
    assert bench.stream.backlog == 2


async def test_who_wants_nothing_any_more_costs_nothing_and_may_want_again(bench):
    bench.open()
    bench.want(ALL)
    bench.take(1, 2)
    bench.want(Want())
    bench.take(3)
    bench.want(ALL)
    bench.exchange.peer_is("broker", "rx", is_online=True)
    bench.take(4)
    await eventually(lambda: bench.stream.committed == 3)
    await eventually(lambda: bench.link.heard("me", "data", "rx"))
    chunk = bench.link.heard("me", "data", "rx")[-1]
    head = json.loads(chunk.partition(b"\n")[0])
    assert head["first"] - 1 - head["gap"] <= head["floor"]
    assert json.loads(chunk.partition(b"\n")[2])["samples"][0][1] == 4


async def test_rubbish_from_peers_is_said_once_and_takes_nothing_down(bench, caplog):
    bench.open(peers=[("tx", "line")])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for hear in (bench.exchange.wanted, bench.exchange.born, bench.exchange.arrived):
                hear("broker", "tx", b"\xff")
    assert len(caplog.records) == 3
    assert bench.around.reloads == []


async def test_two_gateways_of_one_name_are_told_by_their_spools_that_come_by_turns(bench, caplog):
    bench.open(peers=[("tx", "line")])

    def arrive(boot, first):
        row = encode_row([Item(("press.count", "tx/press.count", 0), Sample(1, Quality.GOOD, None, 1))])
        bench.exchange.arrived(
            "broker", "tx", encode_chunk(Place("tx", boot, "s", first, 1, 0, 0, False), row)
        )

    with caplog.at_level(logging.WARNING):
        for boot in ("one", "one", "another", "a third"):  # a gateway whose spool was lost
            arrive(boot, 1)
        assert not caplog.records
        for boot in ("one", "another", "one"):
            arrive(boot, 2)
    told = "broker: gateway tx: two gateways have this name: what both send is mixed up"
    assert [record.message for record in caplog.records] == [told]


async def test_a_birth_that_says_nothing_new_loads_nothing_anew_also_after_a_restart(bench):
    points = [Point("press", "count", Kind.INT)]
    birth = peering.encode_birth("tx", "1", points, NOW_NS)
    bench.open(peers=[("tx", "line")])
    bench.exchange.born("broker", "tx", birth)
    bench.exchange.born("broker", "tx", peering.encode_birth("tx", "1", points, NOW_NS + 10**9))
    assert len(bench.around.reloads) == 1
    await bench.close()
    bench.open(peers=[("tx", "line")])
    bench.exchange.born("broker", "tx", birth)
    assert bench.around.reloads == []
    bench.exchange.born("broker", "tx", peering.encode_birth("tx", "1", [*points, OWN], NOW_NS))
    assert bench.around.reloads == []  # the same address
    bench.exchange.born("broker", "tx", peering.encode_birth("tx", "2", points, NOW_NS))
    assert len(bench.around.reloads) == 1


async def test_what_comes_through_to_another_peer_is_in_the_spool_with_its_mark_or_not_at_all(bench):
    bench.open()
    transactions = []
    apply = bench.spool.apply

    def spy(connection, items):
        kinds = [type(item).__name__ for item in items]
        transactions.append((kinds.count("_Append"), kinds.count("_Mark")))
        return apply(connection, items)

    bench.spool.apply = spy
    bench.spool.committer._group_commit_s = 0.0
    stream = bench.spool.stream("broker data rx", encode_row)
    sink = PeerSink(bench.link, "me", "rx", stream, lambda: False)
    keeper = _SpoolKeeper(bench.spool, sink, "broker data rx")
    far = Point("line", "press.count", Kind.INT, origin="tx/press.count", hops=1)
    done = []
    for seq in range(1, 501):
        sample = Sample(seq, Quality.GOOD, None, NOW_NS)
        keeper.take([Delivery(Target("x", None), far, sample)], "tx/boot/s", seq, lambda: done.append(1))
    await eventually(lambda: len(done) == 500)
    assert all(appends == marks for appends, marks in transactions), transactions
    assert keeper.mark_of("tx/boot/s") == 500


async def test_what_comes_through_is_kept_for_the_next_and_acknowledged_when_it_is_on_disk(bench):
    far = Point("line", "press.count", Kind.INT, origin="tx/press.count", hops=1)
    bench.open(points=(OWN, far), peers=[("tx", "line")])
    bench.want(Want({}, {"line.press.count": True}))
    items = [Item(("press.count", "tx/press.count", 0), Sample(n, Quality.GOOD, None, n)) for n in (1, 2)]
    place = Place("tx", "boot", "s", 1, 2, 0, 0, False)
    for _ in range(2):
        bench.exchange.arrived("broker", "tx", encode_chunk(place, encode_row(items)))
    await eventually(lambda: bench.link.heard("tx", "ack", "me"))
    await eventually(lambda: bench.stream.committed == 2)
    assert json.loads(bench.link.heard("tx", "ack", "me")[-1])["seq"] == 2
    wants = json.loads(bench.link.heard("tx", "want", "me")[-1])
    assert wants["durable"] == {"sample": ["press.count"], "change": []}
    assert bench.link.wanted[-1] == ("tx", ["press.count"])


async def test_of_its_own_points_a_peer_gets_nothing_back(bench):
    far = Point("line", "press.count", Kind.INT, origin="rx/press.count", hops=1)
    bench.open(points=(OWN, far))
    bench.want(Want({}, {"line.press.count": True}))
    assert not bench.around.router.edges_from(far)


async def test_what_is_left_for_a_broker_goes_out_though_its_routes_are_no_more(bench):
    edge = Edge(OWN, Target("broker", None, "t", is_durable=True), Policy(when=When.SAMPLE))
    bench.open(edges=[edge])
    bench.link.is_sending = False
    bench.exchange.takers["broker topics"].send(
        [Delivery(edge.target, OWN, Sample(5, Quality.GOOD, None, NOW_NS))]
    )
    await eventually(lambda: bench.spool.streams["broker topics"].committed == 1)
    await bench.close()
    bench.open()
    await eventually(lambda: [topic for topic, _ in bench.link.published if topic == "t"])


# --- two ways, and what is asked for

FAR = Point("line", "press.count", Kind.INT, origin="tx/press.count", hops=1)
HOUR_NS = 3600 * 10**9


def arrive(bench, value, first, *, time_ns=NOW_NS, is_historical=False):
    row = encode_row([Item(("press.count", "tx/press.count", 0), Sample(value, Quality.GOOD, None, time_ns))])
    bench.exchange.arrived(
        "broker", "tx", encode_chunk(Place("tx", "boot", "s", first, 1, 0, 0, is_historical), row)
    )


async def test_a_point_that_is_wanted_live_too_comes_live_alone(bench):
    bench.open(points=(OWN, FAR), peers=[("tx", "line")])
    arrive(bench, 1, 1)
    assert [sample.value for _, sample in bench.link.emitted] == [1]
    bench.exchange.watched()
    arrive(bench, 2, 2)
    assert [sample.value for _, sample in bench.link.emitted] == [1]


async def test_a_chunk_from_the_future_is_dated_by_its_arrival(bench):
    now_ns = SYSTEM.wall_ns()
    bench.open(points=(OWN, FAR), peers=[("tx", "line")])
    arrive(bench, 1, 1, time_ns=now_ns + HOUR_NS)
    arrive(bench, 2, 2, time_ns=now_ns - HOUR_NS)
    first, second = (sample for _, sample in bench.link.emitted)
    assert first[:3] == (1, Quality.UNCERTAIN, "clock")
    assert abs(first.time_ns - now_ns) < 10 * 10**9
    assert second == Sample(2, Quality.GOOD, None, now_ns - HOUR_NS)


@pytest.mark.parametrize(
    ("policy", "has_fallback", "is_each"),
    [({}, False, False), ({"when": When.SAMPLE}, False, True), ({"max_age_s": 2.0}, False, True),
     ({}, True, True)],
)  # fmt: skip
async def test_each_sample_is_asked_for_where_silence_counts(bench, policy, has_fallback, is_each):
    valve = Point("oven", "valve", Kind.INT)
    edge = Edge(FAR, Target("net", valve), Policy(**policy))
    bench.open(points=(OWN, FAR), peers=[("tx", "line")])
    fallbacks = [valve] if has_fallback else []
    bench.around.router = Router(
        bench.exchange.set_plant({"broker": bench.link}, [edge], (), {}, fallbacks), [Group("far", (FAR,))]
    )
    bench.exchange.ask_again()
    bench.exchange.look_round()
    bench.exchange.rewire()
    wants = json.loads(bench.link.heard("tx", "want", "me")[-1])
    assert wants["live"] == {
        "sample": ["press.count"] if is_each else [], "change": [] if is_each else ["press.count"]
    }  # fmt: skip


async def test_the_newest_that_is_not_new_is_sent_as_held(bench):
    bench.open()
    now_s = SYSTEM.monotonic_s()
    for at_s, kind, is_held in ((now_s, Batch, False), (now_s - 60, Batch, True), (now_s, HeldBatch, True)):
        bench.link.published.clear()
        bench.around.router.dispatch(kind(bench.around.group, NOW_NS, at_s, (7,), NO_FLAWS, (0,)), now_s)
        bench.want(Want())
        bench.want(Want({"press.count": False}))
        await eventually(lambda: bench.link.heard("me", "live", "rx"))
        _, [item] = decode_live(bench.link.heard("me", "live", "rx")[-1])
        assert (item.sample.value, item.sample.is_held) == (7, is_held)


async def test_what_is_held_here_is_held_at_the_next_gateway(bench):
    bench.open()
    bench.want(Want({"press.count": True}))
    bench.link.published.clear()
    batch = HeldBatch(bench.around.group, NOW_NS, 0.0, (8,), NO_FLAWS, (0,))
    for name, deliveries in bench.around.router.dispatch(batch, 0.0).items():
        bench.exchange.takers[name].send(deliveries)
    await eventually(lambda: bench.link.heard("me", "live", "rx"))
    _, [item] = decode_live(bench.link.heard("me", "live", "rx")[-1])
    assert item.sample.is_held
