"""The frames of a log as lines for programs (JSON) and for people, by what a database describes.

Layout of a JSON line::

    {"time": "2012-08-17T14:14:44.318850Z", "channel": "vcan0", "id": 1953, "extended": false,
     "message": "EngineStatus", "signals": {"EngineSpeed": 812.5}, "raw": {"EngineSpeed": 6500}, "bad": {}}

A signal is either in ``signals`` or in ``bad``, with the reason; ``raw`` has those whose bits are in the
frame. Only where there is something to say: ``uncertain`` (signals with a value that should not be trusted,
and why), ``error`` (of an error frame, what it says), ``remote`` (true), ``transport`` (J1939: PGN, source
address and size of the message that this frame, the last of several, completes; the signals are that
message's).

Rules:

* One line a frame. A frame that no message describes, a remote frame and an error frame have no message.
* A plain database is matched by the whole identifier, one of J1939 by the PGN: the message of the same source
  address if there is one, else the first. Messages in packets, and frames that are too short for their
  message, are recognised as the gateway does it (`j1939.matching`, `j1939.transport`).
* NaN and infinity never appear; what comes from files is printed without control characters.

Design: what depends on the identifier alone is made once for each, what depends on the data alone is kept
until the data change: most frames of a bus repeat the one before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from fieldbus.canbus.bus import ERROR, EXTENDED, EXTENDED_MASK, REMOTE
from fieldbus.canbus.codec import BranchDecoder, MessageDecoder
from fieldbus.canbus.j1939.identifiers import pgn_of, source_of
from fieldbus.canbus.j1939.matching import PgnTable, fragment_text, is_fragment
from fieldbus.canbus.j1939.packets import is_transport
from fieldbus.canbus.j1939.signals import as_j1939
from fieldbus.canbus.j1939.transport import Reassembler
from fieldbus.canbus.kernel.error_frames import decode_error_frame
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.logs.logged import LoggedFrame
from fieldbus.model import Quality, Value
from fieldbus.sample_json import iso_time
from fieldbus.scaling import Number
from fieldbus.text import printable

_MAX_KNOWN_IDS = 65_536
_MAX_CHANNELS = 64
_NOTHING = '"message":null,"signals":{},"raw":{},"bad":{}'
_text = json.JSONEncoder(ensure_ascii=False).encode


class LogDecoder:
    """Writes a line for each frame."""

    def __init__(self, messages: Sequence[Message], *, is_json: bool, is_j1939: bool = False) -> None:
        """Prepare.

        Args:
            messages: of the database.
            is_json: lines for programs, not for people.
            is_j1939: whether all extended identifiers of the database are to be taken as PGNs.
        """
        self.frames = 0
        self.decoded = 0
        """Frames that a message describes."""
        self.undecodable = 0
        """Remote frames, error frames and parts of longer messages: nothing in them to be decoded."""
        self.unknown: Counter[int] = Counter()
        """Identifiers (words) that no message has."""
        self.doubles: list[tuple[str, str]] = []
        """Messages that are never seen, because another has their identifier; and that other."""
        self._is_json = is_json
        self.fragments: Counter[str] = Counter()
        """Sentences about frames that are only a part of their message, and how many frames that were."""
        self._exact: dict[int, _Writer] = {}
        self._by_pgn: PgnTable[_Writer] = PgnTable()
        for message in messages:
            self._enter(message, is_pgn=message.is_extended and (message.is_j1939 or is_j1939))
        self._found: dict[int, _Writer | None] = {}
        self._heads: dict[tuple[str, int], str] = {}
        self._reassemblers: dict[str, Reassembler] = {}

    def _enter(self, message: Message, *, is_pgn: bool) -> None:
        can_id = message.frame_id | (EXTENDED if message.is_extended else 0)
        writer = _Writer(as_j1939(message) if is_pgn else message, is_json=self._is_json)
        if is_pgn:
            pgn, source = pgn_of(can_id), source_of(can_id)
            first = next(iter(self._by_pgn.of(pgn, source)), writer)
            if first is writer:
                self._by_pgn.add(pgn, source, writer)
        else:
            first = self._exact.setdefault(can_id, writer)
        if first is not writer:
            self.doubles.append((message.name, first.message.name))

    def _find(self, can_id: int) -> _Writer | None:
        writer = self._exact.get(can_id)
        if writer is None and self._by_pgn and can_id & EXTENDED:
            writer = self._by_pgn.nearest(pgn_of(can_id), source_of(can_id))
        if len(self._found) >= _MAX_KNOWN_IDS:
            self._found.clear()
        self._found[can_id] = writer
        return writer

    def line(self, frame: LoggedFrame) -> str:
        """Return the line of a frame, without an end of line."""
        self.frames += 1
        can_id, data = frame.can_id, frame.data
        head = self._heads.get((frame.channel, can_id))
        if head is None:
            head = self._head(frame.channel, can_id)
        if can_id & (ERROR | REMOTE):
            self.undecodable += 1
            body = self._special(can_id, data)
        else:
            writer = self._found[can_id] if can_id in self._found else self._find(can_id)
            body = None
            if self._by_pgn and is_transport(can_id):
                body = self._transported(frame, is_described=writer is not None)
            if body is None:
                body = self._body(can_id, data, writer)
        if self._is_json:
            return f'{{"time":"{iso_time(frame.time_ns)}",{head},{body}}}'
        return f"{iso_time(frame.time_ns)} {head} {body}"

    def _body(self, can_id: int, data: bytes, writer: _Writer | None) -> str:
        if writer is None:
            if len(self.unknown) < _MAX_KNOWN_IDS or can_id in self.unknown:
                self.unknown[can_id] += 1
            return _NOTHING if self._is_json else f"– {data.hex(' ').upper()}"
        if writer.is_long and is_fragment(writer.message, len(data)):
            self.undecodable += 1
            self.fragments[fragment_text(writer.message)] += 1
            return _NOTHING if self._is_json else f"– part of {writer.message.name}: {data.hex(' ').upper()}"
        self.decoded += 1
        return writer.body(data)

    def _head(self, channel: str, can_id: int) -> str:
        is_extended = bool(can_id & EXTENDED)
        number = can_id & EXTENDED_MASK
        if self._is_json:
            extended = "true" if is_extended else "false"
            head = f'"channel":{_text(channel)},"id":{number},"extended":{extended}'
        else:
            head = f"{printable(channel)} {id_text(can_id)}"
        if len(self._heads) >= _MAX_KNOWN_IDS:
            self._heads.clear()
        self._heads[channel, can_id] = head
        return head

    def _special(self, can_id: int, data: bytes) -> str:
        if can_id & ERROR:
            causes = list(decode_error_frame(can_id, data).causes)
            return f'{_NOTHING},"error":{_text(causes)}' if self._is_json else f"error: {', '.join(causes)}"
        return f'{_NOTHING},"remote":true' if self._is_json else f"– remote frame, {len(data)} bytes wanted"

    def _transported(self, frame: LoggedFrame, *, is_described: bool) -> str | None:
        """Return what a part of a longer J1939 message says: all of it, if it is the last.

        None for another part of which the database itself says something.
        """
        reassembler = self._reassemblers.get(frame.channel)
        if reassembler is None:
            if len(self._reassemblers) >= _MAX_CHANNELS:
                self._reassemblers.clear()
            reassembler = self._reassemblers[frame.channel] = Reassembler()
        whole = reassembler.feed(frame.can_id, frame.data, frame.time_ns / 1e9)
        if whole is None:
            if is_described:
                return None
            self.undecodable += 1
            shown = f"– part of a longer message: {frame.data.hex(' ').upper()}"
            return _NOTHING if self._is_json else shown
        pgn, source = whole.pgn, whole.source_address
        writer = self._by_pgn.nearest(pgn, source)
        if writer is None:
            self.undecodable += 1
            body = _NOTHING if self._is_json else f"– {whole.payload.hex(' ').upper()}"
        else:
            self.decoded += 1
            body = writer.body(whole.payload)
        if self._is_json:
            return f'{body},"transport":{{"pgn":{pgn},"source":{source},"bytes":{len(whole.payload)}}}'
        return f"(PGN {pgn} from {source}, {len(whole.payload)} bytes) {body}"


class _Writer:
    """Writes what a message's data say."""

    def __init__(self, message: Message, *, is_json: bool) -> None:
        self.message = message
        self.is_long = is_fragment(message, 0)
        self._decoder = MessageDecoder(message)
        kind = _JsonBranch if is_json else _TextBranch
        self._branches = [kind(branch) for branch in self._decoder.branches]
        self._is_json = is_json
        self._last_data: bytes | None = None
        self._last_body = ""

    def body(self, data: bytes) -> str:
        if data == self._last_data:
            return self._last_body
        parts = [self._branches[index].parts(data) for index in self._decoder.select(data)]
        if self._is_json:
            body = self._json(parts)
        else:
            body = " ".join([self.message.name, *(part[0] for part in parts if part[0])])
        self._last_data, self._last_body = data, body
        return body

    def _json(self, parts: Sequence[Sequence[str]]) -> str:
        signals, raw, bad, uncertain = (
            ",".join([part[index] for part in parts if part[index]]) for index in range(4)
        )
        body = f'"message":{_text(self.message.name)},"signals":{{{signals}}},"raw":{{{raw}}},"bad":{{{bad}}}'
        return f'{body},"uncertain":{{{uncertain}}}' if uncertain else body


class _JsonBranch:
    """Signals, raw values, bad ones and uncertain ones, each as the inside of a JSON object."""

    def __init__(self, decoder: BranchDecoder) -> None:
        self._decode, self._raw = decoder.decode, decoder.raw
        self._decoder = decoder
        self._heads = [_text(signal.name) + ":" for signal in decoder.signals]
        self._template = ",".join(head.replace("%", "%%") + "%r" for head in self._heads)

    def parts(self, data: bytes) -> tuple[str, str, str, str]:
        values, flaws = self._decoder.decode(data)
        raw = self._decoder.raw(data)
        if not flaws:
            return self._template % tuple(values), self._template % raw, "", ""
        heads = self._heads
        bad: dict[int, str] = {}
        uncertain: dict[int, str] = {}
        for index, flaw in flaws.items():
            text = heads[index] + _text(str(flaw.reason))
            (bad if flaw.quality is Quality.BAD else uncertain)[index] = text
        good = [
            heads[index] + repr(value)
            for index, value in enumerate(values)
            if value is not None and index not in bad
        ]
        there = [
            heads[index] + ("null" if _is_endless(value) else repr(value))
            for index, value in enumerate(raw)
            if value is not None
        ]
        return ",".join(good), ",".join(there), ",".join(bad.values()), ",".join(uncertain.values())


def _is_endless(value: Number) -> bool:
    """Return whether JSON has no number for it: NaN and infinity give no 0."""
    return value - value != 0


class _TextBranch:
    """``EngineSpeed=812.5 rpm Mode=2 (running)``."""

    def __init__(self, decoder: BranchDecoder) -> None:
        self._decoder = decoder
        self._signals = decoder.signals

    def parts(self, data: bytes) -> tuple[str]:
        values, flaws = self._decoder.decode(data)
        raw = self._decoder.raw(data)
        words = []
        for index, (signal, value) in enumerate(zip(self._signals, values, strict=True)):
            text = f"{signal.name}={_value_text(signal, value, raw[index])}"
            flaw = flaws.get(index)
            words.append(text if flaw is None else f"{text} ({flaw.reason})")
        return (" ".join(words),)


def _value_text(signal: Signal, value: Value | None, raw: Number | None) -> str:
    if value is None:
        return "–"
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    label = signal.labels.get(raw) if isinstance(raw, int) else None
    if label is not None:
        return f"{text} ({printable(label)})"
    return f"{text} {printable(signal.unit)}" if signal.unit else text


def id_text(can_id: int) -> str:
    """Return an identifier as people write it: three hexadecimal digits, or eight."""
    number = can_id & EXTENDED_MASK
    return f"{number:08X}" if can_id & (EXTENDED | ERROR) else f"{number:03X}"


def most_frequent(unknown: Counter[int], count: int) -> Iterable[str]:
    """Return the identifiers that came most often: ``123 (20 times)``."""
    return [f"{id_text(can_id)} ({times} times)" for can_id, times in unknown.most_common(count)]
