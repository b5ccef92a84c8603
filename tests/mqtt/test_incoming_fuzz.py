"""Everything that comes from others: only the declared errors, and what is taken can be kept and sent on."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.errors import RefusedError
from fieldbus.gateway.commands.audit import Audit, verify
from fieldbus.gateway.commands.command import Answer, fitting, id_of, read_command
from fieldbus.link import WriteOutcome
from fieldbus.model import Access, Kind, Point, Quality, Sample
from fieldbus.mqtt import peering
from fieldbus.mqtt.peering import PeeringError, Want
from fieldbus.mqtt.peers import Peers, RemoteGateway
from fieldbus.mqtt.records import (
    Acknowledgement,
    Item,
    Place,
    RecordError,
    Stamp,
    decode_acknowledgement,
    decode_chunk,
    decode_live,
    encode_acknowledgement,
    encode_chunk,
    encode_row,
)

NOW = 1_700_000_000_000_000_000
TEXTS = ("\ud800", "\x1b[2J", "a\nb", "\u202e", "x" * 600, "", "1" * 20, "d.p", "gw", "gw/d.p")
NUMBERS = (0, -1, 1, 1 << 62, (1 << 62) + 1, 1 << 63, 10**30, 10**400, 1.5, 1e308, float("inf"), float("nan"))


def nested(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found


odd = st.sampled_from((*TEXTS, *NUMBERS, None, True, [], {}, nested(300), {"a": nested(300)})) | st.text(
    st.characters(), max_size=5
)


@st.composite
def spoiled(draw, given_data):
    """Return JSON in which up to three values, keys or items are others, or which is cut or changed."""
    data = json.loads(json.dumps(given_data))
    for _ in range(draw(st.integers(0, 3))):
        node = data
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and draw(st.booleans()):
                node = node[key]
                continue
            what = draw(st.sampled_from(("value", "remove", "key")))
            if what == "value":
                node[key] = draw(odd)
            elif what == "remove":
                del node[key]
            elif isinstance(node, dict):
                node[draw(st.sampled_from(TEXTS))] = node.pop(key)
            break
    payload = bytearray(json.dumps(data).encode())
    for _ in range(draw(st.integers(0, 1))):
        if payload:
            payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
    return bytes(payload[: draw(st.integers(0, len(payload)))] if draw(st.integers(0, 9)) == 0 else payload)


POINT = Point("d", "p", Kind.INT, unit="°C", minimum=0, maximum=10, labels={1: "on"}, description="x")
BIRTH = json.loads(peering.encode_birth("gw", "1.0", [POINT, Point("d", "q", Kind.STRING)], NOW))
WANT = peering.want_object(Want({"d.p": True, "d.q": False}, {"d.p": True}))
ITEMS = [
    Item(("d.p", "gw/d.p", 0), Sample(5, Quality.GOOD, None, NOW)),
    Item(("d.q", "gw/d.q", 1), Sample(None, Quality.BAD, "timeout", NOW), None),
    Item(("d.q", "gw/d.q", 1), Sample("on", Quality.UNCERTAIN, "guess", NOW), "label"),
]
ROW = json.loads(encode_row(ITEMS, Stamp("boot", 1, NOW)))
CHUNK = encode_chunk(Place("gw", "boot", "broker gw", 1, 3, 0, 0, False), b"")
ACK = json.loads(encode_acknowledgement(Acknowledgement("boot", "broker gw", 5, (6, 9))))
COMMAND = {"value": 5, "id": "x", "time": "2023-11-14T22:13:20Z", "expires": "5s", "mode": "write"}


@given(spoiled(BIRTH))
@example(json.dumps({**BIRTH, "gateway": nested(300)}).encode())
@example(json.dumps({**BIRTH, "version": nested(300)}).encode())
def test_a_birth_is_taken_whole_or_not_and_can_be_told_on(payload):
    try:
        birth = peering.decode_birth(payload, "gw")
    except PeeringError as error:
        str(error).encode()
        return
    again = peering.decode_birth(peering.encode_birth("gw", birth.version, birth.points, NOW), "gw")
    assert [point.address for point in again.points] == [point.address for point in birth.points]
    assert all(point.address.isascii() and point.address.isprintable() for point in birth.points)


@given(spoiled(WANT))
def test_a_want_is_taken_whole_or_not_and_can_be_kept(payload):
    try:
        want = peering.decode_want(payload)
    except PeeringError:
        return
    assert peering.decode_want(peering.encode_want(want)) == want
    assert all(address.isprintable() for address in (*want.live, *want.durable))


@given(spoiled(ROW))
def test_live_samples_are_taken_whole_or_not_and_can_be_sent_on(payload):
    try:
        stamp, items = decode_live(payload)
    except RecordError as error:
        str(error).encode()
        return
    if stamp is not None:
        assert 1 <= stamp.number <= 1 << 62
        assert float(stamp.time_ns) < 1e19
        stamp.boot.encode()
    assert decode_live(encode_row(items, stamp)) == (stamp, items)
    for item in items:
        assert (item.sample.value is None) is item.sample.is_bad


@given(spoiled(json.loads(CHUNK)), spoiled(ROW))
def test_a_chunk_is_taken_whole_or_not_and_its_place_can_be_kept(head, row):
    try:
        place, items = decode_chunk(head + b"\n" + row)
    except RecordError as error:
        str(error).encode()
        return
    place.source.encode()
    assert place.source.isprintable()
    assert place.samples == len(items)
    assert 1 <= place.first <= place.last < 1 << 63


@given(spoiled(ACK))
def test_an_acknowledgement_is_a_number_that_a_spool_can_keep(payload):
    try:
        seq = decode_acknowledgement(payload).seq
    except RecordError:
        return
    assert 0 <= seq <= 1 << 62


POINTS = [
    Point("d", "i", Kind.INT, Access.READWRITE, minimum=0, maximum=10),
    Point("d", "f", Kind.FLOAT, Access.READWRITE),
    Point("d", "b", Kind.BOOL, Access.READWRITE),
    Point("d", "s", Kind.STRING, Access.READWRITE),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=spoiled(COMMAND), actor=st.text(st.characters(codec="utf-8"), max_size=8))
def test_a_command_is_read_or_refused_and_has_its_answer_and_record(tmp_path, payload, actor):
    id_of(payload)
    audit = Audit(tmp_path)
    try:
        command = read_command(payload, actor=actor, point="d.i", origin="t")
    except RefusedError as error:
        assert audit.record(NOW, {"id": id_of(payload), "reason": str(error), "actor": actor})
    else:
        for point in POINTS:
            try:
                value = fitting(point, command.value)
            except RefusedError:
                continue
            if point.kind is Kind.INT:
                assert -(1 << 63) <= value < 1 << 64
            if point.kind is Kind.STRING:
                value.encode()
        answer = Answer(command, WriteOutcome.WRITTEN, None, NOW, NOW, command.value)
        assert json.loads(answer.payload())["id"] == command.id
        assert audit.record(NOW, {"id": command.id, "value": command.value, "actor": actor})
    finally:
        audit.close()
    verdict = verify(tmp_path)
    assert verdict.faults == verdict.torn == []


class Heard:
    """Whoever is told; notes who was called."""

    def __getattr__(self, name):
        return lambda *_, **__: None


@pytest.mark.parametrize("kind", ["status", "answer", "live", "birth", "data", "want", "ack", "command", "x"])
@settings(max_examples=examples(60))
@given(payload=spoiled({**ROW, **ACK, "status": "online", "keepalive": 5, "id": "x", "outcome": "written", "reason": "r"}))  # fmt: skip
def test_no_message_of_a_peer_raises_whatever_is_in_it(kind, payload):
    counters = Counter()
    remote = RemoteGateway("far", "gw", {"d.p": replace(POINT, device="far", name="d.p")})
    peers = Peers("me", "me", [remote], counters)
    peers.correspondent = Heard()
    batches = []
    peers._emit, peers._report = batches.append, lambda _: None
    for about in ("gw", "me"):
        for rest in ("", "/me", "/gw/3", "/a/b/c", "/\x1b[2J", "/\\xff"):
            peers.take(
                "broker", f"fieldbus/{about}/{kind}{rest}", payload,
                is_retained=False, signature=None, reply=None,
            )  # fmt: skip
    for batch in batches:
        assert (batch.values[0] is None) is batch.sample(0).is_bad
