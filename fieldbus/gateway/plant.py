"""A plant: everything that a configuration amounts to, ready to run, nothing of it opened yet."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fieldbus.clock import Clock
from fieldbus.errors import Problem
from fieldbus.gateway.commands.access import Access
from fieldbus.gateway.commands.gate import Guard
from fieldbus.gateway.config.schema import GatewaySettings
from fieldbus.gateway.link_types import Description, LinkType
from fieldbus.gateway.system import Status
from fieldbus.link import Link
from fieldbus.model import Group, Point
from fieldbus.routing.generated import Generator
from fieldbus.routing.policy import Edge
from fieldbus.settings import LinkSettings


@dataclass(frozen=True, slots=True)
class Plant:
    """What `load` returns."""

    name: str
    """Of the gateway."""
    file: Path
    data_dir: Path
    links: Mapping[str, Link]
    link_types: Mapping[str, LinkType]
    """By link."""
    link_settings: Mapping[str, LinkSettings]
    devices: Mapping[str, Description]
    link_of: Mapping[str, str]
    """Device to link."""
    points: Mapping[str, Point]
    """All points by address, the gateway's own included."""
    edges: Sequence[Edge]
    link_status: Mapping[str, Status]
    device_status: Mapping[str, Status]
    warnings: Sequence[Problem] = field(default=())
    access: Access = field(default_factory=lambda: Access({}, is_given=False))
    """Who may write what."""
    guards: Mapping[Point, Guard] = field(default_factory=dict)
    """What points are protected by."""
    shares: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Broker to the patterns of points that other gateways may have."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Link to what is different when it has to be made anew."""
    settings: GatewaySettings | None = None
    generators: Sequence[Generator] = field(default=())
    """Sources of routes that the gateway makes itself."""
    clock: Clock = field(default_factory=Clock)
    """The gateway's time: every link and every status has the same one."""

    @property
    def groups(self) -> list[Group]:
        """All groups that yield batches."""
        found = [group for link in self.links.values() for group in link.groups]
        found += [status.group for status in self.link_status.values()]
        found += [status.group for status in self.device_status.values()]
        return found

    def written_with(self, point: Point) -> Hashable:
        """Return what a point is written with: the same for all points of a group, or of one CAN message."""
        if point.group:
            return point.device, point.group
        item = self.devices.get(point.device)
        frame = None if item is None else item.frames.get(point)
        return point.address if frame is None else (point.device, id(frame))

    def devices_of(self, link: str) -> dict[str, Description]:
        """Return the devices behind a link."""
        return {name: item for name, item in self.devices.items() if self.link_of[name] == link}
