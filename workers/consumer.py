"""Celery's consumer, made to outlive a broker that goes away and comes back."""

from __future__ import annotations

import logging
from typing import Any

from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer

log = logging.getLogger("kb.worker")

_LISTEN_S = 5.0
"""A worker that hears nothing for so long, though messages wait for it, connects anew."""


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Lets the messages of a lost connection go, instead of speaking of them through it.

    With Celery 5.7 and kombu's Redis transport a worker ends with "Unrecoverable error:
    'NoneType' object has no attribute 'hostname'" (or 'client') when the connection is lost
    and a message that it brought is put back, or acknowledged after its work, through what is left
    of it. Nothing is lost without that: the visibility timeout returns such messages, and the
    sweeper counts what is missing.

    A worker may also not notice that it hears nothing any more. So that is compared with what the
    broker says.
    """

    _unheard: int | None = None
    """Messages taken so far, when some were waiting at the last look."""

    def register_with_event_loop(self, hub: Any) -> None:
        """Called with every new connection."""
        super().register_with_event_loop(hub)
        self._unheard = None
        hub.call_repeatedly(_LISTEN_S, self._check_that_it_hears)

    def _check_that_it_hears(self) -> None:
        """Raises: ConnectionResetError: messages wait, and none came since the last look."""
        channel, taken = self.task_consumer.channel, sum(state.total_count.values())
        may_take = channel.qos.can_consume() or not state.reserved_requests
        waiting = may_take and any(channel._size(queue.name) for queue in self.task_consumer.queues)
        if waiting and self._unheard == taken:
            raise ConnectionResetError("messages wait in the broker and none comes")
        self._unheard = taken if waiting else None

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
