"""Samples on their way through a spool or to another gateway: rows, chunks, and what is said of them.

Layout of a row, and of what travels live between gateways: JSON,
``{"heads": [[…], …], "samples": [[head, value, time_ns], [head, value, time_ns, quality, reason, label],
[head, value, time_ns, quality, reason, label, held], …]}``. ``held`` is true of a sample that waited on its
way.
A head is what does not change from sample to sample: of a gateway's point its address, the point it first was
(``gateway/address``) and how many gateways it has come through; of a topic ``[topic, label, device, unit]``,
where label is null if the topic does not gather.

What travels live also says its place, ``"boot", "number", "time_ns"``: a word that is another one each time
that the sender begins anew, a number that grows with each message, and when the message was sent. A sender of
version 0.1 says none of the three.

Layout of a chunk, a row with its place in its stream: a line of JSON, ``{"gateway", "boot", "stream",
"first",
"count", "gap", "floor", "historical"}``, perhaps ``"missing"``, a line feed, then the row.

Rules: time is a whole number of nanoseconds, so no time is rounded on the way. Quality and reason stand there
unless the sample is good. What cannot be read raises `RecordError`; nothing of it is taken.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeGuard

from fieldbus.model import HeldSample, Quality, Sample, Value

Head = tuple[Any, ...]
MAX_SAMPLES = 20_000
"""Of a row that others send, at most."""
_NAME_LENGTH = 128
_END_OF_TIME = 1 << 63
_LARGEST = sys.float_info.max
_QUALITIES = {str(quality): quality for quality in Quality}


class RecordError(ValueError):
    """What came is no row, or no chunk."""


class Item(NamedTuple):
    """A sample with what is known of it for good."""

    head: Head
    sample: Sample
    label: str | None = None
    """The name that an enumeration gives the value."""


class Stamp(NamedTuple):
    """The place of a live message among those of its sender."""

    boot: str
    number: int
    time_ns: int
    """When it was sent, by the sender's wall clock."""


class Place(NamedTuple):
    """Where a chunk has its place."""

    gateway: str
    boot: str
    stream: str
    first: int
    """The number of its first sample."""
    samples: int
    """How many it has."""
    gap: int
    """How many just before it were dropped before they were written."""
    floor: int
    """The sender has nothing up to here any more."""
    is_historical: bool
    """Whether it has waited for its receiver."""
    missing: int = 0
    """How many samples of the incarnation before are missing between that and this one."""

    @property
    def last(self) -> int:
        """The number of its last sample."""
        return self.first + self.samples - 1

    @property
    def source(self) -> str:
        """What names the stream for ever."""
        return f"{self.gateway}/{self.boot}/{self.stream}"


def encode_row(items: Sequence[Item], stamp: Stamp | None = None) -> bytes:
    """Return a row; with a stamp, a live message."""
    places: dict[Head, int] = {}
    samples: list[list[Any]] = []
    for head, sample, label in items:
        value, quality, reason, time_ns = sample
        place = places.setdefault(head, len(places))
        if isinstance(value, float) and not math.isfinite(value):
            value, quality, reason = None, Quality.BAD, "not available"  # no such number in JSON
        row = [place, value, time_ns]
        is_held = type(sample) is HeldSample
        if is_held or quality is not Quality.GOOD or label is not None:
            row += [str(quality), None if reason is None else str(reason), label]
            if is_held:
                row.append(True)
        samples.append(row)
    found: dict[str, Any] = {} if stamp is None else stamp._asdict()
    found |= {"heads": list(places), "samples": samples}
    # Half a character of UTF-16, which JSON can name, is none in UTF-8: it becomes a question mark.
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def decode_row(data: bytes) -> list[Item]:
    """Return the samples of a row.

    Raises:
        RecordError: it is none.
    """
    return _decode(data)[1]


def _decode(data: bytes) -> tuple[Mapping[str, Any], list[Item]]:
    try:
        found = json.loads(data, parse_constant=_no_constant)
        heads = [tuple(head) for head in found["heads"]]
        rows = found["samples"]
        if len(rows) > MAX_SAMPLES:
            raise RecordError(f"more than {MAX_SAMPLES} samples")
        return found, [_item(heads, row) for row in rows]
    except RecordError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise RecordError(f"not a row of samples ({type(error).__name__})") from None


def decode_peer_row(data: bytes) -> list[Item]:
    """Return the samples of a row whose heads are those of a gateway's points.

    Raises:
        RecordError: it is none.
    """
    items = decode_row(data)
    _check_heads(items)
    return items


def decode_live(data: bytes) -> tuple[Stamp | None, list[Item]]:
    """Return the place and the samples of a live message; a sender of version 0.1 gives no place.

    Raises:
        RecordError: it is none.
    """
    found, items = _decode(data)
    _check_heads(items)
    boot, number, time_ns = (found.get(name) for name in Stamp._fields)
    if boot is number is time_ns is None:
        return None, items
    if not _is_name(boot):
        raise RecordError("a live message names its boot")
    if not _is_count(number, 1) or type(time_ns) is not int or not 0 <= time_ns < _END_OF_TIME:
        raise RecordError("a live message has a number and a time")
    return Stamp(boot, number, time_ns), items


def _check_heads(items: Sequence[Item]) -> None:
    for head in {id(item.head): item.head for item in items}.values():
        if len(head) != 3 or type(head[2]) is not int or head[2] < 0:
            raise RecordError("a head is an address, an origin and a number of hops")
        if not isinstance(head[0], str) or not isinstance(head[1], str):
            raise RecordError("a head is an address, an origin and a number of hops")
        _check_text(head[0])
        _check_text(head[1])


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RecordError("a text has half a character") from None


def _item(heads: Sequence[Head], row: Sequence[Any]) -> Item:
    place, value, time_ns = row[0], row[1], row[2]
    if type(place) is not int or type(time_ns) is not int or place < 0:
        raise RecordError("a sample has a place and a time that are whole numbers")
    if not 0 <= time_ns < _END_OF_TIME:
        raise RecordError("the time of a sample is between 1970 and 2262")
    quality, reason, label = Quality.GOOD, None, None
    kind = HeldSample if len(row) > 6 and row[6] is True else Sample
    if len(row) > 3:
        quality, reason = _QUALITIES[row[3]], row[4]
        label = row[5] if len(row) > 5 else None
        if not isinstance(label, str | None):
            raise RecordError("a label is a text")
        for text in (reason, label):
            if isinstance(text, str):
                _check_text(text)
    if (value is None) != (quality is Quality.BAD) or not isinstance(value, Value | None):
        raise RecordError("a sample is bad exactly when it has no value")
    if (reason is None) != (quality is Quality.GOOD) or not isinstance(reason, str | None):
        raise RecordError("a sample has a reason exactly when it is not good")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
        raise RecordError("a value is finite")
    return Item(heads[place], kind(value, quality, reason, time_ns), label)


def encode_chunk(place: Place, row: bytes) -> bytes:
    """Return a row with its place in front of it."""
    head = {
        "gateway": place.gateway,
        "boot": place.boot,
        "stream": place.stream,
        "first": place.first,
        "count": place.samples,
        "gap": place.gap,
        "floor": place.floor,
        "historical": place.is_historical,
    }
    if place.missing:
        head["missing"] = place.missing
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + row


def decode_place(payload: bytes) -> tuple[Place, bytes]:
    """Return where a chunk has its place, and its row.

    Raises:
        RecordError: it is no chunk.
    """
    head, _, row = payload.partition(b"\n")
    try:
        found = json.loads(head)
        texts = [found[key] for key in ("gateway", "boot", "stream")]
        numbers = [found[key] for key in ("first", "count", "gap", "floor")]
        is_historical = found["historical"]
        missing = found.get("missing", 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RecordError("it is none") from None
    if not all(_is_name(text) for text in texts):
        raise RecordError("a chunk names its gateway, boot and stream")
    if not all(_is_count(number) for number in (*numbers, missing)) or numbers[0] < 1:
        raise RecordError("a chunk has a first number, a count, a gap and a floor")
    if numbers[2] >= numbers[0]:
        raise RecordError("more samples are missing before a chunk than there can be")
    first, count, gap, floor = numbers
    place = Place(texts[0], texts[1], texts[2], first, count, gap, floor, is_historical is True, missing)
    return place, row


def decode_chunk(payload: bytes) -> tuple[Place, list[Item]]:
    """Return where a chunk has its place, and its samples.

    Raises:
        RecordError: it is none, or says another number of samples than it has.
    """
    place, row = decode_place(payload)
    return place, chunk_items(place, row)


def chunk_items(place: Place, row: bytes) -> list[Item]:
    """Return the samples of a chunk's row.

    Raises:
        RecordError: they cannot be read, or are not as many as the chunk says.
    """
    items = decode_peer_row(row)
    if len(items) != place.samples or not items:
        raise RecordError(f"{len(items)} samples in a chunk of {place.samples}")
    return items


class Acknowledgement(NamedTuple):
    """What a receiver says of a stream."""

    boot: str
    stream: str
    seq: int
    """It has all up to this number."""
    refused: tuple[int, int] | None = None
    """The first and the last number of a chunk that it cannot read, and never will. Version 0.1 does not say,
    and does not look at it."""


def encode_acknowledgement(said: Acknowledgement) -> bytes:
    """Return what a receiver says as a payload."""
    found: dict[str, Any] = {"boot": said.boot, "stream": said.stream, "seq": said.seq}
    if said.refused is not None:
        found["refused"] = list(said.refused)
    return json.dumps(found, separators=(",", ":")).encode()


def decode_acknowledgement(payload: bytes) -> Acknowledgement:
    """Return what a receiver says.

    Raises:
        RecordError: it says nothing of the kind.
    """
    try:
        found = json.loads(payload)
        boot, stream, seq = found["boot"], found["stream"], found["seq"]
        refused = found.get("refused")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RecordError("not an acknowledgement") from None
    if not isinstance(boot, str) or not isinstance(stream, str) or not _is_count(seq):
        raise RecordError("not an acknowledgement")
    if refused is None:
        return Acknowledgement(boot, stream, seq)
    if not isinstance(refused, list) or len(refused) != 2 or not all(_is_count(item, 1) for item in refused):
        raise RecordError("not an acknowledgement")
    return Acknowledgement(boot, stream, seq, (refused[0], refused[1]))


def _is_name(text: object) -> TypeGuard[str]:
    """Return whether a boot, a stream or a gateway may be named so."""
    return isinstance(text, str) and 0 < len(text) <= _NAME_LENGTH and text.isprintable()


def _is_count(number: object, lowest: int = 0) -> TypeGuard[int]:
    return type(number) is int and lowest <= number <= 1 << 62


def _no_constant(name: str) -> NoReturn:
    raise RecordError(f"{name} is not JSON")
