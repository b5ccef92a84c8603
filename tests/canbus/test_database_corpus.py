"""Databases that other people wrote: each is read, and read as cantools reads it where it can."""

import itertools
import math
import random
import re
import struct
import warnings
from functools import cache

import cantools
import pytest
from corpus import corpus, name_of
from oracle import put

from fieldbus.canbus.building import build_messages
from fieldbus.canbus.codec import BranchDecoder, MessageDecoder
from fieldbus.canbus.database.encodings import decode
from fieldbus.canbus.database.loading import FORMATS, DatabaseError, content, load
from fieldbus.canbus.database.reader import read
from fieldbus.canbus.settings import CanDeviceSettings

# Half a minute of processor time, of which others may have their share.
pytestmark = pytest.mark.timeout(180)
BROKEN = {
    "cantools/arxml/system-bad-root-tag-4.2.arxml": "another root element",
    "cantools/arxml/system-illegal-namespace-4.2.arxml": "another namespace",
    "cantools/arxml/system-illegal-root-4.2.arxml": "another root element",
    "cantools/arxml/system-illegal-version-4.2.2.1.0.arxml": "a version that is none",
}
"""Broken on purpose, in what the whole file needs."""

DIFFERENT = {
    ("cantools/arxml/system-4.2.arxml", "OneToContainThemAll"): "a container, which we leave out",
    ("cantools/kcd/the_homer.kcd", "Radio"): "two signals of one name, of which cantools decodes one",
    ("cantools/sym/jopp-6.0.sym", "Message2"): "two messages of one name",
    ("cantools/sym/test_multiline_enum.sym", "Message2"): "two messages of one name",
    ("cantools/sym/special-chars-6.0.sym", "A/=*"): "names that cannot be part of a point's",
    ("cantools/sym/type-extended-cycle-dash-p.sym", "CAN-Tx Query"): "names that cannot be part of a point's",
}
"""Where we mean to differ from cantools."""


@cache
def ours(path):
    answer = read(FORMATS[path.suffix.lower()], path.read_bytes())
    return None if "error" in answer else content(answer, "", 0)


@cache
def theirs(path, **how):
    """Return what cantools reads, None if it cannot."""
    text, _ = decode(path.read_bytes())
    try:
        with warnings.catch_warnings(action="ignore"):
            return cantools.database.load_string(text, path.suffix[1:].lower(), **how)
    except Exception:
        return None


def pairs(path, **how):
    """Yield our messages with theirs."""
    found, reference = ours(path), theirs(path, **how)
    if found is None or reference is None:
        return
    by_id = {}
    for message in found.messages:
        by_id.setdefault((message.frame_id, message.is_extended), []).append(message)
    for item in reference.messages:
        same = by_id.get((item.frame_id, item.is_extended_frame), [])
        message = same.pop(0) if same else None
        if (name_of(path), item.name) not in DIFFERENT:
            yield message, item


def test_every_file_is_read_but_those_that_are_broken_on_purpose():
    assert {name_of(path) for path in corpus() if ours(path) is None} == set(BROKEN)
    assert sum(len(ours(path).messages) for path in corpus() if ours(path)) > 5000


def test_no_file_takes_the_place_of_another():
    names = [name_of(path) for path in corpus()]
    assert sum(name.startswith("opendbc/") for name in names) == 115
    assert sum(name.startswith("cantools/") for name in names) == 134


def test_the_largest_of_each_format_are_read_within_the_limits_of_their_process():
    for ending in FORMATS:
        path = max((path for path in corpus() if path.suffix == ending), key=lambda path: path.stat().st_size)
        found = load(path, name_of(path))
        assert [message.name for message in found.messages] == [each.name for each in ours(path).messages]
    with pytest.raises(DatabaseError):
        load(next(path for path in corpus() if name_of(path) in BROKEN), "broken")


NAIVE_MESSAGE = re.compile(r"\s*BO_ +(\d+) +(\w+) *: *(\d+) ")
NAIVE_SIGNAL = re.compile(
    r"\s*SG_ +(\w+) *(?:M|m\d+M?)? *: *(\d+)\|(\d+)@([01])([+-]) *\(([^,]*),([^)]*)\) *\[([^|]*)\|([^]]*)]"
)


def test_whatever_a_dbc_file_says_otherwise_than_it_was_read_is_said_with_its_line():
    counted, changed = 0, 0
    for path in corpus():
        if path.suffix.lower() != ".dbc":
            continue
        said = {}
        for line, _, text in ours(path).notes:
            said.setdefault(line, []).append(text)
        found = {message.line: message for message in ours(path).messages}
        for line, written, signals in naive(path):
            counted += 1 + len(signals)
            message = found.pop(line, None)
            if message is None:
                is_pseudo = written[1] == "VECTOR__INDEPENDENT_SIG_MSG"
                assert line in said or (is_pseudo and not signals), (name_of(path), written)
                changed += 1
                continue
            read_as = ((message.frame_id | message.is_extended << 31), message.name, message.length)
            if read_as != written:
                # A long name is in the file too, elsewhere.
                assert line in said or read_as[::2] == written[::2], (name_of(path), written)
            left = {at: what for at, what in signals.items() if at not in said}
            assert len(message.signals) <= len(signals)
            layouts = [layout(signal) for signal in message.signals]
            for at, what in left.items():
                assert what in layouts, (name_of(path), at, what)
            lost = [at for at in signals if any("left out" in text for text in said.get(at, ()))]
            assert len(message.signals) == len(signals) - len(lost), (name_of(path), message.name)
            changed += len(signals) - len(left)
        assert not found, (name_of(path), [*found])
    assert (counted > 25_000, changed > 100) == (True, True)


def naive(path):
    """Yield line, id, name and length of each message, and the layouts of its signals by their lines."""
    message = None
    for line, text in enumerate(decode(path.read_bytes())[0].split("\n"), 1):
        if text.lstrip().startswith("BO_ "):
            if message is not None:
                yield message
            frame_id, name, length = NAIVE_MESSAGE.match(text).groups()
            message = line, (int(frame_id), name, int(length)), {}
        elif text.lstrip().startswith("SG_ "):
            match = NAIVE_SIGNAL.match(text)
            message[2][line] = None
            if match is None:
                continue  # not as it should be: whatever became of it has to be said
            _, *whole, order, sign, scale, offset, low, high = match.groups()
            bounds = float(low), float(high)
            message[2][line] = (
                *map(int, whole), order == "1", sign == "-", float(scale), float(offset),
                None if bounds == (0, 0) else bounds,
            )  # fmt: skip
    if message is not None:
        yield message


def layout(signal):
    low, high = signal.minimum, signal.maximum
    return (
        signal.start, signal.length, signal.is_little_endian, signal.is_signed, float(signal.linear.scale),
        float(signal.linear.offset), None if low is None or high is None else (float(low), float(high)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "element", "is_signal"),
    [
        ("system-4.2", "IDENTIFIER", False),
        ("system-4.2", "FRAME-LENGTH", False),
        ("system-4.2", "START-POSITION", True),
        ("system-3.2.3", "IDENTIFIER", False),
        ("system-3.2.3", "START-POSITION", True),
    ],
)
def test_what_is_broken_in_an_arxml_file_costs_one_frame_or_one_signal(name, element, is_signal):
    path = next(path for path in corpus() if name_of(path) == f"cantools/arxml/{name}.arxml")
    text = path.read_text()
    whole = parts_of(ours(path))
    for found in re.finditer(f"<{element}>([^<]*)<", text):
        answer = read("arxml", f"{text[: found.start(1)]}broken{text[found.end(1) :]}".encode())
        rest = parts_of(content(answer, "arxml", 0))
        notes = [(line, words) for line, _, words in answer["notes"] if "container" not in words]
        lost = [part for part in whole if part not in rest]
        if not lost:
            continue  # it is in a container, or in what nothing refers to
        assert len(rest) + len(lost) == len(whole)
        assert len({part[0] for part in lost}) == 1
        is_whole = lost[0][1] is None  # a selector takes its frame with it
        assert is_whole or (is_signal and len(lost) == 1), found[0]
        at = 1 + text.count("\n", 0, found.start())
        assert notes
        for line, words in notes:
            assert "broken" in words
            # That of the frame, or of the signal's place in it.
            assert at - 10 < line <= at if is_signal else line > 0


def parts_of(database):
    return [
        (message.name, signal and signal.name)
        for message in database.messages
        for signal in (None, *message.signals)
    ]


def test_what_cantools_reads_strictly_is_read_the_same():
    compared = 0
    for path in corpus():
        # In the order of the file, in which it decodes only what is in the order of its bits too.
        for message, item in pairs(path, sort_signals=None):
            assert message is not None, (name_of(path), item.name)
            compared += 1
            assert [*differing(message, item)] == [], (name_of(path), item.name)
    assert compared > 3000


def differing(message, item):
    """Yield in what one message differs."""
    cycle_s = item.cycle_time / 1000 if item.cycle_time else None
    for what, own, other in (
        ("name", message.name, item.name),
        ("length", message.length, item.length),
        ("cycle", message.cycle_s, cycle_s),
        ("comment", message.comment, item.comment or ""),
        ("signals", [each.name for each in message.signals], [each.name for each in item.signals]),
    ):
        if own != other:
            yield what, own, other
    by_name = {each.name: each for each in item.signals}
    for signal in message.signals:
        each = by_name.get(signal.name)
        if each is None:
            continue
        for what, own, other in (
            ("start", signal.start, each.start),
            ("length", signal.length, each.length),
            ("order", signal.is_little_endian, each.byte_order == "little_endian"),
            ("signed", signal.is_signed, each.is_signed),
            ("float", signal.is_float, each.is_float),
            ("scale", signal.linear.scale, each.scale),
            ("offset", signal.linear.offset, each.offset),
            # [0.0|0.0] is no range, however it is written.
            ("range", (signal.minimum or 0, signal.maximum or 0), (each.minimum or 0, each.maximum or 0)),
            ("unit", signal.unit, each.unit or None),
            ("labels", signal.labels, {raw: str(name) for raw, name in (each.choices or {}).items()}),
            ("initial", signal.raw_initial, each.raw_initial or 0),
            ("comment", signal.comment, each.comment or ""),
            ("condition", signal.condition, condition(each, by_name)),
        ):
            if own != other:
                yield signal.name, what, own, other


def condition(each, by_name):
    steps = []
    while each.multiplexer_ids is not None and each.multiplexer_signal is not None:
        steps.append((each.multiplexer_signal, frozenset(each.multiplexer_ids)))
        each = by_name[each.multiplexer_signal]
    return tuple(reversed(steps))


FAULTS_OF_CANTOOLS = {
    ("cantools/kcd/message_layout.kcd", "Message7"): "it decodes a signal of 128 bits",
    ("cantools/kcd/message_layout.kcd", "Message8"): "it decodes a signal of 128 bits",
    ("opendbc/vw_pq.dbc", "Motor_2"): "what a multiplexer selects that is marked m is always there",
}
"""Where its decoding is wrong; it has none at all for messages whose signals overlap or do not fit."""


def test_frames_are_decoded_as_cantools_decodes_them_in_every_file_that_it_reads_at_all():
    rng = random.Random(7)
    compared, undecoded, wrong = 0, set(), set()
    for path in corpus():
        name = name_of(path)
        if theirs(path, strict=False) is None:
            # Whatever keeps it from the file, we have said.
            assert ours(path) is None or ours(path).notes, name
            continue
        for message, item in pairs(path, strict=False):
            for data in [*frames(message, rng), *branch_frames(message, rng)]:
                raw, scaled = decoded(message, data), values_of(message, data)
                try:
                    expected = item.decode(data, decode_choices=False, scaling=False)
                    expected_scaled = item.decode(data, decode_choices=False)
                except cantools.database.DecodeError as error:
                    if "expected multiplexer id" in str(error):
                        continue  # a selector has a value that selects nothing: it gives up the frame
                    undecoded.add((name, message.name))
                    by_name = {each.name: each for each in item.signals}
                    expected = by_bits(message, data)
                    expected_scaled = {
                        each: by_name[each].raw_to_scaled(value, decode_choices=False)
                        for each, value in expected.items()
                    }
                if raw.keys() != expected.keys():
                    wrong.add((name, item.name))
                    continue
                compared += len(raw)
                assert same(raw, expected), (name, item.name, data.hex())
                for signal in (each for each in message.signals if each.name in raw):
                    values = scaled[signal.name], expected_scaled[signal.name]
                    assert close(*values, signal), (name, signal, values)
    assert wrong == set(FAULTS_OF_CANTOOLS)
    assert compared > 120_000
    reasons = (
        "shares bits with one before it",
        "is left out: it ends behind",
        "is left out: it begins at bit",
        "is repaired: signal",
    )
    said = {
        (name_of(path), where.split(".")[0])
        for path in corpus()
        for _, where, text in ([] if ours(path) is None else ours(path).notes)
        if any(reason in text for reason in reasons)
    }
    assert undecoded <= said


def branch_frames(message, rng):
    """Return frames of each branch, of which the selectors have values that select something."""
    conditions = [*dict.fromkeys(signal.condition for signal in message.signals)]
    by_name = {signal.name: signal for signal in message.signals}
    for condition in conditions[:20] or [()]:
        for _ in range(2):
            data = bytearray(rng.randbytes(message.length))
            # Of the selectors beside it too.
            for name, values in itertools.chain(*rng.sample(conditions, len(conditions)), condition):
                selector = by_name[name]
                put(data, selector, rng.choice(sorted(values)) % (1 << selector.length))
            yield bytes(data)


def values_of(message, data):
    decoder = MessageDecoder(message)
    found = {}
    for index in decoder.select(data):
        branch = decoder.branches[index]
        found |= dict(zip([each.name for each in branch.signals], branch.decode(data)[0], strict=True))
    return found


def close(own, other, signal):
    """Tell whether two values are equal but for the rounding of cantools' plain floating point."""
    if own is None:
        return not math.isfinite(other)
    return math.isclose(own, other, rel_tol=1e-12, abs_tol=1e-12 * max(1, abs(signal.linear.offset)))


def test_frames_are_decoded_as_their_bits_say_one_by_one():
    rng = random.Random(11)
    compared = 0
    for path in corpus():
        for message in () if ours(path) is None else ours(path).messages:
            for data in frames(message, rng):
                found = decoded(message, data)
                compared += len(found)
                assert same(found, by_bits(message, data)), (name_of(path), message.name, data.hex())
    assert compared > 60_000


def test_every_name_of_a_value_is_found_under_what_its_frame_is_decoded_to():
    compared, decimal = 0, 0
    for path in corpus():
        for message in () if ours(path) is None else ours(path).messages:
            if message.is_j1939:
                continue  # some names are of raw values that are no value there
            (built,) = build_messages(
                "d", CanDeviceSettings(link="can0", database="x"), [message], pytest.fail
            )
            for signal, point in built.points.items():
                assert len(point.labels) == len(signal.labels), (name_of(path), point)
                decoder = BranchDecoder(message, [signal])
                for raw, label in signal.labels.items():
                    low, high = signal.raw_range
                    if signal.is_float or not low <= raw <= high:
                        continue
                    data = bytearray(message.length)
                    put(data, signal, raw % (1 << signal.length))
                    (value,), flaws = decoder.decode(bytes(data))
                    assert (point.label(value), flaws) == (label, {}), (name_of(path), point, raw)
                    compared += 1
                    decimal += isinstance(value, float)
    assert (compared > 10_000, decimal > 100) == (True, True)


def frames(message, rng):
    return [rng.randbytes(message.length) for _ in range(3)] if message.length <= 64 else []


def decoded(message, data):
    decoder = MessageDecoder(message)
    found = {}
    for index in decoder.select(data):
        branch = decoder.branches[index]
        names = [each.name for each in branch.signals]
        found |= dict(zip(names, branch.raw(data), strict=True))
    return found


def by_bits(message, data):
    """Return the raw values in a frame, in the simplest way."""
    values = {signal.name: bits_of(signal, data) for signal in message.signals}
    return {
        signal.name: values[signal.name]
        for signal in message.signals
        if all(values[selector] in ids for selector, ids in signal.condition)
    }


def bits_of(signal, data):
    bits, at = [], signal.start
    for _ in range(signal.length):
        bits.append(data[at // 8] >> at % 8 & 1)
        if signal.is_little_endian:
            at += 1
        else:
            at = at - 1 if at % 8 else at + 15
    value = int("".join(map(str, bits[::-1] if signal.is_little_endian else bits)), 2)
    if signal.is_float:
        return struct.unpack(f">{' ef d'[signal.length // 16]}", value.to_bytes(signal.length // 8, "big"))[0]
    return value - (bits[-1 if signal.is_little_endian else 0] << signal.length) * signal.is_signed


def same(found, expected):
    return found.keys() == expected.keys() and all(
        value == found[key] or (value != value and found[key] != found[key])
        for key, value in expected.items()
    )
