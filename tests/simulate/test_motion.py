"""How simulated values move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.model import Kind, Point
from fieldbus.simulate.motion import resting_value, value_at


@given(
    seconds=st.floats(0, 1e6),
    low=st.floats(-1e6, 1e6),
    span=st.floats(1, 1e6),
    kind=st.sampled_from([Kind.INT, Kind.FLOAT]),
)
def test_a_value_stays_inside_its_range(seconds, low, span, kind):
    point = Point("d", "p", kind, minimum=round(low), maximum=round(low + span))
    assert point.refusal(value_at(point, seconds)) is None
    assert point.refusal(resting_value(point)) is None


def test_a_value_moves_and_the_same_way_on_every_run():
    point = Point("press", "temperature", Kind.FLOAT, minimum=0, maximum=100)
    walk = [value_at(point, second) for second in range(120)]
    assert len(set(walk)) > 60
    assert max(walk) - min(walk) > 50
    assert walk == [value_at(point, second) for second in range(120)]


def test_a_counter_counts_up():
    point = Point("press", "pieces", Kind.INT, lowest=0, highest=65535)
    walk = [value_at(point, second) for second in range(100)]
    assert walk == sorted(walk)
    assert walk[-1] > walk[0]


@pytest.mark.parametrize("kind", [Kind.BOOL, Kind.STRING])
def test_other_kinds_have_values_of_their_kind(kind):
    point = Point("press", "x", kind)
    expected = bool if kind is Kind.BOOL else str
    assert {type(value_at(point, second)) for second in range(60)} == {expected}
    assert isinstance(resting_value(point), expected)


def test_an_enumeration_takes_each_of_its_values_and_no_other():
    point = Point("press", "state", Kind.INT, labels={0: "off", 5: "on"})
    assert {value_at(point, second) for second in range(200)} == {0, 5}


def test_a_decimal_number_one_of_whose_values_has_a_name_swings_all_the_same():
    point = Point("ecu", "level", Kind.FLOAT, minimum=0, maximum=25, labels={25.5: "SNA"})
    assert all(0 <= value_at(point, second) <= 25 for second in range(200))
