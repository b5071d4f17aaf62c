"""GET /metrics for Prometheus: what this process counts, and what the database says."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterator
from datetime import datetime

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.api.deps import bearer_token, get_resources
from kb.db import moment, reading
from kb.errors import Unauthorized
from kb.metrics import REGISTRY
from kb.status import JobState, QueueState, read_errors, read_jobs, read_queues

router = APIRouter(tags=["system"])

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus.

    With `KB_METRICS__TOKEN` the header `Authorization: Bearer <token>` is asked for; without one
    only programs of this machine are answered.
    """
    resources = get_resources(request)
    token = resources.settings.metrics.token
    _check(request, token.get_secret_value() if token else None)
    with reading(resources.sessions) as session:
        of_database = _registry(_OfDatabase(session))
        text = generate_latest(REGISTRY) + generate_latest(_PROCESS) + generate_latest(of_database)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _check(request: Request, token: str | None) -> None:
    """Raises: Unauthorized: not the token, or there is none and the caller is elsewhere."""
    if token is not None:
        given = bearer_token(request.headers.get("authorization"))
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise Unauthorized("that is not the token of KB_METRICS__TOKEN")
        return
    if not _is_local(request):
        raise Unauthorized(
            "metrics are shown to programs of this machine only; set KB_METRICS__TOKEN and send "
            "it in the header 'Authorization: Bearer <token>'"
        )


def _is_local(request: Request) -> bool:
    """Whether the caller is on this machine, and speaks for nobody else."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _registry(collector: Collector | None = None) -> CollectorRegistry:
    made = CollectorRegistry()
    if collector is not None:
        made.register(collector)
    return made


_PROCESS = _registry()
ProcessCollector(registry=_PROCESS)


class _OfDatabase(Collector):
    """Gauges of the whole installation: every API process shows the same ones."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def describe(self) -> list[Metric]:
        """The families without samples; the library would read the database for their names."""
        return list(self._families())

    def _families(self) -> tuple[GaugeMetricFamily, ...]:
        return (
            GaugeMetricFamily(
                "kb_queue_documents", "Unfinished documents by state", labels=["queue", "state"]
            ),
            GaugeMetricFamily(
                "kb_queue_oldest_seconds",
                "How long the oldest document that may be taken has waited",
                labels=["queue"],
            ),
            GaugeMetricFamily(
                "kb_documents_in_error", "Documents in error; 20 codes", labels=["code"]
            ),
            GaugeMetricFamily("kb_jobs", "Jobs of the outbox by state", labels=["kind", "state"]),
            GaugeMetricFamily("kb_jobs_oldest_seconds", "How long the oldest due job has waited"),
        )

    def collect(self) -> Iterator[Metric]:
        """Read the database."""
        at = self._session.execute(select(moment())).scalar_one()
        documents, oldest, errors, jobs, oldest_job = self._families()
        for name, queue in read_queues(self._session, at).items():
            for state in QueueState:
                documents.add_metric([name, state], queue.counts[state])
            oldest.add_metric([name], _age(at, queue.oldest))
        for code, number in read_errors(self._session).items():
            errors.add_metric([code], number)
        found, due_since = read_jobs(self._session, at)
        for kind, states in found.items():
            for state_of_job in JobState:
                jobs.add_metric([kind, state_of_job], states.get(state_of_job, 0))
        oldest_job.add_metric([], _age(at, due_since))
        yield from (documents, oldest, errors, jobs, oldest_job)


def _age(at: datetime, since: datetime | None) -> float:
    return max(0.0, (at - since).total_seconds()) if since else 0.0
