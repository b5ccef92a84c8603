"""How loaded each link will be, before anything is opened.

A Modbus connection does one request at a time: its load is the time that its requests take. On a serial
line that is known from the baud rate, the frames and the silence between them; what the device and the
network need is taken from what the gateway measured when it last ran (`data_dir`), else 5 ms. A CAN bus is
loaded by the bits of the cyclic messages that are known, with the stuff bits of the worst case, at
its bit rate (500 kbit/s if the configuration does not say).
"""

from __future__ import annotations

from dataclasses import dataclass

from fieldbus.canbus.bits import frame_bits
from fieldbus.canbus.layout import Message
from fieldbus.canbus.link import CanLink
from fieldbus.gateway.plant import Plant
from fieldbus.link import Link
from fieldbus.modbus.link import ModbusClientLink

ASSUMED_BITRATE = 500_000


@dataclass(frozen=True, slots=True)
class LinkLoad:
    """What a link will have to do."""

    link: str
    requests_per_s: float
    """Polls; 0 for links that do not poll."""
    percent: float | None
    """Predicted load; None where there is no such thing."""
    basis: str
    """What the prediction assumes."""


def predict(plant: Plant) -> list[LinkLoad]:
    """Return the load of every link."""
    return [_predict(name, link) for name, link in plant.links.items()]


def _predict(name: str, link: Link) -> LinkLoad:
    if isinstance(link, ModbusClientLink):
        return _predict_polling(name, link)
    if isinstance(link, CanLink):
        bitrate = link.options.get("bitrate")
        rate_is_known = isinstance(bitrate, int)
        bits = sum(
            _bits(item.message) / item.cycle_s
            for item in link.messages
            if item.cycle_s is not None and item.request is None
        )
        asked = [item for item in link.messages if item.request is not None]
        polls = sum(1 / item.request.scan_s for item in asked if item.request is not None)
        bits += sum(
            2 * _bits(item.message) / item.request.scan_s for item in asked if item.request is not None
        )
        rate_used = bitrate if isinstance(bitrate, int) else ASSUMED_BITRATE
        basis = f"cyclic messages at {rate_used // 1000} kbit/s" + ("" if rate_is_known else " (assumed)")
        return LinkLoad(name, polls, bits / rate_used * 100, basis)
    return LinkLoad(name, 0.0, None, "")


def _predict_polling(name: str, link: ModbusClientLink) -> LinkLoad:
    rate = busy = 0.0
    measured: list[bool] = []
    for unit, block in link.planned:
        cost_s, is_measured = link.cost_of(unit, block)
        measured.append(is_measured)
        rate += 1 / block.period_s
        busy += cost_s / block.period_s
    mean_ms = busy / rate * 1000 if rate else 0.0
    how = "measured" if measured and all(measured) else "partly measured" if any(measured) else "assumed"
    basis = f"{mean_ms:.3g} ms a request ({how})" if rate else ""
    if link.connections > 1:
        basis += f" on {link.connections} connections"
    return LinkLoad(name, rate, busy * 100 / link.connections, basis)


def _bits(message: Message) -> int:
    return frame_bits(message.length, is_extended=message.is_extended, is_fd=message.is_fd)
