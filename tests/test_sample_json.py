"""A sample as a message: the fast way writes what the generic way writes."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from fieldbus.model import Kind, Point, Quality, Reason, Sample
from fieldbus.sample_json import sample_bytes, sample_object

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 64), 1 << 64),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
)
POINTS = st.builds(
    lambda unit, labels: Point("plant", "level", Kind.INT, unit=unit, labels=labels),
    st.one_of(st.none(), st.text(st.characters(exclude_categories=()), max_size=3)),
    st.sampled_from(({}, {0: "off", 1: "on"})),
)
SAMPLES = st.builds(
    Sample,
    VALUES,
    st.sampled_from(tuple(Quality)),
    st.one_of(st.none(), st.sampled_from(tuple(Reason))),
    st.one_of(st.just(0), st.integers(1, 4_000_000_000 * 10**9)),
)


@given(POINTS, SAMPLES)
def test_every_sample_is_what_json_writes(point, sample):
    expected = json.dumps(sample_object(point, sample), ensure_ascii=False, separators=(",", ":"))
    assert sample_bytes(point, sample) == expected.encode("utf-8", "backslashreplace")


def test_a_good_sample_is_one_object_with_its_unit():
    point = Point("plant", "power", Kind.FLOAT, unit="kW")
    sample = Sample(230.72, Quality.GOOD, None, 1_764_000_000_123_456_789)
    assert sample_bytes(point, sample) == (
        b'{"value":230.72,"quality":"good","reason":null,"time":"2025-11-24T16:00:00.123456Z","unit":"kW"}'
    )


def test_a_value_that_is_not_finite_is_bad():
    point = Point("plant", "power", Kind.FLOAT)
    found = json.loads(sample_bytes(point, Sample(math.nan, Quality.GOOD, None, 1_764_000_000 * 10**9)))
    assert (found["value"], found["quality"], found["reason"]) == (None, "bad", "not available")
