"""Proxies between a client and a good server that spoil the answers: on TCP, and on a serial line.

Requests pass untouched. What becomes of an answer is chosen by a function of it (`Choose`); `Storm` is the
usual one: seeded, and never failing a unit twice in a row, since a unit that fails twice is rightly taken for
dead and then hardly asked any more.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from mutations import FIN, MUTE, RST, Answer, Change, Choice, Kind, Mutation, Step, rtu_unfair, tcp_unfair
from rtu_peer import Pty, ptys

Choose = Callable[[Answer], Mutation | None]
"""What becomes of an answer; None if nothing."""


class Storm:
    """Chooses what happens to each answer, until there was enough of it."""

    def __init__(
        self,
        table: Mapping[str, tuple[int, Change]],
        seed: object,
        most: int,
        *,
        is_unfair: Callable[[bytes, Answer], bool] = tcp_unfair,
        may_fail_twice: bool = False,
    ) -> None:
        self._rng = random.Random(repr(seed))
        self._choice = Choice(table, self._rng)
        self._most = most
        self._is_unfair = is_unfair
        self._may_fail_twice = may_fail_twice
        self._has_failed: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.passed = 0
        """Answers that went through as they were."""

    @property
    def total(self) -> int:
        """How many answers were spoilt."""
        return self.counts.total()

    @property
    def is_over(self) -> bool:
        """Whether there was enough of it."""
        return self.total >= self._most

    def stop(self) -> None:
        """Let everything pass from now on."""
        self._most = 0

    def __call__(self, answer: Answer) -> Mutation | None:
        """Choose."""
        if self.is_over:
            return None
        while True:
            mutation = self._choice(answer)
            stream = mutation.stream
            if len(stream) < 2000 and self._is_unfair(stream, answer):
                continue
            if answer.unit_id in self._has_failed and mutation.kind is not Kind.HARMLESS:
                self._has_failed.discard(answer.unit_id)
                self.passed += 1
                return None
            break
        if mutation.kind.fails and not self._may_fail_twice:
            self._has_failed.add(answer.unit_id)
        else:
            self._has_failed.discard(answer.unit_id)
        self.counts[mutation.name] += 1
        return mutation


class _Upstream(asyncio.Protocol):
    """The proxy's own connection to the server, for one client."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        _no_delay(transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 6:
            end = 6 + (self._buffer[4] << 8 | self._buffer[5])
            if len(self._buffer) < end:
                return
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            self._client.answer(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.hang_up()


class _Client(asyncio.Protocol):
    """A connection of the client under test."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self._buffer = b""
        self._early = b""
        self._asked: dict[int, bytes] = {}
        self._held: bytes | None = None
        self._upstream: _Upstream | None = None
        self._transport: asyncio.Transport | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._waiting: deque[deque[Step]] = deque()
        """What is being sent, and what will be when that is done."""
        self._is_mute = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        _no_delay(transport)
        self._proxy.clients.add(self)
        self._proxy.open_upstream(self)

    def upstream_made(self, upstream: _Upstream | None) -> None:
        if upstream is None or self._transport is None:
            self.hang_up()
            if upstream is not None and upstream.transport is not None:
                upstream.transport.abort()
            return
        self._upstream = upstream
        if self._early and upstream.transport is not None:
            upstream.transport.write(self._early)

    def connection_lost(self, exc: Exception | None) -> None:
        self.hang_up()
        self._proxy.clients.discard(self)

    def hang_up(self) -> None:
        """End both sides."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        upstream, self._upstream = self._upstream, None
        if upstream is not None and upstream.transport is not None:
            upstream.transport.abort()

    def end(self, how: str) -> None:
        """End the connection to the client by `FIN` or `RST`."""
        self._proxy.clients.discard(self)
        self._do(Step(0.0, how))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 8:
            end = 6 + (self._buffer[4] << 8 | self._buffer[5])
            if len(self._buffer) < end:
                break
            self._asked[self._buffer[0] << 8 | self._buffer[1]] = self._buffer[7:end]
            self._buffer = self._buffer[end:]
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.write(data)
        else:
            self._early += data

    def answer(self, frame: bytes) -> None:
        """Take an answer of the server and do to it what is chosen."""
        asked = self._asked.pop(frame[0] << 8 | frame[1])
        answer = Answer(frame[6], frame[7:], asked, frame, self._proxy.timeout_s)
        # What is no answer to a read with data cannot be spoilt in most of the ways that there are.
        mutation = None if frame[7] & 0x80 else self._proxy.choose(answer)
        held, self._held = self._held, None
        if mutation is not None and mutation.name == "swapped":
            self._held = frame
        self._play((Step(0.0, frame),) if mutation is None else mutation.steps)
        if held is not None:
            self._play((Step(0.0, held),))
        if mutation is not None:
            self._proxy.spoilt(mutation)

    def _play(self, steps: Sequence[Step]) -> None:
        """Do one step after the other, each in a segment of its own if there are several."""
        if steps and steps[0].wait_s:
            self._later(steps[0].wait_s, self._play, (Step(0.0, steps[0].what), *steps[1:]))
            return
        if self._is_mute:
            return
        # Whatever comes meanwhile waits until these are done: no server puts a frame into another.
        self._waiting.append(deque(steps))
        if len(self._waiting) == 1:
            self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._transport is not None:
            steps = self._waiting[0]
            if not steps:
                self._waiting.popleft()
                continue
            self._do(steps.popleft())
            if steps and not self._is_mute:
                self._later(steps[0].wait_s, self._go_on)
                return

    def _later(self, wait_s: float, do: Callable[..., None], *arguments: object) -> None:
        def is_time() -> None:
            self._timers.discard(timer)
            if self._transport is not None:
                do(*arguments)

        timer = asyncio.get_running_loop().call_later(wait_s, is_time)
        self._timers.add(timer)

    def _do(self, step: Step) -> None:
        transport = self._transport
        if transport is None:
            return
        if isinstance(step.what, bytes):
            transport.write(step.what)
        elif step.what == MUTE:
            self._is_mute = True
            self._waiting.clear()
        elif step.what == FIN:
            self.hang_up()
        elif step.what == RST:
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            self.hang_up()


class TcpProxy:
    """Stands between clients and a Modbus TCP server."""

    def __init__(self, server_port: int, choose: Choose, timeout_s: float) -> None:
        self.choose = choose
        self.timeout_s = timeout_s
        self.port = 0
        self.clients: set[_Client] = set()
        self.spoilt: Callable[[Mutation], None] = lambda _: None
        """Called when an answer has been spoilt."""
        self._server_port = server_port
        self._server: asyncio.Server | None = None
        self._opening: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Hang up on everybody."""
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            client.hang_up()
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        await asyncio.sleep(0.01)

    def open_upstream(self, client: _Client) -> None:
        """Connect to the server for a client."""
        task = asyncio.get_running_loop().create_task(self._open(client))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, client: _Client) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, upstream = await loop.create_connection(
                lambda: _Upstream(client), "127.0.0.1", self._server_port
            )
        except OSError:
            client.upstream_made(None)
        else:
            client.upstream_made(upstream)


@asynccontextmanager
async def tcp_proxy(server_port: int, choose: Choose, timeout_s: float) -> AsyncIterator[TcpProxy]:
    """Run a proxy for as long as the block lasts."""
    proxy = TcpProxy(server_port, choose, timeout_s)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


class RtuProxy:
    """Stands between a client and serial devices, whose port is `device.name`."""

    def __init__(self, device: Pty, choose: Choose, timeout_s: float) -> None:
        self.choose = choose
        self.timeout_s = timeout_s
        self.spoilt: Callable[[Mutation], None] = lambda _: None
        self.write: Callable[[bytes], None] = lambda _: None
        """Gives bytes to the client."""
        self._device = device
        self._asked = b""
        self._buffer = b""
        self._devices: dict[int, _Sending] = {}
        asyncio.get_running_loop().add_reader(device.master, self._answer)

    @property
    def device_name(self) -> str:
        """The port for the devices."""
        return self._device.name

    def stop(self) -> None:
        """Let nothing through any more."""
        for device in self._devices.values():
            device.stop()

    def request(self, data: bytes) -> None:
        """Take what the client sends."""
        # A new request begins where the one before had its answer or will have none.
        self._asked = data if len(self._asked) >= 8 else self._asked + data
        self._buffer = b""
        self._device.write(data)

    def _answer(self) -> None:
        self._buffer += _read(self._device)
        frame, asked = self._buffer, self._asked
        if len(asked) < 8 or len(frame) < 5:
            return
        size = 5 if frame[1] & 0x80 else frame[2] + 5
        if len(frame) < size:
            return
        frame, self._buffer = frame[:size], frame[size:]
        mutation = None
        if not frame[1] & 0x80:
            mutation = self.choose(Answer(frame[0], frame[1:-2], asked[1:-2], frame, self.timeout_s))
        device = self._devices.setdefault(frame[0], _Sending(self._give))
        device.send((Step(0.0, frame),) if mutation is None else mutation.steps)
        if mutation is not None:
            self.spoilt(mutation)

    def _give(self, data: bytes) -> None:
        self.write(data)


class _Sending:
    """What one serial device sends: one answer after the other, so what is late comes before what is not."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._steps: list[Step] = []
        self._timer: asyncio.TimerHandle | None = None

    def send(self, steps: Sequence[Step]) -> None:
        """Send, after all that was to be sent before."""
        is_late = not steps or steps[0].wait_s > 0
        if self._timer is not None and not is_late:
            self._timer.cancel()
            self._is_due()
        self._steps += steps
        self._play()

    def stop(self) -> None:
        """Send nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _is_due(self) -> None:
        self._timer = None
        self._steps[0] = Step(0.0, self._steps[0].what)
        self._play()

    def _play(self) -> None:
        while self._steps and self._timer is None:
            step = self._steps[0]
            if step.wait_s:
                self._timer = asyncio.get_running_loop().call_later(step.wait_s, self._is_due)
                return
            del self._steps[0]
            if isinstance(step.what, bytes):
                self._write(step.what)


def storm_on_rtu(
    table: Mapping[str, tuple[int, Change]], seed: object, most: int, *, may_fail_twice: bool = False
) -> Storm:
    """Return a storm for a serial line."""
    return Storm(table, seed, most, is_unfair=rtu_unfair, may_fail_twice=may_fail_twice)


@asynccontextmanager
async def rtu_proxy(choose: Choose, timeout_s: float) -> AsyncIterator[tuple[RtuProxy, str]]:
    """Run a proxy on a serial line of its own for as long as the block lasts; gives the client's port too."""
    async with ptys(2) as (client, device):
        proxy = RtuProxy(device, choose, timeout_s)
        proxy.write = client.write
        asyncio.get_running_loop().add_reader(client.master, lambda: proxy.request(_read(client)))
        try:
            yield proxy, client.name
        finally:
            proxy.stop()


class _Caller(asyncio.Protocol):
    """A client of a serial device server, as long as it is the newest."""

    def __init__(self, proxy: RtuProxy, callers: set[_Caller]) -> None:
        self._proxy = proxy
        self._callers = callers
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._callers.add(self)
        _no_delay(transport)
        # What comes from the line goes to whoever is connected now, whoever asked for it.
        self._proxy.write = self._send

    def connection_lost(self, exc: Exception | None) -> None:
        self._callers.discard(self)

    def data_received(self, data: bytes) -> None:
        self._proxy.request(data)

    def _send(self, data: bytes) -> None:
        if self in self._callers and self.transport is not None:
            self.transport.write(data)


@asynccontextmanager
async def rtu_over_tcp_proxy(choose: Choose, timeout_s: float) -> AsyncIterator[tuple[RtuProxy, int]]:
    """Run a serial device server that spoils answers for as long as the block lasts; gives its port too."""
    callers: set[_Caller] = set()
    async with ptys(1) as (device,):
        proxy = RtuProxy(device, choose, timeout_s)
        server = await asyncio.get_running_loop().create_server(
            lambda: _Caller(proxy, callers), "127.0.0.1", 0
        )
        try:
            yield proxy, server.sockets[0].getsockname()[1]
        finally:
            server.close()
            proxy.stop()
            for caller in list(callers):
                if caller.transport is not None:
                    caller.transport.abort()
            await asyncio.sleep(0.01)


def _read(end: Pty) -> bytes:
    try:
        return os.read(end.master, 4096)
    except BlockingIOError:
        return b""


def _no_delay(transport: asyncio.BaseTransport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
