"""The units behind a link: what is polled of each, and what is known of it while the link runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fieldbus.durable.files import make_folder, read_own, replace_own
from fieldbus.modbus import pdu
from fieldbus.modbus.agenda import Turns
from fieldbus.modbus.blocks import BlockReader
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.learned import Explorer, Knowledge, fingerprint
from fieldbus.modbus.places import Framing, Place, SerialPlace
from fieldbus.modbus.planner import MAX_BITS, MAX_REGISTERS, Block, Cost, Limits, most_of, plan, plan_together
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.registers import RegisterPoint, Table
from fieldbus.model import Group, Reason

FIRST_RETRY_S = 2.0
FIRST_ODD_RETRY_S = 5.0
"""The same where no exception said that the device has not got it: a retry may cost a timeout."""
RETRY_S = 300.0
"""How often a point that the device refuses is asked for again; more often at first, for it may have been
starting."""
_DEVICE_S = 0.005
"""What a device is taken to need for an answer until it was measured."""
_LATE_S = 3.0
_LATE_TIMEOUTS = 4
"""After so long, or so many timeouts, nobody expects a late answer any more."""
_SMOOTHING = 0.1
_SHORTEST_TRIAL_S = 0.1
BROKE_S = 0.2
"""How much later than the others a poll is due in a new session that ended the last one."""
FAILURES_TO_DOUBT = 2
"""After so many failures in a row a unit may answer something else than what it is asked."""
_GOLDEN = 0.618034
"""Spreads what is asked in turn: neighbours of an address that is silent are often silent too."""


def cost_on(place: Place) -> Cost:
    """Return what asking costs at a place, before anything was measured."""
    if not isinstance(place, SerialPlace):
        return Cost(_DEVICE_S)
    # A request has 8 characters, an answer 5 and its data; each is followed by silence. ASCII needs two
    # characters a byte and five for colon, LRC and line end.
    characters, per_byte = (8 + 5, 1) if place.framing is Framing.RTU else (17 + 11, 2)
    fixed_s = characters * place.character_s + 2 * place.silence_s + place.turnaround_s + _DEVICE_S
    return Cost(fixed_s, per_byte * place.character_s)


@dataclass(frozen=True, slots=True)
class Unit:
    """One device behind the link."""

    device: str
    unit_id: int
    points: Sequence[RegisterPoint]
    scan_s: float
    timeout_s: float
    limits: Limits = field(default_factory=Limits)
    quirks: UnitQuirks = field(default_factory=UnitQuirks)
    write_timeout_s: float | None = None
    """For the response to a write; `timeout_s` if None."""
    is_polled: bool = True
    """Whether its points are read by themselves; not for the writes of a program that ends after them."""

    @property
    def readable(self) -> list[RegisterPoint]:
        """The points that are polled; what is needed to know others is among them."""
        if not self.is_polled:
            return []
        found = dict.fromkeys(point.shown or point for point in self.points if point.point.access.can_read)
        found |= dict.fromkeys(point.factor for point in found if point.factor is not None)
        return list(found)


class Poll:
    """One block, its request, and when it is due."""

    __slots__ = (
        "ask", "block", "broke_s", "due_s", "explorations", "explore_at_s", "failed_before_s", "failed_s",
        "failures", "group", "is_first", "is_fresh", "is_gone", "is_plain", "is_retry", "is_sent_again",
        "misses", "period_s", "reader", "reason", "state", "tries", "turns",
    )  # fmt: skip

    def __init__(self, block: Block, state: UnitState, due_s: float, *, is_retry: bool = False) -> None:
        self.block = block
        self.state = state
        self.turns = state.turns
        self.group = Group(f"{state.unit.device} {block.name}", (item.point for item in block.points))
        self.reader = BlockReader(block, self.group)
        self.ask = Ask(block.unit_id, pdu.read_request(block.table, block.address, block.count), block.width)
        self.is_plain = block.table.is_numbered
        """Whether the data of its response begins behind the byte count."""
        self.period_s = block.period_s
        self.due_s = due_s
        if is_retry:
            is_odd = any(is_odd_reason(state.knowledge.reason(point)) for point in block.points)
            self.period_s = FIRST_ODD_RETRY_S if is_odd else FIRST_RETRY_S
            if is_odd:  # it was asked for a moment ago, and may cost a timeout
                self.due_s = due_s + self.period_s
        self.is_first = not is_retry
        self.is_fresh = True
        """Whether it was never read."""
        self.is_gone = False
        self.is_retry = is_retry
        """Whether it asks for what the device is known to refuse."""
        self.is_sent_again = False
        """Whether the connection ended under it, and it was sent again since."""
        self.broke_s = 0.0
        """When a connection last ended under it although it was sent again; 0 if none did."""
        self.explore_at_s = 0.0
        """Not explored before."""
        self.explorations = 0
        """How often in a row an exploration of it has found nothing."""
        self.failures = 0
        """How often in a row it failed."""
        self.failed_s = self.failed_before_s = 0.0
        """When it was asked for the last time that it failed, and for the time before."""
        self.tries = 0
        self.misses = 0
        """How often in a row it was late."""
        self.reason: str | None = None
        """Why the group is bad, if it is."""

    def has_failed(self, asked_s: float) -> None:
        """Count a failure of a read that was sent at `asked_s`."""
        self.failures += 1
        self.failed_before_s, self.failed_s = self.failed_s, asked_s


class UnitState:
    """A unit while the link runs."""

    def __init__(self, unit: Unit, cost: Cost, memory: Path | None) -> None:
        self.unit = unit
        self._cost = cost
        self._memory = memory
        self._mark = fingerprint(unit.points, unit.unit_id)
        self._saved = ""
        self.knowledge = self._load()
        self.explorer = Explorer(self.knowledge)
        self.turns = Turns()
        self.refused_points: list[RegisterPoint] = []
        self.polls: list[Poll] = []
        self.is_online: bool | None = None
        """None until the first answer or failure."""
        self.failures = 0
        self.was_hurried = False
        """Whether the last request was given up before its timeout."""
        self.unreachable: set[Poll] = set()
        """Polls to which the gateway before the unit said that it cannot reach it (0A, 0B), since any other
        answer."""
        self.probes = 0
        self.probe_after_s = 0.5
        self.response_time_s = 0.0
        self.slowest_s = 0.0
        """What the slowest answer of late took beyond its bytes; 0 if there was none yet."""
        self.rests_until_s = 0.0
        self.suspects: set[tuple[int, int]] = set()
        """Shapes of answers that may still come late."""
        self.suspected_s = 0.0
        self.unanswered = 0
        """How many requests were given up since the last answer that could be none of theirs."""
        self.is_explored = False
        """Whether it is being found out why one of its blocks is refused."""
        self.to_explore: list[tuple[Poll, str]] = []
        """Blocks that have failed meanwhile, each with the reason."""
        self.exploring: Steps | None = None
        """The exploration under way: its failures are its own, not the unit's."""
        self.trial_patience_s: float | None = None
        """How long the exploration waits for the next response, if less than the timeout."""
        self.explore_next_s = 0.0
        """When the exploration goes on, if it waits for something to pass."""
        self.is_proving = False
        """Whether it was asked for a sign of life since it last answered."""
        self.heard_s = 0.0
        """When it last answered anything but 0A and 0B."""
        self.proof_ask: Ask | None = None
        """A read that it answered, while no block of it could be read."""
        self.relapses: dict[tuple[Table, int, int], int] = {}
        """How often a place was readable again after it had failed in a way that may pass."""
        self._knocks = 0
        self.replan(0.0)

    def begin(self, now_s: float) -> None:
        """Be due at once: a new session."""
        self.turns = Turns(slot=self.turns.slot)
        for poll in self.polls:
            poll.turns = self.turns
            # What ended the last session comes after the others, or they would never be read.
            poll.due_s = now_s + (BROKE_S if poll.broke_s else 0.0)
            poll.is_first = not poll.is_retry
            poll.tries = poll.failures = poll.explorations = 0
            poll.is_sent_again = False
            poll.explore_at_s = 0.0

    def forget_session(self) -> None:
        """A new session is a new chance; who was online is told again only if that changes."""
        self.failures = self.probes = 0
        self.was_hurried = False
        self.unreachable.clear()
        self.probe_after_s = 0.5  # what may still come late is not forgotten: it comes all the same
        self.is_online = None
        self.rests_until_s = 0.0
        self.is_explored = self.is_proving = False
        self.exploring = self.proof_ask = None
        self.to_explore.clear()
        for poll in self.polls:
            poll.reader.forget()
            poll.reason = "not connected"

    def note(self, spent_s: float, ask: Ask) -> None:
        """Learn how long a request took on the line."""
        data = ask.size - 2 if ask.pdu[0] <= pdu.READ_INPUT_REGISTERS else 0
        own_s = max(0.0, spent_s - data * self._cost.byte_s)
        known_s = self.knowledge.turnaround_s
        self.knowledge.turnaround_s = own_s if known_s is None else known_s + _SMOOTHING * (own_s - known_s)
        self.slowest_s = max(own_s, self.slowest_s * 0.99)

    # --- the plan

    def replan(self, now_s: float) -> tuple[list[Poll], list[Poll]]:
        """Plan with what is known; return the polls that are gone and those that are new."""
        unit, knowledge = self.unit, self.knowledge
        readable = unit.readable
        self.refused_points = [
            point
            for point in readable
            if knowledge.is_refused(point)
            or (point.factor is not None and knowledge.is_refused(point.factor))
        ]
        refused = set(self.refused_points)
        kept = [point for point in readable if point not in refused]
        limits = knowledge.limits(unit.limits)
        blocks = plan(kept, unit.unit_id, unit.scan_s, limits, self._cost, knowledge.barriers())
        alone = Limits(first_address=unit.limits.first_address)
        retries = [
            block
            for members in _clusters(self.refused_points)
            for block in plan_together(members, unit.unit_id, RETRY_S, alone, self._cost)
        ]
        known = {(poll.block.key, poll.is_retry): poll for poll in self.polls}
        planned: list[Poll] = []
        added: list[Poll] = []
        for block, is_retry in [*((item, False) for item in blocks), *((item, True) for item in retries)]:
            poll = known.pop((block.key, is_retry), None)
            if poll is None:
                poll = Poll(block, self, now_s, is_retry=is_retry)
                added.append(poll)
            planned.append(poll)
        self.polls = planned
        self.unreachable.clear()
        return list(known.values()), added

    def forget_limits(self) -> bool:
        """Forget how much may be asked at once and where not across; return whether anything was known."""
        knowledge = self.knowledge
        had = any(knowledge.walls.values()) or (knowledge.max_registers, knowledge.max_bits) != (
            MAX_REGISTERS,
            MAX_BITS,
        )
        knowledge.walls.clear()
        knowledge.max_registers, knowledge.max_bits = MAX_REGISTERS, MAX_BITS
        self.explorer = Explorer(knowledge)
        return had

    def summary(self, names: str) -> str:
        """Return what was learned, for the log."""
        parts = []
        if names:
            shown = names if len(names) <= 200 else names[:200] + " …"
            parts.append(f"unreadable: {shown}")
        if self.knowledge.max_registers < MAX_REGISTERS:
            parts.append(f"at most {self.knowledge.max_registers} registers a request")
        if self.knowledge.max_bits < MAX_BITS:
            parts.append(f"at most {self.knowledge.max_bits} bits a request")
        walls = sum(map(len, self.knowledge.walls.values()))
        if walls:
            parts.append(f"{walls} gaps that cannot be read over")
        return "; ".join(parts) or "none any more"

    @property
    def is_unreachable(self) -> bool:
        """Whether the gateway before the unit could reach nothing of it."""
        return all(poll in self.unreachable for poll in self.polls if not poll.is_retry)

    # --- signs of life

    @property
    def has_readable(self) -> bool:
        """Whether anything is polled that is not known to be refused."""
        return any(not poll.is_retry for poll in self.polls)

    @property
    def patience_s(self) -> float:
        """How long a response is worth waiting for where a silence decides nothing yet."""
        if not self.slowest_s:
            return self.unit.timeout_s
        return min(self.unit.timeout_s, max(_SHORTEST_TRIAL_S, 8 * self.slowest_s))

    def proof(self) -> Ask | None:
        """Return a read that the unit answered the last time; None if there is none."""
        good = [
            poll.ask
            for poll in self.polls
            if poll.reason is None and not (poll.is_fresh or poll.is_retry or poll.failures)
        ]
        return min(good, key=lambda ask: ask.size, default=self.proof_ask)

    def knock_ask(self) -> Ask | None:
        """Return a read of one point, another one each time: perhaps only a part of a block is silent."""
        points = [
            point
            for poll in self.polls
            for point in poll.block.points
            if point.factor is None and point.table.is_numbered
        ]
        if not points:
            return None
        self._knocks += 1
        point = points[int(self._knocks * _GOLDEN % 1 * len(points))]
        first = self.unit.limits.first_address
        start = point.address if first is None else first
        return Ask(self.unit.unit_id, pdu.read_request(point.table, start, point.end - start), point.width)

    # --- in step

    def suspect(self, ask: Ask, now_s: float) -> None:
        """Expect that a request which was given up is still answered."""
        self.suspects.add(ask.shape)
        self.unanswered += 1
        self.suspected_s = now_s

    def is_out_of_step(self, ask: Ask, now_s: float) -> bool:
        """Return whether a late answer to an earlier request could be taken for the answer to this one."""
        if self.suspects and now_s > self.expected_until_s:
            self.in_step()
        return ask.shape in self.suspects

    @property
    def expected_until_s(self) -> float:
        """Until when a late answer may come."""
        return self.suspected_s + max(_LATE_S, _LATE_TIMEOUTS * self.unit.timeout_s)

    def in_step(self) -> None:
        """Expect no late answer any more."""
        self.suspects.clear()
        self.unanswered = 0

    def was_refused(self, ask: Ask, now_s: float) -> None:
        """Learn that a different request, or the one before it, was refused: answers come in order."""
        if self.unanswered <= 1:
            self.suspects.clear()
            self.unanswered = 0
        self.suspect(ask, now_s)

    def different_ask(self) -> Ask | None:
        """Return a read whose answer looks like none of those that may still come; None if there is none."""
        best: Ask | None = None
        for table, start, size, width in self._askable():
            # Shorter than the block if possible; one more than it if it is a single register.
            most = most_of(table) * 16 // width
            counts = [n for n in (*range(1, min(size, 64) + 1), size + 1) if n <= most]
            for count in [size] if table.is_whole else counts:
                address = min(start, (start | 0xFFFF) + 1 - count)
                ask = Ask(self.unit.unit_id, pdu.read_request(table, address, count), width)
                if ask.shape not in self.suspects:
                    if best is None or ask.size < best.size:
                        best = ask
                    break
        return best

    def _askable(self) -> list[tuple[Table, int, int, int]]:
        """Return what can best be asked: table, address, count and width."""
        known = [poll for poll in self.polls if poll.reason is None and not poll.is_fresh]
        if not known and self.proof_ask is not None and self.failures < FAILURES_TO_DOUBT:
            return [(*pdu.read_place(self.proof_ask.pdu), self.proof_ask.width)]
        found = []
        for block in (poll.block for poll in known or self.polls):
            shift = 0
            is_divisible = block.table.is_numbered and not block.is_anchored
            if self.failures >= FAILURES_TO_DOUBT and not known and is_divisible:
                # A part of a block may be silent: another one is asked each time.
                self._knocks += 1
                shift = int(self._knocks * _GOLDEN % 1 * block.count)
            found.append((block.table, block.address + shift, block.count - shift, block.width))
        # Of a unit that is only written to, what is written is the best guess at what can be read.
        points = [item for item in self.unit.points if item.point.access.can_read] or self.unit.points
        shown = [item.shown or item for item in points]
        return found or [(item.table, item.address, item.count, item.width) for item in shown]

    # --- on disk

    def _file(self) -> Path | None:
        return None if self._memory is None else self._memory / f"{self.unit.device}.json"

    def _load(self) -> Knowledge:
        file = self._file()
        if file is None:
            return Knowledge()
        try:
            text = read_own(file).decode()
        except (OSError, UnicodeDecodeError):
            return Knowledge()
        self._saved = text
        return Knowledge.from_json(text, self._mark)

    def save(self) -> None:
        """Keep what was learned, if there is a place for it; a disk that is full costs only that."""
        file = self._file()
        if file is None:
            return
        text = self.knowledge.to_json(self._mark)
        if text == self._saved or (not self._saved and self.knowledge.turnaround_s is None):
            return
        try:
            make_folder(file.parent)
            replace_own(file, text.encode())
        except OSError:
            return
        self._saved = text


def is_odd_reason(reason: str) -> bool:
    """Return whether a point that failed for a reason may be readable the next time."""
    return reason not in (f"{Reason.DEVICE_EXCEPTION} 02", f"{Reason.DEVICE_EXCEPTION} 03")


Steps = Generator[tuple[UnitState, Ask], bytes, None]
"""What has several requests: yields them and is sent the answers' PDUs, or has the error thrown into it."""


def _clusters(points: Iterable[RegisterPoint]) -> list[list[RegisterPoint]]:
    """Return points that can only be read together, together."""
    found: dict[RegisterPoint, list[RegisterPoint]] = {}
    for point in points:
        found.setdefault(point.factor or point, []).append(point)
    return list(found.values())
