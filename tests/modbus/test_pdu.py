"""Frames, requests and replies byte by byte: whole, split, trailing, and wrong in every way."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import BadResponseError, DeviceExceptionError
from fieldbus.modbus import pdu
from fieldbus.modbus.pdu import (
    Frame,
    MaskWriteRequest,
    MbapReader,
    ReadRequest,
    ReadWriteRequest,
    Request,
    WriteRequest,
)
from fieldbus.modbus.registers import Table

LONGEST_FRAME = 260
READS = {1: Table.COIL, 2: Table.DISCRETE, 3: Table.HOLDING, 4: Table.INPUT}
KNOWN_FUNCTIONS = (1, 2, 3, 4, 5, 6, 15, 16, 22, 23)

frames = st.builds(
    Frame, st.integers(0, 0xFFFF), st.integers(0, 255), st.binary(min_size=1, max_size=pdu.MAX_PDU)
)


def wire(frame: Frame) -> bytes:
    return pdu.frame(*frame)


def header(transaction_id: int = 1, protocol_id: int = 0, length: int = 6, unit_id: int = 1) -> bytes:
    return struct.pack(">HHHB", transaction_id, protocol_id, length, unit_id)


def read_whole(*pieces: bytes) -> tuple[list[Frame], MbapReader]:
    reader = MbapReader()
    return [frame for piece in pieces for frame in reader.feed(piece)], reader


# --- frames -----------------------------------------------------------------------------------------


def test_a_frame_is_header_unit_and_pdu_byte_by_byte() -> None:
    assert pdu.frame(0x1234, 0x11, bytes.fromhex("03006b0003")) == bytes.fromhex("12340000000611 03006b0003")


def test_a_whole_frame_comes_out_as_it_was_sent() -> None:
    found, reader = read_whole(bytes.fromhex("12340000000611 03006b0003"))
    assert found == [Frame(0x1234, 0x11, bytes.fromhex("03006b0003"))]
    assert reader.is_between_frames
    assert reader.fault is None


def test_a_frame_split_at_every_byte_comes_out_whole_and_only_when_it_is_whole() -> None:
    frame = Frame(0xABCD, 7, bytes.fromhex("10000000020401020304"))
    data = wire(frame)
    for cut in range(1, len(data)):
        reader = MbapReader()
        assert reader.feed(data[:cut]) == [], cut
        assert not reader.is_between_frames, cut
        assert reader.feed(data[cut:]) == [frame], cut
        assert reader.is_between_frames, cut


def test_frames_that_come_one_byte_at_a_time_come_out_whole() -> None:
    sent = [Frame(n, n, bytes((3, n, 0, 0, 1))) for n in range(5)]
    found, reader = read_whole(*(bytes((byte,)) for frame in sent for byte in wire(frame)))
    assert found == sent
    assert reader.is_between_frames


def test_pipelined_frames_come_out_in_order_with_the_rest_of_the_last_kept() -> None:
    sent = [Frame(n, 1, bytes((3, 0, n, 0, 1))) for n in range(17)]
    data = b"".join(map(wire, sent))
    reader = MbapReader()
    assert reader.feed(data[:-4]) == sent[:-1]
    assert not reader.is_between_frames
    assert reader.feed(data[-4:]) == sent[-1:]
    assert reader.is_between_frames


@pytest.mark.parametrize("protocol_id", [1, 0x00FF, 0x0100, 0xFFFF])
def test_a_protocol_id_other_than_0_is_a_fault(protocol_id: int) -> None:
    found, reader = read_whole(header(protocol_id=protocol_id) + b"\x03\0\0\0\1")
    assert found == []
    assert reader.fault == f"protocol id {protocol_id}"


@pytest.mark.parametrize("length", [0, 1, 255, 256, 0x7FFF, 65535])
def test_a_length_that_no_frame_can_have_is_a_fault_as_soon_as_it_is_read(length: int) -> None:
    found, reader = read_whole(header(length=length)[:6])
    assert found == []
    assert reader.fault == f"length {length}"


@pytest.mark.parametrize("length", [2, 3, 253, 254])
def test_the_shortest_and_the_longest_frame_are_taken(length: int) -> None:
    body = bytes((3,)) * (length - 1)
    found, reader = read_whole(header(length=length) + body)
    assert found == [Frame(1, 1, body)]
    assert reader.fault is None


@pytest.mark.parametrize("bad", [header(protocol_id=1), header(length=0), header(length=65535)])
def test_what_came_before_a_fault_still_comes_out_and_nothing_after_it(bad: bytes) -> None:
    good = Frame(9, 1, b"\x03\0\0\0\1")
    found, reader = read_whole(wire(good) + bad + wire(good))
    assert found == [good]
    assert reader.fault is not None
    assert reader.feed(wire(good)) == []


def test_a_reader_with_a_fault_keeps_no_bytes() -> None:
    _, reader = read_whole(header(length=0) + bytes(1000))
    reader.feed(bytes(100_000))
    assert reader.is_between_frames


@given(st.lists(frames, max_size=6), st.data())
def test_however_a_stream_is_cut_the_same_frames_come_out(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(map(wire, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    found, reader = read_whole(*(stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])))
    assert found == sent
    assert reader.is_between_frames


@given(st.lists(st.binary(max_size=600), max_size=8))
def test_no_bytes_make_the_reader_raise_or_hold_more_than_a_frame(chunks: list[bytes]) -> None:
    reader = MbapReader()
    for chunk in chunks:
        for frame in reader.feed(chunk):
            assert 1 <= len(frame.pdu) <= pdu.MAX_PDU
        assert len(reader._buffer) < LONGEST_FRAME


# --- requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize("address", [0, 1, 0xFFFF])
def test_a_read_is_understood(function: int, address: int) -> None:
    assert pdu.parse_request(struct.pack(">BHH", function, address, 1)) == ReadRequest(
        function, READS[function], address, 1
    )


QUANTITIES = [
    *((fc, count, ok) for fc in (1, 2) for count, ok in
      [(0, False), (1, True), (1999, True), (2000, True), (2001, False), (32768, False), (65535, False)]),
    *((fc, count, ok) for fc in (3, 4) for count, ok in
      [(0, False), (1, True), (124, True), (125, True), (126, False), (2000, False), (65535, False)]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "count", "is_legal"), QUANTITIES)
def test_a_read_of_a_quantity_is_legal_up_to_the_limit_of_its_table(
    function: int, count: int, is_legal: bool
) -> None:
    found = pdu.parse_request(struct.pack(">BHH", function, 0, count))
    assert (found != pdu.ILLEGAL_DATA_VALUE) is is_legal
    if is_legal:
        assert found == ReadRequest(function, READS[function], 0, count)


@pytest.mark.parametrize(("value", "data"), [(0x0000, b"\0"), (0xFF00, b"\1")])
def test_a_single_coil_is_on_or_off(value: int, data: bytes) -> None:
    found = pdu.parse_request(struct.pack(">BHH", 5, 0xAC, value))
    assert found == WriteRequest(5, Table.COIL, 0xAC, 1, data)


@pytest.mark.parametrize("value", [0x0001, 0x00FF, 0x0100, 0x1234, 0xFE00, 0xFF01, 0xFFFF])
def test_a_single_coil_that_is_neither_on_nor_off_is_an_illegal_value(value: int) -> None:
    assert pdu.parse_request(struct.pack(">BHH", 5, 0, value)) == pdu.ILLEGAL_DATA_VALUE


@pytest.mark.parametrize("value", [0, 1, 0x7FFF, 0x8000, 0xFFFF])
def test_a_single_register_takes_any_word(value: int) -> None:
    found = pdu.parse_request(struct.pack(">BHH", 6, 0xFFFF, value))
    assert found == WriteRequest(6, Table.HOLDING, 0xFFFF, 1, value.to_bytes(2, "big"))


def write_multiple(function: int, count: int, byte_count: int, size: int) -> bytes:
    return struct.pack(">BHHB", function, 0x10, count, byte_count) + b"\xa5" * size


WRITES = [
    (15, 0, 0, 0, False), (15, 0, 1, 1, False), (15, 1, 1, 1, True), (15, 8, 1, 1, True),
    (15, 9, 2, 2, True), (15, 9, 1, 1, False), (15, 8, 2, 2, False), (15, 8, 0, 0, False),
    (15, 1967, 246, 246, True), (15, 1968, 246, 246, True), (15, 1969, 247, 247, False),
    (15, 1969, 246, 246, False), (15, 2000, 250, 246, False), (15, 65535, 255, 246, False),
    (15, 16, 2, 1, False), (15, 16, 2, 3, False),
    (16, 0, 0, 0, False), (16, 0, 2, 2, False), (16, 1, 2, 2, True), (16, 1, 1, 1, False),
    (16, 1, 1, 2, False), (16, 1, 2, 1, False), (16, 1, 2, 3, False), (16, 1, 3, 3, False),
    (16, 1, 0, 2, False), (16, 2, 2, 4, False), (16, 122, 244, 244, True), (16, 123, 246, 246, True),
    (16, 123, 245, 245, False), (16, 124, 248, 246, False), (16, 125, 250, 246, False),
    (16, 128, 0, 0, False), (16, 65535, 254, 246, False),
]  # fmt: skip


@pytest.mark.parametrize(("function", "count", "byte_count", "size", "is_legal"), WRITES)
def test_a_write_of_several_is_legal_only_if_quantity_byte_count_and_bytes_agree(
    function: int, count: int, byte_count: int, size: int, is_legal: bool
) -> None:
    found = pdu.parse_request(write_multiple(function, count, byte_count, size))
    if is_legal:
        table = Table.COIL if function == 15 else Table.HOLDING
        assert found == WriteRequest(function, table, 0x10, count, b"\xa5" * size)
    else:
        assert found == pdu.ILLEGAL_DATA_VALUE


def read_write(read_count: int, write_count: int, byte_count: int, size: int) -> bytes:
    return struct.pack(">BHHHHB", 23, 3, read_count, 14, write_count, byte_count) + b"\x5a" * size


READ_WRITES = [
    (0, 1, 2, 2, False), (1, 0, 0, 0, False), (1, 1, 2, 2, True), (125, 1, 2, 2, True),
    (126, 1, 2, 2, False), (1, 121, 242, 242, True), (125, 121, 242, 242, True),
    (1, 122, 244, 243, False), (1, 122, 244, 244, False), (1, 1, 1, 1, False), (1, 1, 2, 1, False), (1, 1, 2, 3, False),
    (1, 2, 2, 4, False), (1, 1, 3, 3, False), (1, 128, 0, 0, False), (65535, 1, 2, 2, False),
    (1, 65535, 254, 243, False),
]  # fmt: skip


@pytest.mark.parametrize(("read_count", "write_count", "byte_count", "size", "is_legal"), READ_WRITES)
def test_a_read_and_write_is_legal_only_if_both_quantities_and_the_bytes_agree(
    read_count: int, write_count: int, byte_count: int, size: int, is_legal: bool
) -> None:
    found = pdu.parse_request(read_write(read_count, write_count, byte_count, size))
    if is_legal:
        assert found == ReadWriteRequest(
            23,
            ReadRequest(23, Table.HOLDING, 3, read_count),
            WriteRequest(23, Table.HOLDING, 14, write_count, b"\x5a" * size),
        )
    else:
        assert found == pdu.ILLEGAL_DATA_VALUE


def test_a_mask_write_is_understood() -> None:
    assert pdu.parse_request(bytes.fromhex("16000400f20025")) == MaskWriteRequest(22, 4, 0x00F2, 0x0025)


LEGAL = {
    1: "0100000001", 2: "0200000001", 3: "0300000001", 4: "0400000001", 5: "050000ff00", 6: "0600001234",
    15: "0f0000000901ff01".replace("0901", "0902"), 16: "100000000204aabbccdd", 22: "16000000f20025",
    23: "1700000001000000010212 34".replace(" ", ""),
}  # fmt: skip


@pytest.mark.parametrize("function", LEGAL)
def test_a_request_that_is_too_short_or_too_long_is_an_illegal_value(function: int) -> None:
    whole = bytes.fromhex(LEGAL[function])
    assert not isinstance(pdu.parse_request(whole), int)
    for size in range(1, len(whole)):
        assert pdu.parse_request(whole[:size]) == pdu.ILLEGAL_DATA_VALUE, size
    for more in (b"\0", b"\xff\xff", bytes(200)):
        assert pdu.parse_request(whole + more) == pdu.ILLEGAL_DATA_VALUE, more


@pytest.mark.parametrize("rest", [b"", b"\0\0\0\1", bytes(252)])
def test_any_other_function_is_illegal_whatever_follows(rest: bytes) -> None:
    for function in set(range(256)) - set(KNOWN_FUNCTIONS):
        assert pdu.parse_request(bytes((function,)) + rest) == pdu.ILLEGAL_FUNCTION, function


def bytes_of(request: Request) -> bytes:
    """Encode a request as the specification draws it, independently of the code under test."""
    match request:
        case ReadRequest(function, _, address, count):
            return struct.pack(">BHH", function, address, count)
        case WriteRequest(5, _, address, _, data):
            return struct.pack(">BHH", 5, address, 0xFF00 if data == b"\1" else 0)
        case WriteRequest(6, _, address, _, data):
            return struct.pack(">BH", 6, address) + data
        case WriteRequest(function, _, address, count, data):
            return struct.pack(">BHHB", function, address, count, len(data)) + data
        case MaskWriteRequest(function, address, and_mask, or_mask):
            return struct.pack(">BHHH", function, address, and_mask, or_mask)
        case ReadWriteRequest(function, read, write):
            places = (read.address, read.count, write.address, write.count)
            return struct.pack(">BHHHHB", function, *places, len(write.data)) + write.data


anything = st.one_of(
    st.binary(min_size=1, max_size=pdu.MAX_PDU),
    st.builds(
        lambda function, rest: bytes((function,)) + rest,
        st.sampled_from(KNOWN_FUNCTIONS),
        st.binary(max_size=30),
    ),
    st.builds(
        lambda function, count, byte_count, data: struct.pack(">BHHB", function, 0, count, byte_count) + data,
        st.sampled_from((15, 16)),
        st.integers(0, 40),
        st.integers(0, 80),
        st.binary(max_size=80),
    ),
)


@given(anything)
def test_any_bytes_are_a_request_that_says_the_same_bytes_or_exception_1_or_3(data: bytes) -> None:
    found = pdu.parse_request(data)
    if isinstance(found, int):
        assert found == (pdu.ILLEGAL_DATA_VALUE if data[0] in KNOWN_FUNCTIONS else pdu.ILLEGAL_FUNCTION)
    else:
        assert bytes_of(found) == data


@given(st.integers(0, 255), st.integers(1, 255))
def test_an_exception_has_two_bytes_and_the_high_bit(function: int, code: int) -> None:
    assert pdu.exception_response(function, code) == bytes((function | 0x80, code))


# --- what the client asks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "address", "count", "expected"),
    [
        (Table.COIL, 0x13, 0x25, "0100130025"),
        (Table.DISCRETE, 0xC4, 0x16, "0200c40016"),
        (Table.HOLDING, 0x6B, 3, "03006b0003"),
        (Table.INPUT, 8, 1, "0400080001"),
        (Table.COIL, 0, 2000, "01000007d0"),
        (Table.HOLDING, 65535, 1, "03ffff0001"),
        (Table.INPUT, 65411, 125, "04ff83007d"),
    ],
)
def test_a_read_request_is_these_bytes(table: Table, address: int, count: int, expected: str) -> None:
    assert pdu.read_request(table, address, count) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("table", "address", "count"),
    [
        (Table.COIL, 0, 0), (Table.COIL, 0, 2001), (Table.DISCRETE, 65535, 2), (Table.HOLDING, 0, 0),
        (Table.HOLDING, 0, 126), (Table.INPUT, 65412, 125), (Table.INPUT, -1, 1), (Table.INPUT, 65536, 1),
        (Table.HOLDING, 0, -1),
    ],
)  # fmt: skip
def test_a_read_that_no_device_may_be_asked_cannot_be_built(table: Table, address: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        pdu.read_request(table, address, count)


@pytest.mark.parametrize(
    ("address", "states", "multiple", "expected"),
    [
        (0xAC, [True], False, "0500acff00"),
        (0xAC, [False], False, "0500ac0000"),
        (0xAC, [True], True, "0f00ac00010101"),
        (0x13, [True, False, True, True, False, False, True, True, True, False], False, "0f0013000a02cd01"),
        (0, [False] * 8, False, "0f000000080100"),
        (65528, [True] * 8, False, "0ffff8000801ff"),
    ],
)
def test_a_write_of_coils_is_these_bytes(
    address: int, states: list[bool], multiple: bool, expected: str
) -> None:
    assert pdu.write_coils_request(address, states, multiple=multiple) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("address", "data", "multiple", "expected"),
    [
        (1, "0003", False, "0600010003"),
        (1, "0003", True, "100001000102 0003"),
        (1, "000a0102", False, "100001000204 000a0102"),
        (65535, "ffff", False, "06ffffffff"),
    ],
)
def test_a_write_of_registers_is_these_bytes(address: int, data: str, multiple: bool, expected: str) -> None:
    request = pdu.write_registers_request(address, bytes.fromhex(data), multiple=multiple)
    assert request == bytes.fromhex(expected)


@pytest.mark.parametrize("count", [0, 1969])
def test_more_coils_than_fit_a_request_or_none_cannot_be_built(count: int) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        pdu.write_coils_request(0, [True] * count)


@pytest.mark.parametrize("size", [0, 1, 3, 247, 248])
def test_more_registers_than_fit_a_request_none_or_a_half_cannot_be_built(size: int) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        pdu.write_registers_request(0, bytes(size))


@pytest.mark.parametrize(("address", "count"), [(65535, 2), (65536, 1), (-1, 1), (65500, 100)])
def test_a_write_beyond_the_last_address_cannot_be_built(address: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        pdu.write_coils_request(address, [True] * count)
    with pytest.raises(ValueError, match="cannot write"):
        pdu.write_registers_request(address, bytes(2 * count))


@given(st.integers(0, 0xFFFF), st.lists(st.booleans(), min_size=1, max_size=pdu.MAX_WRITE_BITS))
def test_coils_that_are_written_are_the_coils_that_a_server_reads(address: int, states: list[bool]) -> None:
    states = states[: 0x10000 - address]
    found = pdu.parse_request(pdu.write_coils_request(address, states))
    assert isinstance(found, WriteRequest)
    assert (found.table, found.address, found.count) == (Table.COIL, address, len(states))
    assert [found.data[i >> 3] >> (i & 7) & 1 == 1 for i in range(found.count)] == states


@given(st.integers(0, 0xFFFF), st.binary(min_size=1, max_size=pdu.MAX_WRITE_REGISTERS))
def test_registers_that_are_written_are_the_registers_that_a_server_reads(address: int, half: bytes) -> None:
    data = (half * 2)[: 2 * (0x10000 - address)]
    found = pdu.parse_request(pdu.write_registers_request(address, data))
    assert isinstance(found, WriteRequest)
    assert (found.table, found.address, found.data) == (Table.HOLDING, address, data)
    assert found.count * 2 == len(data)


# --- what the client believes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_hex", "reply_hex", "data_hex"),
    [
        ("0100130013", "0103cd6b05", "cd6b05"),
        ("0100000001", "010101", "01"),
        ("0100000008", "0101ff", "ff"),
        ("0100000009", "0102ff01", "ff01"),
        ("0200c40016", "0203acdb35", "acdb35"),
        ("03006b0003", "0306022b00000064", "022b00000064"),
        ("0400080001", "0402000a", "000a"),
        ("030000007d", "03fa" + "1234" * 125, "1234" * 125),
        ("01000007d0", "01fa" + "5a" * 250, "5a" * 250),
    ],
)
def test_the_reply_to_a_read_gives_its_data(request_hex: str, reply_hex: str, data_hex: str) -> None:
    found = pdu.check_read_reply(bytes.fromhex(request_hex), bytes.fromhex(reply_hex))
    assert found == bytes.fromhex(data_hex)


READ_REPLIES_THAT_ARE_NONE = {
    "it is empty": ("0300000002", ""),
    "it is another read function": ("0300000002", "0404aabbccdd"),
    "it is a coil read of as many bytes": ("0300000002", "0104aabbccdd"),
    "it is a write": ("0300000002", "1000000002"),
    "it is function 0": ("0300000002", "0004aabbccdd"),
    "it is the request": ("0300000002", "0300000002"),
    "it has only its function": ("0300000002", "03"),
    "it has no data": ("0300000002", "0300"),
    "it has one register fewer": ("0300000002", "0302aabb"),
    "it has one register more": ("0300000002", "0306aabbccddeeff"),
    "its byte count is odd": ("0300000002", "0303aabbcc"),
    "its byte count is one too many": ("0300000002", "0305aabbccddee"),
    "its byte count says more than there is": ("0300000002", "0306aabbccdd"),
    "its byte count says less than there is": ("0300000002", "0302aabbccdd"),
    "its byte count is 0 before the data": ("0300000002", "0300aabbccdd"),
    "its byte count is right and a byte is missing": ("0300000002", "0304aabbcc"),
    "its byte count is right and a byte trails": ("0300000002", "0304aabbccddee"),
    "it has a byte of coils fewer": ("0100000009", "0101ff"),
    "it has a byte of coils more": ("0100000008", "0102ff00"),
    "its coils are counted in bits": ("0100000008", "0108ff"),
    "it is the exception of another function": ("0300000002", "8402"),
    "it is an exception without code": ("0300000002", "83"),
    "it is an exception with more than its code": ("0300000002", "830200"),
    "it is an exception of function 0": ("0300000002", "8002"),
}


@pytest.mark.parametrize("why", READ_REPLIES_THAT_ARE_NONE)
def test_a_reply_to_a_read_is_none_if(why: str) -> None:
    request, reply = map(bytes.fromhex, READ_REPLIES_THAT_ARE_NONE[why])
    with pytest.raises(BadResponseError):
        pdu.check_read_reply(request, reply)


@pytest.mark.parametrize("request_hex", ["0100000001", "0200000001", "0300000001", "0400000001"])
def test_an_exception_of_any_code_is_told_with_its_code(request_hex: str) -> None:
    request = bytes.fromhex(request_hex)
    for code in range(256):
        with pytest.raises(DeviceExceptionError) as caught:
            pdu.check_read_reply(request, bytes((request[0] | 0x80, code)))
        assert caught.value.exception_code == code
        assert caught.value.function_code == request[0]
        assert f"{code:02X}" in str(caught.value)


def test_an_exception_is_told_by_the_name_that_the_specification_gives_it() -> None:
    with pytest.raises(DeviceExceptionError, match="illegal data address"):
        pdu.check_read_reply(bytes.fromhex("0300000001"), bytes.fromhex("8302"))
    with pytest.raises(DeviceExceptionError, match="gateway target device failed to respond"):
        pdu.check_read_reply(bytes.fromhex("0300000001"), bytes.fromhex("830b"))


WRITES_AND_ECHOES = {
    5: ("0500acff00", "0500acff00"),
    6: ("0600010003", "0600010003"),
    15: ("0f0013000a02cd01", "0f0013000a"),
    16: ("100001000204000a0102", "1000010002"),
}


@pytest.mark.parametrize("function", WRITES_AND_ECHOES)
def test_the_echo_of_a_write_is_its_reply(function: int) -> None:
    request, echo = map(bytes.fromhex, WRITES_AND_ECHOES[function])
    pdu.check_write_reply(request, echo)  # or it raises


@pytest.mark.parametrize("function", WRITES_AND_ECHOES)
def test_a_reply_to_a_write_that_differs_in_any_bit_is_none(function: int) -> None:
    request, echo = map(bytes.fromhex, WRITES_AND_ECHOES[function])
    for place in range(len(echo)):
        for bit in range(8):
            if (place, bit) == (0, 7):
                continue  # the bit of an exception: see below
            wrong = bytearray(echo)
            wrong[place] ^= 1 << bit
            with pytest.raises(BadResponseError):
                pdu.check_write_reply(request, bytes(wrong))


@pytest.mark.parametrize("function", WRITES_AND_ECHOES)
def test_a_reply_to_a_write_that_is_too_short_or_too_long_is_none(function: int) -> None:
    request, echo = map(bytes.fromhex, WRITES_AND_ECHOES[function])
    wrong = [echo[:size] for size in range(len(echo))]
    wrong += [echo + b"\0", request + b"\0", bytes((function | 0x80,)), bytes((function | 0x80, 2, 0))]
    wrong += [bytes((function | 0x80,)) + echo[1:]]
    if function in (15, 16):
        wrong.append(request)  # the data does not come back
    for reply in wrong:
        with pytest.raises(BadResponseError):
            pdu.check_write_reply(request, reply)


@pytest.mark.parametrize("function", WRITES_AND_ECHOES)
def test_an_exception_to_a_write_is_told_with_its_code(function: int) -> None:
    request = bytes.fromhex(WRITES_AND_ECHOES[function][0])
    for code in range(256):
        with pytest.raises(DeviceExceptionError) as caught:
            pdu.check_write_reply(request, bytes((function | 0x80, code)))
        assert (caught.value.function_code, caught.value.exception_code) == (function, code)


@pytest.mark.parametrize("function", WRITES_AND_ECHOES)
def test_the_exception_of_another_function_is_no_reply_to_a_write(function: int) -> None:
    request = bytes.fromhex(WRITES_AND_ECHOES[function][0])
    for other in {*KNOWN_FUNCTIONS, 0, 127} - {function}:
        with pytest.raises(BadResponseError):
            pdu.check_write_reply(request, bytes((other | 0x80, 2)))


replies = st.one_of(
    st.binary(max_size=pdu.MAX_PDU),
    st.builds(
        lambda head, data: bytes(head) + data,
        st.tuples(st.sampled_from((1, 2, 3, 4, 5, 6, 15, 16, 0x81, 0x83, 0x90)), st.integers(0, 12)),
        st.binary(max_size=12),
    ),
)


@given(st.sampled_from(tuple(READS.values())), st.integers(0, 1000), st.integers(1, 40), replies)
def test_whatever_comes_back_a_read_gives_all_of_its_bytes_or_an_error_of_ours(
    table: Table, address: int, count: int, reply: bytes
) -> None:
    request = pdu.read_request(table, address, count)
    expected = (count + 7) // 8 if table.is_bits else 2 * count
    try:
        data = pdu.check_read_reply(request, reply)
    except DeviceExceptionError:
        assert len(reply) == 2
        assert reply[0] == request[0] | 0x80
    except BadResponseError:
        assert reply[:2] != bytes((request[0], expected)) or len(reply) != 2 + expected
    else:
        assert reply == bytes((request[0], expected)) + data
        assert len(data) == expected


@given(st.sampled_from(tuple(WRITES_AND_ECHOES)), replies)
def test_whatever_comes_back_a_write_is_confirmed_by_its_echo_alone(function: int, reply: bytes) -> None:
    request, echo = map(bytes.fromhex, WRITES_AND_ECHOES[function])
    try:
        pdu.check_write_reply(request, reply)
    except DeviceExceptionError:
        assert len(reply) == 2
        assert reply[0] == function | 0x80
    except BadResponseError:
        assert reply != echo
    else:
        assert reply == echo
