"""Celery's consumer, made to outlive a broker that goes away while messages are unacknowledged."""

from __future__ import annotations

import logging
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

log = logging.getLogger("kb.worker")


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Lets the messages of a lost connection go, instead of speaking of them through it.

    With Celery 5.7 and kombu's Redis transport a worker ends with "Unrecoverable error:
    'NoneType' object has no attribute 'hostname'" (or 'client') when the connection is lost
    and a message that it brought is put back, or acknowledged after its work, through what is left
    of it. Nothing is lost without that: the visibility timeout returns such messages, and the
    sweeper counts what is missing.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close what is left of the connection; a new one follows."""
        let_go(self.connection)
        super().on_connection_error_after_connected(exc)


def let_go(connection: Any) -> None:
    """From now on nothing is said about messages that came over this connection."""
    transport = connection.transport
    for channel in {*transport.channels, *transport._avail_channels}:
        channel.do_restore = False
        channel.basic_ack = channel.basic_reject = _say_nothing


def _say_nothing(delivery_tag: str, **_: Any) -> None:
    log.info("message %s came over a connection that is lost; it may come again", delivery_tag)
