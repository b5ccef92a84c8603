"""One connection to Modbus devices, as a client: one request at a time, and what becomes of it.

Rules:

* What `answered` is called with is the PDU of a whole frame that answers the request, see `framing.py`;
  everything else is an error, in words that say what was wrong.
* One request at a time; the link sees to that.
* A request ends once: answered, failed, or the connection is lost.
* Serial lines: a request is sent when the line was silent for as long as frames must be apart, and what
  came before it is forgotten. Its time runs from when its last bit has left, and an answer is given the
  time that its own bits take.
* A garbled answer on a serial line is given up when nothing more came for `_GARBLED_S`: there is no need to
  wait for the timeout to know that nothing will come of it. (Where RTU frames travel over TCP, half an
  answer is waited for: the gap may be the network's.)

Design: callbacks, not coroutines. At a thousand polls a second each step of a task costs more than what it
does, and at one poll a second each costs a cold cache. The timeout is one timer per connection that looks
at a deadline when it fires, not one that is set and cancelled for every request.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.errors import (
    BadResponseError,
    LinkDownError,
    NotSentError,
    PeerIsBackError,
    RequestError,
    RequestTimeoutError,
)
from fieldbus.modbus import pdu
from fieldbus.modbus.framing import Ask, Framer

_GARBLED_S = 0.05
"""Longer than USB adapters hold bytes back (16 ms), shorter than anybody notices."""
_MOST_NOISE_S = 1.0
"""How long a line may go on talking by itself before a request on it fails."""
_BROADCAST_S = 0.1
"""What devices are given to carry out what was said to all of them."""

_TLS_WORDS = {
    "wrong version number": "the server does not speak TLS",
    "record layer failure": "the server does not speak TLS",
    "sslv3 alert handshake failure": "the server broke off (it may want a certificate of ours)",
    "tlsv1 alert handshake failure": "the server broke off (it may want a certificate of ours)",
    "tlsv13 alert certificate required": "the server wants a certificate of ours",
    "peer did not return a certificate": "the server wants a certificate of ours",
    "tlsv1 alert unknown ca": "the server does not know who signed our certificate",
    "sslv3 alert certificate expired": "the server says that our certificate has expired",
}
"""What people understand for what OpenSSL says."""


class Owner(Protocol):
    """Who asks on a line."""

    @property
    def clock(self) -> Clock:
        """The time that it goes by."""
        ...

    def answered(self, answer: bytes) -> None:
        """Take the PDU that answers the request; empty after a broadcast."""

    def failed(self, error: RequestError) -> None:
        """Learn that the request has no answer.

        After `BadResponseError` a stream of MBAP frames must be opened anew.
        """

    def lost(self, error: LinkDownError) -> None:
        """Learn that the connection is gone; a request under way ends by this."""


class Others(Protocol):
    """What is told of a line's bytes that are no part of a response to us, see `traffic.py`."""

    def begin(self) -> None:
        """Take up a new connection."""

    def sent(self, ask: Ask) -> None:
        """Learn that a request was sent."""

    def gave_up(self, ask: Ask, now_s: float) -> None:
        """Learn that a request was given up: its response may still come."""

    def heard(self, data: bytes, now_s: float) -> None:
        """Take bytes that are no part of the response to a request under way."""

    def is_shared(self, now_s: float) -> bool:
        """Return whether others ask on the line, too."""
        ...


class Line(asyncio.Protocol, asyncio.DatagramProtocol):
    """A connection over which frames travel, and the request under way."""

    def __init__(
        self,
        owner: Owner,
        framer: Framer,
        *,
        silence_s: float = 0.0,
        character_s: float = 0.0,
        is_serial: bool = False,
        heartbeat: bytes = b"",
    ) -> None:
        """Take how the line works.

        Args:
            silence_s: between frames.
            character_s: how long one character takes on a serial line, else 0.
            is_serial: whether there is a line with silent intervals, and not a stream.
            heartbeat: what the peer sends now and then between frames.
        """
        self.framer = framer
        self._owner = owner
        self._clock = owner.clock
        self._silence_s = silence_s
        self._character_s = character_s
        self._garbled_s = max(_GARBLED_S, 4 * character_s)
        self._is_serial = is_serial
        self._heartbeat = heartbeat
        self._held = b""
        """The begin of what may become a heartbeat."""
        self._answer_begin = b""
        self._transport: asyncio.Transport | asyncio.DatagramTransport | None = None
        self._is_datagram = False
        self._loop = asyncio.get_running_loop()
        self._ask: Ask | None = None
        self._timeout_s = 0.0
        self._sent = False
        self.has_sent = False
        """Whether bytes of the request under way may have left."""
        self._deadline_s = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._looks_at_s = 0.0
        """When it will look."""
        self._sender: asyncio.TimerHandle | None = None
        self._quiet_at_s = 0.0
        """When the line will have been silent for long enough."""
        self.settled_at_s = 0.0
        """When the line has been listened to for long enough."""
        self._heard_at_s = 0.0
        self._traffic: Others | None = None
        self.where: str | None = None
        """The other side's name, if it is not the one that was asked for first."""
        self.is_lost = False
        self.is_spoilt = False
        """Whether bytes came that belong to no answer."""

    @property
    def is_stream(self) -> bool:
        """Whether one wrong frame makes all behind it doubtful."""
        return not self._is_serial and not self._is_datagram

    def ask(self, ask: Ask, timeout_s: float) -> None:
        """Send a request; `answered`, `failed` or `lost` will be called, never before this returns."""
        self._ask = ask
        self._timeout_s = timeout_s
        self.has_sent = False
        if not self._is_serial:
            framer = self.framer
            if framer.fault is not None or not framer.is_empty:
                # Something came that nobody had asked for; what comes next may be its rest.
                self._loop.call_soon(self._spoilt)
                return
            now_s = self._clock.monotonic_s()
            self._write(framer.wrap(ask))
            self._deadline_s = now_s + timeout_s
            if self._watchdog is None or self._looks_at_s > self._deadline_s:
                self._watch(timeout_s)
            return
        self._sent = self.is_spoilt = False
        now_s = self._clock.monotonic_s()
        self._deadline_s = now_s + timeout_s + _MOST_NOISE_S
        self._send_when_quiet()

    def settle(self, seconds: float) -> None:
        """Let the line be silent for a while before the first request: who had it before may have asked."""
        self.settled_at_s = self._clock.monotonic_s() + seconds

    def watch_others(self, traffic: Others) -> None:
        """Tell from now on what is heard and is no response to us, where responses have no number."""
        if self._is_serial:
            self._traffic = traffic
            traffic.begin()

    def close(self) -> None:
        """End the connection; nothing is called any more."""
        self._give_up()
        self._ask = None
        self.is_lost = True
        for timer in (self._watchdog, self._sender):
            if timer is not None:
                timer.cancel()
        self._watchdog = self._sender = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    # --- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = transport  # type: ignore[assignment]
        self._is_datagram = hasattr(transport, "sendto")  # no common base class says so

    def connection_lost(self, exc: Exception | None) -> None:
        """Learn that the peer has gone."""
        if not self.is_lost:
            self.drop("connection closed by the peer" if exc is None else connection_reason(exc))

    def eof_received(self) -> bool:
        """Close when the peer does."""
        return False

    def error_received(self, exc: Exception) -> None:
        """Learn that a datagram did not get there."""
        self.drop(connection_reason(exc))

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Take a datagram, which holds one frame."""
        framer = self.framer
        answer = framer.feed(data)
        framer.clear()
        framer.fault = None  # a wrong datagram says nothing of the next one
        if answer is not None and self._ask is not None:
            self._ask = None
            self._owner.answered(answer)

    def data_received(self, data: bytes) -> None:
        """Take a piece of the stream."""
        if self._heartbeat:
            self._pass_heartbeats(data)
        elif self._is_serial:
            self._hear(data)
        else:
            self._read(data)

    def _pass_heartbeats(self, data: bytes) -> None:
        """Take a piece of a stream with heartbeats: the same bytes inside a frame are the frame's own."""
        take = self._hear if self._is_serial else self._read
        heartbeat, data, self._held = self._heartbeat, self._held + data, b""
        while data and not self.is_lost:
            if self.framer.is_empty and not self._begins_answer(data):
                if data.startswith(heartbeat):
                    data = data[len(heartbeat) :]
                    continue
                if heartbeat.startswith(data):
                    self._held = data  # half of one
                    return
            place = data.find(heartbeat[:1], 1)
            size = len(data) if place < 0 else place
            take(data[:size])
            data = data[size:]

    def _begins_answer(self, data: bytes) -> bool:
        """Return whether bytes are the begin of the answer rather than a heartbeat that looks like it."""
        begin = self._answer_begin
        return self._ask is not None and (data.startswith(begin) or begin.startswith(data))

    def _read(self, data: bytes) -> None:
        answer = self.framer.feed(data)
        if answer is not None:
            if self._ask is not None:
                self._ask = None
                self._owner.answered(answer)
        elif self.framer.fault is not None and self._ask is not None:
            self._fail(BadResponseError(self.framer.fault))

    def drop(self, reason: str, *, is_back: bool = False) -> None:
        """Give the connection up and say why; the peer may have come anew already."""
        self.close()
        self._owner.lost(PeerIsBackError(reason) if is_back else LinkDownError(reason))

    # --- serial lines

    def _hear(self, data: bytes) -> None:
        now_s = self._heard_at_s = self._clock.monotonic_s()
        self._quiet_at_s = now_s + self._silence_s
        ask = self._ask
        if ask is None or not self._sent or ask.unit_id == 0:
            if self._traffic is not None:
                self._traffic.heard(data, now_s)
            return  # noise, or an answer that nobody waits for
        answer = self.framer.feed(data)
        if answer is not None:
            self._ask = None
            if self._traffic is not None and (others := self.framer.others):
                self._traffic.heard(others, now_s)
            self._owner.answered(answer)
            return
        # A gap ends a frame on a line. On a stream it may be the network's; only noise is given up there.
        framer = self.framer
        self.is_spoilt = (self._character_s > 0 or framer.is_empty) and not framer.has_heard_itself
        if self.is_spoilt and self._traffic is not None and self._traffic.is_shared(now_s):
            self.is_spoilt = False  # what came was for others; ours still comes
        if self.is_spoilt and self._deadline_s > now_s + self._garbled_s:
            self._watch(self._garbled_s)

    def _send_when_quiet(self) -> None:
        self._sender = None
        ask = self._ask
        if ask is None or self._transport is None:
            return
        now_s = self._clock.monotonic_s()
        if now_s >= self._deadline_s:
            self._fail(NotSentError("the line is never silent"))
            return
        rest_s = max(self._quiet_at_s, self.settled_at_s) - now_s
        if rest_s > 0:
            self._sender = self._loop.call_later(rest_s, self._send_when_quiet)
            return
        frame = self.framer.wrap(ask)
        self._write(frame)
        if self._traffic is not None:
            self._traffic.sent(ask)
        sending_s = len(frame) * self._character_s
        answering_s = (ask.size + 3) * self._character_s
        self._sent = True
        self.is_spoilt = False
        self._quiet_at_s = now_s + sending_s + self._silence_s
        self._heard_at_s = now_s
        if ask.unit_id == 0:
            self._sender = self._loop.call_later(sending_s + _BROADCAST_S, self._broadcast)
            return
        wait_s = sending_s + answering_s + self._timeout_s
        self._deadline_s = now_s + wait_s
        self._watch(wait_s)

    def _broadcast(self) -> None:
        self._sender = None
        if self._ask is not None:
            self._ask = None
            self._owner.answered(b"")

    # --- the end of a request

    def _write(self, frame: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        self.has_sent = True
        if self._heartbeat:
            # As the request: unit id and function, or transaction id and protocol id.
            self._answer_begin = frame[: 2 if self._is_serial else 4]
        if self._is_datagram:
            transport.sendto(frame)  # type: ignore[union-attr]
        else:
            transport.write(frame)  # type: ignore[union-attr]

    def _watch(self, wait_s: float) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._looks_at_s = self._clock.monotonic_s() + wait_s
        self._watchdog = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        """Look whether the request under way has had its time."""
        self._watchdog = None
        if self._ask is None:
            return
        now_s = self._clock.monotonic_s()
        if self._is_serial and self._sent and self.is_spoilt:
            rest_s = self._heard_at_s + self._garbled_s - now_s
            if rest_s <= 0.001:
                self._fail(BadResponseError("the answer is garbled"))
                return
            rest_s = min(rest_s, max(self._deadline_s - now_s, 0.001))
        else:
            rest_s = self._deadline_s - now_s
        if now_s < self._deadline_s - 0.0005:
            self._watch(max(rest_s, 0.0005))
        elif not self._is_serial and not self.framer.is_empty:
            self._fail(BadResponseError("half a frame, then nothing"))
        elif self.framer.holds_back:
            self._fail(
                BadResponseError("what came may be the echo of the request: the response looks like it")
            )
        else:
            self._fail(RequestTimeoutError(self._timeout_s))

    def _give_up(self) -> None:
        """Give the request under way up: what came so far is not its response, which may still come."""
        ask, traffic = self._ask, self._traffic
        if ask is not None and traffic is not None and self._sent:
            now_s = self._clock.monotonic_s()
            traffic.gave_up(ask, now_s)
            if others := self.framer.others:
                traffic.heard(others, now_s)

    def _fail(self, error: RequestError) -> None:
        self._give_up()
        ask, self._ask = self._ask, None
        if ask is not None and self.framer.odd:  # a whole frame says more than that nothing else came
            try:
                pdu.check_write_reply(ask.pdu, self.framer.odd)
            except BadResponseError as wrong:
                error = wrong
        self._owner.failed(error)

    def _spoilt(self) -> None:
        if self._ask is not None:
            self._fail(NotSentError(self.framer.fault or "bytes that belong to no answer"))


def connection_reason(error: BaseException) -> str:
    """Return why a connection failed in the system's words, without addresses and numbers."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {tls_reason(error)}"
    if isinstance(error, ConnectionResetError) and not str(error):  # asyncio's own, during a TLS handshake
        return "connection closed by the peer"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # asyncio joins the failures of several addresses into one text of its own.
    if "refused" in text or "Errno 111" in text:
        return "connection refused"
    if "Errno 5]" in text or "returned no data" in text:  # pyserial, of an adapter that was unplugged
        return "the port is gone"
    return text[:1].lower() + text[1:]


def tls_reason(error: ssl.SSLError) -> str:
    """Return what OpenSSL found wrong, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message}"
    text = (error.reason or str(error)).lower().replace("_", " ")
    return _TLS_WORDS.get(text, text)
