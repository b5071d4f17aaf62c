"""JobQueue on Celery: sends tasks by name; what they do is not known here."""

from __future__ import annotations

import logging
import ssl
import time
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from kombu.exceptions import ChannelError, KombuError
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from kb.errors import Misconfigured
from kb.ports import Queue
from kb.settings import Redis
from kb.tracing import carrier

log = logging.getLogger("kb.queue")

MAINTENANCE = "maintenance"
"""The queue of everything that is not the ingestion of a document."""
QUEUES = (*(queue.value for queue in Queue), MAINTENANCE)

INDEX_DOCUMENT = "kb.index_document"
RUN_JOBS = "kb.run_jobs"
SWEEP = "kb.sweep"
CLEAN_UP = "kb.clean_up"

_SCHEMES = ("redis://", "rediss://", "sentinel://", "unix://")
_SILENT_S = 2.0
"""After a failure nobody tries again for this long: an upload need not wait for a dead broker."""
_FAILURES = (KombuError, RedisError, OSError)


def celery_config(url: str, redis: Redis) -> dict[str, Any]:
    """What sender, worker, beat and monitor must agree on.

    Raises:
        Misconfigured: the URL names no broker that is supported.
    """
    check_url(url, redis)
    transport: dict[str, Any] = {
        "visibility_timeout": redis.visibility_timeout_s,
        "socket_connect_timeout": redis.connect_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": 25,
        # With it the client would retry a lost connection, too: connect anew by itself when the
        # broker restarts, and then read what never comes. It is the worker that connects anew.
        "retry_on_timeout": False,
    }
    if redis.sentinel_master is not None:
        transport["master_name"] = redis.sentinel_master
        transport["min_other_sentinels"] = 0
        transport["sentinel_kwargs"] = {
            "socket_connect_timeout": redis.connect_timeout_s,
            "retry": Retry(NoBackoff(), 0),  # when one sentinel is silent, the next is asked
        }
        if redis.sentinel_password is not None:
            password = redis.sentinel_password.get_secret_value()
            transport["sentinel_kwargs"]["password"] = password
    broker = url.replace("unix://", "redis+socket://", 1) if url.startswith("unix://") else url
    config: dict[str, Any] = {
        "broker_url": broker,
        "result_backend": broker.replace("redis+socket://", "socket://", 1),
        "broker_transport_options": transport,
        "result_backend_transport_options": transport,
        "result_expires": 3600,
        "redis_socket_connect_timeout": redis.connect_timeout_s,
        "redis_retry_on_timeout": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Ids only, so JSON is enough; nothing else is even read.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": MAINTENANCE,
        # A worker that is told no queues serves all of them.
        "task_queues": {name: {"exchange": name, "routing_key": name} for name in QUEUES},
        # A message counts as done when its work is: a worker that dies loses nothing.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        # A lost connection to the broker is no reason to throw work away; a lease decides.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "task_track_started": True,
        "task_send_sent_event": redis.events,
        "worker_send_task_events": redis.events,
        "enable_utc": True,
        "timezone": "UTC",
    }
    if url.startswith("rediss://"):
        tls: dict[str, Any] = {
            "ssl_cert_reqs": ssl.CERT_REQUIRED if redis.tls_verify else ssl.CERT_NONE,
            "ssl_check_hostname": redis.tls_verify,
        }
        if redis.tls_ca_file is not None:
            tls["ssl_ca_certs"] = str(redis.tls_ca_file)
        config |= {"broker_use_ssl": tls, "redis_backend_use_ssl": tls}
    return config


def check_url(url: str, redis: Redis) -> None:
    """Raises: Misconfigured: not a broker that Celery can use here."""
    if not all(part.startswith(_SCHEMES) for part in url.split(";")):
        scheme = url.partition("://")[0] if "://" in url else "none"
        raise Misconfigured(
            f"KB_REDIS_URL has the scheme {scheme!r}; write redis://:PASSWORD@HOST:6379/0, "
            "rediss://... for TLS, or sentinel://HOST:26379;sentinel://HOST:26379"
        )
    if url.startswith("sentinel://") != (redis.sentinel_master is not None):
        raise Misconfigured(
            "KB_REDIS_URL with sentinel:// and KB_REDIS__SENTINEL_MASTER go together: the "
            "sentinels are asked for the master of that name"
        )


class CeleryQueue:
    """Announces work to the workers of the service size."""

    def __init__(self, url: str, redis: Redis) -> None:
        self._app = Celery("kb", set_as_current=False)
        self._app.conf.update(celery_config(url, redis))
        # The sender gives up at once; a worker waits for its broker, however long that takes.
        self._app.conf.broker_transport_options = {
            **self._app.conf.broker_transport_options,
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
            "retry_on_timeout": True,
            "socket_timeout": redis.connect_timeout_s,
        }
        self._silent_until = 0.0

    def index_document(self, document_id: UUID, queue: Queue) -> None:
        """See `kb.ports.JobQueue`."""
        self._send(INDEX_DOCUMENT, [str(document_id)], queue.value)

    def run_jobs(self) -> None:
        """See `kb.ports.JobQueue`."""
        self._send(RUN_JOBS, [], MAINTENANCE)

    def waiting(self, queue: Queue) -> int | None:
        """See `kb.ports.JobQueue`."""
        if time.monotonic() < self._silent_until:
            return None
        try:
            with self._app.connection_for_read() as connection:
                declared = connection.default_channel.queue_declare(queue.value, passive=True)
                count: int = declared.message_count
                return count
        except ChannelError:  # an empty queue is no queue
            return 0
        except _FAILURES as exc:
            self._be_silent(exc)
            return None

    def close(self) -> None:
        """Let go of the broker; repeats safely."""
        self._app.close()

    def _send(self, task: str, arguments: list[str], queue: str) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            self._app.send_task(
                task,
                args=arguments,
                queue=queue,
                retry=False,
                ignore_result=True,
                headers=carrier(),
                # Names of people's things make a list of tasks readable; the rest makes it unique.
                task_id="-".join([*arguments, uuid4().hex[:12]]) if arguments else None,
            )
        except _FAILURES as exc:
            self._be_silent(exc)

    def _be_silent(self, exc: Exception) -> None:
        self._silent_until = time.monotonic() + _SILENT_S
        log.warning(
            "the broker does not answer; the sweeper announces the work when it does: %s", exc
        )
