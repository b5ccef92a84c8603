"""Devices that connect to us: who is waited for at which port, and who called.

Rules:

* A device names itself by the first bytes that it sends. Who names nobody that is waited for, or nobody in
  time, is hung up.
* The newest connection of a device is the one that lives.
* A device that calls before its link waits for it is kept for the link.

Design: all links with one listening port share a `DialInPort`: a modem does not know which of them it
belongs to.
"""

from __future__ import annotations

import asyncio

from fieldbus.errors import LinkDownError, os_reason
from fieldbus.modbus.client import Line
from fieldbus.modbus.places import DialInPlace

_NAMES_ITSELF_S = 30.0
"""How long a device that dialled in may take to say who it is."""
_SETTLES_S = 0.25
"""After a registration: its line end may come in a segment of its own."""
_MAY_GROW_S = 2.0
"""The same where another device is named like this one and some more."""
_KEPT_OPEN_S = 15.0
"""How long the port stays open for a device after its link was closed: longer than a link waits to reopen."""
_MOST_CALLERS = 1000
"""Connections that have not named themselves or wait for their link, at most."""
_MOST_SAID = 1024
"""How much of what such a connection says is kept."""


class DialInPort:
    """A port on which devices connect to us, and who waits for which of them."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()
        self._waiting: dict[bytes, asyncio.Future[_Caller]] = {}
        self._known: set[bytes] = set()
        self._callers: dict[_Caller, None] = {}
        """Those that belong to no link, the oldest first."""
        self._parked: dict[bytes, _Caller] = {}
        self._lines: dict[bytes, Line] = {}
        """What was last opened to each device."""
        self._releases: dict[bytes, asyncio.TimerHandle] = {}

    async def listen(self, registration: bytes) -> None:
        """Listen, if that is not so yet, for a device among others.

        Raises:
            LinkDownError: the port is taken.
        """
        self._known.add(registration)
        timer = self._releases.pop(registration, None)
        if timer is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        async with self._opening:  # links are connected side by side
            if self._server is not None:
                return
            try:
                self._server = await loop.create_server(lambda: _Caller(self), self.host, self.port)
            except OSError as error:
                reason = os_reason(error).rsplit(": ", 1)[-1]
                raise LinkDownError(f"cannot listen: {reason}") from error

    def release(self, registration: bytes) -> None:
        """Let a device go for now: it may dial in again, and the port stays open for a while."""
        self._lines.pop(registration, None)
        timer = self._releases.pop(registration, None)
        if timer is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._releases[registration] = loop.call_later(_KEPT_OPEN_S, self.leave, registration)

    def leave(self, registration: bytes) -> None:
        """Stop listening for a device; the last one closes the port."""
        self._known.discard(registration)
        caller = self._parked.pop(registration, None)
        if caller is not None:
            caller.end()
        if not self._known:
            if self._server is not None:
                self._server.close()
            self._server = None
            for other in list(self._callers):
                other.end()

    async def caller(self, registration: bytes) -> _Caller:
        """Wait for the connection of a device."""
        caller = self._parked.pop(registration, None)
        if caller is not None and not caller.is_gone:
            return caller
        future: asyncio.Future[_Caller] = asyncio.get_running_loop().create_future()
        self._waiting[registration] = future
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._parked[registration] = future.result()
            raise
        finally:
            self._waiting.pop(registration, None)

    def serves(self, registration: bytes, line: Line) -> None:
        """Learn which line leads to a device from now on."""
        self._lines[registration] = line

    # --- what callers tell

    def enter(self, caller: _Caller) -> None:
        """Take a new connection, at the expense of the oldest one that waits if there are too many."""
        self._callers[caller] = None
        if len(self._callers) > _MOST_CALLERS:
            oldest = next(iter(self._callers))
            self.forget(oldest)
            oldest.end()

    def forget(self, caller: _Caller) -> None:
        """Learn that a connection ended or was given to a link."""
        self._callers.pop(caller, None)
        for registration, parked in list(self._parked.items()):
            if parked is caller:
                del self._parked[registration]

    def named_by(self, data: bytes) -> tuple[bytes | None, bool]:
        """Return the longest registration with which `data` begins, and whether it may become another."""
        found = [registration for registration in self._known if data.startswith(registration)]
        may_grow = any(registration.startswith(data) and registration != data for registration in self._known)
        return max(found, key=len, default=None), may_grow

    def take(self, caller: _Caller, registration: bytes) -> None:
        """Give a device's new connection to who waits for it, or keep it until somebody does."""
        future = self._waiting.get(registration)
        if future is not None and not future.done():
            future.set_result(caller)
            return
        # The newest connection is the one that lives: a device dials in anew when it has lost the last one.
        earlier = self._parked.pop(registration, None)
        if earlier is not None:
            earlier.end()
        self._parked[registration] = caller
        line = self._lines.pop(registration, None)
        if line is not None and not line.is_lost:
            line.drop("the device has dialled in anew", is_back=True)


class _Caller(asyncio.Protocol):
    """A connection that has not been given to a link yet."""

    def __init__(self, port: DialInPort) -> None:
        self._port = port
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._found: bytes | None = None
        self._is_named = False
        self._transport: asyncio.Transport | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the device hung up."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._port.enter(self)
        self._timer = asyncio.get_running_loop().call_later(_NAMES_ITSELF_S, self.end)

    def data_received(self, data: bytes) -> None:
        self._data = (self._data + data)[:_MOST_SAID]
        if self._is_named:
            return
        found, may_grow = self._port.named_by(self._data)
        if found is None and not may_grow:
            self.end()
        elif found is not None and found != self._found:
            self._found = found
            if self._settling is not None:
                self._settling.cancel()
            wait_s = _MAY_GROW_S if may_grow else _SETTLES_S
            self._settling = asyncio.get_running_loop().call_later(wait_s, self._settle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        self._port.forget(self)

    def hand_over(self) -> tuple[asyncio.Transport, bytes]:
        """Return the connection, and what came behind the registration.

        Raises:
            LinkDownError: the device hung up.
        """
        self._stop_timers()
        self._port.forget(self)
        if self._transport is None or self.is_gone:
            raise LinkDownError("the device hung up")
        return self._transport, self._data

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _settle(self) -> None:
        registration, _ = self._port.named_by(self._data)
        if registration is None:  # its link has left meanwhile
            self.end()
            return
        self._stop_timers()
        self._is_named = True
        self._data = self._data[len(registration) :]
        self._port.take(self, registration)

    def _stop_timers(self) -> None:
        for timer in (self._timer, self._settling):
            if timer is not None:
                timer.cancel()


_DIAL_IN_PORTS: dict[tuple[str, int], DialInPort] = {}
"""By host and port. Links with one listening port share it, whatever order they come in."""


def dial_in_port(place: DialInPlace) -> DialInPort:
    """Return the port of a place, the same for all links that have it."""
    return _DIAL_IN_PORTS.setdefault((place.host, place.port), DialInPort(place.host, place.port))
