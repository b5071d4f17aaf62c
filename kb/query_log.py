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
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, select, update

from kb.db import Sessions, now, retried, transaction
from kb.models import Dataset, DatasetQuery, Segment

log = logging.getLogger("kb.query_log")


class Found(NamedTuple):
    """A segment that was returned, with its place in the whole answer, from 1."""

    segment_id: uuid.UUID
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A query that was answered.

    Attributes:
        source: which door it came through: `hit_testing`, `external` or `app`.
        settings: enough to ask it again; what is in it is the source's own affair.
        hits: what the dataset gave, best first.
        latency_ms: of the whole call.
        used: segments whose hit count grows by one.
        call_id: the same in all rows of a call that asked several datasets.
    """

    dataset_id: uuid.UUID
    query: str
    source: str
    actor: uuid.UUID
    at: datetime
    settings: dict[str, Any] | None
    hits: tuple[Found, ...] | None
    latency_ms: float | None
    used: tuple[uuid.UUID, ...]
    call_id: uuid.UUID | None

    def row(self) -> dict[str, Any]:
        """As the table has it."""
        return {
            "dataset_id": self.dataset_id,
            "content": self.query,
            "source": self.source,
            "created_by": self.actor,
            "created_at": self.at,
            "call_id": self.call_id,
            "settings": self.settings,
            "hits": None if self.hits is None else [[str(h[0]), *h[1:]] for h in self.hits],
            "latency_ms": None if self.latency_ms is None else round(self.latency_ms, 3),
        }


_COUNT_HITS = (
    update(Segment)
    .where(Segment.id == bindparam("found"))
    .values(hit_count=Segment.hit_count + bindparam("more"))
)


class QueryLog:
    """Collects what was asked and writes it in one transaction every `flush_s`.

    A commit per query would make the next query on the same connection wait for the disk. What
    a crash can lose is the last moment's history, never a document.

    Args:
        history: False counts hits only.
    """

    def __init__(self, sessions: Sessions, *, flush_s: float = 1.0, history: bool = True) -> None:
        self._sessions = sessions
        self._flush_s = flush_s
        self._history = history
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
        settings: dict[str, Any] | None = None,
        hits: Sequence[Found] | None = None,
        latency_ms: float | None = None,
        used: Sequence[uuid.UUID] = (),
        call_id: uuid.UUID | None = None,
        at: datetime | None = None,
    ) -> None:
        """Note a query, with what `Asked` says of it; returns at once.

        Args:
            at: the same in all rows of a call; None: this moment.
        """
        asked = Asked(
            dataset_id=dataset_id,
            query=query,
            source=source,
            actor=actor,
            at=at or now(),
            settings=settings,
            hits=None if hits is None else tuple(hits),
            latency_ms=latency_ms,
            used=tuple(used),
            call_id=call_id,
        )
        with self._lock:
            self._pending.append(asked)

    def flush(self) -> None:
        """Write what is pending now."""
        with self._lock:
            pending, self._pending = self._pending, []
        if pending:
            retried(partial(_write, self._sessions, pending, history=self._history))

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


def _write(sessions: Sessions, pending: Sequence[Asked], *, history: bool) -> None:
    hits = Counter(segment for asked in pending for segment in asked.used)
    with transaction(sessions) as session:
        known = set(
            session.scalars(
                select(Dataset.id).where(Dataset.id.in_({a.dataset_id for a in pending}))
            )
        )
        rows = [asked.row() for asked in pending if history and asked.dataset_id in known]
        if rows:
            session.execute(insert(DatasetQuery), rows)
        if hits:
            # In order of the id: two processes that count the same hits do not wait for each
            # other. One statement for all, without objects: queries wait while Python is busy.
            session.connection().execute(
                _COUNT_HITS,
                [{"found": segment_id, "more": n} for segment_id, n in sorted(hits.items())],
            )
