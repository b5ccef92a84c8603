"""The way of peers and commands over a session: messages to `Peers`, commands and answers out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fieldbus.errors import LinkDownError
from fieldbus.mqtt import packets, peering
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.packets import Subscription
from fieldbus.mqtt.peers import Peers
from fieldbus.mqtt.session import Session

_COMMAND_EXPIRY_S = 10
"""After so long a broker discards a command of ours that nobody has taken."""


class PeerPort:
    """Connects `Peers` to the session of one broker."""

    def __init__(self, name: str, gateway: str, session: Session, peers: Peers) -> None:
        """Take both.

        Args:
            name: the link's.
            gateway: our name, in which we answer.
            session: the session.
            peers: gets the messages.
        """
        self.name = name
        self._gateway = gateway
        self._session = session
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
                self._session.send(answer_to, payload, properties)

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
        self._session.send(topic, payload, properties)

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
