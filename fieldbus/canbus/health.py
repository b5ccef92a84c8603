"""The health of a bus: what its error frames and its controller say, how loaded it is, how it is healed.

Rules:

* The state is told at once when it changes; counters and load are looked at once a second.
* A bus that is off is restarted, after `FIRST_RESTART_S` and then less and less often, unless the kernel
  or the driver does it by itself. Where that is not permitted it is said once, with what to do.
* The load is that of all frames on the bus, whatever filters let through, as the interface counts them;
  with stuff bits for the worst case, so it is never less than it is. Without a known bit rate there is
  none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fieldbus.canbus.bits import frame_bits
from fieldbus.canbus.bus import Bus, BusStatus
from fieldbus.canbus.kernel.error_frames import decode_error_frame
from fieldbus.canbus.schedule import Schedule
from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import Gauge
from fieldbus.model import Kind, Value

ERROR_ACTIVE, ERROR_WARNING, ERROR_PASSIVE, BUS_OFF, STOPPED = range(5)
STATES: Mapping[int, str] = {
    ERROR_ACTIVE: "error active",
    ERROR_WARNING: "error warning",
    ERROR_PASSIVE: "error passive",
    BUS_OFF: "bus-off",
    STOPPED: "stopped",
}
GAUGES: Mapping[str, Gauge] = {
    "bus_state": Gauge(Kind.INT, labels=STATES, highest=STOPPED),
    "bus_load_percent": Gauge(Kind.FLOAT, unit="%"),
    "tx_error_count": Gauge(Kind.INT, highest=255),
    "rx_error_count": Gauge(Kind.INT, highest=255),
    "last_bus_error": Gauge(Kind.STRING),
}
COUNTERS = ("error_frames", "bus_offs", "restarts")
PERIOD_S = 1.0
FIRST_RESTART_S = 0.2
LONGEST_RESTART_S = 30.0
HEALED_S = 10.0
"""A bus that was error active for so long was healed: the next restart comes soon again."""
_BITS_OF_EMPTY = frame_bits(0, is_extended=True)
_BITS_OF_BYTE = frame_bits(8, is_extended=True) / 8 - _BITS_OF_EMPTY / 8


class Health:
    """Watches one bus through a session."""

    def __init__(self, counters: dict[str, int], bitrate: int | None, *, clock: Clock = SYSTEM) -> None:
        """Begin without a bus.

        Args:
            counters: where what happens is counted.
            bitrate: as configured, in bit/s.
            clock: the gateway's.
        """
        self._clock = clock
        self._counters = counters
        self._configured = bitrate
        self.values: dict[str, Value | None] = dict.fromkeys(GAUGES)
        self._bus: Bus | None = None
        self._changed: Callable[[int | None], None] = _nobody
        self._notice: Callable[[str], None] = _nobody
        self._seen: BusStatus | None = None
        self._seen_s = 0.0
        self._wait_s = FIRST_RESTART_S
        self._schedule: Schedule | None = None
        self._is_restart_due = False
        """Whether there is an appointment for a restart."""
        self._active_since_s: float | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._has_said_why = False

    @property
    def state(self) -> int | None:
        """The bus's state, None if it is not known."""
        state = self.values["bus_state"]
        return state if isinstance(state, int) else None

    def start(
        self,
        bus: Bus,
        schedule: Schedule,
        changed: Callable[[int | None], None],
        notice: Callable[[str], None],
    ) -> None:
        """Begin to watch.

        Args:
            bus: the open bus.
            schedule: of the session.
            changed: told of the state that was before, when it changes.
            notice: told what people should know.
        """
        self._bus, self._changed, self._notice = bus, changed, notice
        self._schedule = schedule
        self._seen = bus.status()
        self._seen_s = self._clock.monotonic_s()
        self.values = dict.fromkeys(GAUGES)
        state = self._seen.state
        if state is None and self._seen.frames is not None:
            state = ERROR_ACTIVE  # no controller to ask (vcan); error frames will tell if it is otherwise
        self.values["bus_state"] = state
        self.values["tx_error_count"] = self._seen.tx_errors
        self.values["rx_error_count"] = self._seen.rx_errors
        self.values["last_bus_error"] = ""
        self._wait_s = FIRST_RESTART_S
        self._is_restart_due, self._active_since_s = False, None
        schedule.at(self._seen_s + PERIOD_S, self._look)
        if self.state == BUS_OFF:
            self._went_off()

    async def stop(self) -> None:
        """End the session."""
        self._bus, self._changed, self._notice = None, _nobody, _nobody
        self._schedule = None
        self.values = dict.fromkeys(GAUGES)
        task, self._restarting = self._restarting, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def heard(self, can_id: int, data: bytes) -> None:
        """Take an error frame."""
        self._counters["error_frames"] += 1
        event = decode_error_frame(can_id, data)
        if event.causes:
            self.values["last_bus_error"] = "; ".join(event.causes)
        if event.tx_errors is not None:
            self.values["tx_error_count"] = event.tx_errors
        if event.rx_errors is not None:
            self.values["rx_error_count"] = event.rx_errors
        if event.state is not None:
            self._set(event.state)

    def _look(self, now_s: float) -> float | None:
        """Look at what the interface tells."""
        bus = self._bus
        if bus is None:
            return None
        status = bus.status()
        self._measure_load(status, now_s)
        if status.tx_errors is not None:
            self.values["tx_error_count"] = status.tx_errors
        if status.rx_errors is not None:
            self.values["rx_error_count"] = status.rx_errors
        if status.state is not None:
            self._set(status.state)
        if self._active_since_s is not None and now_s - self._active_since_s > HEALED_S:
            self._wait_s = FIRST_RESTART_S
        return now_s + PERIOD_S

    def _measure_load(self, status: BusStatus, now_s: float) -> None:
        seen, took_s = self._seen, now_s - self._seen_s
        self._seen, self._seen_s = status, now_s
        bitrate = status.bitrate or self._configured
        if (
            bitrate is None
            or seen is None
            or took_s <= 0
            or status.frames is None
            or seen.frames is None
            or status.data_bytes is None
            or seen.data_bytes is None
        ):
            self.values["bus_load_percent"] = None
            return
        frames, data = status.frames - seen.frames, status.data_bytes - seen.data_bytes
        if frames < 0 or data < 0:
            self.values["bus_load_percent"] = None  # the interface counts from zero again
            return
        bits = frames * _BITS_OF_EMPTY + data * _BITS_OF_BYTE
        self.values["bus_load_percent"] = round(bits / took_s / bitrate * 100, 1)

    def _set(self, state: int) -> None:
        before = self.state
        if state == before:
            return
        self.values["bus_state"] = state
        self._active_since_s = self._clock.monotonic_s() if state == ERROR_ACTIVE else None
        if state == BUS_OFF:
            self._went_off()
        elif before == BUS_OFF:
            self._counters["restarts"] += 1
        self._changed(before)

    def _went_off(self) -> None:
        self._counters["bus_offs"] += 1
        self._try_later()

    def _try_later(self) -> None:
        if self._schedule is None or self._is_restart_due:
            return
        self._is_restart_due = True
        self._schedule.at(self._clock.monotonic_s() + self._wait_s, self._begin_restart)
        self._wait_s = min(self._wait_s * 2, LONGEST_RESTART_S)

    def _begin_restart(self, _now_s: float) -> None:
        self._is_restart_due = False
        bus = self._bus
        if bus is not None and self.state == BUS_OFF and self._restarting is None:
            self._restarting = asyncio.create_task(self._restart(bus), name="CAN restart")

    async def _restart(self, bus: Bus) -> None:
        """Restart the bus; whether that helped is seen by its state."""
        refusal = await bus.restart()
        self._restarting = None
        if self._bus is not bus or self.state != BUS_OFF:
            return
        if refusal is not None and not self._has_said_why:
            self._has_said_why = True
            self._notice(f"bus-off, and it cannot be restarted from here: {refusal}")
        self._try_later()


def _nobody(_what: object) -> None:
    """Be told before anybody listens."""
