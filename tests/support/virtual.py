"""Virtual time: several gateways in one process, each with its own wall clock, and a network without sockets.

Rules:

* Nothing waits: the event loop jumps to what is due next. A day takes as long as its work takes.
* `World.run` is the only way in. Within it, ``loop.create_connection`` and ``loop.create_server`` join the
  world's own network, so that the Modbus client and server and the MQTT connection are the real ones.
* All gateways share the monotonic clock of the loop. Each has a `WallClock` that may differ, drift and jump.
* What a committer's thread does is done in the loop, when its group commit is due.

Design: `fieldbus.gateway.stepped.SteppedLoop` is the loop; what is added is the network. Bytes arrive after
`LATENCY_S`, whole and in order; a connection can be cut (RST), and a port can refuse or swallow.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fieldbus.clock import Clock
from fieldbus.durable.committer import Committer
from fieldbus.gateway.stepped import SteppedLoop

LATENCY_S = 0.0005
START_NS = 1_790_000_000 * 10**9
"""What the wall clocks show at first."""
_HIGH_WATER = 65536


class WallClock:
    """A wall clock that may be wrong."""

    def __init__(self, loop: SteppedLoop, offset_s: float = 0.0, drift_ppm: float = 0.0) -> None:
        self._loop = loop
        self._base_ns = START_NS + round(offset_s * 1e9)
        self._since_ns = loop.elapsed_ns
        self._rate = 1.0 + drift_ppm * 1e-6

    def __call__(self) -> int:
        """Return what it shows."""
        return self._base_ns + round((self._loop.elapsed_ns - self._since_ns) * self._rate)

    def jump(self, seconds: float) -> None:
        """Set it forward, or back."""
        self._base_ns += round(seconds * 1e9)

    def drift(self, ppm: float) -> None:
        """Let it run fast or slow from now on."""
        self._base_ns, self._since_ns = self(), self._loop.elapsed_ns
        self._rate = 1.0 + ppm * 1e-6


class MemoryTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, here: tuple[str, int], there: tuple[str, int]
    ) -> None:
        super().__init__({"sockname": here, "peername": there})
        self.peer: MemoryTransport
        self._loop = loop
        self._protocol: asyncio.BaseProtocol | None = None
        self._outgoing: collections.deque[bytes | None] = collections.deque()
        """What is on its way: timers of the same moment have no order, so each takes the oldest."""
        self._incoming: collections.deque[bytes | None] = collections.deque()
        self._is_closing = self._is_over = self._is_reading_paused = self._is_writing_paused = False
        self.is_held = False
        """Whether what is sent to it does not arrive, as on a network that is away."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return not self._is_reading_paused

    def pause_reading(self) -> None:
        self._is_reading_paused = True

    def resume_reading(self) -> None:
        self._is_reading_paused = False
        self._loop.call_soon(self._hand_over)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Take limits that nobody needs here."""

    def get_write_buffer_size(self) -> int:
        return self.peer.waiting_bytes

    @property
    def waiting_bytes(self) -> int:
        """What has arrived and was not read."""
        return sum(len(item) for item in self._incoming if item is not None)

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if self._is_closing or not data:
            return
        self._outgoing.append(bytes(data))
        self._loop.call_later(LATENCY_S, self._bring)
        if self.peer.waiting_bytes > _HIGH_WATER and not self._is_writing_paused:
            self._is_writing_paused = True
            self.get_protocol().pause_writing()  # type: ignore[attr-defined]

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """End it politely: the other end reads what was sent first."""
        if not self._is_closing:
            self._is_closing = True
            self._outgoing.append(None)
            self._loop.call_later(LATENCY_S, self._bring)
            self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        """End it as a RST does."""
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_later(LATENCY_S, self.peer.reset)
            self._loop.call_soon(self._end, None)

    def reset(self) -> None:
        """Have it ended by the other side, or by the network."""
        self._is_closing = True
        self._end(ConnectionResetError(104, "Connection reset by peer"))

    def _bring(self) -> None:
        self.peer.arrive(self._outgoing.popleft())

    def arrive(self, data: bytes | None) -> None:
        """Take what the other end sent; None for its end."""
        if self._is_over or self.is_held:
            return
        self._incoming.append(data)
        self._hand_over()

    def _hand_over(self) -> None:
        protocol: Any = self._protocol
        while self._incoming and not self._is_reading_paused and not self._is_over:
            data = self._incoming.popleft()
            if data is None:
                self._is_closing = True
                protocol.eof_received()
                self._end(None)
                return
            protocol.data_received(data)
        if self.peer._is_writing_paused and self.waiting_bytes < _HIGH_WATER // 2:
            self.peer._is_writing_paused = False
            self.peer.get_protocol().resume_writing()  # type: ignore[attr-defined]

    def _end(self, error: Exception | None) -> None:
        if not self._is_over:
            self._is_over = True
            self.get_protocol().connection_lost(error)  # type: ignore[attr-defined]


class _Socket:
    def __init__(self, name: tuple[str, int]) -> None:
        self._name = name

    def getsockname(self) -> tuple[str, int]:
        return self._name


class _Server:
    def __init__(self, network: Network, port: int) -> None:
        self._network = network
        self._port = port
        self.sockets = [_Socket(("127.0.0.1", port))]

    def close(self) -> None:
        self._network.servers.pop(self._port, None)

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""


class Network:
    """Ports, who listens on them, and what goes wrong between."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.servers: dict[int, Callable[[], asyncio.BaseProtocol]] = {}
        self.connections: dict[int, list[MemoryTransport]] = collections.defaultdict(list)
        """Port to the clients' ends of its connections."""
        self.connects: collections.Counter[int] = collections.Counter()
        """Port to how often somebody connected to it."""
        self.refused: set[int] = set()
        self.swallowed: set[int] = set()
        """Ports on which a connection request is not even refused."""
        self._ports = itertools.count(40_000)

    async def connect(self, make: Callable[[], Any], port: int) -> tuple[MemoryTransport, Any]:
        """Return a connection to a port."""
        await asyncio.sleep(2 * LATENCY_S)
        if port in self.swallowed:
            await asyncio.sleep(3600)
        if port in self.refused or port not in self.servers:
            raise ConnectionRefusedError(111, "Connection refused")
        self.connects[port] += 1
        here, there = ("127.0.0.1", next(self._ports)), ("127.0.0.1", port)
        mine, other = MemoryTransport(self._loop, here, there), MemoryTransport(self._loop, there, here)
        mine.peer, other.peer = other, mine
        served = self.servers[port]()
        other.set_protocol(served)
        served.connection_made(other)
        protocol = make()
        mine.set_protocol(protocol)
        protocol.connection_made(mine)
        self.connections[port] = [item for item in self.connections[port] if not item.is_closing()]
        self.connections[port].append(mine)
        return mine, protocol

    def listen(self, make: Callable[[], Any], port: int) -> _Server:
        """Listen on a port; 0 for any."""
        port = port or next(self._ports)
        if port in self.servers:
            raise OSError(98, "Address already in use")
        self.servers[port] = make
        return _Server(self, port)

    def cut(self, port: int) -> None:
        """Reset all connections to a port."""
        for end in self.connections.pop(port, []):
            end.peer.reset()
            end.reset()

    def hold(self, port: int, *, is_held: bool = True) -> None:
        """Have nothing arrive on the connections to a port, in either direction, or everything again."""
        for end in self.connections[port]:
            end.is_held = end.peer.is_held = is_held


class VirtualLoop(SteppedLoop):
    """A loop that does not wait, with a network of its own."""

    def __init__(self) -> None:
        super().__init__(START_NS)
        self.network = Network(self)

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:  # type: ignore[override]
        """Connect within the process."""
        return await self.network.connect(protocol_factory, port)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        """Listen within the process."""
        return self.network.listen(protocol_factory, port)


class World:
    """What one test has to do with."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.network = self.loop.network

    def clock(self, offset_s: float = 0.0, drift_ppm: float = 0.0) -> tuple[Clock, WallClock]:
        """Return a clock for a gateway, and the handle of its wall clock."""
        wall = WallClock(self.loop, offset_s, drift_ppm)
        return Clock(self.loop.time, wall), wall

    @property
    def now_s(self) -> float:
        """How much virtual time has passed."""
        return self.loop.elapsed_ns / 1e9

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end in virtual time."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Committer, "open", _open_inline)
            patch.setattr(Committer, "put", _put_inline)
            patch.setattr(Committer, "put_back_first", _put_back_inline)
            patch.setattr(Committer, "ask", _ask_inline)
            patch.setattr(Committer, "hurry", _hurry_inline)
            patch.setattr(Committer, "close", _close_inline)
            patch.setattr(Committer, "is_open", property(lambda committer: committer._connection is not None))
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                return runner.run(main)


# --- a committer without a thread: the same file, the same transactions, in the loop's own time


def _open_inline(self: Any) -> None:
    self._loop = asyncio.get_running_loop()
    self._timer = None
    try:
        self._connect()
    except (sqlite3.Error, OSError) as error:
        self._failed(error)


def _turn(self: Any) -> None:
    self._timer = None
    items = list(self._waiting)
    self._waiting.clear()
    if items and not self._commit(items):
        _arm(self, 0.5)


def _arm(self: Any, delay_s: float) -> None:
    if self._timer is None:
        self._timer = self._loop.call_later(delay_s, _turn, self)


def _put_inline(self: Any, item: Any) -> None:
    self._waiting.append(item)
    _arm(self, self._group_commit_s)


def _put_back_inline(self: Any, item: Any) -> None:
    self._waiting.appendleft(item)
    _arm(self, self._group_commit_s)


async def _ask_inline(self: Any, question: Any) -> Any:
    return question(self._connection or self._connect())


def _hurry_inline(self: Any) -> None:
    self._loop.call_soon(_turn, self)


def _close_inline(self: Any, timeout_s: float = 5.0) -> None:
    if self._timer is not None:
        self._timer.cancel()
    if self._waiting:
        self._commit(list(self._waiting))
        self._waiting.clear()
    if self._connection is not None:
        self._connection.close()
        self._connection = None
