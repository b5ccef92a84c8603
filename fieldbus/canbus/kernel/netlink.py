"""Ask the kernel how a CAN interface is, and have its controller restarted (rtnetlink).

Layout, all in the machine's byte order::

    message     length u32 | type u16 | flags u16 | sequence u32 | port u32 | body
    body        ifinfomsg: family u8 | unused u8 | type u16 | index s32 | flags u32 | change u32
                then attributes
    attribute   length u16, with these four bytes | type u16 | value | filled up to 4 bytes
    error       type 2: error s32, negative errno, 0 for done | the request

An attribute may hold attributes: LINKINFO holds KIND, a name, DATA, what `linux/can/netlink.h` lists, and
XSTATS, six counters.

Rules:

* `parse_link` reads what others may have written: whatever the bytes are, it returns a `Link` or raises
  `ValueError`. What an attribute says that is shorter than it should be is not known.
* `link_of` and `restart` never raise: a machine that forbids the question answers None, or a reason.

Design: the kernel answers within the call that asks, so nothing here waits, but for the lock that is
held while somebody sets up an interface. A socket for each question: it costs some microseconds once
a second, and no answer can be taken for another's.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fieldbus.canbus.kernel.frames import words

AF_NETLINK = 16
_ERROR = 2
_NEW_LINK = 16
_GET_LINK = 18
_REQUEST = 0x1
_ACKNOWLEDGE = 0x4

_UP = 0x1
_RUNNING = 0x40
_TYPE_MASK = 0x3FFF
"""The two bits above say that an attribute holds others and that it is in network order."""

_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINKINFO = 18
_IFLA_STATS64 = 23
_INFO_KIND = 1
_INFO_DATA = 2
_INFO_XSTATS = 3
_CAN_BITTIMING = 1
_CAN_STATE = 4
_CAN_RESTART_MS = 6
_CAN_RESTART = 7
_CAN_BERR_COUNTER = 8
_CAN_DATA_BITTIMING = 9

_HEADER = struct.Struct("=IHHII")
_INFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_WORD = struct.Struct("=I")
_COUNTER_PAIR = struct.Struct("=HH")
_STATS64 = struct.Struct("=QQQQ")
_XSTATS = struct.Struct("=6I")
_STATUS = struct.Struct("=i")

_ANSWER_S = 2.0
_MAX_ANSWER = 65536


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface; None for what its driver does not tell."""

    index: int
    name: str
    is_up: bool
    is_running: bool
    mtu: int | None = None
    """16 takes classic frames, 72 CAN FD frames too."""
    kind: str | None = None
    """"can" for a controller, "vcan", "vxcan" for virtual ones, None for what is no CAN."""
    rx_packets: int | None = None
    tx_packets: int | None = None
    rx_bytes: int | None = None
    """Data bytes, received …"""
    tx_bytes: int | None = None
    """… and sent."""
    state: int | None = None
    """0 error active, 1 error warning, 2 error passive, 3 bus-off, 4 stopped, 5 sleeping."""
    tx_errors: int | None = None
    """Transmit error counter of the controller."""
    rx_errors: int | None = None
    bitrate: int | None = None
    """In bit/s."""
    data_bitrate: int | None = None
    """In bit/s, of a CAN FD frame's data."""
    restart_ms: int | None = None
    """After so long a controller that is off is restarted by the kernel; 0 for never."""
    bus_errors: int | None = None
    arbitrations_lost: int | None = None
    warnings: int | None = None
    """How often the state became error warning …"""
    passives: int | None = None
    """… error passive …"""
    bus_offs: int | None = None
    """… and bus-off."""
    restarts: int | None = None


def link_request(index: int, sequence: int = 1) -> bytes:
    """Return the message that asks for an interface."""
    body = _INFO.pack(0, 0, index, 0, 0)
    return _HEADER.pack(_HEADER.size + len(body), _GET_LINK, _REQUEST, sequence, 0) + body


def restart_request(index: int, sequence: int = 1) -> bytes:
    """Return the message that has a controller restarted."""
    data = attribute(_CAN_RESTART, _WORD.pack(1))
    info = attribute(_INFO_KIND, b"can") + attribute(_INFO_DATA, data)
    body = _INFO.pack(0, 0, index, 0, 0) + attribute(_IFLA_LINKINFO, info)
    flags = _REQUEST | _ACKNOWLEDGE
    return _HEADER.pack(_HEADER.size + len(body), _NEW_LINK, flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, filled up."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def parse_error(message: bytes) -> int | None:
    """Return the errno of an answer, 0 for done; None for an answer of another type.

    Raises:
        ValueError: it is no message.
    """
    kind, body = _message(message)
    if kind != _ERROR:
        return None
    if len(body) < _STATUS.size:
        raise ValueError("a message that is too short")
    return -int(_STATUS.unpack_from(body)[0])


def parse_link(message: bytes) -> Link:
    """Return the interface that an answer describes.

    Raises:
        ValueError: it describes none.
    """
    kind, body = _message(message)
    if kind != _NEW_LINK or len(body) < _INFO.size:
        raise ValueError("not the description of an interface")
    _, _, index, flags, _ = _INFO.unpack_from(body)
    found = dict(_attributes(body[_INFO.size :]))
    info = dict(_attributes(found.get(_IFLA_LINKINFO, b"")))
    kind_name = _text(info.get(_INFO_KIND))
    # Other kinds number what is in DATA and XSTATS differently.
    is_can = kind_name == "can"
    data = dict(_attributes(info.get(_INFO_DATA, b""))) if is_can else {}
    stats = _numbers(_STATS64, found.get(_IFLA_STATS64))
    errors = _numbers(_COUNTER_PAIR, data.get(_CAN_BERR_COUNTER))
    events = _numbers(_XSTATS, info.get(_INFO_XSTATS) if is_can else None)
    return Link(
        index=index,
        name=_text(found.get(_IFLA_IFNAME)) or "",
        is_up=bool(flags & _UP),
        is_running=bool(flags & _RUNNING),
        mtu=_number(found.get(_IFLA_MTU)),
        kind=kind_name,
        rx_packets=stats[0],
        tx_packets=stats[1],
        rx_bytes=stats[2],
        tx_bytes=stats[3],
        state=_number(data.get(_CAN_STATE)),
        tx_errors=errors[0],
        rx_errors=errors[1],
        bitrate=_number(data.get(_CAN_BITTIMING)),
        data_bitrate=_number(data.get(_CAN_DATA_BITTIMING)),
        restart_ms=_number(data.get(_CAN_RESTART_MS)),
        bus_errors=events[0],
        warnings=events[1],
        passives=events[2],
        bus_offs=events[3],
        arbitrations_lost=events[4],
        restarts=events[5],
    )


def link_of(index: int) -> Link | None:
    """Return how an interface is; None if there is none, or the machine does not say."""
    try:
        return parse_link(_ask(link_request(index)))
    except (OSError, ValueError):
        return None


def restart(index: int) -> str | None:
    """Have a controller that is off restarted; return why that cannot be done, or None."""
    link = link_of(index)
    if link is not None:
        if link.kind != "can":
            return f"{link.name} has no controller"
        if link.restart_ms:
            return f"the kernel restarts it by itself, after {link.restart_ms} ms"
        if link.state is not None and link.state != 3:
            return "the bus is not off"
    name = link.name if link is not None else "can0"
    try:
        code = parse_error(_ask(restart_request(index)))
    except OSError as error:
        return words(error)
    except ValueError as error:
        return str(error)
    if code is None:
        return "the kernel gave another answer"
    if code in (errno.EPERM, errno.EACCES):
        return f"not permitted: give it CAP_NET_ADMIN, or `ip link set {name} type can restart-ms 100`"
    return {
        0: None,
        errno.EBUSY: "the bus is not off",
        errno.ENODEV: "no such device",
        errno.EINVAL: "the interface is down, or restarts by itself",
        errno.EOPNOTSUPP: "this driver cannot be restarted from outside",
    }.get(code, words(OSError(code, "")))


def _ask(request: bytes) -> bytes:
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.EAFNOSUPPORT, "this system has no netlink")
    with socket.socket(AF_NETLINK, socket.SOCK_RAW, 0) as asked:
        asked.settimeout(_ANSWER_S)
        asked.sendto(request, (0, 0))
        return asked.recv(_MAX_ANSWER)


def _message(message: bytes) -> tuple[int, bytes]:
    if len(message) < _HEADER.size:
        raise ValueError("a message that is too short")
    length, kind, *_ = _HEADER.unpack_from(message)
    if not _HEADER.size <= length <= len(message):
        raise ValueError("a message with a wrong length")
    return kind, message[_HEADER.size : length]


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes that are whole."""
    at = 0
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            return
        yield kind & _TYPE_MASK, body[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4


def _number(value: bytes | None) -> int | None:
    return None if value is None or len(value) < _WORD.size else int(_WORD.unpack_from(value)[0])


def _numbers(layout: struct.Struct, value: bytes | None) -> tuple[int | None, ...]:
    if value is None or len(value) < layout.size:
        return (None,) * 8
    return layout.unpack_from(value)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.rstrip(b"\0").decode("ascii", "replace")
