"""The query history and hit counts, written behind the answers."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import insert, select, update

from kb.db import Sessions, now, retried, transaction
from kb.models import Dataset, DatasetQuery, Segment

log = logging.getLogger("kb.query_log")


@dataclass(frozen=True)
class Asked:
    """A query that was answered.

    Attributes:
        source: which door it came through, such as `hit_testing`.
        used: segments whose hit count grows by one.
    """

    dataset_id: uuid.UUID
    query: str
    source: str
    actor: uuid.UUID
    used: tuple[uuid.UUID, ...]
    at: datetime


class QueryLog:
    """Collects what was asked and writes it in one transaction every `flush_s`.

    A commit per query would make the next query on the same connection wait for the disk. What
    a crash can lose is the last moment's history, never a document.
    """

    def __init__(self, sessions: Sessions, *, flush_s: float = 1.0) -> None:
        self._sessions = sessions
        self._flush_s = flush_s
        self._pending: list[Asked] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="kb-query-log", daemon=True)
        self._thread.start()

    def add(
        self,
        dataset_id: uuid.UUID,
        query: str,
        *,
        source: str,
        actor: uuid.UUID,
        used: Sequence[uuid.UUID] = (),
    ) -> None:
        """Note a query; returns at once."""
        asked = Asked(dataset_id, query, source, actor, tuple(used), now())
        with self._lock:
            self._pending.append(asked)

    def flush(self) -> None:
        """Write what is pending now."""
        with self._lock:
            pending, self._pending = self._pending, []
        if pending:
            retried(partial(_write, self._sessions, pending))

    def close(self) -> None:
        """Write the rest and stop; repeats safely."""
        self._closing.set()
        self._thread.join()
        self.flush()

    def _loop(self) -> None:
        while not self._closing.wait(self._flush_s):
            try:
                self.flush()
            except Exception:  # history must never stop the server
                log.exception("queries could not be written to the history")


def _write(sessions: Sessions, pending: Sequence[Asked]) -> None:
    hits = Counter(segment for asked in pending for segment in asked.used)
    with transaction(sessions) as session:
        known = set(
            session.scalars(
                select(Dataset.id).where(Dataset.id.in_({a.dataset_id for a in pending}))
            )
        )
        rows = [
            {
                "dataset_id": asked.dataset_id,
                "content": asked.query,
                "source": asked.source,
                "created_by": asked.actor,
                "created_at": asked.at,
            }
            for asked in pending
            if asked.dataset_id in known
        ]
        if rows:
            session.execute(insert(DatasetQuery), rows)
        # In order of the id: two processes that count the same hits do not wait for each other.
        for segment_id, count in sorted(hits.items()):
            session.execute(
                update(Segment)
                .where(Segment.id == segment_id)
                .values(hit_count=Segment.hit_count + count)
            )
