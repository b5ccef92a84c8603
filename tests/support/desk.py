"""A configuration on a desk: written to a file, loaded, and read or written once, straight to its devices."""

from __future__ import annotations

from pathlib import Path

from fieldbus.errors import ConfigError, Problem
from fieldbus.gateway import oneshot
from fieldbus.gateway.config.loader import load
from fieldbus.link import WriteResult
from fieldbus.model import Sample, Value


def write_config(folder: Path, devices: str, links: str) -> Path:
    """Write a configuration whose sections are given as YAML, each line indented by two spaces."""
    path = folder / "gateway.yaml"
    path.write_text(
        f"version: 1\ngateway: {{name: desk}}\nlinks:\n{links}\ndevices:\n{devices}\n", encoding="utf-8"
    )
    return path


def tcp(port: int) -> str:
    """Return the link `net` to a Modbus TCP device of this machine."""
    return f"  net: {{type: modbus-tcp, host: 127.0.0.1, port: {port}, timeout: 500ms}}"


def problems(path: Path) -> list[Problem]:
    """Return everything that `check` says about a configuration."""
    try:
        return list(load(path, needs_secrets=False).warnings)
    except ConfigError as error:
        return list(error.problems)


async def read(path: Path, *names: str) -> dict[str, Sample]:
    """Read points once, by address; all that can be read if none is named."""
    plant = load(path)
    own = {item.address: item for item in plant.points.values() if item.device != "sys"}
    wanted = names or [address for address, item in own.items() if item.access.can_read]
    found = await oneshot.read(plant, [own[address] for address in wanted], 3.0)
    return {point.address: sample for point, sample in found.items()}


async def values(path: Path, *names: str) -> dict[str, Value | None]:
    """Read points once; only their values, None where they are not good."""
    found = await read(path, *names)
    return {name: sample.value if sample.quality == "good" else None for name, sample in found.items()}


async def write(path: Path, name: str, value: Value) -> WriteResult:
    """Write one point once."""
    plant = load(path)
    [result] = await oneshot.write(plant, {plant.points[name]: value}, 3.0)
    return result
