"""retrieve(): the only way in for every query."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from kb.models import ChildChunk, Dataset, Document, IndexingTechnique, Segment
from kb.ports import Scored, Space, Terms
from kb.resources import Resources, space_of
from kb.retrieval.analysis import terms_of_query
from kb.retrieval.fusion import Fused, Weights, fuse
from kb.retrieval.types import (
    ChildHit,
    Explanation,
    Hit,
    RetrievalSettings,
    Retrieved,
    SearchMethod,
)
from pipelines.types import Vector

_ROWS = 500  # ids per IN


def retrieve(
    session: Session,
    query: str,
    datasets: Sequence[Dataset],
    settings: RetrievalSettings,
    resources: Resources,
) -> Retrieved:
    """The best segments of these datasets.

    The query is embedded once per embedding space. Results for k are a prefix of those for a
    larger k; a segment that is not live in SQL at this moment is never returned.

    Raises:
        ProviderNotInitialized: a dataset's embedding model is not configured here.
        StoreUnavailable: the index did not answer; safe to retry.
    """
    clock = _Clock()
    plans = [
        _plan(space, dataset, settings)
        for dataset in datasets
        if (space := space_of(dataset)) is not None
    ]
    if not query.strip() or not plans:
        return Retrieved((), clock.stages)
    for space in {plan.space for plan in plans}:
        resources.index.ensure_space(space)
    with clock.stage("embed"):
        vectors = {
            name: resources.embedders(name).embed_query(query)
            for name in {p.space.name for p in plans if p.settings.method.uses_dense}
        }
    terms, _ = terms_of_query(query)
    with clock.stage("search"):
        pools = [
            _candidates(session, plan, vectors.get(plan.space.name), terms, resources)
            for plan in plans
        ]
    with clock.stage("fuse"):
        best_text = max((pool.best_text for pool in pools), default=0.0)
        ranked = [_Ranked(f, pool) for pool in pools for f in pool.fuse(best_text)]
        ranked.sort(key=lambda r: (-r.fused.score, r.fused.id))
        chosen = _assemble(ranked, settings)
    with clock.stage("hydrate"):
        hits = _hydrate(session, chosen)
    return Retrieved(hits, clock.stages)


@dataclass(frozen=True)
class _Plan:
    """How one dataset is searched."""

    space: Space
    dataset_id: UUID
    settings: RetrievalSettings


def _plan(space: Space, dataset: Dataset, settings: RetrievalSettings) -> _Plan:
    if dataset.indexing_technique is IndexingTechnique.ECONOMY:  # has no dense vectors
        settings = replace(settings, method=SearchMethod.KEYWORD)
    return _Plan(space, dataset.id, settings)


@dataclass(frozen=True)
class _Pool:
    """The candidates of one dataset with their raw scores on every leg that was asked."""

    plan: _Plan
    segment_of: dict[UUID, UUID]
    dense: dict[UUID, float] | None
    text: dict[UUID, float] | None
    dense_ranks: dict[UUID, int]
    text_ranks: dict[UUID, int]

    @property
    def best_text(self) -> float:
        return max(self.text.values(), default=0.0) if self.text else 0.0

    @property
    def weights(self) -> Weights:
        """Those of the request; a single leg counts alone."""
        if self.text is None:
            return Weights(1.0, 0.0)
        if self.dense is None:
            return Weights(0.0, 1.0)
        return self.plan.settings.weights

    def fuse(self, best_text: float) -> list[Fused]:
        return fuse(
            self.dense,
            self.text,
            self.weights,
            best_text=best_text,
            dense_ranks=self.dense_ranks,
            text_ranks=self.text_ranks,
        )


@dataclass(frozen=True)
class _Ranked:
    fused: Fused
    pool: _Pool

    @property
    def segment_id(self) -> UUID:
        return self.pool.segment_of[self.fused.id]


def _candidates(
    session: Session, plan: _Plan, vector: Vector | None, terms: Terms, resources: Resources
) -> _Pool:
    """Search the legs; of a hybrid query every candidate of the union is scored on both."""
    index, space, dataset_id = resources.index, plan.space, plan.dataset_id
    method, top_k = plan.settings.method, plan.settings.top_k

    def nearest(limit: int) -> list[Scored]:
        assert vector is not None
        return index.nearest(space, dataset_id, vector, limit)

    def best(limit: int) -> list[Scored]:
        return index.best(space, dataset_id, terms, limit)

    if not method.uses_text or not method.uses_dense:
        # One leg: exact order at any depth, so it goes only as deep as top_k segments need.
        leg = best if method.uses_text else nearest
        enough = _EnoughSegments(top_k)
        found = _live_candidates(session, leg, max(50, 4 * top_k), enough)
        scores = {p.id: p.score for p in found}
        return _Pool(
            plan,
            {p.id: p.segment_id for p in found},
            dense=None if method.uses_text else scores,
            text=scores if method.uses_text else None,
            dense_ranks={} if method.uses_text else _ranks(found),
            text_ranks=_ranks(found) if method.uses_text else {},
        )
    # Two legs: the pool has the same depth for every top_k, so results for k are a prefix of
    # those for a larger k.
    depth = resources.settings.retrieval.candidate_depth
    ahead: Future[list[Scored]] = resources.pool.submit(nearest, depth)
    by_text = _live_candidates(session, best, depth, _EnoughPoints(depth))
    by_dense = _live_candidates(session, nearest, depth, _EnoughPoints(depth), first=ahead.result())
    dense = {p.id: p.score for p in by_dense}
    text = {p.id: p.score for p in by_text}
    assert vector is not None
    dense |= index.dense_scores(space, dataset_id, vector, [i for i in text if i not in dense])
    text |= index.text_scores(space, dataset_id, terms, [i for i in dense if i not in text])
    return _Pool(
        plan,
        {p.id: p.segment_id for p in [*by_dense, *by_text]},
        dense=dense,
        text=text,
        dense_ranks=_ranks(by_dense),
        text_ranks=_ranks(by_text),
    )


def _ranks(found: Sequence[Scored]) -> dict[UUID, int]:
    return {p.id: rank for rank, p in enumerate(found, start=1)}


@dataclass(frozen=True)
class _EnoughPoints:
    count: int

    def cut(self, found: list[Scored]) -> list[Scored] | None:
        """The first `count` points; None when there are fewer."""
        return found[: self.count] if len(found) >= self.count else None


@dataclass(frozen=True)
class _EnoughSegments:
    count: int

    def cut(self, found: list[Scored]) -> list[Scored] | None:
        """All points, when they belong to at least `count` segments; otherwise None."""
        return found if len({p.segment_id for p in found}) >= self.count else None


def _live_candidates(
    session: Session,
    leg: Callable[[int], list[Scored]],
    limit: int,
    enough: _EnoughPoints | _EnoughSegments,
    first: list[Scored] | None = None,
) -> list[Scored]:
    """The leg's best points that are live in SQL; goes deeper until there are enough or no more.

    A point that is not live (deleted, disabled, replaced, not yet switched to) gives its place
    to the next one, so that an index which lags behind does not change a result.
    """
    while True:
        found = first if first is not None else leg(limit)
        first = None
        live = _live(session, found)
        alive = [p for p in found if p.id in live]
        cut = enough.cut(alive)
        if cut is not None:
            return cut
        if len(found) < limit:
            return alive
        limit *= 2


def _live(session: Session, points: Sequence[Scored]) -> set[UUID]:
    """Which of these points stand for text that answers queries now."""
    flat = [p.id for p in points if p.id == p.segment_id]
    children = [p.id for p in points if p.id != p.segment_id]
    live: set[UUID] = set()
    for ids in _parts(flat):
        live.update(session.scalars(_answering(select(Segment.id)).where(Segment.id.in_(ids))))
    for ids in _parts(children):
        statement = _answering(
            select(ChildChunk.id).join(Segment, Segment.id == ChildChunk.segment_id)
        )
        live.update(session.scalars(statement.where(ChildChunk.id.in_(ids), ChildChunk.live)))
    return live


def _answering(statement: Select[Any]) -> Select[Any]:
    return statement.join(Document, Document.id == Segment.document_id).where(
        Segment.live, Segment.enabled, Document.enabled, Document.archived.is_(False)
    )


def _parts(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    for at in range(0, len(ids), _ROWS):
        yield ids[at : at + _ROWS]


def _assemble(ranked: Iterable[_Ranked], settings: RetrievalSettings) -> list[list[_Ranked]]:
    """Group points by segment, best first; at most top_k groups at or above the threshold."""
    groups: dict[UUID, list[_Ranked]] = {}
    for item in ranked:
        below = settings.score_threshold is not None and item.fused.score < settings.score_threshold
        if item.segment_id in groups:
            groups[item.segment_id].append(item)
        elif not below and len(groups) < settings.top_k:
            groups[item.segment_id] = [item]
    return list(groups.values())


def _hydrate(session: Session, groups: Sequence[Sequence[_Ranked]]) -> tuple[Hit, ...]:
    segment_ids = [group[0].segment_id for group in groups]
    point_ids = [r.fused.id for group in groups for r in group if r.fused.id != r.segment_id]
    rows = {
        segment.id: (segment, document)
        for ids in _parts(segment_ids)
        for segment, document in session.execute(
            select(Segment, Document)
            .join(Document, Document.id == Segment.document_id)
            .where(Segment.id.in_(ids))
        )
    }
    children = {
        child.id: child
        for ids in _parts(point_ids)
        for child in session.scalars(select(ChildChunk).where(ChildChunk.id.in_(ids)))
    }
    hits: list[Hit] = []
    for group in groups:
        segment, document = rows[group[0].segment_id]
        best = group[0]
        weights = best.pool.weights
        total = weights.dense + weights.text
        hits.append(
            Hit(
                segment,
                document,
                best.fused.score,
                tuple(
                    ChildHit(c.id, c.content, c.position, r.fused.score)
                    for r in group
                    if (c := children.get(r.fused.id)) is not None
                ),
                Explanation(
                    best.fused.id,
                    best.fused.dense,
                    best.fused.text,
                    weights.dense / total,
                    weights.text / total,
                ),
            )
        )
    return tuple(hits)


class _Clock:
    """Times stages, in milliseconds."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = round((time.perf_counter() - started) * 1000, 3)
