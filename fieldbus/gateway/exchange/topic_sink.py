"""The sink of what goes durably to the topics of one broker.

Rules:

* What routes have goes into the spool, and from there to its topics. While a backlog drains, what is new goes
  out at once as well, and comes again in its order, as historical.
* A message that the broker will never take (too long, no valid topic) is dropped, counted and said.
* What the broker's access list does not allow stays: it is put into a stream of its topic's own, so that it
  holds no other topic up, and one message of it is tried every `RETRY_S`. Of more than `MAX_WITHHELD` topics
  at once the whole stream waits.
* Messages of a row that the broker has are not sent again with those that were given back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.spool import Spool, Stream
from fieldbus.durable.spool_file import Row
from fieldbus.gateway.exchange.pump import Pump
from fieldbus.gateway.exchange.pumps import Pumps
from fieldbus.link import Delivery, Handover, Link, PeerLink
from fieldbus.model import Kind, Point, Sample
from fieldbus.mqtt.records import Head, Item, RecordError, decode_row, encode_row
from fieldbus.sample_json import gathered_inside, gathered_message, historical, sample_bytes

RETRY_S = 30.0
"""How long what the broker did not allow waits before it is tried again."""
MAX_WITHHELD = 64
_LOG = logging.getLogger("fieldbus")


class Message(NamedTuple):
    """What samples become on a topic."""

    topic: str
    payload: bytes
    items: Sequence[Item]


class _Publishing:
    """What is under way of one stream's rows, and what of them the broker has.

    That is remembered until the stream goes on behind a row: a pump that begins again does not listen to what
    becomes of what it sent before.
    """

    def __init__(self, link: PeerLink, stream: Stream) -> None:
        self.link = link
        self.stream = stream
        self._taken: dict[int, set[int]] = {}
        """The first number of a row to the places of its messages that are done."""

    def messages(self, row: Row, *, is_historical: bool) -> dict[int, Message]:
        """Return what is left to be sent of a row, by place."""
        for first in [first for first in self._taken if first <= self.stream.floor]:
            if first != row.first:
                del self._taken[first]
        taken = self._taken.setdefault(row.first, set())
        try:
            messages = topic_messages(decode_row(row.data), is_historical=is_historical)
        except RecordError as error:
            # Sent again it would be no better, and hold up all behind it.
            self.stream.drop(row.samples, f"they cannot be read: {error}", row.last)
            return {}
        return {place: message for place, message in enumerate(messages) if place not in taken}

    def publish(
        self, row: Row, messages: dict[int, Message], ended: Callable[[list[Message], bool], None]
    ) -> None:
        """Send messages of a row.

        Args:
            row: whose they are.
            messages: by place, as `messages` returns them.
            ended: called with those that are forbidden, and whether none was given back.
        """
        left = len(messages)
        is_complete = True
        forbidden: list[Message] = []
        unfit: list[Message] = []
        taken = self._taken.setdefault(row.first, set())

        def one_ended(place: int, fate: Handover) -> None:
            nonlocal left, is_complete
            left -= 1
            message = messages[place]
            if fate == Handover.FORBIDDEN:
                forbidden.append(message)
            elif not fate:
                is_complete = False
            else:
                if fate == Handover.UNFIT:
                    unfit.append(message)
                taken.add(place)
            if left == 0:
                if unfit:
                    why = f"the broker never takes them on {unfit[-1].topic}"
                    self.stream.drop(sum(len(item.items) for item in unfit), why, row.last)
                ended(forbidden, is_complete)

        if not messages:
            ended([], True)
        for place, message in list(messages.items()):
            self.link.publish(message.topic, message.payload, partial(one_ended, place))


class TopicSink:
    """What routes have for a broker's topics, durably."""

    is_acknowledged_by_peer = False

    def __init__(
        self, link: PeerLink, plain: Link, name: str, spool: Spool, pumps: Pumps, *, clock: Clock = SYSTEM
    ) -> None:
        """Take where it goes.

        Args:
            link: the broker.
            plain: the same, as what takes deliveries.
            name: of its stream in the spool.
            spool: where it waits.
            pumps: send streams.
            clock: the gateway's.
        """
        self.link = link
        self._plain = plain
        self._broker = name.partition(" ")[0]
        self._spool = spool
        self._pumps = pumps
        self._clock = clock
        stream = self._stream_of(name, {"broker": self._broker})
        self._publishing = _Publishing(link, stream)
        self._withheld: dict[str, Withheld] = {}
        """What is not allowed now, by topic."""
        self._again_s = -math.inf
        self.pump = Pump(stream, self, clock)
        for about in list(spool.abouts.values()):
            if about.get("broker") == self._broker and isinstance(about.get("topic"), str):
                self._withhold(about["topic"])

    def _stream_of(self, name: str, about: dict[str, str]) -> Stream:
        stream = self._spool.stream(name, encode_row)
        if name not in self._spool.abouts:
            self._spool.abouts[name] = about
            stream.set_about(about)
        return stream

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Keep samples for the broker."""
        items = [_topic_item(delivery) for delivery in deliveries]
        if self._withheld:
            items = self._put_aside(items)
        self._publishing.stream.append(items)
        if self.pump.is_behind and self.link.is_sending:
            self._plain.send([item for item in deliveries if item.target.topic not in self._withheld])
        return ()

    def start(self) -> None:
        """Begin to send."""
        for pump in self._all_pumps():
            self._pumps.start(pump)

    def stop(self) -> None:
        """Send nothing more."""
        for pump in self._all_pumps():
            self._pumps.stop(pump)

    def begin_again(self) -> None:
        """Learn that the broker comes anew: it may allow now what it did not."""
        self._again_s = -math.inf
        for withheld in self._withheld.values():
            withheld.again_s = -math.inf

    def _all_pumps(self) -> list[Pump]:
        return [self.pump, *(withheld.pump for withheld in self._withheld.values())]

    # --- a carrier

    @property
    def is_ready(self) -> bool:
        """Whether the broker is there, and something of what waits may be allowed."""
        return self.link.is_sending and self._clock.monotonic_s() >= self._again_s

    def pieces(self, row: Row) -> Sequence[Row]:
        """Return a row as it is: each of its samples is a message, or part of one."""
        return (row,)

    def carry(self, row: Row, done: Callable[[Handover], None], *, is_historical: bool) -> None:
        """Publish what a row has."""
        messages = self._publishing.messages(row, is_historical=is_historical)
        aside = {place: item for place, item in messages.items() if self._is_withheld(item.topic)}

        def ended(forbidden: list[Message], is_complete: bool) -> None:
            topics = {message.topic for message in forbidden} - self._withheld.keys()
            if len(self._withheld) + len(topics) > MAX_WITHHELD:
                if self._clock.monotonic_s() >= self._again_s:
                    _LOG.warning(
                        "%s: more than %d topics are not allowed by the broker: all that is durable waits",
                        self._broker, MAX_WITHHELD,
                    )  # fmt: skip
                self._again_s = self._clock.monotonic_s() + RETRY_S
                is_complete = False
            if not is_complete:
                done(Handover.GIVEN_BACK)
                return
            for topic in sorted(topics):
                _LOG.warning("%s: what is for %s waits in the spool until the broker allows it",
                             self._broker, topic)  # fmt: skip
            for topic in sorted(
                {message.topic for message in aside.values()} - self._withheld.keys() | topics
            ):
                self._pumps.start(
                    self._withhold(topic).pump
                )  # of `aside` one may have been released meanwhile
            with self._spool.committer.held():  # one transaction: it is there once
                for message in [*aside.values(), *forbidden]:
                    self._withheld[message.topic].stream.append(message.items)
                done(Handover.TAKEN)

        self._publishing.publish(
            row, {place: item for place, item in messages.items() if place not in aside}, ended
        )

    # --- what is not allowed

    def _withhold(self, topic: str) -> Withheld:
        name = f"{self._broker} topic {topic}"
        stream = self._stream_of(name, {"broker": self._broker, "topic": topic})
        found = self._withheld[topic] = Withheld(self.link, stream, self._clock)
        return found

    def _put_aside(self, items: Sequence[Item]) -> list[Item]:
        """Return what may go out; what is for a topic that is not allowed waits behind what waits there."""
        left: list[Item] = []
        for item in items:
            if self._is_withheld(item.head[0]):
                self._withheld[item.head[0]].stream.append([item])
            else:
                left.append(item)
        return left

    def _is_withheld(self, topic: str) -> bool:
        """Return whether a topic is not allowed; release it if nothing waits for it any more."""
        withheld = self._withheld.get(topic)
        if withheld is not None and not withheld.stream.backlog:
            self._release(topic, withheld)
            return False
        return withheld is not None

    def _release(self, topic: str, withheld: Withheld) -> None:
        """Have a topic go with the others again: nothing waits for it any more."""
        del self._withheld[topic]
        self._pumps.stop(withheld.pump)
        withheld.stream.forget()


class Withheld:
    """What one topic has that the broker did not allow."""

    is_acknowledged_by_peer = False

    def __init__(self, link: PeerLink, stream: Stream, clock: Clock) -> None:
        self.stream = stream
        self.again_s = clock.monotonic_s() + RETRY_S
        """When it is tried again."""
        self._link = link
        self._clock = clock
        self._publishing = _Publishing(link, stream)
        self._is_allowed = False
        self._is_trying = False
        self.pump = Pump(stream, self, clock)

    @property
    def is_ready(self) -> bool:
        """Whether it is allowed, or may be."""
        return (
            self._link.is_sending
            and not self._is_trying
            and (self._is_allowed or self._clock.monotonic_s() >= self.again_s)
        )

    def pieces(self, row: Row) -> Sequence[Row]:
        """Return a row as it is."""
        return (row,)

    def carry(self, row: Row, done: Callable[[Handover], None], *, is_historical: bool) -> None:
        """Publish what a row has; as long as it is not known to be allowed, one message first."""
        messages = self._publishing.messages(row, is_historical=is_historical)

        def ended(forbidden: list[Message], is_complete: bool) -> None:
            was_trying, self._is_trying = self._is_trying, False
            if forbidden:
                self._is_allowed = False
                self.again_s = self._clock.monotonic_s() + RETRY_S
            elif is_complete and was_trying:
                self._is_allowed = True
                self.carry(row, done, is_historical=is_historical)
                self.pump.wake()
                return
            if forbidden or not is_complete:
                done(Handover.GIVEN_BACK)
                return
            done(Handover.TAKEN)

        if messages and not self._is_allowed:
            self._is_trying = True
            place = min(messages)
            messages = {place: messages[place]}
        self._publishing.publish(row, messages, ended)


def _topic_item(delivery: Delivery) -> Item:
    target, source, sample = delivery
    gathered = target.label if target.gathers else None
    head: Head = (target.topic, gathered, source.device, source.unit)
    return Item(head, sample, source.label(sample.value))


def topic_messages(items: Sequence[Item], *, is_historical: bool) -> list[Message]:
    """Return the messages that samples become on their topics, in order."""
    found: list[Message] = []
    gathered: dict[tuple[str, str, int], list[Item]] = {}
    for item in items:
        (where, name, device, unit), sample, label = item
        if name is not None:
            gathered.setdefault((where, device, sample.time_ns), []).append(item)
            continue
        value = sample.value
        labels = {value: label} if label is not None and isinstance(value, int | float) else {}
        point = Point(device, "", Kind.FLOAT, unit=unit, labels=labels)
        payload = sample_bytes(point, sample)
        payload = historical(payload) if is_historical or sample.is_held else payload
        found.append(Message(where, payload, (item,)))
    for (where, _, time_ns), inside in gathered.items():
        samples: list[tuple[str, Sample]] = [(item.head[1], item.sample) for item in inside]
        payload = gathered_message(time_ns, *gathered_inside(samples))
        is_held = is_historical or all(sample.is_held for _, sample in samples)
        found.append(Message(where, historical(payload) if is_held else payload, inside))
    return found
