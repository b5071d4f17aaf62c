"""Spans of OpenTelemetry, when an endpoint is configured; otherwise nothing of it is imported.

A span is opened where the work is: `with span("retrieve"): ...`. Without an endpoint that costs a
function call. Context goes to other threads with `carried`, to other processes with `carrier` and
`continued` (W3C Trace Context).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from kb.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.export import SpanExporter

    from kb.settings import Tracing

P = ParamSpec("P")
T = TypeVar("T")

_tracer: Any = None
_OFF: AbstractContextManager[None] = nullcontext()
_announced: ContextVar[tuple[Any, str] | None] = ContextVar("kb_announced", default=None)
"""The context of the message that is worked on, and the document that it speaks of."""


def start_tracing(settings: Tracing, *, exporter: SpanExporter | None = None) -> Callable[[], None]:
    """Send spans from now on, if an endpoint is set; what is returned sends the rest and ends it.

    Args:
        exporter: where spans go instead of the endpoint.
    Raises:
        Misconfigured: OpenTelemetry is not installed.
    """
    global _tracer
    if (settings.endpoint is None and exporter is None) or _tracer is not None:
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as exc:
        raise Misconfigured(
            "KB_TRACING__ENDPOINT needs OpenTelemetry, which is not installed; "
            "pip install 'kb-engine[otel]'"
        ) from exc
    provider = TracerProvider(
        resource=Resource.create({"service.name": settings.service_name}),
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
    )
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        headers = settings.headers.get_secret_value() if settings.headers else ""
        assert settings.endpoint is not None
        otlp = OTLPSpanExporter(
            endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces",
            headers=dict(pair.split("=", 1) for pair in headers.split(",") if "=" in pair),
            timeout=settings.timeout_s,
        )
        provider.add_span_processor(BatchSpanProcessor(otlp))
    _tracer = provider.get_tracer("kb")

    def stop() -> None:
        global _tracer
        _tracer = None
        provider.shutdown()

    return stop


def span(name: str, **attributes: str | float | bool) -> AbstractContextManager[Any]:
    """A span around a block, below the present one; an exception marks it as failed."""
    if _tracer is None:
        return _OFF
    opened: AbstractContextManager[Any] = _tracer.start_as_current_span(
        name, attributes=_named(attributes)
    )
    return opened


def note(**attributes: str | float | bool) -> None:
    """Add to the present span."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes(_named(attributes))


def carried(work: Callable[P, T]) -> Callable[P, T]:
    """The same work for another thread, below the present span."""
    if _tracer is None:
        return work
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.run(work, *args, **kwargs)

    return run


def carrier() -> dict[str, str]:
    """What a message must hold so that its receiver goes on with this trace."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers


@contextmanager
def request_span(headers: Iterable[tuple[bytes, bytes]], **attributes: str) -> Iterator[Any]:
    """The span of a request, below that of its caller; None when there are no traces."""
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    with _tracer.start_as_current_span(
        "request", _remote(sent), kind=SpanKind.SERVER, attributes=_named(attributes)
    ) as opened:
        yield opened


@contextmanager
def announced(headers: Mapping[str, Any] | None, document_id: str) -> Iterator[None]:
    """Work on a message that speaks of a document; see `run_span`."""
    if _tracer is None:
        yield
        return
    token = _announced.set((_remote(headers or {}), document_id))
    try:
        yield
    finally:
        _announced.reset(token)


def run_span(document_id: uuid.UUID, **attributes: str | float) -> AbstractContextManager[Any]:
    """The span of an attempt at a document.

    It goes on with the trace of the upload when the message that led here speaks of this very
    document. Messages are interchangeable, so it may speak of another: then this is a trace of its
    own, linked to that one.
    """
    if _tracer is None:
        return _OFF
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind, get_current_span

    context, links = Context(), []
    message = _announced.get()
    if message is not None:
        sent_from = get_current_span(message[0]).get_span_context()
        if message[1] == str(document_id):
            context = message[0]
        elif sent_from.is_valid:
            links = [Link(sent_from)]
    values = _named(attributes | {"document": str(document_id)})
    opened: AbstractContextManager[Any] = _tracer.start_as_current_span(
        "ingest", context, kind=SpanKind.CONSUMER, links=links, attributes=values
    )
    return opened


def _remote(headers: Mapping[str, Any]) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    known = {name: str(headers[name]) for name in ("traceparent", "tracestate") if name in headers}
    return TraceContextTextMapPropagator().extract(known, Context())


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"kb.{name}": value for name, value in attributes.items()}
