"""Requests and responses of others: what belongs together, and that nothing else ever does."""

from __future__ import annotations

import random
import struct

import pytest
from mutations import ascii_frame, rtu

from fieldbus.modbus import pdu
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.places import Framing
from fieldbus.modbus.registers import Table
from fieldbus.modbus.sniffer import Exchange, Sniffer, make_sniffer

GAP_S, ANSWER_S = 0.05, 1.0


def request(address: int, count: int, table: Table = Table.HOLDING) -> bytes:
    return pdu.read_request(table, address, count)


def words(*values: int, code: int = 3) -> bytes:
    return struct.pack(f">BB{len(values)}H", code, 2 * len(values), *values)


class Bus:
    """A line, and what a listener makes of it."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self.now_s = 100.0
        self.sniffer: Sniffer = make_sniffer(framing, gap_s=GAP_S, answer_s=ANSWER_S)

    def frame(self, body: bytes, unit_id: int = 7) -> bytes:
        return ascii_frame(unit_id, body) if self.framing is Framing.ASCII else rtu(unit_id, body)

    def raw(self, data: bytes, step: int = 1000) -> list[tuple[str, str]]:
        found: list[Exchange] = []
        for at in range(0, len(data), step):
            found += self.sniffer.feed(data[at : at + step], self.now_s)
        return [(item.ask.pdu.hex(), item.response.hex()) for item in found]

    def say(self, *bodies: bytes, unit_id: int = 7, step: int = 1000) -> list[tuple[str, str]]:
        return self.raw(b"".join(self.frame(body, unit_id) for body in bodies), step)

    def wait(self, seconds: float) -> list[tuple[str, str]]:
        self.now_s += seconds
        return [(item.ask.pdu.hex(), item.response.hex()) for item in self.sniffer.expire(self.now_s)]


@pytest.fixture(params=[Framing.RTU, Framing.ASCII], ids=str)
def bus(request: pytest.FixtureRequest) -> Bus:
    return Bus(request.param)


ASK, ANSWER = request(0, 2), words(1000, 230)
PAIR = [(ASK.hex(), ANSWER.hex())]


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_a_request_and_the_response_after_it_are_an_exchange(bus: Bus, step: int) -> None:
    for _ in range(3):
        assert bus.say(ASK, ANSWER, step=step) == PAIR
        bus.now_s += 1
    assert bus.say(ASK) == []
    bus.now_s += 0.2
    assert bus.say(ANSWER) == PAIR
    assert bus.sniffer.requests == 4


@pytest.mark.parametrize("table", [Table.COIL, Table.DISCRETE, Table.HOLDING, Table.INPUT])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 24, 25, 100, 125])
def test_every_read_has_its_response(bus: Bus, table: Table, count: int) -> None:
    for address in range(12):
        bus.say(request(address + 8000, 1))  # the listener has heard many requests
        bus.now_s += 10
    ask = request(64, count, table)
    size = (count + 7) // 8 if table.is_bits else 2 * count
    answer = bytes((table.read_function, size)) + bytes(range(200, 200 + size % 50)).ljust(size, b"\xee")
    assert bus.say(ask, answer) == [(ask.hex(), answer.hex())]


def test_an_exception_belongs_to_its_request(bus: Bus) -> None:
    assert bus.say(ASK, b"\x83\x02") == [(ASK.hex(), "8302")]


@pytest.mark.parametrize(
    "between",
    [
        request(9, 2), words(5), b"\x84\x02", bytes.fromhex("0600010002"), bytes.fromhex("10000100020400010002"),
    ],
)  # fmt: skip
def test_a_frame_between_takes_the_response_from_its_request(bus: Bus, between: bytes) -> None:
    found = bus.say(ASK, between, ANSWER) + bus.wait(1) + bus.say(request(500, 1))
    assert PAIR[0] not in found


@pytest.mark.parametrize("noise", [b"\x00", b"\xff\xff", b"\x07\x03", b":", b"\r\n", bytes(40)])
def test_noise_between_takes_the_response_from_its_request(bus: Bus, noise: bytes) -> None:
    if noise == b"\r\n" and bus.framing is Framing.ASCII:
        noise = b"x\r\n"
    if noise == b":" and bus.framing is Framing.ASCII:
        noise = b":07\r\n"
    found = bus.raw(bus.frame(ASK) + noise + bus.frame(ANSWER)) + bus.wait(1)
    assert found == []
    assert bus.say(ASK, ANSWER) == PAIR, "the next exchange counts"


def test_noise_before_a_request_costs_nothing_but_itself(bus: Bus) -> None:
    dice = random.Random(3)
    for _ in range(50):
        noise = bytes(dice.choice(b"\x00\xff\x55\xaa") for _ in range(dice.randrange(1, 6)))
        found = bus.raw(noise + bus.frame(ASK) + bus.frame(ANSWER))
        assert found + bus.wait(1) == PAIR


def test_frames_behind_a_garbled_one_in_one_piece_count(bus: Bus) -> None:
    broken = bytearray(bus.frame(ASK))
    broken[5] ^= 1
    assert bus.raw(bytes(broken) + bus.frame(ASK) + bus.frame(ANSWER)) + bus.wait(1) == PAIR


def test_a_response_of_another_unit_or_length_belongs_to_nobody(bus: Bus) -> None:
    for unit_id, body in ((8, ANSWER), (7, words(1)), (7, words(1, 2, 3)), (7, words(1, 2, code=4))):
        assert bus.say(ASK) == []
        assert bus.say(body, unit_id=unit_id) == []
        assert bus.say(ANSWER) == []


def test_a_response_comes_in_time_or_belongs_to_nobody(bus: Bus) -> None:
    bus.say(ASK)
    bus.now_s += ANSWER_S + 0.01
    assert bus.say(ANSWER) == []
    bus.say(ASK)
    bus.now_s += ANSWER_S - 0.01
    assert bus.say(ANSWER) == PAIR


def test_a_second_response_belongs_to_nobody(bus: Bus) -> None:
    assert bus.say(ASK, ANSWER, words(5, 6)) == PAIR


def test_a_late_response_is_never_that_of_the_next_request(bus: Bus) -> None:
    """Both look the same; the response that then comes as well gives it away."""
    other = request(50, 2)
    assert bus.say(ASK) == []
    bus.now_s += 0.5
    assert bus.say(other, ANSWER, words(7, 8)) == []
    bus.now_s += 4
    assert bus.say(ASK, ANSWER) == PAIR


def test_a_response_that_may_be_late_counts_with_the_next_request(bus: Bus) -> None:
    other = request(50, 2)
    bus.say(ASK)
    bus.now_s += 0.5
    assert bus.say(other, words(7, 8)) == []
    assert bus.say(request(500, 1)) == [(other.hex(), words(7, 8).hex())]


def test_a_request_that_is_repeated_has_the_response_of_either(bus: Bus) -> None:
    bus.say(ASK)
    bus.now_s += 0.5
    assert bus.say(ASK, ANSWER) == PAIR


def test_a_request_that_looks_like_a_response_is_none() -> None:
    """24 bits have three bytes: eight with unit id, function, count and checksum, as many as a request."""
    bus = Bus(Framing.RTU)
    ask, like = request(0, 24, Table.COIL), request(0x0301, 8, Table.COIL)
    assert len(like) == 5
    answer = bytes((1, 3)) + like[2:]
    assert answer == like
    assert bus.say(ask, like) == [], "a listener that has just begun does not know"
    for _ in range(12):
        bus.say(request(9, 1), words(3))
    assert bus.say(ask, like) == [(ask.hex(), like.hex())]
    assert bus.say(request(9, 1), words(3), like) != []
    bus.say(bytes((1, 1, 0)))
    assert bus.say(ask, like) == [], "now it is known as a request"


@pytest.mark.parametrize("framing", [Framing.RTU, Framing.ASCII])
@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_on_the_line_no_value_is_under_the_wrong_request(framing: Framing, seed: int) -> None:
    """Lost, late, doubled, garbled and cut frames of several units, with noise between.

    Each register holds its unit and address, so that a value tells where it came from. One fault at a time: a
    response is late where the one that it displaces comes as well.
    """
    dice = random.Random(seed)
    bus = Bus(framing)
    heard = 0
    late: bytes | None = None
    for _ in range(2000):
        unit_id, address, count = dice.randrange(1, 4), dice.randrange(0, 100), dice.choice([1, 2, 2, 3, 10])
        ask = request(address, count)
        answer = words(*(unit_id << 8 | address + n for n in range(count)))
        stream = [bus.frame(ask, unit_id), bus.frame(answer, unit_id)]
        if late is not None:
            stream.insert(1, late)
            late = None
        fate = dice.random() if len(stream) == 2 else 1.0
        if fate < 0.06:
            late = stream.pop()
        elif fate < 0.12:
            stream.append(stream[-1])
        elif fate < 0.2:
            place = dice.randrange(len(stream))
            broken = bytearray(stream[place])
            broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
            stream[place] = bytes(broken)
        elif fate < 0.26:
            place = dice.randrange(len(stream))
            stream[place] = stream[place][: dice.randrange(len(stream[place]))]
        elif fate < 0.32:
            stream.insert(dice.randrange(3), dice.randbytes(dice.randrange(1, 20)))
        found = []
        for piece in stream:
            found += bus.sniffer.feed(piece, bus.now_s)
            bus.now_s += 0.005
        bus.now_s += dice.choice([0.001, 0.1])
        found += bus.sniffer.expire(bus.now_s)
        for item in found:
            _, at, size = struct.unpack(">BHH", item.ask.pdu)
            held = struct.unpack(f">{size}H", item.response[2:])
            assert held == tuple(item.ask.unit_id << 8 | at + n for n in range(size))
        heard += len(found)
    assert heard > 1000


@pytest.mark.parametrize("framing", [Framing.RTU, Framing.ASCII])
def test_noise_without_end_keeps_nothing(framing: Framing) -> None:
    bus = Bus(framing)
    dice = random.Random(1)
    for _ in range(60):
        bus.raw(dice.randbytes(2000))
        bus.raw(b":07" * 1000)
    assert len(bus.sniffer._buffer) <= 1026  # type: ignore[attr-defined]
    bus.wait(1)
    bus.raw(b"\r\n")
    assert bus.say(ASK, ANSWER) == PAIR


def test_an_exchange_names_its_unit(bus: Bus) -> None:
    [exchange] = bus.sniffer.feed(bus.frame(ASK, 9) + bus.frame(ANSWER, 9), 1.0)
    assert isinstance(exchange.ask, Ask)
    assert exchange.ask.unit_id == 9
