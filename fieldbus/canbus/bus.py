"""What every bus does for the link, whatever its driver.

Layout: an identifier is the word that SocketCAN has: bits 0..28 the identifier, bit 29 `ERROR`, bit 30
`REMOTE`, bit 31 `EXTENDED`. A frame is a plain tuple `Frame`, because one is made for each frame that
comes in. Of a remote frame the data are as many zeros as it asks for.

Rules:

* A bus is pulled, not pushed: it calls ``ready`` when frames may be there, ``drain`` returns them.
* What was lost on the way is counted in `dropped`, exactly where the driver tells.
* ``send`` never blocks.
* A bus that is gone raises `LinkDownError`; nothing of a driver leaves this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ERROR = 0x2000_0000
REMOTE = 0x4000_0000
EXTENDED = 0x8000_0000
STANDARD_MASK = 0x7FF
EXTENDED_MASK = 0x1FFF_FFFF

FD = 1
"""Flag of a frame: CAN FD …"""
BITRATE_SWITCH = 2
"""… with the faster bit rate for its data."""
OWN = 8
"""Flag of a frame: somebody on this machine sent it."""
FOREIGN_TIME = 16
"""Flag of a frame: its time is by the clock of an adapter or another machine. It says nothing of its age."""


class Frame(NamedTuple):
    """A frame as it came in."""

    can_id: int
    data: bytes
    time_ns: int
    """When it was received, as exactly as the driver knows: ns since the Unix epoch."""
    flags: int = 0


class Cyclic(Protocol):
    """A frame, or a sequence of frames, that the bus repeats by its own clock."""

    def update(self, frames: Sequence[bytes], *, at_once: bool) -> None:
        """Have other data sent from now on, without touching the rhythm.

        Args:
            frames: data bytes, sent in turn.
            at_once: whether one more frame goes out now.
        """

    def keep_alive(self) -> None:
        """Say that we are still there: without it the repetition ends by itself after a few seconds."""

    def stop(self) -> None:
        """End the repetition."""


@dataclass(frozen=True, slots=True)
class BusStatus:
    """What is known of a bus's health; None for what this driver does not tell."""

    state: int | None = None
    """0 error active, 1 error warning, 2 error passive, 3 bus-off, 4 stopped."""
    tx_errors: int | None = None
    """Transmit error counter of the controller."""
    rx_errors: int | None = None
    bitrate: int | None = None
    """In bit/s."""
    frames: int | None = None
    """All frames on the bus since some moment, received and sent …"""
    data_bytes: int | None = None
    """… and the data bytes in them."""


class Bus(Protocol):
    """An open bus."""

    dropped: int
    """Frames that were received and lost before `drain` got them; of the last, it is known after `status`."""

    def start(self, ready: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        """Begin to receive; both are called in the running event loop."""

    def drain(self, limit: int) -> Sequence[Frame]:
        """Return up to `limit` frames that are there, oldest first; empty if there are none.

        Raises:
            LinkDownError: the bus is gone.
        """

    def send(self, can_id: int, data: bytes, flags: int = 0) -> bool:
        """Hand a frame to the driver; False if it has no room now.

        Raises:
            LinkDownError: the bus is gone.
            RefusedError: this bus can never send such a frame; the bus lives.
        """

    def repeat(self, can_id: int, frames: Sequence[bytes], period_s: float, flags: int = 0) -> Cyclic | None:
        """Have frames repeated by the bus's own clock, the first at once; None if it has none."""

    def select(self, filters: Iterable[tuple[int, int]] | None) -> None:
        """Receive only frames for which ``can_id & mask == id & mask`` for one (id, mask); None for all.

        A driver may let more through, never less.
        """

    def status(self) -> BusStatus:
        """Return the bus's health as of now; cheap enough for once a second."""

    async def restart(self) -> str | None:
        """Bring a bus that is off back; return why that cannot be done, or None."""

    async def close(self) -> None:
        """Leave the bus; never raises."""


Options = Mapping[str, object]
"""For `can.Bus`: interface, channel and what else the interface takes."""
