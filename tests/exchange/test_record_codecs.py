"""What gateways say to each other, as bytes: each comes back as it was, and rubbish is refused as rubbish."""

import json
import math
import sqlite3
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.model import Access, HeldSample, Kind, Point, Quality, Sample
from fieldbus.mqtt import peering
from fieldbus.mqtt.peering import PeeringError, Want
from fieldbus.mqtt.records import (
    Acknowledgement,
    Item,
    Place,
    RecordError,
    Stamp,
    decode_acknowledgement,
    decode_chunk,
    decode_live,
    decode_peer_row,
    decode_row,
    encode_acknowledgement,
    encode_chunk,
    encode_row,
)
from fieldbus.store.history import Entry, Writer

times = st.integers(0, (1 << 63) - 1)
values = st.one_of(
    st.booleans(),
    st.integers(-(1 << 64), 1 << 64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
reasons = st.text(min_size=1, max_size=20)
samples = st.one_of(
    st.builds(lambda value, time: Sample(value, Quality.GOOD, None, time), values, times),
    st.builds(lambda value, why, time: Sample(value, Quality.UNCERTAIN, why, time), values, reasons, times),
    st.builds(lambda why, time: Sample(None, Quality.BAD, why, time), reasons, times),
)
heads = st.tuples(st.text(min_size=1, max_size=10), st.text(min_size=1, max_size=10), st.integers(0, 8))
items = st.lists(
    st.builds(Item, heads, samples, st.one_of(st.none(), st.text(max_size=5))), min_size=1, max_size=20
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


def same(one, other):
    return type(one.sample.value) is type(other.sample.value) and one == other


@given(items)
def test_a_row_comes_back_as_it_was(some):
    found = decode_row(encode_row(some))
    assert len(found) == len(some)
    assert all(same(one, other) for one, other in zip(found, some, strict=True))


@given(items, st.lists(st.booleans(), min_size=20, max_size=20))
def test_what_was_held_is_held_on_the_other_side(some, are_held):
    some = [
        item._replace(sample=HeldSample(*item.sample)) if is_held else item
        for item, is_held in zip(some, are_held, strict=False)
    ]
    found = decode_row(encode_row(some))
    assert [type(item.sample) for item in found] == [type(item.sample) for item in some]
    assert all(same(one, other) for one, other in zip(found, some, strict=True))


stamps = st.builds(Stamp, st.text(string.ascii_letters, min_size=1), st.integers(1, 1 << 60), times)


@given(items, stamps)
def test_a_live_message_comes_back_with_its_place(some, stamp):
    assert decode_live(encode_row(some, stamp)) == (stamp, some)
    assert decode_live(encode_row(some)) == (None, some)


def decode_as_version_0_1_does(data):
    """What a gateway of version 0.1 makes of a live message: it knows neither places nor held samples."""
    found = json.loads(data)
    heads = [tuple(head) for head in found["heads"]]
    rows = []
    for row in found["samples"]:
        quality, reason, label = "good", None, None
        if len(row) > 3:
            quality, reason = row[3], row[4]
            label = row[5] if len(row) > 5 else None
        rows.append((heads[row[0]], row[1], row[2], quality, reason, label))
    return rows


@given(items, stamps)
def test_a_gateway_of_version_0_1_understands_what_we_send(some, stamp):
    held = [item._replace(sample=HeldSample(*item.sample)) for item in some]
    for sent in (some, held):
        assert decode_as_version_0_1_does(encode_row(sent, stamp)) == [
            (item.head, item.sample.value, item.sample.time_ns, str(item.sample.quality), item.sample.reason,
             item.label)
            for item in some
        ]  # fmt: skip


@pytest.mark.parametrize(
    "place",
    [{"boot": "a"}, {"boot": "a", "number": 1}, {"boot": "", "number": 1, "time_ns": 1},
     {"boot": 5, "number": 1, "time_ns": 1}, {"boot": "a" * 200, "number": 1, "time_ns": 1},
     {"boot": "a", "number": 0, "time_ns": 1}, {"boot": "a", "number": True, "time_ns": 1},
     {"boot": "a", "number": 1.5, "time_ns": 1}, {"boot": "a", "number": 1, "time_ns": -1},
     {"boot": "a", "number": 1, "time_ns": "now"}, {"boot": None, "number": 1, "time_ns": 1}],
)  # fmt: skip
def test_a_place_that_makes_no_sense_is_refused(place):
    with pytest.raises(RecordError):
        decode_live(json.dumps({**place, "heads": [], "samples": []}).encode())


@given(items, st.integers(0, 1 << 40), st.integers(0, 99), st.integers(0, 99), st.booleans())
def test_a_chunk_comes_back_as_it_was(some, first, gap, floor, is_historical):
    place = Place("gw", "boot", "broker data gw", first + gap + 1, len(some), gap, floor, is_historical)
    assert decode_chunk(encode_chunk(place, encode_row(some))) == (place, some)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_bad_and_never_a_value(number):
    [item] = decode_row(encode_row([Item(("a", "b", 0), Sample(number, Quality.GOOD, None, 5))]))
    assert item.sample == Sample(None, Quality.BAD, "not available", 5)


def test_half_a_character_in_a_text_costs_that_character_only():
    [item] = decode_row(encode_row([Item(("a", "b", 0), Sample("x\ud800y", Quality.GOOD, None, 5))]))
    assert item.sample == Sample("x?y", Quality.GOOD, None, 5)


near_rows = st.builds(
    lambda head, place, value, time, rest: json.dumps(
        {"heads": [head], "samples": [[place, value, time, *rest]]}
    ).encode(),
    json_values,
    st.one_of(st.just(0), json_values),
    json_values,
    st.one_of(times, json_values),
    st.lists(st.one_of(st.sampled_from(["good", "bad", "uncertain"]), json_values), max_size=3),
)


def is_sound(item):
    """Whether all that the gateway does with an item can be done."""
    head, (value, quality, reason, _), label = item
    hash(head)
    address, origin, hops = head
    assert isinstance(address, str)
    assert isinstance(origin, str)
    assert type(hops) is int
    assert isinstance(label, str | None)
    assert (value is None) == (quality is Quality.BAD)
    assert (reason is None) == (quality is Quality.GOOD)
    assert not isinstance(value, float) or math.isfinite(value)
    json.dumps([value, reason]).encode()
    with sqlite3.connect(":memory:") as connection:
        writer = Writer(1 << 30, 1e9)
        writer.opened(connection)
        writer.write(connection, [Entry("p", Kind.FLOAT, None, item.sample)])
    connection.close()


@settings(max_examples=examples(60), deadline=None)
@given(st.one_of(st.binary(max_size=100), near_rows, json_values.map(lambda v: json.dumps(v).encode())))
@example(b'{"heads":[[]],"samples":[[0,1,1]]}')
@example(b'{"heads":[[["a"],"b/c",0]],"samples":[[0,1,1]]}')
@example(b'{"heads":[["a","b/c","0"]],"samples":[[0,1,1]]}')
@example(b'{"heads":["abc"],"samples":[[0,1,1]]}')
@example(b'{"heads":[["a","b/c",0]],"samples":[[0,1e999,1]]}')
@example(b'{"heads":[["a","b/c",0]],"samples":[[0,1' + b"0" * 400 + b",1]]}")
@example(b'{"heads":[["a","b/c",0]],"samples":[[0,1,1' + b"0" * 30 + b"]]}")
@example(b'{"heads":[["a","b/c",0]],"samples":[[0,1,-1]]}')
@example(b'{"heads":[["a","b/c",0]],"samples":[[0,"\\ud800",1]]}')
@example(b'{"heads":[["a","b/c",0]],"samples":[[0,null,1,"bad","\\ud800"]]}')
@example(b'{"heads":[["a","b/c",0]],"samples":[[0,null,1,["bad"],"x"]]}')
@example(b'{"heads":[["a","b/c",0]],"samples":[[0,1,1,"good",null,{}]]}')
@example(b'{"heads":[["a","b/c",0]],"samples":{"0":1}}')
@example(b"[" * 100_000)
def test_whatever_a_peer_sends_as_a_row_it_is_one_or_refused(data):
    place = Place("gw", "boot", "s", 1, 1, 0, 0, False)
    for decode in (lambda: decode_peer_row(data), lambda: decode_chunk(encode_chunk(place, data))[1]):
        try:
            found = decode()
        except RecordError:
            continue
        for item in found:
            is_sound(item)


near_chunks = st.builds(
    lambda head, row: json.dumps(head).encode() + b"\n" + row,
    st.fixed_dictionaries(
        {
            "gateway": st.one_of(st.just("gw"), json_values),
            "boot": st.one_of(st.just("b"), json_values),
            "stream": st.one_of(st.just("s"), json_values),
            "first": st.one_of(st.integers(), json_values),
            "count": st.one_of(st.just(1), json_values),
            "gap": st.one_of(st.just(0), json_values),
            "floor": st.one_of(st.just(0), json_values),
            "historical": json_values,
        }
    ),
    st.sampled_from([b'{"heads":[["a","b/c",0]],"samples":[[0,1,1]]}', b"", b"{}"]),
)


@given(st.one_of(st.binary(max_size=60), near_chunks))
def test_whatever_a_peer_sends_as_a_chunk_it_is_one_or_refused(data):
    try:
        place, found = decode_chunk(data)
    except RecordError:
        return
    assert place.first >= 1
    assert len(found) == place.samples
    assert place.gap < place.first


@given(st.one_of(st.binary(max_size=60), json_values.map(lambda v: json.dumps(v).encode())))
@example(b'{"boot":"b","stream":"s","seq":true}')
def test_whatever_a_peer_acknowledges_it_is_one_or_refused(data):
    try:
        boot, stream, seq, refused = decode_acknowledgement(data)
    except RecordError:
        return
    assert isinstance(boot, str)
    assert isinstance(stream, str)
    assert type(seq) is int
    assert refused is None or [type(number) for number in refused] == [int, int]


@given(
    st.text(max_size=10),
    st.text(max_size=10),
    st.integers(0, 1 << 62),
    st.none() | st.tuples(*[st.integers(1, 1 << 62)] * 2),
)
def test_an_acknowledgement_comes_back_as_it_was(boot, stream, seq, refused):
    said = Acknowledgement(boot, stream, seq, refused)
    assert decode_acknowledgement(encode_acknowledgement(said)) == said


addresses = st.text(string.ascii_letters + "._-0123456789", min_size=1, max_size=20)


@given(st.dictionaries(addresses, st.booleans(), max_size=9), st.dictionaries(addresses, st.booleans()))
def test_a_want_comes_back_as_it_was(live, durable):
    assert peering.decode_want(peering.encode_want(Want(live, durable))) == Want(live, durable)


@given(st.one_of(st.binary(max_size=60), json_values.map(lambda v: json.dumps(v).encode())))
@example(b'{"live":{"sample":["\\ud800"]}}')
def test_whatever_a_peer_wants_it_is_a_want_or_refused(data):
    try:
        want = peering.decode_want(data)
    except PeeringError:
        return
    peering.encode_want(want)


names = st.text(string.ascii_letters + "_-0123456789", min_size=1, max_size=8)
numbers = st.one_of(
    st.none(), st.integers(-(1 << 64), 1 << 64), st.floats(allow_nan=False, allow_infinity=False)
)
points = st.builds(
    Point,
    device=names,
    name=names,
    kind=st.sampled_from(Kind),
    access=st.sampled_from(Access),
    unit=st.one_of(st.none(), st.text(max_size=5)),
    minimum=numbers,
    maximum=numbers,
    lowest=numbers,
    highest=numbers,
    labels=st.dictionaries(st.integers(-9, 9), st.text(max_size=5), max_size=3),
    description=st.text(max_size=20),
    origin=st.builds("{}/{}.{}".format, names, names, names),
    hops=st.integers(0, 8),
)


def shown(point):
    return {name: getattr(point, name) for name in Point.__slots__}


@given(st.lists(points, max_size=5, unique_by=lambda point: point.address))
def test_a_birth_comes_back_as_it_was(some):
    birth = peering.decode_birth(peering.encode_birth("gw", "1.0", some, 10**18), "gw")
    assert [shown(point) for point in birth.points] == [shown(point) for point in some]


near_points = st.fixed_dictionaries(
    {
        "kind": st.one_of(st.just("float"), json_values),
        "access": st.one_of(st.just("read"), json_values),
        "origin": st.one_of(st.just("a/b.c"), json_values),
        "hops": st.one_of(st.just(0), json_values),
    },
    optional={
        "unit": json_values,
        "min": json_values,
        "max": json_values,
        "lowest": json_values,
        "highest": json_values,
        "labels": st.one_of(st.dictionaries(st.text(max_size=3), json_values), json_values),
        "description": json_values,
    },
)


@given(
    st.one_of(
        st.binary(max_size=60),
        st.dictionaries(st.one_of(st.just("a.b"), st.text(max_size=5)), near_points, max_size=3).map(
            lambda found: json.dumps({"gateway": "gw", "points": found}).encode()
        ),
    )
)
@example(
    b'{"gateway":"gw","points":{"a.b":{"kind":"int","access":"read","origin":"a/b.c","hops":0,"max":1'
    + b"0" * 400
    + b"}}}"
)
@example(
    b'{"gateway":"gw","points":{"a.b":{"kind":"int","access":"read","origin":"a/b.c","hops":0,'
    b'"unit":"\\ud800","labels":{"1":"\\ud800"}}}}'
)
def test_whatever_a_peer_says_of_its_points_it_is_a_birth_or_refused(data):
    try:
        birth = peering.decode_birth(data, "gw")
    except PeeringError:
        return
    again = peering.encode_birth("gw", birth.version, birth.points, 10**18)
    assert [shown(point) for point in peering.decode_birth(again, "gw").points] == [
        shown(point) for point in birth.points
    ]
    peering.taken_over(birth, "line", "me")
