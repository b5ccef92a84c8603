"""Exactness of linear scaling."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import ConversionError
from fieldbus.scaling import Linear

decimals = st.decimals(min_value=-1000, max_value=1000, places=4, allow_nan=False).filter(bool).map(float)


@pytest.mark.parametrize(
    ("scale", "offset", "raw", "value"),
    [
        (0.1, 0, 3, 0.3),
        (0.1, 0, 725, 72.5),
        (0.01, -40, 6543, 25.43),
        (0.125, 0, 20, 2.5),
        (4, 0, 218, 872),
        (1, -40, 0, -40),
        (0.001, 0, 2**63 - 1, (2**63 - 1) / 1000),
    ],
)
def test_decimal_factors_give_decimal_values(scale, offset, raw, value):
    got = Linear(scale, offset).forward_int()(raw)
    assert got == value
    assert repr(got) == repr(value)


def test_integers_stay_integers():
    assert isinstance(Linear(2, 1).forward_int()(3), int)
    assert Linear(2.0, 1).is_integer
    assert isinstance(Linear(1, 0).forward_int()(2**60 + 1), int)


@given(scale=decimals, offset=decimals, raw=st.integers(-(2**31), 2**31))
def test_the_inverse_of_a_value_is_its_raw_value(scale, offset, raw):
    linear = Linear(scale, offset)
    assert linear.inverse_int(linear.forward_int()(raw)) == raw


@given(scale=decimals, offset=decimals, raw=st.integers(-(2**40), 2**40))
def test_the_value_is_the_float_nearest_to_the_exact_one(scale, offset, raw):
    exact = raw * Fraction(repr(scale)) + Fraction(repr(offset))
    assert Linear(scale, offset).forward_int()(raw) == float(exact)


@pytest.mark.parametrize(("scale", "offset"), [(0, 0), (float("nan"), 0), (1, float("inf"))])
def test_a_scale_without_inverse_cannot_be_made(scale, offset):
    with pytest.raises(ConversionError):
        Linear(scale, offset)


def test_what_is_not_finite_has_no_raw_value():
    with pytest.raises(ConversionError):
        Linear(0.1).inverse_int(float("nan"))


def test_a_range_comes_out_in_order_also_under_a_negative_scale():
    assert Linear(-0.5, 10).range_of(0, 100) == (-40, 10)
