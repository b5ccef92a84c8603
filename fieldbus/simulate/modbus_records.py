"""What a simulated device has beside its four tables: files, queues, and who it is."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from fieldbus.modbus import other_functions, pdu
from fieldbus.modbus.register_types import Table
from fieldbus.modbus.registers import RegisterPoint

_SERVER_ID = b"fieldbus simulator\xff"


class Records:
    """Answers FC 17, 20, 21 and 24 of one unit from the points that it has there.

    A queue holds as many entries as it has points for; a file has the records of its points.
    """

    def __init__(self, points: Iterable[RegisterPoint]) -> None:
        self._files: dict[int, int] = {}
        """Registers by their address of 32 bits."""
        self._queues: dict[int, int] = {}
        """How many entries each queue has, by its pointer address."""
        for point in points:
            if point.table is Table.FILE:
                self._files.update(dict.fromkeys(range(point.address, point.end), 0))
            elif point.table is Table.FIFO:
                pointer, place = divmod(point.address, 0x10000)
                self._queues[pointer] = max(self._queues.get(pointer, 0), place)

    def put(self, address: int, data: bytes) -> None:
        """Put registers into a file."""
        for index, (register,) in enumerate(struct.iter_unpack(">H", data)):
            self._files[address + index] = register

    def answer(self, request: bytes) -> bytes | None:
        """Return the PDU of the response; None to a request for something else."""
        function_code = request[0]
        if function_code == other_functions.REPORT_SERVER_ID:
            return bytes((function_code, len(_SERVER_ID))) + _SERVER_ID
        if function_code == other_functions.READ_FIFO_QUEUE:
            return self._queue(request)
        if function_code in (other_functions.READ_FILE_RECORD, other_functions.WRITE_FILE_RECORD):
            return self._records(request)
        return None

    def _queue(self, request: bytes) -> bytes:
        count = self._queues.get(int.from_bytes(request[1:3], "big"))
        if count is None or len(request) != 3:
            return pdu.exception_response(request[0], pdu.ILLEGAL_DATA_ADDRESS)
        return struct.pack(f">BHH{count}H", request[0], 2 + 2 * count, count, *range(count))

    def _records(self, request: bytes) -> bytes:
        if len(request) < 9 or request[1] != len(request) - 2:
            return pdu.exception_response(request[0], pdu.ILLEGAL_DATA_VALUE)
        file, record, count = struct.unpack_from(">HHH", request, 3)
        places = range(file << 16 | record, (file << 16 | record) + count)
        if request[2] != 6 or any(place not in self._files for place in places):
            return pdu.exception_response(request[0], pdu.ILLEGAL_DATA_ADDRESS)
        if request[0] == other_functions.WRITE_FILE_RECORD:
            if len(request) != 9 + 2 * count:
                return pdu.exception_response(request[0], pdu.ILLEGAL_DATA_VALUE)
            self.put(places.start, request[9:])
            return request
        data = b"".join(self._files[place].to_bytes(2, "big") for place in places)
        return bytes((request[0], len(data) + 2, len(data) + 1, 6)) + data
