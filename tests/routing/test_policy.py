"""What happens to a sample between source and target, in virtual time."""

import pytest

from fieldbus.link import Target
from fieldbus.model import Access, Kind, Point, Quality, Sample
from fieldbus.routing.policy import NEVER, Edge, OnBad, OnUncertain, Policy, When
from fieldbus.scaling import Linear

SOURCE = Point("plc", "speed", Kind.FLOAT)
REGISTER = Point("other", "speed", Kind.FLOAT, Access.READWRITE)
SERVED = Point("panel", "speed", Kind.FLOAT, Access.WRITE, carries_quality=True)


def good(value, time_ns=1):
    return Sample(value, Quality.GOOD, None, time_ns)


def bad(reason="timeout"):
    return Sample(None, Quality.BAD, reason, 1)


def edge(target=REGISTER, **policy):
    return Edge(SOURCE, Target("link", target), Policy(**policy))


def offer(subject, *samples, step_s=1.0):
    """Offer samples a second apart and return what was sent."""
    return [subject.offer(sample, at * step_s, at * step_s) for at, sample in enumerate(samples)]


def values(sent):
    return [None if sample is None else sample.value for sample in sent]


def test_only_changes_are_sent():
    assert values(offer(edge(), good(1.0), good(1.0), good(2.0))) == [1.0, None, 2.0]


def test_every_sample_is_sent_if_asked():
    assert values(offer(edge(when=When.SAMPLE), good(1.0), good(1.0))) == [1.0, 1.0]


def test_source_time_survives_conversion():
    sent = edge(linear=Linear(0.1, 5)).offer(good(20, time_ns=123_456_789), 0, 0)
    assert sent == Sample(7.0, Quality.GOOD, None, 123_456_789)


def test_a_deadband_is_measured_from_what_was_sent_last():
    got = offer(edge(deadband=0.5), good(1.0), good(1.3), good(1.5), good(1.4), good(0.9))
    assert values(got) == [1.0, None, 1.5, None, 0.9]


def test_a_change_of_quality_passes_the_deadband():
    subject = edge(SERVED, deadband=10)
    sent = offer(subject, good(1.0), bad(), good(1.1))
    assert [sample.quality for sample in sent] == ["good", "bad", "good"]


def test_min_interval_sends_the_newest_when_the_time_has_come():
    subject = edge(min_interval_s=1.0)
    assert subject.offer(good(1.0), 0.0, 0.0).value == 1.0
    assert subject.offer(good(2.0), 0.2, 0.2) is None
    assert subject.offer(good(3.0), 0.4, 0.4) is None
    assert subject.due_s == pytest.approx(1.0)
    assert subject.expire(good(3.0), 0.4, 1.0).value == 3.0
    assert subject.due_s == NEVER


def test_a_value_that_came_back_in_time_is_not_sent():
    subject = edge(min_interval_s=1.0)
    subject.offer(good(1.0), 0.0, 0.0)
    subject.offer(good(2.0), 0.2, 0.2)
    assert subject.offer(good(1.0), 0.4, 0.4) is None
    assert subject.due_s == NEVER


def test_every_repeats_nothing_before_its_time():
    subject = edge(every_s=10.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.expire(good(1.0), 0.0, 9.9) is None
    assert subject.due_s == 10.0
    assert subject.expire(good(1.0), 0.0, 10.0).value == 1.0


def test_every_repeats_the_newest_sample_with_its_own_time():
    subject = edge(every_s=2.0)
    subject.offer(good(1.0, time_ns=10), 0.0, 0.0)
    assert subject.due_s == 2.0
    assert subject.expire(good(1.0, time_ns=99), 1.9, 2.0) == good(1.0, time_ns=99)
    assert subject.due_s == 4.0


def test_every_counts_from_the_last_that_was_sent():
    subject = edge(every_s=2.0)
    subject.offer(good(1.0), 0.0, 0.0)
    subject.offer(good(2.0), 1.0, 1.0)
    assert subject.due_s == 3.0


def test_bad_is_held_back_where_the_target_carries_no_quality():
    assert offer(edge(), good(1.0), bad(), good(1.0)) == [good(1.0), None, None]
    assert edge().policy.on_bad is OnBad.HOLD


@pytest.mark.parametrize("target", [None, SERVED])
def test_bad_is_sent_once_where_the_target_carries_quality(target):
    sent = offer(edge(target), good(1.0), bad(), bad(), good(1.0))
    assert sent == [good(1.0), bad(), None, good(1.0)]
    assert edge(target).policy.on_bad is OnBad.SEND


ON_TOPIC = Point("copy", "speed", Kind.FLOAT, Access.WRITE, carries_quality=True, is_topic=True)


@pytest.mark.parametrize("target", [None, ON_TOPIC])
def test_what_the_route_says_of_bad_wins_on_a_topic(target):
    assert offer(edge(target, on_bad=OnBad.HOLD), good(1.0), bad(), good(1.0)) == [good(1.0), None, None]
    assert offer(edge(target), good(1.0), bad()) == [good(1.0), bad()]


def test_a_served_point_decides_itself_what_it_shows():
    assert offer(edge(SERVED, on_bad=OnBad.HOLD), good(1.0), bad()) == [good(1.0), bad()]


UNCERTAIN = Sample(60000.0, Quality.UNCERTAIN, "out of range", 1)


@pytest.mark.parametrize("target", [None, REGISTER, SERVED])
def test_an_uncertain_value_goes_on_unless_the_route_says_otherwise(target):
    assert offer(edge(target), good(1.0), UNCERTAIN, good(1.0)) == [good(1.0), UNCERTAIN, good(1.0)]


@pytest.mark.parametrize("target", [None, REGISTER, SERVED])
def test_an_uncertain_value_can_be_held_back_for_every_target(target):
    subject = edge(target, on_uncertain=OnUncertain.HOLD)
    assert offer(subject, good(1.0), UNCERTAIN, good(1.0)) == [good(1.0), None, None]


def test_an_uncertain_value_can_be_made_bad():
    bad_one = bad("out of range")
    for target, told in ((None, bad_one), (SERVED, bad_one), (REGISTER, None)):
        subject = edge(target, on_uncertain=OnUncertain.BAD)
        assert offer(subject, good(1.0), UNCERTAIN)[1] == told
    subject = edge(on_uncertain=OnUncertain.BAD, substitute=0)
    assert offer(subject, UNCERTAIN) == [Sample(0, Quality.UNCERTAIN, "out of range", 1)]


def test_an_uncertain_value_is_not_repeated_where_it_is_held_back():
    subject = edge(on_uncertain=OnUncertain.HOLD, every_s=1.0)
    subject.offer(good(1.0), 0.0, 0.0)
    subject.offer(UNCERTAIN, 0.5, 0.5)
    assert subject.expire(UNCERTAIN, 0.5, 1.0) is None
    assert subject.due_s == 2.0


def test_bad_is_sent_as_it_is_if_asked():
    sent = offer(edge(target=None, on_bad=OnBad.SEND), bad("device exception 02"))
    assert sent == [bad("device exception 02")]


def test_a_substitute_is_uncertain_and_says_why():
    assert edge(substitute=0).offer(bad("timeout"), 0, 0) == Sample(0, Quality.UNCERTAIN, "timeout", 1)


def test_a_target_that_carries_quality_always_hears_of_bad():
    assert edge(SERVED).offer(bad(), 0, 0) == bad()


def test_a_map_translates_and_has_no_word_for_the_rest():
    subject = edge(target=None, mapping={0: "off", 1: "on"}, on_bad=OnBad.SEND)
    assert subject.offer(good(1), 0, 0).value == "on"
    assert subject.offer(good(7), 1, 1) == Sample(None, Quality.BAD, "conversion", 1)


def test_an_old_sample_is_bad():
    sent = edge(SERVED, max_age_s=1.0).offer(good(1.0), at_s=0.0, now_s=1.5)
    assert (sent.quality, sent.reason, sent.value) == ("bad", "stale", None)


def test_a_value_grows_stale_without_a_new_sample_and_recovers_without_a_change():
    subject = edge(SERVED, max_age_s=1.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert 1.0 < subject.due_s < 1.1
    assert subject.expire(good(1.0), 0.0, 1.01).reason == "stale"
    # still stale: nothing new to say
    again_s = subject.due_s
    assert again_s < NEVER
    assert subject.expire(good(1.0), 0.0, again_s) is None
    # the source is read again with the same value, which no change reports
    assert subject.expire(good(1.0), 5.0, 5.1) == good(1.0)


def test_a_value_that_is_confirmed_in_time_does_not_grow_stale():
    subject = edge(SERVED, max_age_s=1.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.expire(good(1.0), 0.9, 1.01) is None
    assert subject.due_s == pytest.approx(1.9, abs=0.01)


def test_a_float_that_overflows_under_scale_is_bad_not_infinite():
    subject = edge(SERVED, linear=Linear(10.0))
    assert subject.offer(good(1e308), 0, 0) == Sample(None, Quality.BAD, "conversion", 1)


def test_a_source_whose_clock_goes_back_loses_no_sample():
    """What comes out of another gateway's stream is offered at the time of its source."""
    subject = edge(when=When.SAMPLE)
    times = (10.0, 10.001, 10.0009, 10.002, 5.0, 5.1)
    assert [subject.offer(good(float(at)), at, at).value for at in times] == list(times)
    thinned = edge(when=When.SAMPLE, min_interval_s=1)
    sent = [thinned.offer(good(float(at)), at, at) for at in (10.0, 10.5, 5.0, 5.5, 6.0)]
    assert values(sent) == [10.0, None, 5.0, None, 6.0]


# --- bounds, and which of two times counts


@pytest.mark.parametrize(
    ("deadband", "given", "sent"),
    [
        (5.0, ["a", "b", "b"], ["a", "b", None]),
        (5.0, ["a", 1.0, 2.0, "a"], ["a", 1.0, None, "a"]),
        (5.0, [1.0, 6.0, 10.9, 11.0], [1.0, 6.0, None, 11.0]),
        (5.0, [6.0, 1.0, -4.0], [6.0, 1.0, -4.0]),
        (0.0, [1.0, 1.0, 1.5], [1.0, None, 1.5]),
        (None, [1.0, 1.0, 1.5], [1.0, None, 1.5]),
    ],
)
def test_a_deadband_is_for_numbers_alone(deadband, given, sent):
    assert values(offer(edge(deadband=deadband), *map(good, given))) == sent


def test_the_same_flaw_is_no_change_under_a_deadband():
    assert offer(edge(SERVED, deadband=5.0), bad(), bad(), bad("x")) == [bad(), None, bad("x")]


def test_a_sample_may_be_as_old_as_the_route_allows():
    subject = edge(SERVED, max_age_s=2.0)
    assert subject.offer(good(1.0), 0.0, 2.0) == good(1.0)
    assert subject.offer(good(2.0), 0.0, 2.001).reason == "stale"
    subject = edge(SERVED, max_age_s=2.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.expire(good(1.0), 0.0, 2.0) is None
    assert subject.expire(good(1.0), 0.0, 2.001).reason == "stale"


def test_an_old_bad_sample_keeps_its_own_reason():
    assert edge(SERVED, max_age_s=1.0).offer(bad("timeout"), 0.0, 5.0).reason == "timeout"
    subject = edge(SERVED, max_age_s=1.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.expire(bad("timeout"), 0.0, 5.0).reason == "timeout"


@pytest.mark.parametrize(("max_age_s", "pause_s"), [(0.2, 0.2), (1.0, 1.0), (60.0, 1.0)])
def test_a_stale_route_looks_again_once_a_second_at_most(max_age_s, pause_s):
    subject = edge(SERVED, max_age_s=max_age_s)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.due_s == pytest.approx(max_age_s, abs=0.002)
    now_s = max_age_s + 0.5
    assert subject.expire(good(1.0), 0.0, now_s).reason == "stale"
    assert subject.due_s == pytest.approx(now_s + pause_s, abs=0.002)
    assert subject.expire(good(1.0), 0.0, now_s + pause_s + 0.002) is None
    assert subject.due_s == pytest.approx(now_s + 2 * pause_s, abs=0.005)


def test_a_route_that_was_stale_becomes_stale_again():
    subject = edge(SERVED, max_age_s=1.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.expire(good(1.0), 0.0, 1.5).reason == "stale"
    assert subject.offer(good(1.0), 2.0, 2.0) == good(1.0)
    assert subject.due_s == pytest.approx(3.0, abs=0.002)
    assert subject.expire(good(1.0), 2.0, 3.5).reason == "stale"


def test_stale_is_told_once_and_in_the_place_of_what_waited():
    subject = edge(SERVED, max_age_s=3.0, min_interval_s=2.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.offer(good(2.0), 1.0, 1.0) is None
    assert subject.expire(good(2.0), 1.0, 5.0).reason == "stale"
    assert subject.expire(good(2.0), 1.0, 8.0) is None
    subject = edge(SERVED, max_age_s=1.0)
    assert subject.offer(good(1.0), 0.0, 5.0).reason == "stale"
    assert subject.expire(good(1.0), 0.0, 6.0) is None


def test_the_earliest_of_several_times_is_when_to_look():
    subject = edge(SERVED, max_age_s=3.0, every_s=5.0, min_interval_s=2.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.due_s == pytest.approx(3.0, abs=0.002)
    subject.offer(good(2.0), 1.0, 1.0)
    assert subject.due_s == 2.0
    subject = edge(every_s=5.0)
    subject.offer(bad(), 0.0, 1.0)  # it is held back: nothing was sent yet
    assert subject.due_s == 6.0


def test_a_minimum_interval_is_over_at_its_end():
    subject = edge(min_interval_s=1.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.offer(good(2.0), 1.0, 1.0) == good(2.0)
    assert subject.offer(good(3.0), 1.999, 1.999) is None
    assert subject.expire(good(3.0), 1.999, 1.9995) is None
    assert subject.expire(good(3.0), 1.999, 2.0) == good(3.0)


def test_a_bad_sample_takes_the_place_of_what_waited():
    """What waited is not sent any more: its source says meanwhile that it does not know the value."""
    subject = edge(min_interval_s=1.0)
    subject.offer(good(1.0), 0.0, 0.0)
    assert subject.offer(good(2.0), 0.2, 0.2) is None
    assert subject.offer(bad(), 0.4, 0.4) is None
    assert subject.due_s == NEVER
    assert subject.expire(bad(), 0.4, 1.0) is None


def test_what_did_not_arrive_is_sent_again_though_unchanged():
    subject = edge()
    subject.offer(good(1.0), 0.0, 0.0)
    subject.missed()
    assert subject.offer(good(1.0), 1.0, 1.0) == good(1.0)
    assert subject.offer(good(1.0), 2.0, 2.0) is None


@pytest.mark.parametrize(
    ("policy", "is_plain", "is_untreated"),
    [
        ({}, True, True),
        ({"when": When.SAMPLE}, True, True),
        ({"on_bad": OnBad.HOLD}, True, True),
        ({"on_uncertain": OnUncertain.HOLD}, True, False),
        ({"every_s": 1.0}, False, False),
        ({"deadband": 0.0}, False, False),
        ({"min_interval_s": 0.1}, False, False),
        ({"linear": Linear(2.0)}, False, False),
        ({"mapping": {1: 2}}, False, False),
        ({"substitute": 0}, False, False),
        ({"max_age_s": 1.0}, False, False),
    ],
)
def test_what_counts_as_treatment_of_a_sample(policy, is_plain, is_untreated):
    found = Policy(**policy)
    assert (found.is_plain, found.is_untreated) == (is_plain, is_untreated)


def test_routes_that_treat_samples_differently_are_different_routes():
    others = [
        edge(),
        edge(SERVED),
        edge(mapping={1: 2}),
        edge(mapping={1: 3}),
        edge(every_s=1.0),
        edge(deadband=1.0),
        edge(max_age_s=1.0),
        edge(on_uncertain=OnUncertain.BAD),
    ]
    assert len({subject.key for subject in others}) == len(others)
    assert edge(mapping={1: 2}).key == edge(mapping={1: 2}).key


def test_what_cannot_be_translated_is_bad_or_replaced():
    subject = edge(SERVED, mapping={1: 2.0, 2: "two"}, linear=Linear(10.0))
    assert values(offer(subject, good(1), good(2), good(3))) == [20.0, None, None]
    assert subject.sent == bad("conversion")
    subject = edge(linear=Linear(10.0), substitute=-1)
    assert subject.offer(good("text"), 0, 0) == Sample(-1, Quality.UNCERTAIN, "conversion", 1)
    assert values(offer(edge(linear=Linear(10.0)), good(True), good(False))) == [10, 0]
