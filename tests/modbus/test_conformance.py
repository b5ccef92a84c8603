"""The Modbus Application Protocol V1.1b3 as a table: each request, and the one answer that it may get.

A row is a name and one or more exchanges ``request > response``, both PDUs in hex. ``!02`` is the exception
02 of the request's function, ``ab*3`` is ``ababab``. Where a response is long it is made by `bits` or `words`
from what the tables below hold. The checks of a request have an order (§6): function (01), quantity and value
(03), address (02), execution (04); rows named "… before …" are wrong in two ways.

What the server holds, at 0-based addresses, 65535 being the last that there is::

    coils        0..2009, 65535     on where the address is a multiple of 3; 1000.. may be changed
    discretes    0..2009, 65535     on where the address is odd
    inputs       0..199, 65535      1000 + address (65535: 7)
    holdings     0..199, 65535      the address; 100.. are changed by rows
    holding 300  a float32 that has 1.5; holding 310 takes 0..3000; holding 320 cannot be written
    holding 330  nobody has written yet: no value
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.link import Delivery, Target
from fieldbus.modbus.identification import Identification
from fieldbus.modbus.pdu import Frame
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.server_access import Right
from fieldbus.model import Quality, Sample, Value

LAST = 65535
BITS = [*range(2010), LAST]
WORDS = [*range(200), LAST]


def bit_value(function: int, address: int) -> bool:
    return address % 3 == 0 if function == 1 else address % 2 == 1


def word_value(function: int, address: int) -> int:
    if function == 4:
        return 7 if address == LAST else 1000 + address
    return address


def bits(function: int, address: int, count: int) -> str:
    """The response to a read of bits that nobody changed."""
    packed = sum(bit_value(function, address + n) << n for n in range(count))
    size = (count + 7) // 8
    return (bytes((function, size)) + packed.to_bytes(size, "little")).hex()


def words(function: int, address: int, count: int) -> str:
    """The response to a read of registers that nobody changed."""
    data = b"".join(struct.pack(">H", word_value(function, address + n)) for n in range(count))
    return (bytes((function, len(data))) + data).hex()


def read(function: int, address: int, count: int) -> str:
    return struct.pack(">BHH", function, address, count).hex()


def reads() -> list[tuple[str, ...]]:
    """FC 1 to 4 are alike but for their limits: quantity × address."""
    rows = []
    for function, name, most, make in (
        (1, "coils", 2000, bits), (2, "discrete inputs", 2000, bits),
        (3, "holding registers", 125, words), (4, "input registers", 125, words),
    ):  # fmt: skip
        rows += [
            (f"read {count} {name}", f"{read(function, 0, count)} > {make(function, 0, count)}")
            for count in (1, 2, 7, 8, 9, 15, 16, 17, most - 1, most)
        ]
        end = 2010 if function <= 2 else 200
        for address, count in ((5, 3), (end - 1, 1), (LAST, 1)):
            rows.append((f"read {count} {name} at {address}",
                         f"{read(function, address, count)} > {make(function, address, count)}"))  # fmt: skip
        rows += [
            (f"read {count} {name} is no quantity", f"{read(function, 0, count)} > !03")
            for count in (0, most + 1, 0x7FFF, 0x8000, 0xFFFF)
        ]
        for address, count in ((end, 1), (end - 1, 2), (LAST - 1, 1), (LAST - 1, 2), (LAST, 2), (LAST, most)):
            rows.append((f"read {count} {name} at {address} is no address",
                         f"{read(function, address, count)} > !02"))  # fmt: skip
        rows += [
            (f"read {name}: quantity before address", f"{read(function, LAST, 0)} > !03"),
            (f"read {name}: too many before address", f"{read(function, 30000, most + 1)} > !03"),
            (f"read {name}: truncated to the function", f"{function:02x} > !03"),
            (f"read {name}: truncated in the quantity", f"{function:02x} 0000 00 > !03"),
            (f"read {name}: a byte too many", f"{read(function, 0, 1)} 00 > !03"),
        ]
    return rows


TABLE: list[tuple[str, ...]] = [
    *reads(),
    # §6.5 write single coil
    ("coil on", "05 03e8 ff00 > 05 03e8 ff00", "01 03e8 0001 > 01 01 01"),
    ("coil off", "05 03e8 0000 > 05 03e8 0000", "01 03e8 0001 > 01 01 00"),
    ("the last coil on", "05 ffff ff00 > 05 ffff ff00"),
    *((f"a coil is not {value}", f"05 03e8 {value} > !03")
      for value in ("0001", "00ff", "0100", "1234", "fe00", "ff01", "feff", "ffff")),
    ("a coil that there is not", "05 07da ff00 > !02"),
    ("a coil: value before address", "05 07da 1234 > !03"),
    ("a coil: truncated", "05 03e8 ff > !03"),
    ("a coil: a byte too many", "05 03e8 ff00 00 > !03"),
    # §6.6 write single register
    *((f"a register takes {value}", f"06 0064 {value} > 06 0064 {value}", f"03 0064 0001 > 03 02 {value}")
      for value in ("0000", "0001", "7fff", "8000", "ffff")),
    ("the last register", "06 ffff ffff > 06 ffff ffff"),
    ("a register that there is not", "06 00c8 0001 > !02"),
    ("a register that is read only", "06 0140 0001 > !02"),
    ("half a float", "06 012c 0001 > !02"),
    ("a register takes no value out of its range", "06 0136 0bb9 > !04", "03 0136 0001 > 03 02 0000"),
    ("a register: truncated", "06 0064 00 > !03"),
    ("a register: a byte too many", "06 0064 0001 00 > !03"),
    # §6.11 write multiple coils
    ("one coil of several", "0f 03f0 0001 01 01 > 0f 03f0 0001", "01 03f0 0001 > 01 01 01"),
    ("seven coils", "0f 03f0 0007 01 55 > 0f 03f0 0007", "01 03f0 0007 > 01 01 55"),
    ("eight coils", "0f 03f0 0008 01 a5 > 0f 03f0 0008", "01 03f0 0008 > 01 01 a5"),
    ("nine coils", "0f 03f0 0009 02 ff01 > 0f 03f0 0009", "01 03f0 0009 > 01 02 ff01"),
    ("sixteen coils", "0f 03f0 0010 02 1234 > 0f 03f0 0010", "01 03f0 0010 > 01 02 1234"),
    ("bits behind the last coil mean nothing", "0f 03f0 0008 01 00 > 0f 03f0 0008",
     "0f 03f0 0001 01 ff > 0f 03f0 0001", "01 03f0 0008 > 01 01 01"),
    ("967 coils", "0f 0400 03c7 79 00*121 > 0f 0400 03c7"),
    ("no coils", "0f 03f0 0000 00 > !03"),
    ("no coils but a byte", "0f 03f0 0000 01 00 > !03"),
    ("1968 coils", "0f 0000 07b0 f6 499224*82 > 0f 0000 07b0"),
    ("1969 coils", "0f 0000 07b1 f7 00*246 > !03"),
    ("2000 coils", "0f 0000 07d0 fa 00*246 > !03"),
    ("65535 coils", "0f 0000 ffff ff 00*246 > !03"),
    ("coils: one byte counted, two sent", "0f 03f0 0008 01 0000 > !03"),
    ("coils: two bytes counted, one sent", "0f 03f0 0009 02 00 > !03"),
    ("coils: two bytes for eight", "0f 03f0 0008 02 0000 > !03"),
    ("coils: one byte for nine", "0f 03f0 0009 01 00 > !03"),
    ("coils: none counted", "0f 03f0 0008 00 > !03"),
    ("coils: truncated before the count", "0f 03f0 0008 > !03"),
    ("coils that there are not", "0f 07d9 0002 01 00 > !02"),
    ("coils beyond the last address", "0f ffff 0002 01 00 > !02"),
    ("coils: quantity before address", "0f ffff 0000 00 > !03"),
    ("coils: byte count before address", "0f ffff 0008 02 0000 > !03"),
    # §6.12 write multiple registers
    ("one register of several", "10 0064 0001 02 abcd > 10 0064 0001", "03 0064 0001 > 03 02 abcd"),
    ("three registers", "10 0064 0003 06 000100020003 > 10 0064 0003", "03 0064 0003 > 03 06 000100020003"),
    ("100 registers", "10 0064 0064 c8 1234*100 > 10 0064 0064", "03 00c7 0001 > 03 02 1234"),
    ("a whole float", "10 012c 0002 04 3fc00000 > 10 012c 0002", "03 012c 0002 > 03 04 3fc00000"),
    ("no registers", "10 0064 0000 00 > !03"),
    ("no registers but two bytes", "10 0064 0000 02 0000 > !03"),
    ("123 registers that are not all there", "10 0064 007b f6 00*246 > !02"),
    ("124 registers", "10 0000 007c f8 00*246 > !03"),
    ("125 registers", "10 0000 007d fa 00*246 > !03"),
    ("128 registers, byte count 0", "10 0000 0080 00 > !03"),
    ("65535 registers", "10 0000 ffff fe 00*246 > !03"),
    ("registers: an odd byte count", "10 0064 0001 01 00 > !03"),
    ("registers: three bytes for one", "10 0064 0001 03 000000 > !03"),
    ("registers: two bytes counted, one sent", "10 0064 0001 02 00 > !03"),
    ("registers: two bytes counted, three sent", "10 0064 0001 02 000000 > !03"),
    ("registers: byte count for another quantity", "10 0064 0002 02 0000 > !03"),
    ("registers: truncated before the count", "10 0064 0001 > !03"),
    ("registers that there are not", "10 00c7 0002 04 00000000 > !02"),
    ("registers beyond the last address", "10 ffff 0002 04 00000000 > !02"),
    ("registers of which one is read only", "10 013f 0002 04 00000000 > !02"),
    ("half a float of several", "10 012b 0002 04 00000000 > !02"),
    ("a float that is no number", "10 012c 0002 04 7fc00000 > !04", "03 012c 0002 > 03 04 3fc00000"),
    ("registers: quantity before address", "10 ffff 0000 00 > !03"),
    ("registers: byte count before address", "10 ffff 0001 03 000000 > !03"),
    ("registers: address before execution", "10 0140 0001 02 ffff > !02"),
    # §6.16 mask write: (current AND and_mask) OR (or_mask AND NOT and_mask)
    ("the mask of the specification", "06 0064 0012 > 06 0064 0012", "16 0064 00f2 0025 > 16 0064 00f2 0025",
     "03 0064 0001 > 03 02 0017"),
    ("a mask of ones keeps", "06 0064 1234 > 06 0064 1234", "16 0064 ffff ffff > 16 0064 ffff ffff",
     "03 0064 0001 > 03 02 1234"),
    ("a mask of zeros sets", "16 0064 0000 5678 > 16 0064 0000 5678", "03 0064 0001 > 03 02 5678"),
    ("a mask at no address", "16 00c8 ffff 0000 > !02"),
    ("a mask on what is read only", "16 0140 ffff 0000 > !02"),
    ("a mask out of range", "16 0136 0000 ffff > !04"),
    ("a mask on a register without a value", "16 014a ffff 0000 > !0b"),
    ("a mask: truncated", "16 0064 ffff 00 > !03"),
    ("a mask: a byte too many", "16 0064 ffff 0000 00 > !03"),
    # §6.17 read/write multiple registers: the write comes first
    ("write and read the same", "17 0064 0001 0064 0001 02 beef > 17 02 beef"),
    ("write one, read others", "17 0000 0003 0064 0001 02 0001 > 17 06 000000010002", "03 0064 0001 > 03 02 0001"),
    ("read 100 while writing one", f"17 0000 0064 0064 0001 02 0001 > 17 {words(3, 0, 100)[2:]}"),
    ("read none while writing", "17 0000 0000 0064 0001 02 0001 > !03"),
    ("read 126 while writing", "17 0000 007e 0064 0001 02 0001 > !03"),
    ("write none while reading", "17 0000 0001 0064 0000 00 > !03"),
    ("write 122 while reading", "17 0000 0001 0064 007a f4 00*243 > !03"),
    ("write 121 that are not all there while reading", "17 0000 0001 0064 0079 f2 00*242 > !02"),
    ("write with an odd byte count while reading", "17 0000 0001 0064 0001 01 00 > !03"),
    ("write with too few bytes while reading", "17 0000 0001 0064 0001 02 00 > !03"),
    ("write with too many bytes while reading", "17 0000 0001 0064 0001 02 000000 > !03"),
    ("read at no address while writing", "06 0064 0001 > 06 0064 0001", "17 00c8 0001 0064 0001 02 ffff > !02",
     "03 0064 0001 > 03 02 0001"),
    ("write at no address while reading", "17 0000 0001 00c8 0001 02 ffff > !02"),
    ("write out of range while reading", "17 0000 0001 0136 0001 02 ffff > !04"),
    ("read and write: quantity before address", "17 ffff 0000 ffff 0001 02 0000 > !03"),
    ("read and write: truncated", "17 0000 0001 0064 00 > !03"),
    # §6.21 read device identification
    ("basic identification", "2b 0e 01 00 > 2b0e01 82 00 00 03 00 06 41636d652021 01 02 5331 02 05 76312e3233"),
    ("basic identification from object 1", "2b 0e 01 01 > 2b0e01 82 00 00 02 01 02 5331 02 05 76312e3233"),
    ("basic identification from no object",
     "2b 0e 01 7f > 2b0e01 82 00 00 03 00 06 41636d652021 01 02 5331 02 05 76312e3233"),
    ("regular identification from object 2", "2b 0e 02 02 > 2b0e02 82 00 00 03 02 05 76312e3233 03 03 783a79 05 01 4d"),
    ("extended identification is what there is", "2b 0e 03 03 > 2b0e03 82 00 00 02 03 03 783a79 05 01 4d"),
    ("object 0 alone", "2b 0e 04 00 > 2b0e04 82 00 00 01 00 06 41636d652021"),
    ("object 5 alone", "2b 0e 04 05 > 2b0e04 82 00 00 01 05 01 4d"),
    ("object 4 alone, which there is not", "2b 0e 04 04 > !02"),
    ("object 128 alone, which there is not", "2b 0e 04 80 > !02"),
    ("read code 0", "2b 0e 00 00 > !03"),
    ("read code 5", "2b 0e 05 00 > !03"),
    ("read code before object", "2b 0e 05 80 > !03"),
    ("identification: truncated", "2b 0e 01 > !03"),
    ("identification: a byte too many", "2b 0e 01 00 00 > !03"),
    ("CANopen (MEI 13) is not ours", "2b 0d 00 00 > !01"),
    ("MEI before read code", "2b 00 09 00 > !01"),
    ("no MEI at all", "2b > !03"),
    # §6.8 diagnostics
    ("return query data", "08 0000 a537 > 08 0000 a537"),
    ("return more query data", "08 0000 a5370102 > 08 0000 a5370102"),
    ("another diagnostic", "08 000a 0000 > !01"),
    ("restart communications is refused", "08 0001 ff00 > !01"),
    ("diagnostics: no data", "08 0000 > !03"),
    ("diagnostics: half a word", "08 0000 a5 > !03"),
    ("diagnostics: truncated", "08 00 > !03"),
    # what we do not have
    *((f"function {code} is not ours", f"{code:02x} 0000 0001 > !01") for code in (7, 9, 10, 11, 12, 13, 14, 17, 20, 21, 24, 65, 72, 100, 110)),
    *((f"function {code} is not ours, whatever follows", f"{code:02x} > !01") for code in (0, 19, 44, 127)),
    *((f"function {code} is no request", f"{code:02x} 0000 0001 > {code:02x}01") for code in (128, 129, 131, 255)),
    ("function before everything", "42 ffff ffff*120 > !01"),
    ("a register without a value", "03 014a 0001 > !0b"),
    ("address before a missing value", "03 014a 0002 > !02"),
]  # fmt: skip


def point(name: str, place: str, type_: str | None = None, **more: object) -> RegisterPoint:
    table, address = place.split()
    made = PointSettings(table=table, address=int(address), type=type_, **more)
    return made.build("panel", name, is_served=True)


def octets(text: str) -> bytes:
    text = re.sub(r"(\w+)\*(\d+)", lambda match: match[1] * int(match[2]), text)
    return bytes.fromhex(text)


ANYTHING = ModbusServerLink(
    "any", "127.0.0.1", 0,
    [ServedUnit("panel", 1, [point(f"h{n}", f"holding {n}", "uint16", access="readwrite", initial=0) for n in range(300)])],
)  # fmt: skip


class Conversation:
    """A server in a thread of its own, and a plain socket to it."""

    def __init__(self, link: ModbusServerLink) -> None:
        self._link = link
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._call(link.connect())
        self.socket = socket.create_connection(("127.0.0.1", link.port), timeout=5)
        self._transaction_id = 0

    def ask(self, *requests: bytes) -> list[bytes]:
        """Send all requests at once and return their answers."""
        first = self._transaction_id + 1
        self._transaction_id += len(requests)
        self.socket.sendall(
            b"".join(
                struct.pack(">HHHB", first + n, 0, len(pdu) + 1, 1) + pdu for n, pdu in enumerate(requests)
            )
        )
        answers = []
        for n in range(len(requests)):
            transaction_id, protocol_id, length, unit_id = struct.unpack(">HHHB", self._exactly(7))
            assert (transaction_id, protocol_id, unit_id) == (first + n, 0, 1)
            answers.append(self._exactly(length - 1))
        return answers

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            assert piece, "the server hung up"
            data += piece
        return data

    def close(self) -> None:
        self.socket.close()
        self._call(self._link.close())
        self._call(asyncio.sleep(0.01))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(5)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server() -> Iterator[Conversation]:
    free = {"access": "readwrite"}
    points = [
        *(point(f"c{n}", f"coil {n}", initial=bit_value(1, n), **free) for n in BITS),
        *(point(f"d{n}", f"discrete {n}") for n in BITS),
        *(point(f"i{n}", f"input {n}", "uint16") for n in WORDS),
        *(point(f"h{n}", f"holding {n}", "uint16", initial=n, **free) for n in WORDS),
        point("real", "holding 300", "float32", initial=1.5, **free),
        point("bounded", "holding 310", "uint16", max=3000, initial=0, **free),
        point("fixed", "holding 320", "uint16"),
        point("before_fixed", "holding 319", "uint16", initial=0, **free),
        point("missing", "holding 330", "uint16", **free),
    ]
    who = Identification("Acme !", "S1", "v1.23", "x:y", "", "M", "")
    link = ModbusServerLink("hmi", "127.0.0.1", 0, [ServedUnit("panel", 1, points)], identification=who)
    values: dict[str, Value] = {f"d{n}": bit_value(2, n) for n in BITS}
    values |= {f"i{n}": word_value(4, n) for n in WORDS} | {"fixed": 1}
    for item in points:
        if item.point.name in values:
            sample = Sample(values[item.point.name], Quality.GOOD, None, 1)
            link.send([Delivery(Target("hmi", item.point), item.point, sample)])
    conversation = Conversation(link)
    yield conversation
    conversation.close()


def test_the_table_is_long_and_has_no_row_twice() -> None:
    assert len(TABLE) >= 150
    assert len({row[1:] for row in TABLE}) == len(TABLE)
    assert len({row[0] for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_each_request_gets_the_one_answer_that_it_may_get(server: Conversation, row: tuple[str, ...]) -> None:
    for exchange in row[1:]:
        request_text, response_text = exchange.split(" > ")
        request = octets(request_text)
        assert len(request) <= 253, "no master can send this"
        [found] = server.ask(request)
        if response_text.startswith("!"):
            expected = bytes((request[0] | 0x80, int(response_text[1:], 16)))
        else:
            expected = octets(response_text)
        assert found.hex() == expected.hex(), exchange


def test_sixteen_of_sixteen_pipelined_requests_are_answered_in_order(server: Conversation) -> None:
    exchanges = [
        ("0400000001", words(4, 0, 1)), ("2b0e0405", "2b0e04820000 010501 4d"), ("06007800aa", "06007800aa"),
        ("0300780001", "030200aa"), ("07", "8701"), ("06007800bb", "06007800bb"), ("0300780001", "030200bb"),
        ("0300000000", "8303"), ("0100000009", bits(1, 0, 9)), ("080000beef", "080000beef"),
        ("0300c80001", "8302"), ("17007800010078000102cafe", "1702cafe"), ("16007800000000", "16007800000000"),
        ("0300780001", "03020000"), ("02000007d0", bits(2, 0, 2000)), ("040000007d", words(4, 0, 125)),
    ]  # fmt: skip
    assert len(exchanges) == 16
    found = server.ask(*(bytes.fromhex(request) for request, _ in exchanges))
    assert [answer.hex() for answer in found] == [answer.replace(" ", "") for _, answer in exchanges]


@given(st.one_of(st.binary(min_size=1, max_size=253),
                 st.builds(lambda function, rest: bytes((function,)) + rest,
                           st.sampled_from([1, 2, 3, 4, 5, 6, 8, 15, 16, 22, 23, 43]), st.binary(max_size=16))))  # fmt: skip
@settings(max_examples=examples(500))
def test_whatever_is_asked_gets_one_answer_of_its_own_function_that_fits_a_frame(request_: bytes) -> None:
    answer = ANYTHING.answer(Frame(1, 1, request_), Right.READWRITE, is_line=False)
    assert answer is not None
    assert 2 <= len(answer) <= 253
    if answer[0] == request_[0] and request_[0] < 0x80:
        assert request_[0] in (1, 2, 3, 4, 5, 6, 8, 15, 16, 22, 23, 43)
    else:
        assert answer[0] == request_[0] | 0x80
        assert answer[1:] in (b"\1", b"\2", b"\3", b"\4", b"\x0b")
