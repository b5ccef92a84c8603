"""Simulators for a plant, and the plant's links led to them.

Rules: a simulator never touches a real bus or a foreign host. Where a link goes to this machine the
simulator listens just there, so that other tools can look at it; else the link is led to a free local
port, or to a virtual CAN bus inside this process, and that is said.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from fieldbus.canbus.link import CanLink
from fieldbus.canbus.messages import CanMessage
from fieldbus.errors import LinkDownError
from fieldbus.gateway.plant import Plant
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.listening import ModbusListeningLink
from fieldbus.modbus.places import Framing, SerialPlace, TcpPlace
from fieldbus.modbus.server import ModbusServerLink
from fieldbus.simulate.can import SimulatedNodes
from fieldbus.simulate.modbus import SimulatedPlc

_LOG = logging.getLogger("fieldbus")
FrameSeen = Callable[[str, int, bytes], None]
"""Called with link, frame id and data of each frame that the gateway sent."""


class Simulator(Protocol):
    """What stands in for a machine."""

    async def open(self) -> None:
        """Be there."""

    async def run(self) -> None:
        """Move until cancelled."""


class Simulation:
    """The simulators of a plant."""

    def __init__(self, plant: Plant, *, is_alone: bool = False, on_frame: FrameSeen | None = None) -> None:
        """Make the simulators and lead the plant's links to them.

        Args:
            is_alone: whether the gateway runs in another process, so that its links cannot be led.
            on_frame: told of the frames that the gateway sends.

        Raises:
            LinkDownError: `is_alone`, and a link goes where a simulator may not be.
        """
        self._plant = plant
        self._is_alone = is_alone
        self._on_frame = on_frame
        self._simulators: list[tuple[str, Simulator, str]] = []
        for name, link in plant.links.items():
            if isinstance(link, ModbusClientLink):
                self._add_plc(name, link)
            elif isinstance(link, ModbusListeningLink):
                _LOG.info("%s: not simulated: it only listens to others", name)
            elif isinstance(link, CanLink):
                self._add_nodes(name, link)
            elif isinstance(link, ModbusServerLink) and isinstance(link.place, SerialPlace):
                self._serve_on_network(name, link)

    @property
    def places(self) -> list[tuple[str, str]]:
        """Link and where its simulator is."""
        return [(name, place) for name, _, place in self._simulators]

    async def open(self) -> None:
        """Have every simulator in its place.

        Raises:
            LinkDownError: one cannot have its place.
        """
        for name, simulator, place in self._simulators:
            try:
                await simulator.open()
            except LinkDownError as error:
                raise LinkDownError(f"{name}: the simulator cannot be at {place} ({error})") from error
            _LOG.info("%s: simulated at %s", name, place)

    async def run(self) -> None:
        """Move until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, simulator, _ in self._simulators:
                group.create_task(simulator.run(), name=f"simulated {name}")

    def _add_plc(self, name: str, link: ModbusClientLink) -> None:
        place = link.place
        if not (isinstance(place, TcpPlace) and _is_plain(place) and _is_local(place.host)):
            if self._is_alone:
                text = f"{name} goes to {place.text}, which cannot be simulated for another program"
                raise LinkDownError(f"{text}; use `run --simulate`")
            place = TcpPlace("127.0.0.1", _free_port())
        link.place = place
        link.memory = None  # what a simulator teaches is not true of the device
        simulator = SimulatedPlc(name, place.host, place.port, link.units, clock=self._plant.clock)
        self._simulators.append((name, simulator, link.endpoint))

    def _serve_on_network(self, name: str, link: ModbusServerLink) -> None:
        """Serve on a local port what would be served on a serial line that is not there."""
        if not self._is_alone:
            line = link.endpoint
            link.host, link.port = "127.0.0.1", _free_port()
            link.place = TcpPlace(link.host, link.port)
            _LOG.info("%s: served at %s instead of %s", name, link.endpoint, line)

    def _add_nodes(self, name: str, link: CanLink) -> None:
        interface = str(link.options.get("interface"))
        if interface == "replay":
            return  # it has its log
        channel = str(link.options.get("channel", ""))
        is_shared = interface == "udp_multicast" or (interface == "socketcan" and _is_vcan(channel))
        if interface == "virtual" or not is_shared:
            if self._is_alone:
                text = f"{name}: {interface} {channel} cannot be shared by two programs for simulation"
                raise LinkDownError(f"{text}; use `run --simulate`, or a vcan interface")
            if interface != "virtual":
                link.options.clear()
                link.options.update(interface="virtual", channel=f"simulated {name}")
        mine = {message for message in link.messages if self._is_sent_by_us(message)}
        heard = None
        if self._on_frame is not None:
            tell = self._on_frame

            def heard(frame_id: int, data: bytes) -> None:
                tell(name, frame_id, data)

        simulator = SimulatedNodes(link.options, link.messages, mine, heard, clock=self._plant.clock)
        self._simulators.append((name, simulator, link.endpoint))

    def _is_sent_by_us(self, message: CanMessage) -> bool:
        targets = {edge.target.point for edge in self._plant.edges}
        return any(point in targets for point in message.points.values())


def _is_plain(place: TcpPlace) -> bool:
    return place.framing is Framing.MBAP and place.tls is None


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_vcan(channel: str) -> bool:
    """Whether a SocketCAN interface is there and virtual: never simulate onto a real bus."""
    return channel.startswith("vcan") and channel in {name for _, name in socket.if_nameindex()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
