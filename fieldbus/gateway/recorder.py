"""What a stepped run would have sent, as JSON lines instead.

Layout, one object a line; ``time`` is when it was sent, on the log's clock::

    {"time": "…", "to": "panel.engine_speed", "from": "engine.EngineStatus.EngineSpeed",
     "value": 812.5, "quality": "good", "reason": null}
    {"time": "…", "to": "broker:plant/engine", "from": "engine", "values": {"…": 812.5}, "bad": {}}
    {"time": "…", "to": "can0", "frame": "123#1122"}

The second is for samples that travel together in one message of a broker: one line for what comes from one
batch. The third is a frame that a replayed bus was given; it looks as candump writes it.

Rules:

* Lines come in the order in which things were sent, and hold nothing that differs from run to run.
* A link that is recorded is connected from the first moment, takes everything, and acquires nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from fieldbus.canbus.logs.candump import format_frame
from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import (
    NEVER,
    Bundle,
    Delivery,
    Emit,
    GatherPlan,
    Gauge,
    GaugedLink,
    Link,
    Report,
    WriteOutcome,
    WriteResult,
)
from fieldbus.model import Group, Point, Sample, Value
from fieldbus.sample_json import GatheredFormat, Inside, gathered_inside, iso_time, sample_object
from fieldbus.text import printable_json

_text = json.JSONEncoder(ensure_ascii=False).encode


class Recorder:
    """Writes the lines."""

    def __init__(self, output: TextIO, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._output = output
        self.lines = 0
        self.trouble: OSError | None = None
        """Why nothing more is written."""
        self.on_trouble: Callable[[], None] = lambda: None
        """Called when that begins."""

    def frame(self, link: str, can_id: int, data: bytes, flags: int) -> None:
        """Write a frame that a bus was given."""
        self._put(f'"to":{_text(link)},"frame":{_text(format_frame(can_id, data, flags))}')

    def sample(self, delivery: Delivery) -> None:
        """Write a sample that travels alone."""
        found: dict[str, Any] = sample_object(delivery.source, delivery.sample)
        parts = ",".join(f'"{name}":{_text(found[name])}' for name in ("value", "quality", "reason"))
        self._put(f'"to":{_text(delivery.target.address)},"from":{_text(delivery.source.address)},{parts}')

    def gathered(self, to: str, device: str, inside: Inside) -> None:
        """Write samples that travel together."""
        head = f'"to":{_text(to)},"from":{_text(device)}'
        self._put(f'{head},"values":{{{inside.values}}},"bad":{{{inside.bad}}}')

    def _put(self, rest: str) -> None:
        if self.trouble is not None:
            return
        try:
            line = printable_json(f'{{"time":"{iso_time(self._clock.wall_ns())}",{rest}}}')
            self._output.write(line + "\n")
        except OSError as error:
            self.trouble = error
            self.on_trouble()
        else:
            self.lines += 1


class RecordingLink:
    """Stands in for a link and writes down what it is sent."""

    def __init__(self, link: Link, recorder: Recorder) -> None:
        self.name = link.name
        self.is_listener = link.is_listener
        self.groups: Sequence[Group] = link.groups
        self.gauges: Mapping[str, Gauge] = link.gauges if isinstance(link, GaugedLink) else {}
        self._endpoint = link.endpoint
        self._counters = dict(link.counters)
        self._recorder = recorder
        self._formats: dict[GatherPlan, GatheredFormat] = {}

    @property
    def endpoint(self) -> str:
        """Where it goes, and where the link would go."""
        return f"a record, instead of {self._endpoint}"

    @property
    def counters(self) -> Mapping[str, int]:
        """Those of the link, as they were before it did anything."""
        return self._counters

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing."""
        return {}

    def gauge_values(self) -> Mapping[str, Value | None]:
        """Return that nothing is known."""
        return dict.fromkeys(self.gauges)

    async def connect(self) -> None:
        """Be connected."""

    async def run(self, emit: Emit, report: Report) -> None:
        """Stay connected."""
        await asyncio.Event().wait()

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Write them down; those of one call for one gathering topic and of one device on one line."""
        gathered: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
        for delivery in deliveries:
            target = delivery.target
            if target.gathers or target.is_shared:
                key = target.address, delivery.source.device
                gathered.setdefault(key, []).append((target.label, delivery.sample))
            else:
                self._recorder.sample(delivery)
        for (to, device), samples in gathered.items():
            self._recorder.gathered(to, device, gathered_inside(samples))
        return ()

    def gather(self, bundle: Bundle) -> None:
        """Write down what of a batch goes into a gathered message."""
        plan, batch = bundle
        writer = self._formats.get(plan)
        if writer is None:
            writer = self._formats[plan] = GatheredFormat(
                plan.group.points, plan.indexes, plan.labels, tells_bad=plan.tells_bad
            )
        is_whole = plan.wants_every_sample or len(batch.changed) == len(batch.values)
        inside = writer.inside(batch) if is_whole else writer.some(batch, batch.changed)
        if inside.values or inside.bad:
            self._recorder.gathered(f"{self.name}:{plan.message.topic}", plan.message.device, inside)

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Refuse: nobody writes while a log is replayed."""
        reason = "a log is being replayed"
        return [WriteResult(point, value, WriteOutcome.REFUSED, reason) for point, value in values.items()]

    async def close(self) -> None:
        """Do nothing: there is nothing open."""
