"""What is heard on a line beside our own exchange: bounds, and frames that only look like some."""

from __future__ import annotations

import pytest
from test_shared_line import UNIT, Ear, framed, request, response

from fieldbus.modbus.places import Framing
from fieldbus.modbus.registers import Table
from fieldbus.modbus.traffic import LATE_S, QUIET_S, LineTraffic, Shape


@pytest.fixture(params=[Framing.RTU, Framing.ASCII], ids=str)
def ear(request: pytest.FixtureRequest) -> Ear:
    return Ear(request.param)


def test_of_many_requests_that_were_given_up_the_last_64_are_remembered(ear: Ear) -> None:
    for count in range(1, 66):
        ear.traffic.gave_up(request(0, count), ear.now_s)
    ear.hear(response(1, 2))
    assert ear.found == []
    ear.hear(response(1))
    assert ear.found == ["a response to nobody's request (unit 7, function 3)"]


def test_a_late_response_may_come_until_the_last_moment(ear: Ear) -> None:
    ear.traffic.gave_up(request(0, 1), ear.now_s)
    ear.now_s += LATE_S
    ear.hear(response(1))
    assert ear.found == []


def test_what_was_said_to_all_units_has_no_late_response(ear: Ear) -> None:
    ear.traffic.gave_up(request(0, 2, unit_id=0), ear.now_s)
    assert not ear.traffic._given_up


@pytest.mark.parametrize("takes_any_unit", [True, False])
def test_a_late_response_of_another_unit_is_ours_where_any_unit_is_taken(takes_any_unit: bool) -> None:
    found: list[str] = []
    traffic = LineTraffic(Framing.RTU, found.append, takes_any_unit=takes_any_unit)
    traffic.gave_up(request(0, 2), 100.0)
    traffic.heard(framed(Framing.RTU, 99, response(1, 2)), 100.0)
    assert bool(found) == (not takes_any_unit)


@pytest.mark.parametrize(("unit_id", "is_evidence"), [(0, False), (1, True), (247, True), (248, False)])
def test_a_response_comes_from_a_legal_unit(ear: Ear, unit_id: int, is_evidence: bool) -> None:
    ear.hear(response(1, 2), unit_id)
    assert bool(ear.found) == is_evidence


@pytest.mark.parametrize(("unit_id", "is_evidence"), [(0, True), (1, True), (247, True), (248, False)])
def test_a_request_is_for_a_legal_unit_or_for_all(ear: Ear, unit_id: int, is_evidence: bool) -> None:
    ear.hear(bytes.fromhex("0300000002"), unit_id)
    assert bool(ear.found) == is_evidence


@pytest.mark.parametrize(
    ("body", "is_evidence"),
    [
        ("010155", True),
        ("020155", True),
        ("0302aaaa", True),
        ("0402aaaa", True),
        ("030155", False),
        ("0303aaaaaa", False),
        ("0402aaaaaa", False),
        ("0403aaaaaa", False),
        ("0100", False),
        ("8402", True),
        ("840200", False),
        ("840c", False),
        ("c102", False),
        ("1000010002aa", False),
        ("060001", False),
        ("110155", False),
    ],
)
def test_a_response_has_legal_contents(ear: Ear, body: str, is_evidence: bool) -> None:
    ear.hear(bytes.fromhex(body))
    assert bool(ear.found) == is_evidence


def test_the_shapes_of_responses_are_remembered_and_those_of_requests_are_not(ear: Ear) -> None:
    ear.hear(request(0, 2, table=Table.INPUT).pdu)
    assert ear.traffic.shapes == set()
    ear.hear(response(1, 2, 3))
    assert ear.traffic.shapes == {Shape(UNIT, 3, 8)}


def test_at_most_256_shapes_are_remembered(ear: Ear) -> None:
    for unit_id in range(1, 4):
        for size in range(1, 126):
            ear.hear(response(*range(size)), unit_id)
    assert len(ear.traffic.shapes) == 256


def test_the_line_is_shared_for_the_quiet_time_and_not_at_its_end(ear: Ear) -> None:
    assert not ear.traffic.is_shared(ear.now_s)
    ear.hear(response(1))
    assert ear.traffic.is_shared(ear.now_s + QUIET_S - 0.001)
    assert not ear.traffic.is_shared(ear.now_s + QUIET_S)


@pytest.mark.parametrize(("pause_s", "is_whole"), [(1.0, True), (1.001, False)])
def test_the_rest_of_a_frame_comes_within_a_second(ear: Ear, pause_s: float, is_whole: bool) -> None:
    data = framed(ear.framing, UNIT, response(1, 2))
    ear.traffic.heard(data[:5], 100.0)
    ear.traffic.heard(data[5:], 100.0 + pause_s)
    assert bool(ear.found) == is_whole


def test_what_was_heard_before_a_new_connection_is_no_part_of_a_frame(ear: Ear) -> None:
    data = framed(ear.framing, UNIT, response(1, 2))
    ear.traffic.heard(data[:5], ear.now_s)
    ear.traffic.begin()
    ear.traffic.heard(data[5:], ear.now_s)
    ear.hear(response(1))
    assert ear.found == [], "the one that a new connection may bring"
    ear.hear(response(1))
    assert ear.found


# --- frames in bytes --------------------------------------------------------------------------------


def heard(framing: Framing, *parts: bytes) -> set[Shape]:
    """Return the shapes of the responses in some bytes."""
    traffic = LineTraffic(framing)
    for part in parts:
        traffic.heard(part, 100.0)
    return traffic.shapes


@pytest.mark.parametrize(
    "line",
    [
        b"0703020001F3",  # no colon
        b":07 03 02 00 01 F3",
        b":0703020001F4",
        b":0703020001F",
        b":0703020001FG",
        b":0703020001\xb3",
        b":",
        b"",
    ],
)
def test_a_line_that_is_no_frame_in_ascii_is_passed_over(line: bytes) -> None:
    assert heard(Framing.ASCII, line + b"\r\n") == set()
    assert heard(Framing.ASCII, line + b"\r\n:0703020001F3\r\n") == {Shape(7, 3, 4)}


def test_in_ascii_a_frame_begins_at_the_last_colon_of_its_line() -> None:
    assert heard(Framing.ASCII, b":0703:0703020001F3\r\n") == {Shape(7, 3, 4)}
    assert heard(Framing.ASCII, b":070302", b"0001F3\r\n") == {Shape(7, 3, 4)}


@pytest.mark.parametrize("noise", [b"", b"\x07", b"\x07\x03", b"\x07\x03\xfa", b"\xff\xff\xff\xff\xff"])
@pytest.mark.parametrize("cut", [1, 2, 4, 6])
def test_in_rtu_a_frame_is_found_behind_noise_however_it_is_cut(noise: bytes, cut: int) -> None:
    frame = framed(Framing.RTU, 7, response(1))
    assert heard(Framing.RTU, noise + frame[:cut], frame[cut:]) == {Shape(7, 3, 4)}
    assert heard(Framing.RTU, frame + noise + frame[:cut], frame[cut:]) == {Shape(7, 3, 4)}


def test_in_rtu_the_longest_response_is_found() -> None:
    frame = framed(Framing.RTU, 7, response(*range(125)))
    assert len(frame) == 255
    assert heard(Framing.RTU, frame[:100], frame[100:254], frame[254:]) == {Shape(7, 3, 252)}
    assert heard(Framing.RTU, b"\x55" * 900 + frame) == {Shape(7, 3, 252)}
