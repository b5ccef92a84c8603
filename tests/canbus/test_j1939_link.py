"""J1939 on the link: who is heard, messages in packets, requests, the address that we send under."""

import asyncio

from conftest import eventually
from fake_bus import FakeBus, Running
from test_listening import describe, point_of

from fieldbus.canbus.bus import EXTENDED
from fieldbus.canbus.j1939 import fault_points
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939.address import Name
from fieldbus.canbus.j1939.connection import Sender as PacketSender
from fieldbus.canbus.j1939.node import NodeSettings
from fieldbus.canbus.j1939.packets import ABORT
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.messages import CanMessage, Request
from fieldbus.link import WriteOutcome

EEC1 = 0xF004
LONG = 0xFEE3
COMMAND = 0x0000
NODE = NodeSettings(0x90, Name(identity_number=5, is_arbitrary_address_capable=True))


def on_bus(pgn, source, destination=255, priority=3):
    return j1939.identifier(pgn, source, destination, priority)


def status(source=None, name="EEC1", pgn=EEC1, length=8, **more):
    signal = Signal("Speed", 0, 16, error_from=0xFE00, absent_from=0xFF00)
    message = Message(name, on_bus(pgn, 254) & ~EXTENDED, True, length, [signal], is_j1939=True, fill=0xFF)
    return describe(message, is_j1939=True, source_address=source, **more)


def command(**more):
    signal = Signal("Demand", 8, 16, error_from=0xFE00, absent_from=0xFF00)
    message = Message(
        "TSC1", on_bus(COMMAND, 254, 0, 3) & ~EXTENDED, True, 8, [signal], is_j1939=True, fill=0xFF
    )
    return describe(message, is_j1939=True, destination=0, **more)


async def test_a_message_is_known_by_its_pgn_whatever_the_priority(monkeypatch):
    async with Running(monkeypatch, [status()]) as running:
        for priority, value in ((3, 100), (6, 200), (0, 300)):
            running.bus.come(on_bus(EEC1, 7, priority=priority), value.to_bytes(2, "little") + b"\xff" * 6)
        await eventually(lambda: len(running.batches) == 3)
        assert [batch.values[0] for batch in running.batches] == [100, 200, 300]


async def test_two_devices_with_one_database_are_told_apart_by_their_addresses(monkeypatch):
    left, right = status(1), describe(status(2).message, device="right", is_j1939=True, source_address=2)
    async with Running(monkeypatch, [left, right]) as running:
        running.bus.come(on_bus(EEC1, 1), b"\x01\x00" + b"\xff" * 6)
        running.bus.come(on_bus(EEC1, 2), b"\x02\x00" + b"\xff" * 6)
        running.bus.come(on_bus(EEC1, 3), b"\x03\x00" + b"\xff" * 6)
        await eventually(lambda: len(running.batches) == 2)
        shown = {(batch.group.points[0].device, batch.values[0]) for batch in running.batches}
        assert shown == {("ecu", 1), ("right", 2)}


async def test_when_two_nodes_send_what_one_was_expected_to_it_is_said_once(monkeypatch):
    async with Running(monkeypatch, [status()]) as running:
        for _ in range(3):
            running.bus.come(on_bus(EEC1, 1), b"\x01\x00" + b"\xff" * 6)
            running.bus.come(on_bus(EEC1, 2), b"\x02\x00" + b"\xff" * 6)
        await eventually(lambda: len(running.batches) == 6)
        (notice,) = running.notices
        assert "0x01 and 0x02" in notice
        assert "source_address" in notice


async def test_error_and_not_available_are_no_numbers(monkeypatch):
    async with Running(monkeypatch, [status()]) as running:
        running.bus.come(on_bus(EEC1, 1), b"\x00\xfe" + b"\xff" * 6)
        await eventually(lambda: running.latest("EEC1.Speed") == (None, "error indicator"))
        running.bus.come(on_bus(EEC1, 1), b"\xff\xff" + b"\xff" * 6)
        await eventually(lambda: running.latest("EEC1.Speed") == (None, "not available"))


def packets(pgn, payload, source, destination=255):
    sender = PacketSender(pgn, payload, source, destination)
    frames = list(sender.start(0.0))
    now_s = 0.0
    while not sender.is_done:
        now_s += 0.06
        frames += sender.tick(now_s)
    return frames


async def test_a_message_in_packets_is_one_message_and_a_lost_packet_makes_none(monkeypatch):
    async with Running(monkeypatch, [status(name="EC1", pgn=LONG, length=39)]) as running:
        whole = packets(LONG, b"\x40\x06" + bytes(37), 1)
        for can_id, data in whole:
            running.bus.come(can_id, data)
        await eventually(lambda: running.latest("EC1.Speed") == (0x640, None))
        torn = packets(LONG, b"\x41\x06" + bytes(37), 1)
        for can_id, data in (torn[0], torn[1], *torn[3:]):
            running.bus.come(can_id, data)
        await eventually(lambda: running.link.counters["j1939_broken"] == 1)
        assert running.latest("EC1.Speed") == (0x640, None)
        assert running.link.counters["j1939_messages"] == 1


async def test_frames_that_were_lost_break_what_was_under_way(monkeypatch):
    async with Running(monkeypatch, [status(name="EC1", pgn=LONG, length=39)]) as running:
        whole = packets(LONG, b"\x40\x06" + bytes(37), 1)
        for can_id, data in whole[:3]:
            running.bus.come(can_id, data)
        await asyncio.sleep(0.05)
        running.bus.dropped += 1
        for can_id, data in whole[3:]:
            running.bus.come(can_id, data)
        await asyncio.sleep(0.05)
        assert running.batches == []


async def test_who_only_listens_sends_nothing_at_all(monkeypatch):
    async with Running(monkeypatch, [status()], node=NODE) as running:
        running.bus.come(*j1939.request(j1939.ADDRESS_CLAIMED, 255, 3))
        await asyncio.sleep(0.4)
        assert running.bus.sent == []


async def test_an_address_is_claimed_before_anything_is_sent(monkeypatch):
    message = command(cycle_s=0.02)
    async with Running(monkeypatch, [message], message.points.values(), node=NODE) as running:
        demand = point_of(message, "Demand")
        running.route(demand, 0x1234)
        await asyncio.sleep(0.1)
        claims = running.bus.taken()
        assert {j1939.pgn_of(can_id) for can_id, _ in claims} == {j1939.REQUEST, j1939.ADDRESS_CLAIMED}
        await eventually(lambda: running.bus.sent)
        can_id, data = running.bus.taken()[0]
        assert (can_id, data) == (on_bus(COMMAND, 0x90, 0), b"\xff\x34\x12\xff\xff\xff\xff\xff")


async def test_who_loses_its_address_goes_on_under_another_one(monkeypatch):
    message = command(cycle_s=0.02)
    bus = FakeBus(has_clock=True)
    async with Running(monkeypatch, [message], message.points.values(), node=NODE, bus=bus) as running:
        running.route(point_of(message, "Demand"), 1)
        await eventually(lambda: bus.cyclics)
        bus.taken()
        bus.come(on_bus(j1939.ADDRESS_CLAIMED, 0x90, 255, 6), Name().to_bytes())
        await eventually(lambda: bus.cyclics[0].is_over)
        assert not [can_id for can_id, _ in bus.taken() if j1939.pgn_of(can_id) == COMMAND]
        await eventually(lambda: len(bus.cyclics) == 2)
        assert bus.cyclics[1].can_id == on_bus(COMMAND, 0x91, 0)


async def test_who_may_have_no_other_address_is_silent_and_says_so(monkeypatch):
    message = command(cycle_s=0.02)
    node = NodeSettings(0x90, Name(identity_number=5))
    async with Running(monkeypatch, [message], message.points.values(), node=node) as running:
        running.route(point_of(message, "Demand"), 1)
        running.bus.come(on_bus(j1939.ADDRESS_CLAIMED, 0x90, 255, 6), Name().to_bytes())
        await asyncio.sleep(0.5)
        assert {j1939.pgn_of(can_id) for can_id, _ in running.bus.taken()} <= {
            j1939.REQUEST,
            j1939.ADDRESS_CLAIMED,
        }
        assert "nothing is sent" in running.notices[0]
        (result,) = await running.link.write({point_of(message, "Demand"): 3})
        assert result.outcome is WriteOutcome.FAILED


def asked(source=7):
    request = Request(0, True, b"", False, scan_s=0.4, timeout_s=0.2, is_pgn=True)
    return status(source, request=request)


async def test_a_pgn_is_requested_and_its_answer_taken(monkeypatch):
    async with Running(monkeypatch, [asked()], node=NODE) as running:
        await eventually(lambda: (j1939.request(EEC1, 7, 0x90)) in running.bus.sent)
        running.bus.come(on_bus(EEC1, 7), b"\x05\x00" + b"\xff" * 6)
        await eventually(lambda: running.latest("EEC1.Speed") == (5, None))
        await eventually(lambda: running.latest("EEC1.Speed") == (None, "timeout"))


async def test_a_node_that_refuses_is_told_apart_from_one_that_is_silent(monkeypatch):
    async with Running(monkeypatch, [asked()], node=NODE) as running:
        await eventually(lambda: (j1939.request(EEC1, 7, 0x90)) in running.bus.sent)
        nack = bytes([1, 0xFF, 0xFF, 0xFF, 0x90]) + EEC1.to_bytes(3, "little")
        running.bus.come(on_bus(j1939.ACKNOWLEDGEMENT, 7, 255, 6), nack)
        await eventually(lambda: running.latest("EEC1.Speed") is not None)
        assert running.latest("EEC1.Speed") == (None, "not available: refused by the node")


async def test_a_long_message_that_we_send_goes_in_packets(monkeypatch):
    message = status(name="EC1", pgn=LONG, length=39)
    async with Running(monkeypatch, [message], message.points.values(), node=NODE) as running:
        await asyncio.sleep(0.3)
        running.bus.taken()
        running.route(point_of(message, "Speed"), 0x640)
        await eventually(lambda: len(running.bus.sent) == 7)
        sent = running.bus.taken()
        assert sent[0][1] == bytes([0x20, 39, 0, 6, 0xFF]) + LONG.to_bytes(3, "little")
        payload = b"".join(data[1:] for _, data in sent[1:])[:39]
        assert payload == b"\x40\x06" + b"\xff" * 37


def faults(**more):
    message = fault_points.message_of("DM1", j1939.ACTIVE_FAULTS, None)
    return CanMessage("ecu", message, fault_points.points_of("ecu", message), decoder=fault_points.FaultDecoder,
                      is_j1939=True, **more)  # fmt: skip


async def test_active_faults_become_points_from_one_frame_or_from_packets(monkeypatch):
    async with Running(monkeypatch, [faults()]) as running:
        running.bus.come(on_bus(j1939.ACTIVE_FAULTS, 0), bytes.fromhex("04ff64000103ffff"))
        await eventually(lambda: running.batches)
        assert running.latest("DM1.Faults") == ("SPN 100 FMI 1 ×3", None)
        assert running.latest("DM1.AmberWarningLamp") == (1, None)
        assert running.latest("DM1.RedStopLamp") == (0, None)
        assert running.latest("DM1.Spn") == (100, None)
        payload = bytes.fromhex("10ff" + "64000103" + "6e000002" + "be00047f")
        for can_id, data in packets(j1939.ACTIVE_FAULTS, payload, 0):
            running.bus.come(can_id, data)
        await eventually(lambda: running.latest("DM1.FaultCount") == (3, None))
        assert running.latest("DM1.Faults") == ("SPN 100 FMI 1 ×3, SPN 110 FMI 0 ×2, SPN 190 FMI 4", None)
        assert running.latest("DM1.RedStopLamp") == (1, None)
        running.bus.come(on_bus(j1939.ACTIVE_FAULTS, 0), bytes.fromhex("00ff00000000ffff"))
        await eventually(lambda: running.latest("DM1.FaultCount") == (0, None))
        running.bus.come(on_bus(j1939.ACTIVE_FAULTS, 0), b"\x00")
        await eventually(lambda: running.latest("DM1.FaultCount")[0] is None)


async def test_of_frames_among_which_some_were_lost_no_message_is_put_together(monkeypatch):
    async with Running(monkeypatch, [status(name="EC1", pgn=LONG, length=14)]) as running:
        first = packets(LONG, b"\x11\x00" + bytes(12), 1)
        second = packets(LONG, b"\x22\x00" + bytes(12), 1)
        running.bus.dropped += 1  # between the two, within one batch
        for can_id, data in (first[0], first[1], second[2]):
            running.bus.come(can_id, data)
        await asyncio.sleep(0.05)
        assert running.batches == []
        for can_id, data in second:
            running.bus.come(can_id, data)
        await eventually(lambda: running.latest("EC1.Speed") == (0x22, None))


async def test_an_answer_in_packets_is_waited_for_as_long_as_they_take(monkeypatch):
    request = Request(0, True, b"", False, scan_s=2.0, timeout_s=0.1, is_pgn=True)
    async with Running(monkeypatch, [status(7, "EC1", LONG, 39, request=request)], node=NODE) as running:
        await eventually(lambda: j1939.request(LONG, 7, 0x90) in running.bus.sent)
        for can_id, data in packets(LONG, b"\x11\x00" + bytes(37), 7):
            running.bus.come(can_id, data)
            await asyncio.sleep(0.05)
        await eventually(lambda: running.latest("EC1.Speed") == (0x11, None))
        assert running.link.counters["timeouts"] == 0


async def test_who_asks_us_gets_what_we_send_or_hears_that_we_do_not(monkeypatch):
    message = status(name="Ours", pgn=EEC1)
    async with Running(monkeypatch, [message], message.points.values(), node=NODE) as running:
        running.route(point_of(message, "Speed"), 5)
        await eventually(lambda: any(j1939.pgn_of(can_id) == EEC1 for can_id, _ in running.bus.sent))
        running.bus.taken()
        running.bus.come(*j1939.request(EEC1, 0x90, 3))
        await eventually(lambda: running.bus.sent)
        assert running.bus.taken() == [(on_bus(EEC1, 0x90), b"\x05\x00" + b"\xff" * 6)]
        running.bus.come(*j1939.request(LONG, 0x90, 3))
        await eventually(lambda: running.bus.sent)
        ((can_id, data),) = running.bus.taken()
        assert j1939.Acknowledgement.parse(can_id, data) == j1939.Acknowledgement(
            j1939.Control.REFUSED, LONG, 0x90, 3, None
        )
        running.bus.come(*j1939.request(LONG, 255, 3))
        await asyncio.sleep(0.05)
        assert running.bus.taken() == []


async def test_two_long_messages_to_all_go_one_after_the_other(monkeypatch):
    one, two = status(name="One", pgn=LONG, length=14), status(name="Two", pgn=LONG + 1, length=14)
    targets = [*one.points.values(), *two.points.values()]
    listener = [describe(item.message, device="peer", is_j1939=True) for item in (one, two)]
    async with Running(monkeypatch, [one, two], targets, node=NODE) as running:
        await asyncio.sleep(0.3)
        running.bus.taken()
        running.route(point_of(one, "Speed"), 1)
        running.route(point_of(two, "Speed"), 2)
        await eventually(lambda: len(running.bus.sent) == 6)
        sent = running.bus.taken()
    async with Running(monkeypatch, listener) as peer:
        for can_id, data in sent:
            peer.bus.come(can_id, data)
        await eventually(lambda: len(peer.batches) == 2)
        assert [batch.values[0] for batch in peer.batches] == [1, 2]


async def test_what_cannot_be_asked_for_is_not_good_for_ever(monkeypatch):
    request = Request(0, True, b"", False, scan_s=0.1, timeout_s=0.1, is_pgn=True)
    node = NodeSettings(0x90, Name(identity_number=5))
    async with Running(monkeypatch, [status(7, request=request)], node=node) as running:
        await eventually(lambda: j1939.request(EEC1, 7, 0x90) in running.bus.sent)
        running.bus.come(on_bus(EEC1, 7), b"\x05\x00" + b"\xff" * 6)
        await eventually(lambda: running.latest("EEC1.Speed") == (5, None))
        running.bus.come(on_bus(j1939.ADDRESS_CLAIMED, 0x90, 255, 6), Name().to_bytes())
        await eventually(lambda: running.latest("EEC1.Speed")[0] is None)


async def test_a_message_to_us_that_is_given_up_is_counted_as_broken(monkeypatch):
    long = status(name="EC1", pgn=LONG, length=39)
    message = command(cycle_s=1.0)
    async with Running(monkeypatch, [long, message], message.points.values(), node=NODE) as running:
        link, whole = running.link, packets(LONG, b"\x40\x06" + bytes(37), 1)
        await eventually(lambda: link._node.address == 0x90)
        rts = PacketSender(LONG, bytes(39), 1, 0x90).start(0.0)[0]

        def broken():
            return link.counters["j1939_broken"]

        running.bus.come(*rts)
        running.bus.come(*rts)  # replaces the one before
        await eventually(lambda: broken() == 1)
        running.bus.come(rts[0], bytes([ABORT, 1, 0xFF, 0xFF, 0xFF]) + rts[1][5:8])
        await eventually(lambda: broken() == 2)
        running.bus.come(*rts)  # and nothing more: it times out
        await eventually(lambda: broken() == 3, 6.0)
        running.bus.come(*rts)
        running.bus.come(*whole[0])
        running.bus.come(*whole[1])
        await asyncio.sleep(0.05)
        running.bus.dropped += 1
        running.bus.come(*whole[2])
        await eventually(lambda: broken() == 5)  # that to us, and that to all
        running.bus.come(*rts)
        await asyncio.sleep(0.05)
        running.bus.come(on_bus(j1939.ADDRESS_CLAIMED, 0x90, 255, 6), Name().to_bytes())
        await eventually(lambda: broken() == 6)  # our address is lost, and with it what was on its way
        assert link.counters["j1939_messages"] == 0
