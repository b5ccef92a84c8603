"""One Modbus TCP connection as a client. The only file that knows pymodbus' client.

Rules:

* What comes out of `request` is the PDU that answers the request: right transaction, right unit,
  protocol 0, whole. Everything else is an error, in words that say what was wrong.
* A reply to an earlier request (it came after its timeout, or twice) is passed over.
* When the connection ends, the waiting request fails at once.
* One request at a time; the link sees to that.

Design: pymodbus brings the transport, the frame and the request. Three things of it are replaced,
because each was measured to give a wrong value, a lost second or a lost cancellation:

* its framer takes any reply with transaction id 0 and waits for ever behind a wrong protocol id;
  `_StrictFramer` says what is wrong with a frame, and keeps the bytes instead of decoding register
  by register;
* its ``execute`` waits the whole timeout when the peer hangs up; here the future fails when the
  transport does;
* its ``execute`` waits in ``asyncio.wait_for``, which on Python 3.11 can swallow a cancellation.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.framer.socket import FramerSocket
from pymodbus.pdu import DecodePDU, ModbusPDU

from fieldbus.errors import BadResponseError, LinkDownError, RequestTimeoutError

# What pymodbus would say is said better by the gateway, once.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)

_BUFFER_SIZE = 1 << 20
"""More than the event loop reads at once: pymodbus throws away what exceeds it, unseen."""
_LATE_REPLIES = 64
"""How many requests ago an answer may belong to, to count as late and not as wrong."""


class _RawRequest(ModbusPDU):
    """A request whose bytes are known already."""

    def __init__(self, unit_id: int, pdu: bytes) -> None:
        super().__init__(dev_id=unit_id)
        self.function_code = pdu[0]
        self._data = pdu[1:]

    def encode(self) -> bytes:
        return self._data


class _RawReply(ModbusPDU):
    """A reply as it came, or what was wrong with it."""

    def __init__(self, pdu: bytes, fault: str | None = None) -> None:
        self.pdu = pdu
        self.fault = fault


class _StrictFramer(FramerSocket):
    """Cuts the stream into frames and trusts none of them."""

    def __init__(self) -> None:
        super().__init__(DecodePDU(False))
        self.issued: deque[int] = deque(maxlen=_LATE_REPLIES)
        """Transaction ids of the last requests: an answer to one of them is late, not wrong."""
        self.fault: str | None = None
        """Why nothing more that comes on this connection can be believed."""

    def handleFrame(  # noqa: N802 - pymodbus names it
        self, data: bytes, exp_devid: int, exp_tid: int
    ) -> tuple[int, ModbusPDU | None]:
        used, size = 0, len(data)
        reply: _RawReply | None = None
        while size - used >= 4 and self.fault is None:
            protocol_id = data[used + 2] << 8 | data[used + 3]
            if protocol_id:
                self.fault = f"protocol id {protocol_id}"
                break
            if size - used < 6:
                break
            length = data[used + 4] << 8 | data[used + 5]
            if not 3 <= length <= 254:
                self.fault = f"length {length}"
                break
            end = used + 6 + length
            if end > size:
                break
            transaction_id = data[used] << 8 | data[used + 1]
            if transaction_id not in self.issued:
                self.fault = f"transaction id {transaction_id} for {exp_tid}"
            elif transaction_id == exp_tid and reply is None:
                if data[used + 6] == exp_devid:
                    reply = _RawReply(data[used + 7 : end])
                else:
                    self.fault = f"unit id {data[used + 6]} for {exp_devid}"
            used = end
        if self.fault is not None:
            return size, reply or _RawReply(b"", self.fault)
        return used, reply


class ModbusTcpConnection:
    """A TCP connection to a Modbus server, opened and closed at will."""

    def __init__(self, on_lost: Callable[[], None] = lambda: None) -> None:
        """Take what is called when the peer closes the connection.

        Args:
            on_lost: called in the event loop, not while a request waits (that fails instead).
        """
        self._client: AsyncModbusTcpClient | None = None
        self._framer = _StrictFramer()
        self._waiting: asyncio.Future[_RawReply] | None = None
        self._on_lost = on_lost
        self.is_lost = False
        """Whether the peer has closed the connection."""

    async def open(self, host: str, port: int, timeout_s: float) -> None:
        """Connect.

        Raises:
            LinkDownError: with the system's own words for why.
        """
        client = AsyncModbusTcpClient(
            host,
            port=port,
            timeout=timeout_s,
            retries=0,
            reconnect_delay=0,
            trace_connect=self._on_connect,
        )
        self._framer = _StrictFramer()
        client.ctx.framer = self._framer
        client.ctx.max_buffer_size = _BUFFER_SIZE
        self.is_lost = False
        try:
            async with asyncio.timeout(timeout_s):
                await client.ctx.call_create()
        except TimeoutError:
            client.close()
            raise LinkDownError("no answer to the connection request") from None
        except OSError as error:
            client.close()
            raise LinkDownError(connection_reason(error)) from error
        self._client = client

    async def request(self, unit_id: int, pdu: bytes, timeout_s: float) -> bytes:
        """Send a request PDU and return the PDU that answers it, unchecked against its contents.

        Raises:
            RequestTimeoutError: no answer in time; the connection stays usable.
            BadResponseError: what came is no answer; the connection must be reopened.
            LinkDownError: the connection is gone.
        """
        client = self._client
        if client is None or self.is_lost or client.ctx.transport is None:
            raise LinkDownError("connection closed by the peer")
        ctx = client.ctx
        if self._framer.fault is not None or ctx.recv_buffer:
            # Something came that nobody had asked for; what comes next may be its rest.
            raise BadResponseError(self._framer.fault or "bytes that belong to no answer")
        request = _RawRequest(unit_id, pdu)
        request.transaction_id = ctx.getNextTID()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_RawReply] = loop.create_future()
        ctx.response_future = self._waiting = future
        self._framer.issued.append(request.transaction_id)
        ctx.pdu_send(request)
        timer = loop.call_later(timeout_s, _expire, future, timeout_s)
        try:
            reply = await future
        except RequestTimeoutError:
            if ctx.recv_buffer:
                raise BadResponseError("half a frame, then nothing") from None
            raise
        finally:
            timer.cancel()
            self._waiting = None
        if reply.fault is not None:
            raise BadResponseError(reply.fault)
        return reply.pdu

    def close(self) -> None:
        """Close; safe at any time."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _on_connect(self, is_connected: bool) -> None:
        if is_connected:
            return
        self.is_lost = True
        if self._waiting is None:
            self._on_lost()
        elif not self._waiting.done():
            self._waiting.set_exception(LinkDownError("connection closed by the peer"))


def _expire(future: asyncio.Future[_RawReply], timeout_s: float) -> None:
    if not future.done():
        future.set_exception(RequestTimeoutError(timeout_s))


def connection_reason(error: OSError) -> str:
    """Return why a connection failed in the system's words, without addresses and numbers."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    text = error.strerror or str(error)
    # asyncio joins the failures of several addresses into one text of its own.
    if "refused" in text or "Errno 111" in text:
        return "connection refused"
    return text[:1].lower() + text[1:]
