"""Settings -> Resources, once per process: the only place that chooses adapters."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from kb.adapters.external_http import HttpKnowledge
from kb.adapters.in_process_queue import InProcessQueue
from kb.adapters.localfs import LocalBlobs
from kb.adapters.qdrant_edge import QdrantEdgeIndex
from kb.adapters.webhook_http import HttpSender
from kb.db import Pool, Sessions, exclusive, lock_key, open_database, transaction
from kb.errors import DataDirectoryInUse, Misconfigured
from kb.migrations import upgrade
from kb.model_registry import ModelRegistry
from kb.models import Member, Workspace
from kb.ports import BlobStore, JobQueue, SegmentIndex
from kb.resources import Resources
from kb.sealing import seal_all
from kb.secrets import Keyring, open_keyring
from kb.settings import Settings
from kb.tracing import start_tracing
from kb.wiring_models import default_record, makers, open_embedder

log = logging.getLogger("kb.wiring")


@dataclass(frozen=True)
class Stores:
    """Where everything is kept."""

    sessions: Sessions
    blobs: BlobStore
    index: SegmentIndex
    keyring: Keyring


@contextmanager
def open_stores(settings: Settings) -> Iterator[Stores]:
    """Database, files and index; the database is brought to the newest revision first."""
    check_service(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(start_tracing(settings.tracing))
        sessions = _open_sessions(settings)
        stack.callback(sessions.close)
        if settings.redis_url is None:
            stack.enter_context(_alone(sessions))
        upgrade(sessions.engine)
        keyring = _open_keyring(settings)
        blobs = _open_blobs(settings)
        stack.callback(blobs.close)
        index = _open_index(settings)
        stack.callback(index.close)
        yield Stores(sessions, blobs, index, keyring)


@contextmanager
def open_resources(settings: Settings) -> Iterator[Resources]:
    """The process's adapters; the database is brought to the newest revision first."""
    # Model files come from this machine; a library must not ask a hub for them.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ExitStack() as stack:
        stores = stack.enter_context(open_stores(settings))
        seal_all(stores.sessions, stores.keyring)
        workspace_id, owner_id = _first_workspace(stores.sessions)
        embedder = open_embedder(settings)
        stack.callback(embedder.close)
        record = default_record(settings)
        models = ModelRegistry(
            stores.sessions,
            stores.keyring,
            workspace_id,
            makers(settings),
            default=embedder,
            record=record,
            no_space="no embedding model is configured for the space {space!r}; the settings have "
            f"{' '.join(record.name)!r}. Set {_model_settings(settings)} to what filled it, or add "
            "that with POST /v1/models",
        )
        stack.callback(models.close)
        pool = ThreadPoolExecutor(settings.retrieval.threads, thread_name_prefix="kb-leg")
        stack.callback(pool.shutdown, wait=True)
        waiting = ThreadPoolExecutor(settings.external.threads, thread_name_prefix="kb-external")
        stack.callback(waiting.shutdown, wait=True, cancel_futures=True)
        jobs = _open_queue(settings)
        stack.callback(jobs.close)

        yield Resources(
            settings=settings,
            sessions=stores.sessions,
            index=stores.index,
            blobs=stores.blobs,
            jobs=jobs,
            webhooks=HttpSender(
                timeout_s=settings.webhooks.timeout_s,
                allow_private=settings.webhooks.allow_private,
            ),
            external=HttpKnowledge(settings.external),
            keyring=stores.keyring,
            models=models,
            embedders=models.embedder_of_space,
            default_embedder=embedder,
            default_embedder_name=record.name,
            pool=pool,
            waiting=waiting,
            workspace_id=workspace_id,
            owner_id=owner_id,
        )


def check_service(settings: Settings) -> None:
    """Raises: Misconfigured: several processes shall work, but something belongs to one alone."""
    if settings.redis_url is None:
        return
    if settings.qdrant.url is None:
        raise Misconfigured(
            "KB_REDIS_URL is set, so several processes work on documents, but the index is an "
            "embedded one, which belongs to a single process; set KB_QDRANT__URL to a Qdrant "
            "server, or leave KB_REDIS_URL out"
        )
    if not settings.sqlalchemy_url.startswith("postgres"):
        raise Misconfigured(
            "KB_REDIS_URL is set, so several processes work on documents, but the database is "
            "SQLite, which serves one machine; set KB_DATABASE_URL=postgresql://USER:PASSWORD@"
            "HOST:PORT/NAME, or leave KB_REDIS_URL out"
        )


def _open_sessions(settings: Settings) -> Sessions:
    database = settings.database
    pool = Pool(
        size=database.pool_size,
        most=database.pool_most,
        timeout_s=database.pool_timeout_s,
        connect_timeout_s=database.connect_timeout_s,
        lock_timeout_s=database.lock_timeout_s,
        idle_transaction_s=database.idle_transaction_s,
    )
    try:
        return open_database(settings.sqlalchemy_url, pool)
    except ValueError as exc:
        raise Misconfigured(f"KB_DATABASE_URL: {exc}") from exc


@contextmanager
def _alone(sessions: Sessions) -> Iterator[None]:
    """Hold a server's database as the one process that works on its documents.

    A database in the data directory needs no such lock: the directory has one.

    Raises:
        DataDirectoryInUse: another process without KB_REDIS_URL holds it.
    """
    if sessions.engine.dialect.name != "postgresql":
        yield
        return
    with sessions.engine.connect() as connection:
        connection.detach()  # not the pool's any more: closing it lets the lock go
        key = {"key": lock_key("sole process")}
        held = connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), key)
        connection.commit()
        if not held:
            raise DataDirectoryInUse(
                "another process works on the documents of this database; stop it, or set "
                "KB_REDIS_URL and KB_QDRANT__URL for all of them, so that any number can share it"
            )
        yield


def _model_settings(settings: Settings) -> str:
    if settings.embedding.provider == "local":
        return "KB_EMBEDDING__PROVIDER or KB_EMBEDDING__MODEL_PATH"
    names = ("PROVIDER", "MODEL", "DIMENSIONS", "DOCUMENT_PREFIX")
    return ", ".join(f"KB_EMBEDDING__{name}" for name in names)


def _open_keyring(settings: Settings) -> Keyring:
    key = settings.secret_key.get_secret_value() if settings.secret_key else None
    return open_keyring(key, settings.data_dir, several=settings.redis_url is not None)


def _open_queue(settings: Settings) -> JobQueue:
    if settings.redis_url is None:
        return InProcessQueue()
    try:
        # Here, because Celery is an extra and takes a third of a second to import.
        from kb.adapters.celery_queue import CeleryQueue
    except ImportError as exc:
        raise Misconfigured(
            "KB_REDIS_URL needs Celery, which is not installed; pip install 'kb-engine[service]'"
        ) from exc
    return CeleryQueue(settings.redis_url.get_secret_value(), settings.redis)


def _open_index(settings: Settings) -> SegmentIndex:
    if settings.qdrant.url is not None:
        # Here, because the client is an extra and takes half a second to import.
        from kb.adapters.qdrant_server import QdrantServerIndex

        return QdrantServerIndex(settings.qdrant)
    return QdrantEdgeIndex(
        settings.data_dir / "index",
        min_free_bytes=settings.limits.min_free_bytes,
        min_free_share=settings.limits.min_free_share,
    )


def _open_blobs(settings: Settings) -> BlobStore:
    if settings.blobs.bucket is not None:
        from kb.adapters.s3 import S3Blobs

        return S3Blobs(settings.blobs)
    return LocalBlobs(
        settings.data_dir / "blobs",
        min_free_bytes=settings.limits.min_free_bytes,
        min_free_share=settings.limits.min_free_share,
    )


def _first_workspace(sessions: Sessions) -> tuple[uuid.UUID, uuid.UUID]:
    """The workspace that keys act in; made with its owner on the first start."""
    with transaction(sessions) as session:
        exclusive(session, "first workspace")
        workspace_id = session.scalar(select(Workspace.id).order_by(Workspace.created_at))
        if workspace_id is None:
            workspace_id = _add_workspace(session)
        owner_id = session.scalar(
            select(Member.id).where(Member.workspace_id == workspace_id, Member.role == "owner")
        )
    assert owner_id is not None
    return workspace_id, owner_id


def _add_workspace(session: Session) -> uuid.UUID:
    workspace = Workspace(name="default")
    session.add(workspace)
    session.flush()
    session.add(Member(workspace_id=workspace.id, name="owner", role="owner"))
    return workspace.id
