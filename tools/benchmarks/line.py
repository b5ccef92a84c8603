"""Devices behind a line that takes its time and says how long it was busy.

``python -m benchmarks.line serial BAUDRATE BITS DELAY_MS`` is an RS-485 line on a pty: RTU devices with
every unit id. ``python -m benchmarks.line tcp DELAY_MS`` is a Modbus TCP device. Both answer reads of
holding registers with registers that hold their own address. The first line that comes out is the pty's
path or the port. For each line that goes in one comes out, ``BUSY_S WINDOW_S REQUESTS SHORTEST_GAP_S``,
about the time since the line before it; it ends when its standard input does.

The serial line keeps the times of a real one, with BITS bits a character: the last byte of a request has
come so many character times after the first was written, the answer begins DELAY_MS later, and each of
its bytes can be read when its stop bit would be over (in steps of a few bytes, as from a UART with a FIFO).
It is busy from the first byte of the request to 3.5 characters after the last byte of the answer. The gap
is between the end of an answer and the next request. The TCP device is busy from the arrival of a request
until its answer, DELAY_MS later, has been sent.

It imports nothing of fieldbus.
"""

from __future__ import annotations

import os
import pty
import select
import socket
import struct
import sys
import time
import tty

_STEP = 4
"""Bytes of an answer that appear at once."""
_REQUEST = 8
"""Bytes of a request to read."""


class _Clerk:
    """Keeps the books, and prints them when asked."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        self._busy_s = 0.0
        self._requests = 0
        self._free_s = 0.0
        self._gap_s = float("inf")

    def note(self, began_s: float, answered_s: float, silence_s: float) -> None:
        """Take down that the line was busy."""
        if self._free_s:
            self._gap_s = min(self._gap_s, began_s - self._free_s)
        self._free_s = answered_s
        self._busy_s += answered_s + silence_s - began_s
        self._requests += 1

    def tell(self) -> None:
        """Print the books and begin new ones."""
        now_s = time.monotonic()
        print(self._busy_s, now_s - self._since_s, self._requests, self._gap_s, flush=True)
        self.__init__()


def _wait(source: int, clerk: _Clerk) -> None:
    """Return when there is something to read, having answered what was asked meanwhile."""
    while True:
        ready, _, _ = select.select([source, sys.stdin.fileno()], [], [])
        if sys.stdin.fileno() in ready:
            if not os.read(sys.stdin.fileno(), 100):
                sys.exit(0)
            clerk.tell()
        if source in ready:
            return


def _sleep_until(moment_s: float) -> None:
    time.sleep(max(0.0, moment_s - time.monotonic()))


def _registers(address: int, count: int) -> bytes:
    return struct.pack(f">{count}H", *[(address + index) & 0xFFFF for index in range(count)])


def _crc(data: bytes) -> bytes:
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value.to_bytes(2, "little")


def _serve_serial(baudrate: int, bits: int, delay_s: float) -> None:
    character_s = bits / baudrate
    silence_s = 3.5 * character_s if baudrate <= 19200 else 0.00175
    master, slave = pty.openpty()
    tty.setraw(slave)
    clerk = _Clerk()
    print(os.ttyname(slave), flush=True)
    while True:
        _wait(master, clerk)
        began_s = time.monotonic()
        request = os.read(master, 1024)
        while len(request) < _REQUEST and select.select([master], [], [], 1.0)[0]:
            request += os.read(master, 1024)
        if len(request) != _REQUEST or _crc(request[:-2]) != request[-2:] or request[1] != 3:
            print(f"not understood: {request.hex(' ')}", file=sys.stderr)
            continue
        address, count = struct.unpack(">HH", request[2:6])
        answer = bytes((request[0], 3, 2 * count)) + _registers(address, count)
        answer += _crc(answer)
        starts_s = began_s + _REQUEST * character_s + delay_s
        for first in range(0, len(answer), _STEP):
            piece = answer[first : first + _STEP]
            _sleep_until(starts_s + (first + len(piece)) * character_s)
            os.write(master, piece)
        clerk.note(began_s, time.monotonic(), silence_s)


def _serve_tcp(delay_s: float) -> None:
    clerk = _Clerk()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            _wait(listener.fileno(), clerk)
            device, _ = listener.accept()
            device.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with device:
                _serve_connection(device, delay_s, clerk)


def _serve_connection(device: socket.socket, delay_s: float, clerk: _Clerk) -> None:
    while True:
        _wait(device.fileno(), clerk)
        began_s = time.monotonic()
        request = device.recv(12, socket.MSG_WAITALL)
        if len(request) < 12:
            return
        address, count = struct.unpack(">HH", request[8:])
        answer = request[6:8] + bytes((2 * count,)) + _registers(address, count)
        _sleep_until(began_s + delay_s)
        device.sendall(request[:4] + len(answer).to_bytes(2, "big") + answer)
        clerk.note(began_s, time.monotonic(), 0.0)


def _main(kind: str, *numbers: str) -> None:
    if kind == "serial":
        baudrate, bits, delay_ms = map(float, numbers)
        _serve_serial(int(baudrate), int(bits), delay_ms / 1000)
    else:
        _serve_tcp(float(numbers[0]) / 1000)


if __name__ == "__main__":
    _main(*sys.argv[1:])
