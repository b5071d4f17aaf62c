"""retrieve(): the only way in for every query."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.orm import Session

from kb.metrics import LEG_SECONDS, RETRIEVAL_SECONDS, RETRIEVAL_STAGE_SECONDS
from kb.models import Dataset, IndexingTechnique
from kb.ports import Scored
from kb.resources import Resources, space_of
from kb.retrieval.analysis import terms_of_query
from kb.retrieval.candidates import Plan, Pool, gather
from kb.retrieval.fusion import Weights
from kb.retrieval.legs import Leg, Search, read_legs, start
from kb.retrieval.rows import hold_snapshot, load
from kb.retrieval.types import (
    ChildHit,
    Explanation,
    Hit,
    RetrievalSettings,
    Retrieved,
    SearchMethod,
)

_DENSE_LEG, _TEXT_LEG = LEG_SECONDS.labels("dense"), LEG_SECONDS.labels("text")
_FIRST_DEPTH = 50
"""Legs are read at least so deep; a child below it is listed only as its parent's best."""
_DEEPER = 2
_ROUNDING = 1e-6
"""The final scores that two calls of an index lead to for one point differ by less."""


def retrieve(
    session: Session,
    query: str,
    datasets: Sequence[Dataset],
    settings: RetrievalSettings,
    resources: Resources,
) -> Retrieved:
    """The best segments of these datasets, as if every live text had been scored on every leg.

    Legs are read from the top until nothing below can change the answer: the threshold algorithm
    of Fagin, Lotem and Naor, "Optimal Aggregation Algorithms for Middleware", JCSS 2003. Of a
    hybrid query each leg gives at most `retrieval.candidate_depth` live candidates per dataset;
    if those do not settle it, the answer is the best of them. Either way results for k are a
    prefix of those for a larger k, and a segment that is not live in SQL at this moment is never
    returned.

    The query is embedded once per embedding space, while the text legs are searched.

    Raises:
        ProviderNotInitialized: a dataset's embedding model is not configured here.
        StoreUnavailable: the index did not answer; safe to retry.
    """
    clock = _Clock()
    try:
        return _retrieve(session, query, datasets, settings, resources, clock)
    finally:
        clock.observe(settings.method)


def _retrieve(
    session: Session,
    query: str,
    datasets: Sequence[Dataset],
    settings: RetrievalSettings,
    resources: Resources,
    clock: _Clock,
) -> Retrieved:
    plans = _plans(datasets, settings)
    if not query.strip() or not plans:
        return Retrieved((), clock.stages)
    hold_snapshot(session)
    question = _Question(query, plans, resources)
    depth = max(_FIRST_DEPTH, 4 * settings.top_k)
    pools: dict[UUID, Pool] = {}
    unsettled = list(plans)
    while unsettled:
        under_way = question.ask(unsettled, depth)
        if not pools:
            with clock.stage("embed"):
                question.wait_for_vectors()
        with clock.stage("search"):
            pools |= question.pools(read_legs(session, under_way, depth), unsettled)
        with clock.stage("fuse"):
            best_text = max(pool.best_text for pool in pools.values())
            groups = _assemble(pools.values(), best_text, settings)
            unsettled = [
                dataset_id
                for dataset_id in unsettled
                if not _settled(pools[dataset_id], groups, best_text, settings)
                and not (plans[dataset_id].fuses and depth >= question.cap)
            ]
        depth *= _DEEPER
    with clock.stage("hydrate"):
        hits = _hits(session, groups, best_text)
    return Retrieved(hits, clock.stages)


def _plans(datasets: Sequence[Dataset], settings: RetrievalSettings) -> dict[UUID, Plan]:
    """By dataset id; datasets that never received a document have nothing to search."""
    plans: dict[UUID, Plan] = {}
    for dataset in datasets:
        space = space_of(dataset)
        if space is None:
            continue
        method = settings.method
        if dataset.indexing_technique is IndexingTechnique.ECONOMY:  # has no dense vectors
            method = SearchMethod.KEYWORD
        weights = settings.weights
        if method is not SearchMethod.HYBRID:
            weights = Weights(1.0, 0.0) if method.uses_dense else Weights(0.0, 1.0)
        plans[dataset.id] = Plan(space, dataset.id, method, weights)
    return plans


_LegName = tuple[UUID, str]
"""Dataset id; `dense` or `text`."""


class _Question:
    """A query on its way: its terms, its vectors (once per space), the searches of every leg."""

    def __init__(self, query: str, plans: Mapping[UUID, Plan], resources: Resources) -> None:
        self.cap = resources.settings.retrieval.candidate_depth
        self._plans, self._index, self._threads = plans, resources.index, resources.pool
        for space in {plan.space for plan in plans.values()}:
            self._index.ensure_space(space)
        names = {plan.space.name for plan in plans.values() if plan.method.uses_dense}
        embedders = {name: resources.embedders(name) for name in names}
        self._vectors = {
            name: self._threads.submit(embedder.embed_query, query)
            for name, embedder in embedders.items()
        }
        self._terms, _ = terms_of_query(query)

    def ask(self, dataset_ids: Iterable[UUID], depth: int) -> dict[_LegName, Search]:
        """Have every leg of these datasets searched; text legs do not wait for the vectors."""
        searches: dict[_LegName, Search] = {}
        for plan in [self._plans[i] for i in dataset_ids]:
            if plan.method.uses_text:
                searches[plan.dataset_id, "text"] = partial(self._best, plan)
            if plan.method.uses_dense:
                searches[plan.dataset_id, "dense"] = partial(self._nearest, plan)
        return start(searches, depth, self._threads)

    def _best(self, plan: Plan, limit: int) -> list[Scored]:
        with _TEXT_LEG.time():
            return self._index.best(plan.space, plan.dataset_id, self._terms, limit)

    def _nearest(self, plan: Plan, limit: int) -> list[Scored]:
        vector = self._vectors[plan.space.name].result()
        with _DENSE_LEG.time():
            return self._index.nearest(plan.space, plan.dataset_id, vector, limit)

    def wait_for_vectors(self) -> None:
        """Return when the query is embedded, or raise what the embedder raised."""
        for vector in self._vectors.values():
            vector.result()

    def pools(self, legs: Mapping[_LegName, Leg], dataset_ids: Sequence[UUID]) -> dict[UUID, Pool]:
        """What the legs of these datasets found; missing scores are looked up."""
        found = self._threads.map(partial(self._pool, legs), dataset_ids)
        return dict(zip(dataset_ids, found, strict=True))

    def _pool(self, legs: Mapping[_LegName, Leg], dataset_id: UUID) -> Pool:
        plan = self._plans[dataset_id]
        dense, text = legs.get((dataset_id, "dense")), legs.get((dataset_id, "text"))
        if plan.fuses and dense is not None and text is not None:
            dense, text = dense.cut(self.cap), text.cut(self.cap)
        vector = self._vectors[plan.space.name].result() if dense is not None else None
        return gather(plan, dense, text, vector, self._terms, self._index)


class _Candidate(NamedTuple):
    score: float
    id: UUID
    pool: Pool

    @property
    def segment_id(self) -> UUID:
        return self.pool.segment_of[self.id]


_Group = list[_Candidate]
"""Candidates of one segment, best first."""


def _assemble(pools: Iterable[Pool], best_text: float, settings: RetrievalSettings) -> list[_Group]:
    """The top_k best segments that reach the threshold, with those of their points that matched."""
    ranked = [
        _Candidate(score, id, pool)
        for pool in pools
        for id, score in pool.scores(best_text).items()
        if settings.score_threshold is None or score >= settings.score_threshold
    ]
    ranked.sort(key=lambda candidate: (-candidate.score, candidate.id))
    groups: dict[UUID, _Group] = {}
    for candidate in ranked:
        group = groups.get(candidate.segment_id)
        if group is not None:
            if candidate.pool.among_the_best(candidate.id, _FIRST_DEPTH):
                group.append(candidate)
        elif len(groups) < settings.top_k:
            groups[candidate.segment_id] = [candidate]
    return list(groups.values())


def _settled(
    pool: Pool, groups: Sequence[_Group], best_text: float, settings: RetrievalSettings
) -> bool:
    """Whether no point of the pool's dataset that was not read belongs among the groups."""
    bound = pool.bound(best_text)
    if bound is None:
        return True
    score, id = bound
    if settings.score_threshold is not None and score < settings.score_threshold - _ROUNDING:
        return True
    if len(groups) < settings.top_k:
        return False
    last = groups[-1][0]
    return score < last.score - _ROUNDING or (score == last.score and id >= last.id)


def _hits(session: Session, groups: Sequence[_Group], best_text: float) -> tuple[Hit, ...]:
    """Groups with their rows; one whose row went away meanwhile is left out."""
    rows = load(
        session,
        [group[0].segment_id for group in groups],
        [c.id for group in groups for c in group if c.id != c.segment_id],
    )
    hits: list[Hit] = []
    for group in groups:
        best = group[0]
        if (row := rows.segments.get(best.segment_id)) is None:
            continue
        dense, text = best.pool.explain(best.id, best_text)
        explanation = Explanation(best.id, dense, text, *best.pool.plan.weights.shares)
        children = tuple(
            ChildHit(c.id, *rows.children[c.id], c.score) for c in group if c.id in rows.children
        )
        hits.append(Hit(*row, best.score, children, explanation))
    return tuple(hits)


class _Clock:
    """Adds up the time of each stage, in milliseconds."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._started = time.perf_counter()

    def observe(self, method: SearchMethod) -> None:
        """Have the metrics count the query."""
        RETRIEVAL_SECONDS.labels(method).observe(time.perf_counter() - self._started)
        for stage, took_ms in self.stages.items():
            RETRIEVAL_STAGE_SECONDS.labels(stage).observe(took_ms / 1000)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            took_ms = (time.perf_counter() - started) * 1000
            self.stages[name] = round(self.stages.get(name, 0.0) + took_ms, 3)
