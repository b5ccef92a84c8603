"""The way of peers and commands over a broker: messages to `Peers`, commands and answers out.

Rules: a command of ours and an answer go out now or never. While `_MOST_ANSWERS` of them wait for the broker,
no further messages are taken.

Design: they go out on the connection that publishes, so that messages that wait to be taken never hold up the
acknowledgements on which more can go out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fieldbus.errors import LinkDownError
from fieldbus.link import Handover
from fieldbus.mqtt import packets, peering
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.packets import Subscription
from fieldbus.mqtt.peers import Peers
from fieldbus.mqtt.publisher import Publisher
from fieldbus.mqtt.session import Session

_COMMAND_EXPIRY_S = 10
"""After so long a broker discards a command of ours that nobody has taken."""
_MOST_ANSWERS = 1000


class PeerPort:
    """Connects `Peers` to the session of one broker."""

    def __init__(self, name: str, gateway: str, session: Session, publisher: Publisher, peers: Peers) -> None:
        """Take both.

        Args:
            name: the link's.
            gateway: our name, in which we answer.
            session: where messages come in.
            publisher: where commands and answers go out.
            peers: gets the messages.
        """
        self.name = name
        self._gateway = gateway
        self._session = session
        self._publisher = publisher
        self._under_way = 0
        self._peers = peers
        self._tasks: set[asyncio.Task[None]] = set()

    def subscriptions(self) -> Sequence[Subscription]:
        """Return what has to be subscribed to, so that others are heard."""
        return [Subscription(topic) for topic in self._peers.subscriptions()]

    def requests(self, *, hears_commands: bool) -> Sequence[Subscription]:
        """Return what has to be subscribed to, so that others can ask us for something."""
        # Without the retain flag nobody could tell a command that is kept from one that is given now.
        own = [Subscription(topic, "/command/" in topic) for topic in self._peers.requests()]
        return [item for item in own if hears_commands or not item.keeps_retain_flag]

    def take(self, message: Publish) -> None:
        """Take a message below ``fieldbus/``."""
        reply: Callable[[bytes], None] | None = None
        answer_to = message.response_topic
        if answer_to is not None and peering.is_answer_topic(answer_to, self._gateway):
            properties = packets.publish_properties(correlation=message.correlation)

            def answer(payload: bytes) -> None:
                self._send(answer_to, payload, properties)

            reply = answer
        self._peers.take(
            self.name, message.topic, message.payload,
            is_retained=message.is_retained, signature=message.signature, reply=reply,
        )  # fmt: skip

    def tell(
        self, topic: str, payload: bytes, *, answer_to: str | None, id_: str, signature: str | None
    ) -> None:
        """Publish a message that wants an answer, at once or never."""
        properties = packets.publish_properties(
            expiry_s=_COMMAND_EXPIRY_S,
            response_topic=answer_to,
            correlation=None if answer_to is None else id_.encode(),
            signature=signature,
        )
        self._send(topic, payload, properties)

    @property
    def is_held_back(self) -> bool:
        """Whether no further messages should be taken, because of the answers that wait."""
        return self._under_way >= _MOST_ANSWERS

    def _send(self, topic: str, payload: bytes, properties: bytes) -> None:
        if self._session.is_connected:
            self._under_way += 1
            self._publisher.put_sure(topic, payload, self._sent, properties=properties)

    def _sent(self, _fate: Handover) -> None:
        was_held_back = self.is_held_back
        self._under_way -= 1
        if was_held_back:
            self._session.go_on()

    def look_after(self, peer: str) -> None:
        """Have the correspondent told whether a gateway is there."""
        topic = self._peers.look_after(self.name, peer)
        if topic is None or not self._session.is_connected:
            return  # the next connection subscribes
        task = asyncio.get_running_loop().create_task(self._hear(topic), name=f"{self.name} subscribes")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """End what is under way."""
        for task in list(self._tasks):
            task.cancel()

    async def _hear(self, topic: str) -> None:
        try:
            await self._session.subscribe([Subscription(topic)])
        except LinkDownError:
            return
