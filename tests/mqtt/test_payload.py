"""What others publish."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.model import Kind, Point, Quality, Sample
from fieldbus.mqtt.payload import TopicPoint, parse_path, read
from fieldbus.mqtt.records import Item, decode_peer_row, encode_row
from fieldbus.sample_json import gathered_bytes, iso_time, parse_time, sample_bytes

NOW = 1_700_000_000_000_000_000


def place(kind=Kind.FLOAT, path="", **more):
    return TopicPoint(Point("remote", "x", kind, **more), "t", parse_path(path))


@pytest.mark.parametrize(
    ("kind", "payload", "value"),
    [
        (Kind.FLOAT, b"72.5", 72.5),
        (Kind.FLOAT, b" 7 ", 7.0),
        (Kind.FLOAT, b"-1e3", -1000.0),
        (Kind.INT, b"42", 42),
        (Kind.INT, b"42.0", 42),
        (Kind.BOOL, b"true", True),
        (Kind.BOOL, b"OFF", False),
        (Kind.BOOL, b"1", True),
        (Kind.STRING, b"ready", "ready"),
        (Kind.STRING, b'"ready"', "ready"),
        (Kind.STRING, b"007", "007"),
    ],
)
def test_a_plain_value(kind, payload, value):
    assert read(place(kind), payload, NOW) == Sample(value, Quality.GOOD, None, NOW)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.FLOAT, b"abc"), (Kind.FLOAT, b""), (Kind.FLOAT, b"true"), (Kind.FLOAT, b"NaN"),
        (Kind.FLOAT, b"[1]"), (Kind.FLOAT, b"\xff\xfe"), (Kind.INT, b"1.5"), (Kind.BOOL, b"2"),
        (Kind.FLOAT, b"9" * 400), (Kind.FLOAT, b"[" * 5000), (Kind.INT, b"null"), (Kind.FLOAT, b"{}"),
        (Kind.FLOAT, b'{"value": "x"}'), (Kind.FLOAT, b'{"value": 1, "time": "yesterday"}'),
        (Kind.FLOAT, b'{"value": 1, "time": "0001-01-01T00:00:00Z"}'),
        (Kind.FLOAT, b'{"value": 1, "quality": "superb"}'), (Kind.FLOAT, b"1" * 300_000),
    ],
)  # fmt: skip
def test_what_is_no_value_is_bad_and_never_raises(kind, payload):
    sample = read(place(kind), payload, NOW)
    assert (sample.value, sample.quality) == (None, "bad")
    assert sample.reason


def test_a_sample_keeps_its_time_and_quality():
    text = b'{"value": 1.5, "quality": "uncertain", "reason": "out of range", "time": "2026-11-22T14:02:11.123456Z"}'
    now_ns = parse_time("2026-11-22T14:02:12Z")
    sample = read(place(), text, now_ns)
    assert sample[:3] == (1.5, "uncertain", "out of range")
    assert iso_time(sample.time_ns) == "2026-11-22T14:02:11.123456Z"


def at(time_ns, value=1.5, **more):
    return json.dumps({"value": value, "time": iso_time(time_ns), **more}).encode()


@pytest.mark.parametrize("ahead_s", [10.001, 3600, 86400 * 365 * 170])
def test_a_time_in_the_future_is_replaced_by_that_of_arrival(ahead_s):
    payload = at(NOW + round(ahead_s * 1e9))
    assert read(place(), payload, NOW) == Sample(1.5, Quality.UNCERTAIN, "clock", NOW)


@pytest.mark.parametrize("ahead_s", [10, 3, 0, -3, -3600, -86400 * 365 * 30])
def test_a_time_in_the_past_or_hardly_ahead_is_never_touched(ahead_s):
    time_ns = NOW + ahead_s * 10**9
    assert read(place(), at(time_ns), NOW) == Sample(1.5, Quality.GOOD, None, time_ns)


def test_how_far_a_clock_may_be_ahead_can_be_said():
    assert read(place(), at(NOW + 2 * 10**9), NOW, 1.0).reason == "clock"
    assert read(place(), at(NOW + 59 * 10**9), NOW, 60.0).reason is None


def test_a_reason_that_a_sample_has_is_not_lost_to_its_clock():
    late = NOW + 10**12
    told = read(place(), at(late, quality="uncertain", reason="guess"), NOW)
    assert told == Sample(1.5, Quality.UNCERTAIN, "guess", NOW)
    told = read(place(), at(late, None, quality="bad", reason="timeout"), NOW)
    assert told == Sample(None, Quality.BAD, "timeout", NOW)


@pytest.mark.parametrize(
    ("path", "payload", "is_held"),
    [
        ("", b'{"value": 1, "historical": true}', True),
        ("", b'{"value": 1, "historical": false}', False),
        ("", b'{"value": 1, "historical": "yes"}', False),
        ("", b'{"value": 1}', False),
        ("values.x", b'{"values": {"x": 1}, "historical": true}', True),
        ("values.x", b'{"values": {"x": 1}}', False),
        ("", b"1", False),
    ],
)
def test_what_says_that_it_is_historical_is_held(path, payload, is_held):
    sample = read(place(path=path), payload, NOW)
    assert (sample.value, sample.is_held) == (1.0, is_held)


def test_a_bad_sample_stays_bad_with_its_reason():
    sample = read(place(), b'{"value": null, "quality": "bad", "reason": "timeout"}', NOW)
    assert sample[:3] == (None, "bad", "timeout")


@pytest.mark.parametrize(
    ("path", "value"), [("data.list[1].x", 7.0), ("data.flat", 3.0), ("data.list[9].x", None), ("nope", None)]
)
def test_a_path_leads_into_json(path, value):
    payload = b'{"data": {"flat": 3, "list": [{"x": 5}, {"x": 7}]}}'
    assert read(place(path=path), payload, NOW).value == value


@pytest.mark.parametrize("path", ["a..b", "a[x]", "[", "a]"])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(ValueError, match="is not a path"):
        parse_path(path)


def test_outside_the_declared_range_is_uncertain_and_outside_the_type_is_bad():
    assert read(place(maximum=10), b"11", NOW).reason == "out of range"
    assert read(place(Kind.INT, lowest=0, highest=255), b"256", NOW)[:3] == (None, "bad", "conversion")


@given(st.binary(max_size=60), st.sampled_from(Kind), st.sampled_from(["", "a[0].b"]))
def test_any_bytes_give_a_sample(payload, kind, path):
    sample = read(place(kind, path), payload, NOW)
    assert (sample.value is None) == (sample.quality == "bad")


values = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats(), st.text(max_size=5))


@given(value=values, time_ns=st.integers(10**18, 2 * 10**18))
def test_a_sample_is_json_whatever_its_value(value, time_ns):
    point = Point("d", "p", Kind.FLOAT, unit="°C")
    text = sample_bytes(point, Sample(value, Quality.GOOD, None, time_ns))
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["value"] == value or found["quality"] == "bad"
    assert parse_time(found["time"]) == time_ns // 1000 * 1000
    assert found["unit"] == "°C"


def test_a_sample_has_the_form_that_others_rely_on():
    point = Point("press", "temperature", Kind.FLOAT, unit="°C")
    sample = Sample(72.5, Quality.GOOD, None, parse_time("2026-11-22T14:02:11.123456Z"))
    assert json.loads(sample_bytes(point, sample)) == {
        "value": 72.5, "quality": "good", "reason": None, "time": "2026-11-22T14:02:11.123456Z", "unit": "°C",
    }  # fmt: skip


def test_gathered_points_are_in_values_or_in_bad():
    samples = [
        ("temperature", Sample(72.5, Quality.GOOD, None, 5)),
        ("running", Sample(True, Quality.UNCERTAIN, "x", 5)),
        ("count", Sample(None, Quality.BAD, "timeout", 5)),
        ("level", Sample(float("nan"), Quality.GOOD, None, 5)),
    ]
    assert json.loads(gathered_bytes(0, samples)) == {
        "time": "1970-01-01T00:00:00.000000Z",
        "values": {"temperature": 72.5, "running": True},
        "bad": {"count": "timeout", "level": "not available"},
    }


@pytest.mark.parametrize(
    ("kind", "path", "payload"),
    [
        (Kind.BOOL, "[0]", b'"1"'),
        (Kind.STRING, "[0]", b'"ready"'),
        (Kind.STRING, "a[1]", b'{"a": "on"}'),
        (Kind.FLOAT, "a.b", b'{"a": 5}'),
        (Kind.FLOAT, "a.b", b'{"a": true}'),
        (Kind.FLOAT, "a.b", b'{"a": [1]}'),
        (Kind.FLOAT, "a[0]", b'{"a": {"0": 1}}'),
    ],
)
def test_a_path_that_leads_into_no_object_or_list_is_bad(kind, path, payload):
    assert read(place(kind, path), payload, NOW)[:3] == (None, "bad", "conversion")


@pytest.mark.parametrize("payload", [b'{"a": null}', b"{}", b'{"a": []}', b'{"a": [null]}'])
def test_a_path_that_leads_to_nothing_is_not_available(payload):
    assert read(place(path="a[0]"), payload, NOW)[:3] == (None, "bad", "not available")


@pytest.mark.parametrize("payload", [b'"\\ud800"', b'{"value": "a\\udfffb"}', b'{"value": "\\ud83d"}'])
def test_half_a_surrogate_is_no_text(payload):
    assert read(place(Kind.STRING), payload, NOW)[:3] == (None, "bad", "conversion")
    assert read(place(Kind.FLOAT), payload, NOW).is_bad


def test_a_pair_of_surrogates_is_one_character():
    assert read(place(Kind.STRING), b'"\\ud83c\\udf21"', NOW).value == "\N{THERMOMETER}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (str(2**64 - 1), 2**64 - 1), (str(-(2**63)), -(2**63)), (str(2**64), None), (str(-(2**63) - 1), None),
        ("9" * 309, None), ("9" * 4000, None), ("9" * 5000, None), ("1e400", None), ("-1e300", None),
    ],
)  # fmt: skip
def test_a_whole_number_has_64_bits_at_most(text, value):
    for payload in (text, f'{{"value": {text}}}'):
        sample = read(place(Kind.INT, minimum=0, maximum=10), payload.encode(), NOW)
        assert sample.value == value
        assert sample.is_bad is (value is None)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ('"no\\ud800ne"', "no\ufffdne"), ("[[[1]]]", "not available"), ("5", "not available"),
        ('""', "not available"), ('"' + "x" * 500 + '"', "x" * 200),
    ],
)  # fmt: skip
def test_a_reason_of_somebody_else_is_a_short_text(reason, expected):
    payload = f'{{"value": null, "quality": "bad", "reason": {reason}}}'
    assert read(place(), payload.encode(), NOW).reason == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(("a", "b", "value", "quality", "reason", "time", "historical", "0")) | st.text(max_size=2),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(
    data=json_values,
    kind=st.sampled_from(Kind),
    path=st.sampled_from(["", "a", "a[0].b", "[0]", "[0][0]", "value"]),
)
def test_whatever_json_comes_a_value_is_right_or_bad_and_every_peer_takes_it(data, kind, path):
    sample = read(place(kind, path), json.dumps(data).encode(), NOW)
    assert (sample.value is None) == (sample.quality == "bad")
    assert (sample.reason is None) == (sample.quality == "good")
    found = data
    for step in parse_path(path):
        found = found[step] if isinstance(found, dict if isinstance(step, str) else list) and (
            step in found if isinstance(found, dict) else step < len(found)
        ) else None  # fmt: skip
    if not path and isinstance(found, dict):
        found = found.get("value")
    if sample.value is not None and kind in (Kind.INT, Kind.FLOAT):
        assert type(found) in (int, float)
        assert sample.value == found or (kind is Kind.FLOAT and sample.value == float(found))
    if sample.value is not None and kind is Kind.STRING and isinstance(found, str):
        assert sample.value == found
    [item] = decode_peer_row(encode_row([Item(("d.p", "gw/d.p", 0), sample)]))
    assert item.sample[:3] == sample[:3]
    sample_bytes(place(kind).point, sample).decode()


@given(st.text(st.characters(), max_size=10), st.text(st.characters(), max_size=10))
def test_no_text_tears_what_is_published(value, unit):
    point = Point("d", "p", Kind.STRING, unit=unit)
    sample = Sample(value, Quality.GOOD, None, NOW)
    assert json.loads(sample_bytes(point, sample).decode())["value"] == value
    assert json.loads(gathered_bytes(0, [(unit, sample)]).decode())["values"] == {unit: value}
