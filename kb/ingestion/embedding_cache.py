"""Vectors by model and text hash: no text is embedded twice by the same model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from kb.db import Sessions, now, reading, transaction
from kb.metrics import EMBEDDED_TEXTS, EMBEDDING_SECONDS
from kb.models import CachedEmbedding
from kb.tracing import span
from pipelines.errors import TransientError
from pipelines.ports import Embedder
from pipelines.types import Vector, Vectors

log = logging.getLogger("kb.embedding")

_LOOKUP = 500  # bound parameters per statement


def text_hash(text: str) -> str:
    """SHA-256 of the text, in hexadecimal."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def find_vectors(session: Session, model: str, hashes: Sequence[str]) -> dict[str, Vector]:
    """The cached vectors among these hashes, float32[dim] each."""
    found: dict[str, Vector] = {}
    for at in range(0, len(hashes), _LOOKUP):
        rows = session.execute(
            select(CachedEmbedding.text_hash, CachedEmbedding.vector).where(
                CachedEmbedding.model == model,
                CachedEmbedding.text_hash.in_(hashes[at : at + _LOOKUP]),
            )
        )
        found.update({row[0]: np.frombuffer(row[1], dtype="<f4") for row in rows})
    return found


def embed_cached(
    embedder: Embedder, texts: Sequence[str], sessions: Sessions, *, urgent: bool = False
) -> Vectors:
    """float32[n, dim] in the order of `texts`; only what is not cached goes to the model.

    New vectors are committed to the cache before this returns or raises, so that a crash right
    after it, or a model's server that stops answering half way, costs no second embedding.
    """
    hashes = [text_hash(text) for text in texts]
    with reading(sessions) as session:
        known = find_vectors(session, embedder.id, list(dict.fromkeys(hashes)))
    missing = {h: t for h, t in zip(hashes, texts, strict=True) if h not in known}
    EMBEDDED_TEXTS.labels("cache").inc(len(texts) - len(missing))
    if missing:
        known.update(_embed(embedder, missing, sessions, urgent=urgent))
    if not texts:
        return np.empty((0, embedder.dim), dtype=np.float32)
    return np.stack([known[h] for h in hashes])


def _embed(
    embedder: Embedder, texts: dict[str, str], sessions: Sessions, *, urgent: bool
) -> dict[str, Vector]:
    """Vectors by hash, of texts by hash; in the cache when this returns."""
    hashes = list(texts)
    try:
        with EMBEDDING_SECONDS.time(), span("embed batch", texts=len(texts)):
            vectors = embedder.embed_documents(list(texts.values()), urgent=urgent)
    except TransientError as exc:
        if exc.done:
            remember_vectors(sessions, embedder.id, {hashes[i]: row for i, row in exc.done.items()})
        raise
    EMBEDDED_TEXTS.labels("model").inc(len(texts))
    log.debug("embedded %s", " ".join(h[:16] for h in hashes))
    fresh = dict(zip(hashes, vectors, strict=True))
    remember_vectors(sessions, embedder.id, fresh)
    return fresh


def remember_vectors(sessions: Sessions, model: str, vectors: Mapping[str, Vector]) -> None:
    """Keep vectors by the hash of their text; one that is known already stays as it is."""
    rows = [
        {
            "model": model,
            "text_hash": digest,
            "vector": vector.astype("<f4").tobytes(),
            "created_at": now(),
        }
        # In order of the hash: two writers of the same texts then cannot wait for each other.
        for digest, vector in sorted(vectors.items())
    ]
    with transaction(sessions) as session:
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        session.execute(dialect.insert(CachedEmbedding).on_conflict_do_nothing(), rows)
