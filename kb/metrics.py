"""Prometheus metrics that this process counts; those of the database are read at each scrape.

Labels have few values: never an id, a name or a path. In a worker with several processes the
library adds them up through files (`PROMETHEUS_MULTIPROC_DIR`, which `kb worker` sets).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

REGISTRY = CollectorRegistry()

_QUICK = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SLOW = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600)

# --- ingestion -----------------------------------------------------------------------------------

DOCUMENTS = Counter(
    "kb_document_outcomes",
    "Attempts at documents by outcome: completed, failed, retried, postponed, handed_back, lost",
    ["outcome"],
    registry=REGISTRY,
)
DOCUMENT_ERRORS = Counter(
    "kb_document_errors",
    "Attempts at documents that failed, by error code and stage",
    ["code", "stage"],
    registry=REGISTRY,
)
LEASES_EXPIRED = Counter(
    "kb_leases_expired",
    "Documents taken over from a worker that ended without an outcome",
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "kb_stage_seconds",
    "Time of a document in each stage",
    ["stage"],
    buckets=_SLOW,
    registry=REGISTRY,
)
EMBEDDED_TEXTS = Counter(
    "kb_embedded_texts",
    "Texts that needed a vector, by where it came from: model or cache",
    ["source"],
    registry=REGISTRY,
)
EMBEDDED_TOKENS = Counter(
    "kb_embedded_tokens",
    "Tokens of documents that the model was given",
    registry=REGISTRY,
)
EMBEDDING_SECONDS = Histogram(
    "kb_embedding_seconds",
    "Time of one batch of texts in the embedding model",
    buckets=_SLOW,
    registry=REGISTRY,
)
CHAT_ANSWERS = Counter(
    "kb_chat_answers",
    "Questions to a chat model for documents, by where the answer came from: model or cache",
    ["source"],
    registry=REGISTRY,
)
INDEX_POINTS = Counter("kb_index_points", "Points written to the index", registry=REGISTRY)
INDEX_SECONDS = Histogram(
    "kb_index_write_seconds",
    "Time of one batch of points until the index has it",
    buckets=_SLOW,
    registry=REGISTRY,
)
JOBS = Counter(
    "kb_jobs_done",
    "Jobs of the outbox by kind and outcome: done, failed (and tried again), postponed",
    ["kind", "outcome"],
    registry=REGISTRY,
)

WEBHOOKS = Counter(
    "kb_webhook_attempts",
    "Attempts at delivering a webhook's message, by outcome: delivered, retried, given_up",
    ["outcome"],
    registry=REGISTRY,
)

# --- answers -------------------------------------------------------------------------------------

RETRIEVAL_SECONDS = Histogram(
    "kb_retrieval_seconds",
    "Time of a query by search method, without HTTP",
    ["method"],
    buckets=_QUICK,
    registry=REGISTRY,
)
LEG_SECONDS = Histogram(
    "kb_retrieval_leg_seconds",
    "Time of one search of the index: leg dense or text",
    ["leg"],
    buckets=_QUICK,
    registry=REGISTRY,
)
RETRIEVAL_STAGE_SECONDS = Histogram(
    "kb_retrieval_stage_seconds",
    "Time of a query in each stage: embed, search, fuse, hydrate, rerank",
    ["stage"],
    buckets=_QUICK,
    registry=REGISTRY,
)
RERANKS = Counter(
    "kb_reranks",
    "Queries that asked for a rerank model, by outcome: done, partial, fallback",
    ["outcome"],
    registry=REGISTRY,
)
REQUESTS = Counter(
    "kb_http_requests",
    "Requests answered, by route template and status",
    ["method", "route", "status"],
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "kb_http_request_seconds",
    "Time of a request by route template",
    ["method", "route"],
    buckets=_QUICK,
    registry=REGISTRY,
)
ERRORS = Counter("kb_errors", "Errors answered to callers, by code", ["code"], registry=REGISTRY)
