"""Modbus requests, responses and exceptions, sans-IO, for both sides of the wire.

Layout of a frame on TCP (MBAP header, then the PDU)::

    transaction id   2 bytes   echoed by the server
    protocol id      2 bytes   0
    length           2 bytes   of what follows: 1 + PDU, so 2..254
    unit id          1 byte
    PDU              1..253    function code, data

Rules:

* Whoever reads a stream can be wrong about where a frame begins only once: a protocol id other than
  0 or a length outside 2..254 ends the connection, because nothing behind it can be trusted.
* A request is checked in the order of Modbus Application Protocol V1.1b3: function code (exception
  01), quantity and value (03), address (02), execution (04). `parse_request` does the first two,
  whoever owns the registers the others.
* A reply is checked against its request before a value leaves it: function code, byte count, echoed
  address and quantity. A reply that differs in any of them is no reply.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from fieldbus.errors import BadResponseError, DeviceExceptionError
from fieldbus.modbus import other_functions
from fieldbus.modbus.registers import Table

MAX_PDU = 253
MBAP_SIZE = 7

ILLEGAL_FUNCTION = 0x01
ILLEGAL_DATA_ADDRESS = 0x02
ILLEGAL_DATA_VALUE = 0x03
SERVER_DEVICE_FAILURE = 0x04
ACKNOWLEDGE = 0x05
SERVER_DEVICE_BUSY = 0x06
GATEWAY_PATH_UNAVAILABLE = 0x0A
GATEWAY_TARGET_FAILED_TO_RESPOND = 0x0B

EXCEPTION_NAMES = {
    0x01: "illegal function",
    0x02: "illegal data address",
    0x03: "illegal data value",
    0x04: "server device failure",
    0x05: "acknowledge",
    0x06: "server device busy",
    0x08: "memory parity error",
    0x0A: "gateway path unavailable",
    0x0B: "gateway target device failed to respond",
}

READ_COILS = 1
READ_DISCRETE_INPUTS = 2
READ_HOLDING_REGISTERS = 3
READ_INPUT_REGISTERS = 4
WRITE_SINGLE_COIL = 5
WRITE_SINGLE_REGISTER = 6
DIAGNOSTICS = 8
WRITE_MULTIPLE_COILS = 15
WRITE_MULTIPLE_REGISTERS = 16
MASK_WRITE_REGISTER = 22
READ_WRITE_MULTIPLE_REGISTERS = 23
ENCAPSULATED_INTERFACE = 43
READ_DEVICE_IDENTIFICATION = 14
"""The only encapsulated interface (MEI type) that a server of ours has."""

READING = frozenset((1, 2, 3, 4, 17, 20, 24))
"""Functions of requests that only read."""
WRITING = frozenset((5, 6, 15, 16, 22, 23))
"""Functions that change something in the server."""

MAX_WRITE_REGISTERS = 123
MAX_WRITE_BITS = 1968

_MBAP = struct.Struct(">HHHB")
_READ = struct.Struct(">BHH")
_READ_TABLES = {1: Table.COIL, 2: Table.DISCRETE, 3: Table.HOLDING, 4: Table.INPUT}


class Frame(NamedTuple):
    """One MBAP frame."""

    transaction_id: int
    unit_id: int
    pdu: bytes


class MbapReader:
    """Cuts a byte stream into frames, however it arrives.

    After a fault (see `fault`) it takes nothing more: the connection is to be closed.
    """

    __slots__ = ("_buffer", "fault")

    def __init__(self) -> None:
        self._buffer = b""
        self.fault: str | None = None
        """Why the stream cannot be trusted any longer, once that is so."""

    @property
    def is_between_frames(self) -> bool:
        """Whether no part of a frame is waiting for its rest."""
        return not self._buffer

    def feed(self, data: bytes, now_s: float = 0.0) -> list[Frame]:
        """Take bytes and return the frames that they complete, whatever the clock says."""
        if self.fault is not None:
            return []
        buffer = self._buffer + data if self._buffer else data
        frames: list[Frame] = []
        position, size = 0, len(buffer)
        while size - position >= 6:
            protocol_id = buffer[position + 2] << 8 | buffer[position + 3]
            length = buffer[position + 4] << 8 | buffer[position + 5]
            if protocol_id != 0:
                self.fault = f"protocol id {protocol_id}"
                break
            if not 2 <= length <= MAX_PDU + 1:
                self.fault = f"length {length}"
                break
            end = position + 6 + length
            if end > size:
                break
            transaction_id = buffer[position] << 8 | buffer[position + 1]
            frames.append(Frame(transaction_id, buffer[position + 6], buffer[position + 7 : end]))
            position = end
        self._buffer = b"" if self.fault else buffer[position:]
        return frames


def frame(transaction_id: int, unit_id: int, pdu: bytes) -> bytes:
    """Return a PDU with its MBAP header."""
    return _MBAP.pack(transaction_id, 0, len(pdu) + 1, unit_id) + pdu


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """FC 1, 2, 3, 4."""

    function_code: int
    table: Table
    address: int
    count: int


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """FC 5, 6, 15, 16."""

    function_code: int
    table: Table
    address: int
    count: int
    data: bytes
    """Registers as on the wire, or bits packed from the least significant."""


@dataclass(frozen=True, slots=True)
class MaskWriteRequest:
    """FC 22: ``register = (register and and_mask) or (or_mask and not and_mask)``."""

    function_code: int
    address: int
    and_mask: int
    or_mask: int


@dataclass(frozen=True, slots=True)
class ReadWriteRequest:
    """FC 23: the write is done before the read."""

    function_code: int
    read: ReadRequest
    write: WriteRequest


Request = ReadRequest | WriteRequest | MaskWriteRequest | ReadWriteRequest


def parse_request(pdu: bytes) -> Request | int:
    """Return the request in a PDU, or the code of the exception that answers it (01 or 03)."""
    function_code = pdu[0]
    size = len(pdu)
    if function_code in _READ_TABLES:
        if size != 5:
            return ILLEGAL_DATA_VALUE
        _, address, count = _READ.unpack(pdu)
        if not 1 <= count <= (2000 if function_code <= READ_DISCRETE_INPUTS else 125):
            return ILLEGAL_DATA_VALUE
        return ReadRequest(function_code, _READ_TABLES[function_code], address, count)
    if function_code in (WRITE_SINGLE_COIL, WRITE_SINGLE_REGISTER):
        if size != 5:
            return ILLEGAL_DATA_VALUE
        _, address, value = _READ.unpack(pdu)
        if function_code == WRITE_SINGLE_REGISTER:
            return WriteRequest(function_code, Table.HOLDING, address, 1, pdu[3:5])
        if value not in (0x0000, 0xFF00):
            return ILLEGAL_DATA_VALUE
        return WriteRequest(function_code, Table.COIL, address, 1, b"\x01" if value else b"\x00")
    if function_code in (WRITE_MULTIPLE_COILS, WRITE_MULTIPLE_REGISTERS):
        return _parse_write_multiple(pdu)
    if function_code == MASK_WRITE_REGISTER:
        if size != 7:
            return ILLEGAL_DATA_VALUE
        return MaskWriteRequest(*struct.unpack(">BHHH", pdu))
    if function_code == READ_WRITE_MULTIPLE_REGISTERS:
        return _parse_read_write(pdu)
    return ILLEGAL_FUNCTION


def _parse_write_multiple(pdu: bytes) -> Request | int:
    if len(pdu) < 6:
        return ILLEGAL_DATA_VALUE
    function_code, address, count, byte_count = struct.unpack_from(">BHHB", pdu)
    is_bits = function_code == WRITE_MULTIPLE_COILS
    expected = (count + 7) // 8 if is_bits else count * 2
    limit = MAX_WRITE_BITS if is_bits else MAX_WRITE_REGISTERS
    if not 1 <= count <= limit or byte_count != expected or len(pdu) != 6 + byte_count:
        return ILLEGAL_DATA_VALUE
    table = Table.COIL if is_bits else Table.HOLDING
    return WriteRequest(function_code, table, address, count, pdu[6:])


def _parse_read_write(pdu: bytes) -> Request | int:
    if len(pdu) < 10:
        return ILLEGAL_DATA_VALUE
    code, read_at, read_count, write_at, write_count, byte_count = struct.unpack_from(">BHHHHB", pdu)
    if (
        not 1 <= read_count <= 125
        or not 1 <= write_count <= 121
        or byte_count != write_count * 2
        or len(pdu) != 10 + byte_count
    ):
        return ILLEGAL_DATA_VALUE
    return ReadWriteRequest(
        code,
        ReadRequest(code, Table.HOLDING, read_at, read_count),
        WriteRequest(code, Table.HOLDING, write_at, write_count, pdu[10:]),
    )


def exception_response(function_code: int, exception_code: int) -> bytes:
    """Return the PDU of an exception."""
    return bytes((function_code | 0x80, exception_code))


def read_request(table: Table, address: int, count: int) -> bytes:
    """Return the PDU that reads `count` bits or registers."""
    if not table.is_numbered:
        return other_functions.read_request(table, address, count)
    limit = 2000 if table.is_bits else 125
    if not (1 <= count <= limit and address >= 0 and address + count <= 0x10000):
        raise ValueError(f"cannot read {count} from {table} {address}")
    return _READ.pack(table.read_function, address, count)


def read_place(request: bytes) -> tuple[Table, int, int]:
    """Return table, address and count of the PDU of a read."""
    if request[0] not in _READ_TABLES:
        return other_functions.read_place(request)
    function_code, address, count = _READ.unpack(request)
    return _READ_TABLES[function_code], address, count


def write_coils_request(address: int, states: list[bool], *, multiple: bool = False) -> bytes:
    """Return the PDU that writes coils: FC 5 for one, else FC 15."""
    if not 1 <= len(states) <= MAX_WRITE_BITS or not 0 <= address <= 0x10000 - len(states):
        raise ValueError(f"cannot write {len(states)} coils from {address} in one request")
    if len(states) == 1 and not multiple:
        return _READ.pack(WRITE_SINGLE_COIL, address, 0xFF00 if states[0] else 0)
    packed = sum(1 << index for index, state in enumerate(states) if state)
    data = packed.to_bytes((len(states) + 7) // 8, "little")
    return struct.pack(">BHHB", WRITE_MULTIPLE_COILS, address, len(states), len(data)) + data


def write_registers_request(address: int, data: bytes, *, multiple: bool = False) -> bytes:
    """Return the PDU that writes registers: FC 6 for one, else FC 16."""
    is_legal = 2 <= len(data) <= 2 * MAX_WRITE_REGISTERS and len(data) % 2 == 0
    if not is_legal or not 0 <= address <= 0x10000 - len(data) // 2:
        raise ValueError(f"cannot write {len(data)} bytes from {address} in one request")
    if len(data) == 2 and not multiple:
        return struct.pack(">BH", WRITE_SINGLE_REGISTER, address) + data
    count = len(data) // 2
    return struct.pack(">BHHB", WRITE_MULTIPLE_REGISTERS, address, count, len(data)) + data


def mask_write_request(address: int, and_mask: int, or_mask: int) -> bytes:
    """Return the PDU of FC 22, which changes single bits of a register."""
    return struct.pack(">BHHH", MASK_WRITE_REGISTER, address, and_mask, or_mask)


def answer_shape(request: bytes, width: int = 16) -> tuple[bytes, int]:
    """Return what the PDU of a good answer begins with, and its size.

    Args:
        request: the PDU that asks.
        width: how many bits of data an address of a register table has.

    Raises:
        ValueError: it is no request that a client of ours makes.
    """
    function_code = request[0]
    if function_code in _READ_TABLES:
        _, _, count = _READ.unpack(request)
        size = count * width // 8 if function_code >= READ_HOLDING_REGISTERS else (count + 7) // 8
        return bytes((function_code, size)), size + 2
    if function_code in (
        WRITE_SINGLE_COIL,
        WRITE_SINGLE_REGISTER,
        WRITE_MULTIPLE_COILS,
        WRITE_MULTIPLE_REGISTERS,
    ):
        return request[:5], 5
    if function_code == MASK_WRITE_REGISTER:
        return request, 7
    shape = other_functions.answer_shape(request)
    if shape is None:
        raise ValueError(f"function {function_code} is none that we ask for")
    return shape


def check_read_reply(request: bytes, reply: bytes, width: int = 16) -> bytes:
    """Return the data bytes of the reply to a read.

    Args:
        request: the PDU that asked.
        reply: the PDU that came.
        width: how many bits of data an address of a register table has.

    Raises:
        DeviceExceptionError: the device refused.
        BadResponseError: the reply does not belong to the request.
    """
    if request[0] not in _READ_TABLES:
        check_function(request[0], reply)
        return other_functions.data_of(request, reply)
    function_code, _, count = _READ.unpack(request)
    check_function(function_code, reply)
    expected = count * width // 8 if function_code >= READ_HOLDING_REGISTERS else (count + 7) // 8
    if len(reply) != expected + 2 or reply[1] != expected:
        said = reply[1] if len(reply) > 1 else 0
        raise BadResponseError(
            f"asked for {expected} bytes, the reply has {max(0, len(reply) - 2)} and says {said}"
        )
    return reply[2:]


def check_write_reply(request: bytes, reply: bytes) -> None:
    """Check the reply to a write: it echoes the first five bytes of the request, all of FC 22.

    Raises:
        DeviceExceptionError: the device refused.
        BadResponseError: the reply does not belong to the request.
    """
    check_function(request[0], reply)
    echo, _ = answer_shape(request)
    if reply != echo:
        raise BadResponseError(_difference(echo, reply))


def _difference(echo: bytes, reply: bytes) -> str:
    """Return what is wrong in the reply to a write."""
    if len(reply) != len(echo):
        return f"{len(reply)} bytes in the response, {len(echo)} were expected"
    names = ["address", "value"] if echo[0] in WRITING else []
    if echo[0] in (WRITE_MULTIPLE_COILS, WRITE_MULTIPLE_REGISTERS):
        names[1] = "quantity"
    elif echo[0] == MASK_WRITE_REGISTER:
        names[1:] = ["AND mask", "OR mask"]
    for place, name in enumerate(names):
        at = slice(1 + 2 * place, 3 + 2 * place)
        said, sent = int.from_bytes(reply[at], "big"), int.from_bytes(echo[at], "big")
        if said != sent:
            return f"{name} {said} in the response, {sent} was written"
    return f"the response {reply.hex(' ')} does not repeat {echo.hex(' ')}"


def check_function(function_code: int, reply: bytes) -> None:
    """Check that a reply is one to a function.

    Raises:
        DeviceExceptionError: the device refused.
        BadResponseError: the reply does not belong to the request.
    """
    if not reply:
        raise BadResponseError("the reply is empty")
    if reply[0] == function_code | 0x80:
        if len(reply) != 2:
            raise BadResponseError(f"an exception of {len(reply)} bytes")
        code = reply[1]
        raise DeviceExceptionError(function_code, code, EXCEPTION_NAMES.get(code, "unknown"))
    if reply[0] != function_code:
        raise BadResponseError(f"function {reply[0]} in the response, {function_code} was sent")
