"""The kernel's own J1939 as the other node: messages in packets both ways, listening, addresses.

Our side is the sans-IO parts on a plain raw socket; the kernel's side is a J1939 socket on the same virtual
bus. Run by tools/vcan; in an emulated machine Python takes ten to twenty times as long, hence the patience.
"""

import random
import select
import socket
import struct
import time

import pytest

from fieldbus.canbus.j1939.address import AddressClaimer, Name
from fieldbus.canbus.j1939.connection import Responder, Sender
from fieldbus.canbus.j1939.identifiers import destination_of, identifier, pgn_of
from fieldbus.canbus.j1939.packets import is_data
from fieldbus.canbus.j1939.transport import Reassembler

pytestmark = [pytest.mark.vcan, pytest.mark.timeout(300)]
PATIENCE_S = 60
BUS = "vcan0"
FRAME = struct.Struct("=IB3x8s")
KERNEL, OURS, THIRD = 0x20, 0x30, 0x40
ADDRESSED, BROADCAST = 0xEF00, 65226
SIZES = [9, 100, 1785]
EVERYBODY = socket.J1939_NO_ADDR


def payload_of(size):
    return random.Random(size).randbytes(size)


@pytest.fixture
def raw():
    """A raw socket on the bus, as a link would have it."""
    with socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        opened.bind((BUS,))
        yield opened


@pytest.fixture
def kernel():
    """Return sockets of the kernel's J1939, made by name and address."""
    opened = []

    def make(address=KERNEL, name=socket.J1939_NO_NAME):
        made = socket.socket(socket.AF_CAN, socket.SOCK_DGRAM, socket.CAN_J1939)
        opened.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.bind((BUS, name, socket.J1939_NO_PGN, address))
        return made

    yield make
    for each in opened:
        each.close()


def run(raw, node, until, loses=lambda can_id, data: False):
    """Let a part of ours have the bus until it is where it should be; return every frame that it heard."""
    heard, deadline = [], time.monotonic() + PATIENCE_S
    while not until():
        now_s = time.monotonic()
        assert now_s < deadline, heard[-20:]
        due_s = node.due_s
        wait_s = 0.1 if due_s is None else min(max(due_s - now_s, 0), 0.1)
        frames = []
        if select.select([raw], [], [], wait_s)[0]:
            can_id, size, data = FRAME.unpack(raw.recv(FRAME.size))
            heard.append((can_id, data[:size]))
            if not loses(can_id, data[:size]):
                frames += node.heard(can_id, data[:size], time.monotonic())
        frames += node.tick(time.monotonic())
        send(raw, frames)
    return heard


def send(raw, frames):
    for can_id, data in frames:
        raw.send(FRAME.pack(can_id, len(data), data.ljust(8, b"\0")))


class Receiving:
    """A responder and what it received."""

    def __init__(self, address):
        self.responder, self.messages = Responder(address), []

    @property
    def due_s(self):
        return self.responder.due_s

    def heard(self, can_id, data, now_s):
        frames, message = self.responder.heard(can_id, data, now_s)
        self.messages += [] if message is None else [message]
        return frames

    def tick(self, now_s):
        return self.responder.tick(now_s)


class Listening:
    """A reassembler and what it put together."""

    due_s = None

    def __init__(self):
        self.reassembler, self.messages = Reassembler(), []

    def heard(self, can_id, data, now_s):
        message = self.reassembler.feed(can_id, data, now_s)
        self.messages += [] if message is None else [message]
        return []

    def tick(self, now_s):
        self.reassembler.expire(now_s)
        return []


@pytest.mark.parametrize("size", SIZES)
def test_a_broadcast_of_the_kernel_is_put_together(raw, kernel, size):
    payload, listening = payload_of(size), Listening()
    kernel().sendto(payload, (BUS, socket.J1939_NO_NAME, BROADCAST, EVERYBODY))
    run(raw, listening, lambda: listening.messages)
    assert [message[:4] for message in listening.messages] == [(BROADCAST, KERNEL, 255, payload)]
    assert not listening.reassembler.broken


@pytest.mark.parametrize("size", SIZES)
def test_a_connection_between_two_others_is_followed_by_listening_alone(raw, kernel, size):
    payload, listening = payload_of(size), Listening()
    sender, receiver = kernel(), kernel(THIRD)
    sender.sendto(payload, (BUS, socket.J1939_NO_NAME, ADDRESSED, THIRD))
    run(raw, listening, lambda: listening.messages)
    assert [message[:4] for message in listening.messages] == [(ADDRESSED, KERNEL, THIRD, payload)]
    assert not listening.reassembler.broken
    receiver.settimeout(PATIENCE_S)
    assert receiver.recv(2000) == payload


@pytest.mark.parametrize("size", SIZES)
def test_a_message_of_the_kernel_to_us_is_received(raw, kernel, size):
    payload, receiving = payload_of(size), Receiving(OURS)
    kernel().sendto(payload, (BUS, socket.J1939_NO_NAME, ADDRESSED, OURS))
    run(raw, receiving, lambda: receiving.messages)
    assert [message[:4] for message in receiving.messages] == [(ADDRESSED, KERNEL, OURS, payload)]


def test_the_kernel_sends_again_what_we_lost(raw, kernel):
    payload, receiving, lost = payload_of(300), Receiving(OURS), []

    def loses(can_id, data):
        if is_data(can_id) and data[0] in (3, 20) and data[0] not in lost:
            lost.append(data[0])
            return True
        return False

    kernel().sendto(payload, (BUS, socket.J1939_NO_NAME, ADDRESSED, OURS))
    run(raw, receiving, lambda: receiving.messages, loses)
    assert lost == [3, 20]
    assert receiving.messages[0].payload == payload


@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_receives_our_broadcast(raw, kernel, size):
    payload, receiver = payload_of(size), kernel()
    sender = Sender(BROADCAST, payload, OURS)
    send(raw, sender.start(time.monotonic()))
    run(raw, sender, lambda: sender.is_done)
    receiver.settimeout(PATIENCE_S)
    data, (_, _, pgn, address) = receiver.recvfrom(2000)
    assert (data, pgn, address) == (payload, BROADCAST, OURS)
    assert sender.failure is None


@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_receives_our_message_to_it(raw, kernel, size):
    payload, receiver = payload_of(size), kernel()
    sender = Sender(ADDRESSED, payload, OURS, KERNEL)
    send(raw, sender.start(time.monotonic()))
    run(raw, sender, lambda: sender.is_done)
    assert sender.failure is None
    receiver.settimeout(PATIENCE_S)
    data, (_, _, pgn, address) = receiver.recvfrom(2000)
    assert (data, pgn, address) == (payload, ADDRESSED, OURS)


def test_an_abort_of_the_kernel_is_told(raw, kernel):
    kernel()
    first = Sender(BROADCAST, payload_of(100), OURS, KERNEL)
    second = Sender(ADDRESSED, payload_of(100), OURS, KERNEL)
    send(raw, first.start(time.monotonic()))
    send(raw, second.start(time.monotonic()))
    run(raw, second, lambda: second.is_done)
    assert second.failure == f"aborted by {KERNEL}: already has a connection (1)"
    send(raw, first.cancel())


def test_the_kernel_finds_us_by_our_name_once_we_have_claimed_and_takes_our_address_with_a_lower_one(
    raw, kernel
):
    ours = Name(identity_number=4711, manufacturer_code=5, function=130, is_arbitrary_address_capable=True)
    watcher = kernel()
    claimer = AddressClaimer(ours, OURS)
    send(raw, claimer.start(time.monotonic()))
    run(raw, claimer, lambda: claimer.address is not None)
    assert claimer.address == OURS
    time.sleep(0.5)  # the kernel waits its own quarter of a second
    send(raw, [(identifier(0xFEF1, OURS), b"\x01" * 8)])
    watcher.settimeout(PATIENCE_S)
    while True:
        data, (_, name, pgn, address) = watcher.recvfrom(2000)
        if pgn == 0xFEF1:
            break
    assert (data, name, address) == (b"\x01" * 8, int(ours), OURS)
    watcher.sendto(b"\x02" * 8, (BUS, int(ours), ADDRESSED, EVERYBODY))
    heard = run(raw, claimer, lambda: select.select([raw], [], [], 1)[0] == [])
    assert [destination_of(can_id) for can_id, _ in heard if pgn_of(can_id) == ADDRESSED] == [OURS]

    lower = Name(identity_number=1)
    rival = kernel(OURS, int(lower))
    rival.sendto(lower.to_bytes(), (BUS, socket.J1939_NO_NAME, 0xEE00, EVERYBODY))
    run(raw, claimer, lambda: claimer.address == 128)
    assert claimer.table == {OURS: lower}
    assert claimer.conflict is None
