"""Connections of masters: what arrives on one of them, and the answers on their way back.

====================  ======================================================================
`StreamSession`       a TCP connection: MBAP frames, with TLS or without, or RTU frames
`DatagramSession`     a UDP port: one MBAP frame a datagram, all masters alike
`LineSession`         a serial port
====================  ======================================================================

Rules:

* All requests that arrive together are answered, in order, in one write. After `FRAMES_PER_TURN` of them
  other connections have their turn.
* Who asks without reading the answers is not listened to until it has read. What would have to wait for a
  datagram or a serial port that takes no more is dropped and counted.
* On a serial line an answer waits for the silence that divides frames, so that other stations, and the
  master's driver, have heard the end of the request.

Design: a protocol object per connection and no task: ten thousand silent connections cost their buffers
and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from fieldbus.clock import Clock
from fieldbus.modbus.pdu import Frame
from fieldbus.modbus.server_access import Right
from fieldbus.modbus.server_framing import RequestFramer, datagram_request
from fieldbus.modbus.server_tls import TlsChannel

FRAMES_PER_TURN = 100
_MOST_ANSWERS = 16
"""Answers that wait for a serial port, at most."""


class Service(Protocol):
    """What sessions need of the link: whoever has the registers."""

    @property
    def clock(self) -> Clock:
        """The time that it goes by."""
        ...

    def admits(self, address: object) -> bool:
        """Return whether a peer at an address is listened to; count it if not."""
        ...

    def enter(self, session: StreamSession) -> None:
        """Take a new connection."""

    def touch(self, session: StreamSession) -> None:
        """Learn that a connection sent a whole request."""

    def leave(self, session: StreamSession) -> None:
        """Forget a connection that ended."""

    def right_with(self, certificate: bytes) -> Right:
        """Return what whoever showed a certificate may do."""
        ...

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a total."""

    def answer(self, request: Frame, right: Right, *, is_line: bool) -> bytes | None:
        """Return the response PDU to a request, None if it gets none."""
        ...


class StreamSession(asyncio.Protocol):
    """One master's connection."""

    def __init__(self, service: Service, framer: RequestFramer, tls: TlsChannel | None = None) -> None:
        self._service = service
        self._clock = service.clock
        self._framer = framer
        self._tls = tls
        self._right = Right.READWRITE if tls is None else Right.NONE
        self._transport: asyncio.Transport | None = None
        self._is_full = False
        """Whether answers wait for it to read them."""
        self._is_scheduled = False
        self._is_known = False
        """Whether the service has it among its sessions."""
        self._frames: deque[Frame] = deque()
        self._silence: asyncio.TimerHandle | None = None
        self.has_asked = False
        """Whether it ever sent a whole request."""
        self.active_s = self._clock.monotonic_s()
        """When it last sent a whole request, on the monotonic clock: a trickle of bytes is silence."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        if not self._service.admits((transport.get_extra_info("peername") or ("",))[0]):
            transport.abort()  # type: ignore[attr-defined]
            return
        self._transport = transport  # type: ignore[assignment]
        self._is_known = True
        self._service.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._transport = None
        if self._silence is not None:
            self._silence.cancel()
        if not self._is_known:
            return
        self._service.leave(self)
        if self._framer.fault is not None:
            self._service.count("bad_frames")
        if self._tls is not None and self._tls.fault is not None and not self._tls.is_open:
            self._service.count("sessions_refused")

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._tls is not None:
            data = self._decrypted(self._tls, transport, data)
        now_s = self._clock.monotonic_s()
        framer = self._framer
        frames = framer.feed(data, now_s)
        if framer.is_line:
            self._look_after_line()
        if frames:
            self._ask(frames, now_s)
        elif framer.fault is not None and not self._frames:
            transport.close()
        if self._tls is not None and self._tls.fault is not None and not self._frames:
            transport.close()

    def _decrypted(self, tls: TlsChannel, transport: asyncio.Transport, data: bytes) -> bytes:
        was_open = tls.is_open
        plain = tls.feed(data)
        if tls.is_open and not was_open:
            self._right = self._service.right_with(tls.certificate)
        outgoing = tls.outgoing()
        if outgoing:
            transport.write(outgoing)
        return plain

    def _ask(self, frames: list[Frame], now_s: float) -> None:
        self.active_s = now_s
        self.has_asked = True
        self._service.touch(self)
        is_working = bool(self._frames)
        self._frames.extend(frames)
        if not is_working:
            self._work()

    def _work(self) -> None:
        """Answer what was asked, some of it now and the rest when others have had their turn."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        frames, framer, service, right = self._frames, self._framer, self._service, self._right
        answers = []
        is_line = framer.is_line
        for _ in range(min(FRAMES_PER_TURN, len(frames))):
            request = frames.popleft()
            response = service.answer(request, right, is_line=is_line)
            if response is not None:
                answers.append(framer.wrap(request, response))
        data = b"".join(answers)
        if self._tls is not None:
            self._tls.wrap(data)
            data = self._tls.outgoing()
        if data:
            transport.write(data)
        if frames:
            transport.pause_reading()
            if not self._is_full and not self._is_scheduled:
                self._is_scheduled = True
                asyncio.get_running_loop().call_soon(self._work_on)
            return
        if framer.fault is not None or (self._tls is not None and self._tls.fault is not None):
            transport.close()
        elif not self._is_full:
            transport.resume_reading()

    def _work_on(self) -> None:
        self._is_scheduled = False
        if not self._is_full:
            self._work()

    def _look_after_line(self) -> None:
        """Count noise, and have the framer look at the clock when a silence would end something."""
        framer = self._framer
        if framer.discarded:
            self._service.count("bad_frames", framer.discarded)
            framer.discarded = 0
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        if framer.gap_s is not None and framer.is_waiting:
            self._silence = asyncio.get_running_loop().call_later(framer.gap_s, self._fall_silent)

    def _fall_silent(self) -> None:
        self._silence = None
        now_s = self._clock.monotonic_s()
        frames = self._framer.expire(now_s)
        self._look_after_line()
        if frames:
            self._ask(frames, now_s)

    def pause_writing(self) -> None:
        """Ask no more of a master that does not read its answers."""
        self._is_full = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Learn that they wait no longer."""
        self._is_full = False
        if self._transport is not None and not self._transport.is_closing():
            if not self._frames:
                self._transport.resume_reading()
            elif not self._is_scheduled:
                self._work()

    def end(self) -> None:
        """Drop the connection now."""
        if self._transport is not None:
            self._transport.abort()


class DatagramSession(asyncio.DatagramProtocol):
    """A UDP port."""

    def __init__(self, service: Service, on_lost: Callable[[str], None]) -> None:
        self._service = service
        self._on_lost = on_lost
        self._transport: asyncio.DatagramTransport | None = None
        self._is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._transport = None
        if exc is not None:
            self._on_lost(str(exc))

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Take what came."""
        service = self._service
        if not service.admits(addr[0]):
            return
        request = datagram_request(data)
        if request is None or self._transport is None or self._is_full:
            service.count("bad_frames" if request is None else "answers_dropped")
            return
        response = service.answer(request, Right.READWRITE, is_line=False)
        if response is not None:
            header = data[:4] + (len(response) + 1).to_bytes(2, "big") + data[6:7]
            self._transport.sendto(header + response, addr)

    def error_received(self, exc: Exception) -> None:
        """Learn that an answer did not arrive (its master is gone): nothing to do."""

    def pause_writing(self) -> None:
        """Learn that answers wait."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Learn that they wait no longer."""
        self._is_full = False


class LineSession(asyncio.Protocol):
    """A serial port, on which we are some of the stations."""

    def __init__(
        self, service: Service, framer: RequestFramer, silence_s: float, on_lost: Callable[[str], None]
    ) -> None:
        """Take the line.

        Args:
            service: whoever has the registers.
            framer: how frames look.
            silence_s: how long an answer waits after its request.
            on_lost: called with the reason when the port is gone.
        """
        self._service = service
        self._clock = service.clock
        self._framer = framer
        self._silence_s = silence_s
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._gap: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._answers: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._transport = None
        self._stop()
        self._on_lost("the serial port is gone")

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._answer(self._framer.feed(data, self._clock.monotonic_s()))

    def _answer(self, requests: list[Frame]) -> None:
        framer, service, loop = self._framer, self._service, asyncio.get_running_loop()
        if framer.discarded:
            service.count("bad_frames", framer.discarded)
            framer.discarded = 0
        for request in requests:
            response = service.answer(request, Right.READWRITE, is_line=True)
            if response is None:
                continue
            if len(self._answers) >= _MOST_ANSWERS or self._is_full:
                service.count("answers_dropped")
                continue
            self._answers.append(framer.wrap(request, response))
        if self._answers and self._sending is None:
            self._sending = loop.call_later(self._silence_s, self._send)
        if self._gap is not None:
            self._gap.cancel()
            self._gap = None
        if framer.gap_s is not None and framer.is_waiting:
            self._gap = loop.call_later(framer.gap_s, self._fall_silent)

    @property
    def _is_full(self) -> bool:
        """Whether the port takes no more."""
        return self._transport is None or self._transport.get_write_buffer_size() >= _MOST_ANSWERS

    def _send(self) -> None:
        self._sending = None
        answers, self._answers = self._answers, []
        if self._transport is not None:
            self._transport.write(b"".join(answers))

    def _fall_silent(self) -> None:
        self._gap = None
        self._answer(self._framer.expire(self._clock.monotonic_s()))

    def _stop(self) -> None:
        for timer in (self._gap, self._sending):
            if timer is not None:
                timer.cancel()
        self._gap = self._sending = None
        self._answers.clear()

    def end(self) -> None:
        """Give the port back."""
        transport, self._transport = self._transport, None
        self._stop()
        if transport is not None:
            transport.abort()
