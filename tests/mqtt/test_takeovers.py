"""What is suspected when a broker ends connections again and again without a word."""

from fieldbus.mqtt.takeovers import CLOSED, OFTEN, WITHIN_S, Takeovers


def test_a_second_client_is_suspected_after_some_times_within_a_minute():
    subject = Takeovers("fieldbus-hq-broker")
    assert [subject.reason(CLOSED, now_s) for now_s in (0.0, 5.0)] == [CLOSED, CLOSED]
    assert subject.reason("connection refused", 6.0) == "connection refused"
    suspicion = f"{CLOSED} again and again: does another client come as 'fieldbus-hq-broker'?"
    assert subject.reason(CLOSED, 10.0) == suspicion
    assert subject.reason(CLOSED, 40.0) == suspicion


def test_a_broker_that_is_restarted_now_and_then_is_not_suspected():
    subject = Takeovers("a")
    period_s = WITHIN_S / (OFTEN - 1)
    assert {subject.reason(CLOSED, period_s * number) for number in range(20)} == {CLOSED}
