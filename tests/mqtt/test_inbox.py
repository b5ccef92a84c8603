"""What waits in a session: in order, the newest of each topic under pressure, and nothing lost in silence."""

from hypothesis import given
from hypothesis import strategies as st

from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.inbox import OVERFLOW, Inbox


def message(topic, payload=b"x", packet_id=0, *, is_retained=False):
    return Publish(topic, payload, packet_id, is_retained)


def drained(inbox):
    return [item.payload for item in iter(inbox.take, None)]


def test_nothing_is_left_out_while_few_messages_wait():
    inbox = Inbox(lambda _: True, calm=3)
    for number in range(3):
        assert inbox.put(message("a", b"%d" % number)) == 0
    assert drained(inbox) == [b"0", b"1", b"2"]
    assert inbox.conflated == 0


def test_under_pressure_the_newest_of_a_topic_counts_and_the_other_is_acknowledged():
    inbox = Inbox(lambda topic: topic == "a", calm=1)
    assert inbox.put(message("a", b"old", 7)) == 0
    assert inbox.put(message("b", b"1", 8)) == 0
    assert inbox.put(message("a", b"new", 9)) == 7
    assert inbox.put(message("b", b"2", 10)) == 0
    assert inbox.conflated == 1
    assert drained(inbox) == [b"new", b"1", b"2"]
    assert inbox.take() is None


def test_a_stored_message_never_replaces_a_live_one():
    inbox = Inbox(lambda _: True, calm=1)
    inbox.put(message("a", b"live", 1))
    assert inbox.put(message("a", b"stored", 2, is_retained=True)) == 2
    assert drained(inbox) == [b"live"]
    inbox.put(message("a", b"stored", 3, is_retained=True))
    assert inbox.put(message("a", b"live", 4)) == 3
    assert inbox.take() == message("a", b"live", 4)


def test_it_is_full_by_messages_or_by_bytes_and_then_over():
    inbox = Inbox(lambda _: False, max_messages=2, max_bytes=100)
    inbox.put(message("a"))
    assert not inbox.is_full
    inbox.put(message("a", packet_id=1))
    assert inbox.is_full
    assert not inbox.is_over
    assert inbox.acknowledged == 1
    for _ in range(OVERFLOW):
        inbox.put(message("a"))
    assert inbox.is_over
    while inbox.take() is not None:
        pass
    assert not inbox.is_full
    inbox.put(message("b", bytes(99)))
    assert not inbox.is_full
    inbox.take()
    inbox.put(message("b", bytes(100)))
    assert inbox.is_full
    assert not inbox.is_over
    inbox.put(message("b", bytes(100)))
    assert inbox.is_over
    inbox.take()
    assert not inbox.is_over


step = st.one_of(st.tuples(st.sampled_from("abc"), st.booleans()), st.just("take"), st.just("toggle"))


@given(steps=st.lists(step, max_size=60), calm=st.integers(0, 4))
def test_whatever_happens_each_topic_ends_with_its_newest_message_in_order(steps, calm):
    """Whether a topic's every message is wanted may change at any time, as at a reload."""
    each = {"b"}
    inbox = Inbox(lambda topic: topic not in each, calm=calm)
    sent, open_ids, taken = {}, set(), []
    number = 0

    def take():
        found = inbox.take()
        if found is not None:
            taken.append(found)
            open_ids.discard(found.packet_id)

    for what in steps:
        if what == "take":
            take()
        elif what == "toggle":
            each ^= {"a", "b"}
        else:
            topic, is_retained = what
            number += 1
            open_ids.add(number)
            given_up = inbox.put(message(topic, b"%d" % number, number, is_retained=is_retained))
            open_ids.discard(given_up)
            if given_up != number:
                sent[topic] = number
        assert len(inbox) == len(open_ids)
    while len(inbox):
        take()
    assert not open_ids
    for topic in "abc":
        numbers = [int(item.payload) for item in taken if item.topic == topic]
        assert numbers == sorted(numbers)
        assert numbers[-1:] == ([sent[topic]] if topic in sent else [])
    assert inbox.conflated == number - len(taken)
    assert not inbox.is_full


def test_what_a_newer_message_replaces_takes_no_room_any_more():
    inbox = Inbox(lambda _: True, calm=1, max_bytes=100)
    inbox.put(message("a", bytes(60)))
    for _ in range(5):
        inbox.put(message("a", bytes(60)))
    assert not inbox.is_full
    inbox.put(message("a", bytes(10)))
    inbox.put(message("b", bytes(89)))
    assert not inbox.is_full
    inbox.put(message("b", bytes(90)))
    assert inbox.is_full
    assert not inbox.is_over
