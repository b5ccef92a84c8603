"""Answering and sending messages in packets: frames by hand, then whole buses of nodes with faults."""

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.canbus.bus import EXTENDED
from fieldbus.canbus.j1939.connection import BURST, Responder, Sender
from fieldbus.canbus.j1939.transport import Reassembler

DM1 = "cafe00"
PGN = 65226
PAYLOAD = bytes(range(20))
RTS = "10 1400 03 03" + DM1
CTS = "11 03 01 ffff" + DM1
EOMA = "13 1400 03 ff" + DM1
PACKETS = ["01 00010203040506", "02 0708090a0b0c0d", "03 0e0f10111213ff"]


def management(data, source=1, destination=2):
    return EXTENDED | 0x1CEC0000 | destination << 8 | source, bytes.fromhex(data)


def data(data, source=1, destination=2):
    return EXTENDED | 0x1CEB0000 | destination << 8 | source, bytes.fromhex(data)


def back(data):
    """A frame of the receiver."""
    return management(data, 2, 1)


# -- answering


def test_a_message_to_us_is_allowed_acknowledged_and_returned():
    responder = Responder(2)
    assert responder.heard(*management(RTS), 0.0) == ([back(CTS)], None)
    assert responder.heard(*data(PACKETS[0]), 0.1) == ([], None)
    assert responder.heard(*data(PACKETS[1]), 0.2) == ([], None)
    frames, message = responder.heard(*data(PACKETS[2]), 0.3)
    assert frames == [back(EOMA)]
    assert message == (PGN, 1, 2, PAYLOAD, 0.0, 0.3)
    assert (responder.completed, responder.failed, responder.due_s) == (1, 0, None)


def test_no_more_is_allowed_than_the_sender_or_we_want():
    responder = Responder(2)
    assert responder.heard(*management("10 1400 03 02" + DM1), 0.0).frames == [back("11 02 01 ffff" + DM1)]
    responder.heard(*data(PACKETS[0]), 0.0)
    assert responder.heard(*data(PACKETS[1]), 0.0).frames == [back("11 01 03 ffff" + DM1)]
    assert responder.heard(*data(PACKETS[2]), 0.0).message is not None
    assert responder.heard(*management("10 f906 ff ff" + DM1), 0.0).frames == [back("11 10 01 ffff" + DM1)]
    assert responder.heard(*management("10 f906 ff 00" + DM1), 0.0).frames == [back("11 10 01 ffff" + DM1)]


def test_a_gap_is_asked_for_again_twice_and_then_aborted():
    responder = Responder(2)
    again = back("11 01 02 ffff" + DM1)
    responder.heard(*management(RTS), 0.0)
    responder.heard(*data(PACKETS[0]), 0.0)
    assert responder.heard(*data(PACKETS[2]), 0.0).frames == [again]
    assert responder.due_s == 1.25
    assert responder.tick(1.2) == []
    assert responder.tick(1.25) == [again]
    assert responder.tick(2.5) == [back("ff 03 ffffff" + DM1)]
    assert (responder.failed, responder.due_s) == (1, None)
    responder.heard(*management(RTS), 3.0)
    responder.heard(*data(PACKETS[0]), 3.0)
    responder.heard(*data(PACKETS[2]), 3.0)
    assert responder.heard(*data(PACKETS[1]), 3.1).message.payload == PAYLOAD


def test_the_last_packet_missing_is_asked_for_after_t1():
    responder = Responder(2)
    responder.heard(*management(RTS), 0.0)
    responder.heard(*data(PACKETS[0]), 0.0)
    responder.heard(*data(PACKETS[1]), 0.0)
    assert responder.due_s == 0.75
    assert responder.tick(0.75) == [back("11 01 03 ffff" + DM1)]
    assert responder.heard(*data(PACKETS[2]), 0.8).message.payload == PAYLOAD


def test_a_doubled_packet_is_passed_over_and_an_altered_one_aborts():
    responder = Responder(2)
    responder.heard(*management(RTS), 0.0)
    responder.heard(*data(PACKETS[0]), 0.0)
    assert responder.heard(*data(PACKETS[0]), 0.0) == ([], None)
    assert responder.heard(*data("01 ffffffffffffff"), 0.0).frames == [back("ff 08 ffffff" + DM1)]
    assert responder.heard(*data(PACKETS[1]), 0.0) == ([], None)


def test_a_new_rts_replaces_and_an_abort_ends():
    responder = Responder(2)
    responder.heard(*management(RTS), 0.0)
    responder.heard(*data(PACKETS[0]), 0.0)
    assert responder.heard(*management(RTS), 0.0).frames == [back(CTS)]
    assert responder.heard(*data(PACKETS[1]), 0.0).frames == []
    assert responder.heard(*management("ff 03 ffffff cbfe00"), 0.0) == ([], None)
    assert responder.due_s is not None
    assert responder.heard(*management("ff 03 ffffff" + DM1), 0.0) == ([], None)
    assert (responder.due_s, responder.failed) == (None, 2)


@pytest.mark.parametrize(
    ("rts", "reason"),
    [("10 fa06 ff ff", "09"), ("10 1400 04 ff", "fa"), ("10 0800 02 ff", "fa"), ("10 0000 00 00", "fa")],
)
def test_an_rts_that_cannot_be_is_refused(rts, reason):
    responder = Responder(2)
    assert responder.heard(*management(rts + DM1), 0.0).frames == [back(f"ff {reason} ffffff" + DM1)]


def test_there_is_a_limit_to_connections():
    responder = Responder(2, max_sessions=1)
    responder.heard(*management(RTS, 3), 0.0)
    assert responder.heard(*management(RTS), 0.0).frames == [back("ff 02 ffffff" + DM1)]
    assert responder.clear() == [management("ff fa ffffff" + DM1, 2, 3)]
    assert responder.due_s is None


def test_what_is_not_for_us_is_passed_over():
    responder = Responder(2)
    for frame in (
        management(RTS, 1, 3),
        management(RTS, 1, 255),
        management(RTS, 2, 2),
        data(PACKETS[0]),
        back(RTS),
    ):
        assert responder.heard(*frame, 0.0) == ([], None)
    can_id, announcement = management(RTS)
    assert responder.heard(can_id, announcement[:7], 0.0) == ([], None)
    assert responder.heard(can_id & ~EXTENDED, announcement, 0.0) == ([], None)
    with pytest.raises(ValueError, match="address 254"):
        Responder(254)


# -- sending


def test_a_broadcast_is_announced_and_spaced():
    sender = Sender(PGN, PAYLOAD, 1)
    assert sender.start(0.0) == [management("20 1400 03 ff ff"[:-3] + DM1, 1, 255)]
    assert sender.due_s == 0.05
    assert sender.tick(0.04) == []
    assert sender.tick(0.05) == [data(PACKETS[0], 1, 255)]
    assert sender.tick(0.3) == [data(PACKETS[1], 1, 255)]  # late, and yet not two at once
    assert sender.due_s == pytest.approx(0.35)
    assert sender.tick(0.35) == [data(PACKETS[2], 1, 255)]
    assert (sender.is_done, sender.failure, sender.due_s) == (True, None, None)


def test_a_connection_sends_what_is_allowed_until_it_is_acknowledged():
    sender = Sender(PGN, PAYLOAD, 1, 2)
    assert sender.start(0.0) == [management(RTS)]
    assert sender.heard(*back("11 02 01 ffff" + DM1), 0.1) == [data(PACKETS[0]), data(PACKETS[1])]
    assert sender.heard(*back("11 00 ff ffff" + DM1), 0.2) == []
    assert sender.due_s == pytest.approx(1.25)
    assert sender.heard(*back("11 01 01 ffff" + DM1), 0.3) == [data(PACKETS[0])]
    assert sender.heard(*back("11 ff 02 ffff" + DM1), 0.4) == [data(PACKETS[1]), data(PACKETS[2])]
    assert not sender.is_done
    assert sender.heard(*back(EOMA), 0.5) == []
    assert (sender.is_done, sender.failure, sender.due_s) == (True, None, None)


def test_many_packets_go_out_in_bursts():
    sender = Sender(PGN, bytes(200), 1, 2)
    sender.start(0.0)
    assert len(sender.heard(*back("11 ff 01 ffff" + DM1), 0.0)) == BURST
    sent = BURST
    while sender.due_s < 1.0:
        sent += len(sender.tick(sender.due_s))
    assert sent == 29


def test_a_cts_that_comes_twice_is_one():
    sender = Sender(PGN, bytes(200), 1, 2)
    sender.start(0.0)
    first = sender.heard(*back("11 10 01 ffff" + DM1), 0.0)
    assert sender.heard(*back("11 10 01 ffff" + DM1), 0.0) == []
    rest = sender.tick(0.01)
    assert [data[0] for _, data in first + rest] == list(range(1, 17))


@pytest.mark.parametrize(
    ("answer", "failure", "reason"),
    [
        (None, "no answer from 2", "03"),
        ("11 01 02 ffff" + DM1, "2 asks for packet 2 of 3", "07"),
        ("11 01 00 ffff" + DM1, "2 asks for packet 0 of 3", "07"),
        (EOMA, "acknowledged as 20 bytes before it was sent whole", "fa"),
        ("ff 02 ffffff" + DM1, "aborted by 2: has no resources for it (2)", None),
        ("ff 63 ffffff" + DM1, "aborted by 2: unknown reason (99)", None),
    ],
)
def test_what_goes_wrong_is_said(answer, failure, reason):
    sender = Sender(PGN, PAYLOAD, 1, 2)
    sender.start(0.0)
    frames = sender.tick(1.25) if answer is None else sender.heard(*back(answer), 0.1)
    assert frames == ([] if reason is None else [management(f"ff {reason} ffffff" + DM1)])
    assert (sender.is_done, sender.failure, sender.due_s) == (True, failure, None)
    assert sender.tick(9.0) == sender.heard(*back(CTS), 9.0) == sender.start(9.0) == []


def test_nobody_may_hold_us_or_ask_again_for_ever():
    sender = Sender(PGN, PAYLOAD, 1, 2)
    sender.start(0.0)
    now_s = 0.0
    while not sender.is_done:
        frames = sender.heard(*back("11 00 ff ffff" + DM1), now_s)
        now_s += 0.5
    assert 30 < now_s < 32
    assert frames == [management("ff 03 ffffff" + DM1)]
    sender = Sender(PGN, PAYLOAD, 1, 2)
    sender.start(0.0)
    count = 0
    while not sender.is_done:
        frames = sender.heard(*back(CTS), 0.0)
        count += 1
    assert count < 20
    assert frames == [management("ff 05 ffffff" + DM1)]


def test_it_can_be_cancelled():
    sender = Sender(PGN, PAYLOAD, 1, 2)
    assert sender.cancel() == []
    assert sender.failure == "cancelled"
    sender = Sender(PGN, PAYLOAD, 1, 2)
    sender.start(0.0)
    assert sender.cancel() == [management("ff fa ffffff" + DM1)]
    sender = Sender(PGN, PAYLOAD, 1)
    sender.start(0.0)
    assert sender.cancel() == []
    assert sender.is_done


def test_frames_of_others_do_not_touch_it():
    sender = Sender(PGN, PAYLOAD, 1, 2)
    sender.start(0.0)
    for frame in (
        management(CTS, 3, 1),
        management(CTS, 2, 3),
        back("11 03 01 ffff cbfe00"),
        data(PACKETS[0], 2, 1),
    ):
        assert sender.heard(*frame, 0.0) == []
    assert sender.heard(*back(CTS)[:1], bytes.fromhex(CTS)[:7], 0.0) == []
    assert sender.due_s == 1.25


@pytest.mark.parametrize(
    "arguments",
    [
        (PGN, bytes(8), 1),
        (PGN, bytes(1786), 1),
        (-1, PAYLOAD, 1),
        (0xEF01, PAYLOAD, 1, 2),
        (PGN, PAYLOAD, 254),
        (PGN, PAYLOAD, 1, 1),
        (PGN, PAYLOAD, 1, 254),
        (PGN, PAYLOAD, 1, 256),
    ],
)
def test_a_message_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"bytes|PGN|address"):
        Sender(*arguments)


# -- whole buses


class Line:
    """What one listener gets: now and then a frame is lost, doubled, or comes after the next one."""

    def __init__(self, rng, loss, doubling, swapping):
        self.rng, self.loss, self.doubling, self.swapping = rng, loss, doubling, swapping
        self.late = []

    def passes(self, frame):
        dice = self.rng.random()
        if dice < self.loss:
            return []
        if dice < self.loss + self.doubling:
            frames = [frame, frame]
        elif dice < self.loss + self.doubling + self.swapping and not self.late:
            self.late = [frame]
            return []
        else:
            frames = [frame]
        frames, self.late = frames + self.late, []
        return frames

    def rest(self):
        frames, self.late = self.late, []
        return frames


class Node:
    """A node with an address that sends its messages one after the other and receives what is for it."""

    def __init__(self, address, messages, gap_s=5.0):
        self.gap_s = gap_s  # longer than anybody waits for the rest of a message
        self.address, self.messages = address, deque(messages)
        self.responder = Responder(address)
        self.sender, self.next_s = None, 0.0
        self.sent, self.received, self.succeeded = [], [], []
        self.outgoing = deque()

    @property
    def due_s(self):
        own = self.next_s if self.sender is None and self.messages else None
        dues = [own, self.responder.due_s, None if self.sender is None else self.sender.due_s]
        return min((due for due in dues if due is not None), default=None)

    def heard(self, can_id, data, now_s):
        frames, message = self.responder.heard(can_id, data, now_s)
        if message is not None:
            self.received.append(message[:4])
        self.outgoing += frames
        if self.sender is not None:
            self.outgoing += self.sender.heard(can_id, data, now_s)
        self.after(now_s)

    def tick(self, now_s):
        if self.sender is None and self.messages and self.next_s <= now_s:
            pgn, destination, payload = self.messages.popleft()
            self.sender = Sender(pgn, payload, self.address, destination)
            self.sent.append((pgn, self.address, destination, payload))
            self.outgoing += self.sender.start(now_s)
        elif self.sender is not None:
            self.outgoing += self.sender.tick(now_s)
        self.outgoing += self.responder.tick(now_s)
        self.after(now_s)

    def after(self, now_s):
        if self.sender is not None and self.sender.is_done:
            if self.sender.failure is None:
                self.succeeded.append(self.sent[-1])
            self.sender, self.next_s = None, now_s + self.gap_s


def run(nodes, listener, lines, rng):
    """Run a bus until nothing more is due; return what the listener put together."""
    now_s, found = 0.0, []

    def deliver(node, frames):
        for frame in frames:
            if node is None:
                message = listener.feed(*frame, now_s)
                if message is not None:
                    found.append(message[:4])
            else:
                node.heard(*frame, now_s)

    while True:
        talkers = [node for node in nodes if node.outgoing]
        if talkers:
            talker = rng.choice(talkers)
            frame = talker.outgoing.popleft()
            now_s += 0.0005
            for node in [*nodes, None]:
                if node is not talker:
                    deliver(node, lines[node].passes(frame))
            continue
        for node in [*nodes, None]:
            deliver(node, lines[node].rest())
        if any(node.outgoing for node in nodes):
            continue
        dues = [due for node in nodes if (due := node.due_s) is not None]
        if not dues:
            return found
        now_s = max(now_s, min(dues))
        for node in nodes:
            if node.due_s is not None and node.due_s <= now_s:
                node.tick(now_s)


@given(st.integers(9, 1785), st.booleans(), st.sampled_from([PGN, 0xEF00, 0x1F201]), st.integers(0, 1 << 32))
@settings(max_examples=examples(100), deadline=None)
def test_any_payload_arrives_whole(size, is_broadcast, pgn, seed):
    rng = random.Random(seed)
    payload = rng.randbytes(size)
    nodes = [Node(1, [(pgn, 255 if is_broadcast else 2, payload)]), Node(2, [])]
    lines = {node: Line(rng, 0, 0, 0) for node in [*nodes, None]}
    found = run(nodes, Reassembler(), lines, rng)
    message = (pgn, 1, 255 if is_broadcast else 2, payload)
    assert found == [message]
    assert nodes[0].succeeded == [message]
    assert nodes[1].received == ([] if is_broadcast else [message])


@pytest.mark.parametrize("size", [9, 13, 14, 15, 111, 112, 113, 224, 225, 1784, 1785])
def test_sizes_at_the_edges_of_packets_and_windows_arrive_whole(size):
    payload = random.Random(size).randbytes(size)
    rng = random.Random(0)
    nodes = [Node(1, [(PGN, 2, payload), (PGN, 255, payload)]), Node(2, [])]
    found = run(nodes, Reassembler(), {node: Line(rng, 0, 0, 0) for node in [*nodes, None]}, rng)
    assert [message[3] for message in found] == [payload, payload]
    assert [message[3] for message in nodes[1].received] == [payload]


def scenario(seed):
    """Several nodes that send to all and to each other, over lines with faults."""
    rng = random.Random(seed)
    addresses = rng.sample(range(254), rng.randint(2, 4))
    pgns = rng.sample([PGN, 65227, 0xEF00, 0x1F201], 2)
    nodes = []
    for address in addresses:
        messages = [
            (rng.choice(pgns), rng.choice([255, *(set(addresses) - {address})]), rng.randbytes(size))
            for size in rng.choices([9, 14, 15, 20, 30, 60, 120], k=rng.randint(0, 2))
        ]
        nodes.append(Node(address, messages))
    rate = rng.choice([0, 0.02, 0.1, 0.3])
    faults = [rate * rng.random() * rng.getrandbits(1) for _ in range(3)]
    return rng, nodes, {node: Line(rng, *faults) for node in [*nodes, None]}, any(faults)


def test_thousands_of_buses_with_faults_never_yield_another_message():
    whole = parts = 0
    for seed in range(4000):
        rng, nodes, lines, has_faults = scenario(seed)
        listener = Reassembler()
        found = run(nodes, listener, lines, rng)
        sent = [message for node in nodes for message in node.sent]
        received = [message for node in nodes for message in node.received]
        where = f"seed {seed}"
        for arrived in (found, received):
            assert set(arrived) <= set(sent), where
            assert len(set(arrived)) == len(arrived), where
        succeeded = [message for node in nodes for message in node.succeeded]
        assert {message for message in succeeded if message[2] != 255} <= set(received), where
        if not has_faults:
            assert sorted(found) == sorted(sent) == sorted(succeeded), where
        assert len(found) == listener.completed
        whole += len(found)
        parts += listener.broken.total()
    assert whole > 2000
    assert parts > 300


@pytest.mark.parametrize("loss", [0.02, 0.1, 0.3])
def test_messages_that_look_alike_once_a_second_are_never_mixed(loss):
    for seed in range(250):
        rng = random.Random(seed)
        size = rng.choice([9, 14, 20, 40])
        messages = [(PGN, destination, rng.randbytes(size)) for destination in (255, 255, 255, 2, 2, 2)]
        nodes = [Node(1, messages, gap_s=1.0), Node(2, [])]
        found = run(nodes, Reassembler(), {node: Line(rng, loss, 0, 0) for node in [*nodes, None]}, rng)
        assert set(found) <= set(nodes[0].sent), seed
        assert set(nodes[1].received) <= set(nodes[0].sent), seed
