"""Reads beside the four tables: file records (FC 20, 21), a queue (FC 24), the server id (FC 17). Sans-IO.

Layouts of the PDUs::

    read file record      14  07  06 file(2) record(2) count(2)
        response          14  2n+2  2n+1 06  registers
    write file record     15  7+2n  06 file(2) record(2) count(2) registers
        response          the request
    read FIFO queue       18  pointer address(2)
        response          18  2+2n (2)  n (2)  registers, 31 at most
    report server id      11
        response          11  n  bytes

Rules:

* In a plan each of them is a table. Its addresses are 32 bits: the file, or the pointer address of the
  queue, is the higher half (`Table.linear`); the record, or the place in the queue, is the lower one.
* Queue and server id are read whole. Their responses have a length of their own, so they become registers
  of a fixed number: first how many there are, then those, then zeros.
* Files are read and written a stretch of records at a time, as registers are; at most 121 and 122, since
  the byte counts end at F5 and FB.

Source: Modbus Application Protocol V1.1b3, 6.13 to 6.15 and 6.18.
"""

from __future__ import annotations

import struct

from fieldbus.errors import BadResponseError
from fieldbus.modbus.register_types import Table

REPORT_SERVER_ID = 17
READ_FILE_RECORD = 20
WRITE_FILE_RECORD = 21
READ_FIFO_QUEUE = 24

MAX_FILE_READ = 121
MAX_FILE_WRITE = 122
MAX_QUEUE = 31
MAX_SERVER_ID = 125
"""In registers."""

_REFERENCE_TYPE = 6
_FILE = struct.Struct(">BBBHHH")
_LONGEST = {READ_FIFO_QUEUE: 5 + 2 * MAX_QUEUE, REPORT_SERVER_ID: 253}
"""PDUs of responses that have a length of their own."""
SIZE_OF_WHOLE = {Table.FIFO: 1 + MAX_QUEUE, Table.SERVER_ID: 1 + MAX_SERVER_ID}
"""How many registers the tables have that are read whole, with the one that counts the others."""


def read_request(table: Table, address: int, count: int) -> bytes:
    """Return the PDU that reads a stretch of a file, or a queue or the server id as a whole."""
    high, low = divmod(address, 0x10000)
    if table is Table.SERVER_ID:
        return bytes((REPORT_SERVER_ID,))
    if table is Table.FIFO:
        return struct.pack(">BH", READ_FIFO_QUEUE, high)
    if table is not Table.FILE or not (1 <= count <= MAX_FILE_READ and low + count <= 0x10000 and high >= 1):
        raise ValueError(f"cannot read {count} from {table} {address}")
    return _FILE.pack(READ_FILE_RECORD, 7, _REFERENCE_TYPE, high, low, count)


def read_place(request: bytes) -> tuple[Table, int, int]:
    """Return table, address of 32 bits and count of the PDU of a read."""
    if request[0] == READ_FILE_RECORD:
        _, _, _, file, record, count = _FILE.unpack(request)
        return Table.FILE, Table.FILE.linear(record, file), count
    if request[0] == READ_FIFO_QUEUE:
        pointer = int.from_bytes(request[1:3], "big")
        return Table.FIFO, Table.FIFO.linear(0, pointer), SIZE_OF_WHOLE[Table.FIFO]
    return Table.SERVER_ID, 0, SIZE_OF_WHOLE[Table.SERVER_ID]


def write_request(address: int, data: bytes) -> bytes:
    """Return the PDU that writes registers to a file."""
    high, low = divmod(address, 0x10000)
    count = len(data) // 2
    if not (1 <= count <= MAX_FILE_WRITE and low + count <= 0x10000 and 1 <= high <= 0xFFFF):
        raise ValueError(f"cannot write {count} registers to file {high} record {low} in one request")
    return _FILE.pack(WRITE_FILE_RECORD, 7 + len(data), _REFERENCE_TYPE, high, low, count) + data


def answer_shape(request: bytes) -> tuple[bytes, int] | None:
    """Return what the PDU of a good response begins with, and its size, or the most that it may be.

    None: the request is none of these.
    """
    function_code = request[0]
    if function_code == READ_FILE_RECORD:
        size = 2 * _FILE.unpack(request)[5]
        return bytes((function_code, size + 2, size + 1, _REFERENCE_TYPE)), size + 4
    if function_code == WRITE_FILE_RECORD:
        return request, len(request)
    if function_code in _LONGEST:
        return bytes((function_code,)), _LONGEST[function_code]
    return None


def has_own_length(function_code: int) -> bool:
    """Return whether a response says itself how long it is."""
    return function_code in _LONGEST


def own_length(start: bytes) -> int | None:
    """Return how long a response is that says so itself; None while the byte that says it is missing.

    Args:
        start: the PDU's first bytes.
    """
    if start[0] == READ_FIFO_QUEUE:
        return None if len(start) < 3 else min(3 + int.from_bytes(start[1:3], "big"), _LONGEST[start[0]] + 1)
    return None if len(start) < 2 else 2 + start[1]


def is_whole(response: bytes) -> bool:
    """Return whether a response of its own length is as long as it says, and consistent."""
    if not response or response[0] not in _LONGEST or own_length(response) != len(response):
        return False
    if response[0] == READ_FIFO_QUEUE:
        return len(response) >= 5 and len(response) == 5 + 2 * int.from_bytes(response[3:5], "big")
    return len(response) >= 3


def data_of(request: bytes, response: bytes) -> bytes:
    """Return the registers in a response whose function was checked.

    Raises:
        BadResponseError: it does not belong to the request.
    """
    function_code = request[0]
    if function_code in _LONGEST:
        if not is_whole(response):
            raise BadResponseError(
                f"a response of {len(response)} bytes does not have the length that it says"
            )
        if function_code == READ_FIFO_QUEUE:
            return response[3:].ljust(2 * SIZE_OF_WHOLE[Table.FIFO], b"\0")
        count = (len(response) - 1) // 2
        return (count.to_bytes(2, "big") + response[2:]).ljust(2 * SIZE_OF_WHOLE[Table.SERVER_ID], b"\0")
    shape = answer_shape(request)
    if shape is None or len(response) != shape[1] or not response.startswith(shape[0]):
        raise BadResponseError(f"the response {response[:8].hex(' ')} does not have what was asked for")
    return response[4:]
