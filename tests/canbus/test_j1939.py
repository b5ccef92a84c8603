"""J1939 identifiers, requests, acknowledgements and indicators."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.bus import ERROR, EXTENDED, REMOTE
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939.identifiers import Acknowledgement, Control, Identifier

ADDRESSES = st.integers(0, 255)


@pytest.mark.parametrize(
    ("can_id", "parts"),
    [
        (0x0CF00400, Identifier(3, 61444, 0)),
        (0x18FEF1FE, Identifier(6, 65265, 254)),
        (0x18EAFFF9, Identifier(6, 59904, 249, 255)),
        (0x1CEC0B5A, Identifier(7, 60416, 0x5A, 0x0B)),
        (0x18EFEF21, Identifier(6, 0xEF00, 0x21, 0xEF)),
        (0x18F00021, Identifier(6, 0xF000, 0x21)),
        (0x19F20105, Identifier(6, 127489, 5)),  # data page
        (0x1BFF0005, Identifier(6, 0x3FF00, 5)),  # extended data page and data page
    ],
)
def test_an_identifier_is_taken_apart_and_put_together(can_id, parts):
    assert Identifier.parse(can_id) == parts
    assert Identifier.parse(can_id | EXTENDED) == parts
    assert parts.can_id == can_id | EXTENDED
    assert j1939.pgn_of(can_id | EXTENDED) == parts.pgn
    assert j1939.source_of(can_id) == parts.source_address
    assert j1939.destination_of(can_id) == (
        255 if parts.destination_address is None else parts.destination_address
    )


@given(st.integers(0, 0x1FFFFFFF))
def test_every_29_bit_number_is_an_identifier_and_stays_itself(can_id):
    parts = Identifier.parse(can_id)
    assert parts.can_id == can_id | EXTENDED
    assert parts.pgn == j1939.pgn_of(can_id)
    assert str(parts.pgn) in j1939.text(can_id)


@pytest.mark.parametrize(
    "arguments",
    [
        (8, 61444, 0),
        (3, -1, 0),
        (3, 0x40000, 0),
        (3, 61444, 256),
        (3, 61444, 0, 5),
        (3, 59904, 0),
        (3, 59905, 0, 1),
    ],
)
def test_an_identifier_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"priority|PGN|address"):
        Identifier(*arguments)


@given(
    st.integers(0, 0x1FFFFFFF),
    st.sampled_from([EXTENDED, 0, EXTENDED | REMOTE, ERROR]),
    st.booleans(),
    st.data(),
)
def test_a_filter_lets_exactly_the_frames_of_its_pgn_through(can_id, flags, by_source, data):
    pgn = data.draw(st.sampled_from([j1939.pgn_of(can_id), 0xEA00, 0xFEF1, 0x1F201]))
    source = data.draw(st.sampled_from([can_id & 0xFF, 3])) if by_source else None
    if not flags & EXTENDED:
        can_id &= 0x7FF
    wanted, mask = j1939.filter_for(pgn, source)
    passes = (can_id | flags) & mask == wanted
    right = flags == EXTENDED and j1939.pgn_of(can_id) == pgn and source in (None, can_id & 0xFF)
    assert passes == right
    assert wanted & mask == wanted
    assert not mask & ERROR


def test_a_filter_is_as_by_hand():
    assert j1939.filter_for(0xFEF1) == (0x80FEF100, 0xC3FFFF00)
    assert j1939.filter_for(0xEA00, 0xF9) == (0x80EA00F9, 0xC3FF00FF)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, None),
        (2, (2, 3)),
        (3, (7, 7)),
        (4, (14, 15)),
        (5, (31, 31)),
        (7, (127, 127)),
        (8, (0xFE, 0xFF)),
        (10, (0x3FF, 0x3FF)),
        (12, (0xFE0, 0xFF0)),
        (16, (0xFE00, 0xFF00)),
        (20, (0xFE000, 0xFF000)),
        (24, (0xFE0000, 0xFF0000)),
        (32, (0xFE000000, 0xFF000000)),
        (64, (0xFE << 56, 0xFF << 56)),
        (0, None),
    ],
)
def test_indicators_by_length(length, expected):
    assert j1939.indicators(length) == expected


def test_a_request_is_three_bytes_to_one_or_to_all():
    assert j1939.request(65226, 0, 249) == (0x98EA00F9, b"\xca\xfe\x00")
    assert j1939.request(60928) == (0x98EAFFFE, b"\x00\xee\x00")
    can_id, data = j1939.request(65226, 0, 249)
    assert j1939.is_request(can_id, data, 65226, 0)
    assert not j1939.is_request(can_id, data, 65227, 0)
    assert not j1939.is_request(can_id, data, 65226, 1)
    assert j1939.is_request(*j1939.request(65226, 255, 249), 65226, 1)
    assert j1939.requested(can_id, b"\xca\xfe") is None
    assert j1939.requested(0x98EB00F9, data) is None
    assert j1939.requested(can_id, b"\x07\xea\x00\xff\xff") == 0xEA00


@pytest.mark.parametrize("arguments", [(0x40000, 0, 1), (59905, 0, 1), (65226, 256, 1), (65226, 0, 254)])
def test_a_request_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"PGN|address"):
        j1939.request(*arguments)


def test_acknowledgements_are_read():
    read = Acknowledgement.parse
    assert read(0x18E8FF0B, bytes.fromhex("00ffffff03cafe00")) == Acknowledgement(
        Control.ACKNOWLEDGED, 65226, 11, 3, None
    )
    assert read(0x18E8FF0B, bytes.fromhex("0105ffff0300ef00")) == Acknowledgement(
        Control.REFUSED, 0xEF00, 11, 3, 5
    )
    assert read(0x18E8030B, bytes.fromhex("02ffffffffcafe00")) == Acknowledgement(
        Control.ACCESS_DENIED, 65226, 11, 3, None
    )
    assert read(0x18E8FF0B, bytes.fromhex("03ffffffffcafe00")) == Acknowledgement(
        Control.CANNOT_RESPOND, 65226, 11, None, None
    )
    assert read(0x18E8FF0B, bytes.fromhex("04ffffff03cafe00")) is None
    assert read(0x18E8FF0B, bytes.fromhex("00ffffff03cafe")) is None
    assert read(0x18E9FF0B, bytes.fromhex("00ffffff03cafe00")) is None
