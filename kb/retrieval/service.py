"""retrieve(): the only way in for every query."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.orm import Session

from kb.metrics import LEG_SECONDS, RETRIEVAL_SECONDS, RETRIEVAL_STAGE_SECONDS
from kb.models import Dataset, DocForm, IndexingTechnique
from kb.ports import Scored
from kb.resources import Resources, space_of
from kb.retrieval.analysis import terms_of_query
from kb.retrieval.candidates import Plan, Pool, complete, contenders, gather
from kb.retrieval.failures import Failures
from kb.retrieval.filters import Filters
from kb.retrieval.fusion import Weights
from kb.retrieval.legs import Leg, Search, read_legs, start
from kb.retrieval.reranking import Judgement, find, judge
from kb.retrieval.rows import Rows, hold_snapshot, load
from kb.retrieval.types import (
    ChildHit,
    Explanation,
    Hit,
    RerankScore,
    RetrievalSettings,
    Retrieved,
    SearchMethod,
)
from kb.tracing import carried, span
from pipelines.ports import Embedder
from pipelines.types import Vector

_DENSE_LEG, _TEXT_LEG = LEG_SECONDS.labels("dense"), LEG_SECONDS.labels("text")
_FIRST_DEPTH = 50
"""Legs are read at least so deep; a child below it is listed only as its parent's best."""
_SHALLOW_DEPTH = 10
"""The least that is read at first of each of many datasets."""
_SPARE = 2
"""All of them together are read so many times as deep as one alone."""
_DEEPER = 2
_ROUNDING = 1e-6
"""The final scores that two calls of an index lead to for one point differ by less."""


def retrieve(
    session: Session,
    query: str,
    datasets: Sequence[Dataset],
    settings: RetrievalSettings,
    resources: Resources,
    *,
    filters: Filters | None = None,
    partial: bool = False,
) -> Retrieved:
    """The best segments of these datasets, as if every live text had been scored on every leg.

    Legs are read from the top until nothing below can change the answer: the threshold algorithm
    of Fagin, Lotem and Naor, "Optimal Aggregation Algorithms for Middleware", JCSS 2003. Of a
    hybrid query each leg gives at most `retrieval.candidate_depth` live candidates per dataset;
    if those do not settle it, the answer is the best of them. Either way results for k are a
    prefix of those for a larger k, and a segment that is not live in SQL at this moment is never
    returned.

    The query is embedded once per embedding space, while the text legs are searched.

    With a rerank model the best `retrieval.rerank_depth` candidates, however many are wanted, are
    judged anew, those of all datasets in one call; threshold and `top_k` count afterwards.

    Args:
        filters: by dataset, what its documents' metadata must say (`compile_filters`). The index
            applies them, and SQL has the last word on what it found.
        partial: leave a dataset out that cannot be asked, and say so in `failures`.
    Raises:
        ProviderNotInitialized: a dataset's embedding model is not configured here, or the rerank
            model is not.
        StoreUnavailable: the index did not answer; safe to retry.
    """
    clock = _Clock()
    try:
        with span("retrieve", method=settings.method, datasets=len(datasets)):
            failures = Failures(leave_out=partial)
            asked = _Asked(query, datasets, settings, filters or {})
            return _retrieve(session, asked, resources, clock, failures)
    finally:
        clock.observe(settings.method)


class _Asked(NamedTuple):
    """What `retrieve` was asked."""

    query: str
    datasets: Sequence[Dataset]
    settings: RetrievalSettings
    filters: Filters


def _retrieve(
    session: Session, asked: _Asked, resources: Resources, clock: _Clock, failures: Failures
) -> Retrieved:
    query, settings = asked.query, asked.settings
    datasets = [d for d in asked.datasets if d.id not in failures.by_dataset]
    reranker = None
    if settings.rerank is not None:
        reranker = find(settings.rerank, resources)
        deep = max(settings.top_k, resources.settings.retrieval.rerank_depth)
        settings = replace(settings, top_k=deep, score_threshold=None, rerank=None)
    with span("plan"):
        plans = _plans(datasets, settings, asked.filters)
    if not query.strip() or not plans:
        return Retrieved((), clock.stages, failures.by_dataset)
    hold_snapshot(session)
    question = _Question(query, plans, resources, failures)
    depth = _first_depth([d for d in datasets if d.id in plans], settings)
    pools: dict[UUID, Pool] = {}
    groups: list[_Group] = []
    best_text = 0.0
    unsettled = failures.others(plans)
    while unsettled:
        text_legs = question.ask_text(unsettled, depth)
        with clock.stage("embed"):
            question.embed()
        with clock.stage("search"):
            unsettled = failures.others(unsettled)
            searches = text_legs | question.ask_dense(unsettled, depth)
            legs = read_legs(session, searches, depth, question.passing(session))
            unsettled = failures.others(unsettled)
            pools |= question.drafts(legs, unsettled)
            best_text = max((pool.best_text for pool in pools.values()), default=0.0)
            wanted = contenders(
                pools.values(), best_text, settings.top_k, settings.score_threshold, _ROUNDING
            )
            pools |= question.completed({i: pools[i] for i in unsettled}, wanted)
            if len(failures.others(pools)) < len(pools):  # the scores of others depend on theirs
                return _retrieve(session, asked, resources, clock, failures)
        with clock.stage("fuse"):
            groups = _assemble(pools.values(), best_text, settings)
            unsettled = [
                dataset_id
                for dataset_id in unsettled
                if not _settled(pools[dataset_id], groups, best_text, settings)
                and not (plans[dataset_id].fuses and depth >= question.cap)
            ]
        depth *= _DEEPER
    with clock.stage("hydrate"):
        rows = _rows(session, groups)
    judgement = None
    if reranker is not None:
        with clock.stage("rerank"):
            judgement = judge(query, groups, rows, reranker, resources)
            groups = _reordered(groups, judgement, asked.settings)
    hits = _hits(rows, groups, best_text)
    outcome = judgement.outcome if judgement is not None else None
    return Retrieved(hits, clock.stages, failures.by_dataset, outcome)


def _plans(
    datasets: Sequence[Dataset], settings: RetrievalSettings, filters: Filters
) -> dict[UUID, Plan]:
    """By dataset id; datasets that never received a document have nothing to search, nor have those
    whose filter no document can pass.
    """
    plans: dict[UUID, Plan] = {}
    for dataset in datasets:
        space = space_of(dataset)
        filter = filters.get(dataset.id)
        if space is None or (filter is not None and filter.where is False):
            continue
        method = settings.method
        if dataset.indexing_technique is IndexingTechnique.ECONOMY:  # has no dense vectors
            method = SearchMethod.KEYWORD
        weights = settings.weights
        if method is not SearchMethod.HYBRID:
            weights = Weights(1.0, 0.0) if method.uses_dense else Weights(0.0, 1.0)
        plans[dataset.id] = Plan(space, dataset.id, method, weights, filter)
    return plans


def _first_depth(datasets: Sequence[Dataset], settings: RetrievalSettings) -> int:
    """How deep legs are read at first. Of many datasets less of each: most of what they give is
    beaten by the others, and a dataset that is not goes on alone.

    Legs of datasets with child chunks are always read so deep that the children are found that are
    listed with their parents.
    """
    deep = max(_FIRST_DEPTH, 4 * settings.top_k)
    if any(d.doc_form not in (DocForm.TEXT, DocForm.QA) for d in datasets):
        return deep
    return min(deep, max(_SHALLOW_DEPTH, ceil(_SPARE * deep / len(datasets))))


_LegName = tuple[UUID, str]
"""Dataset id; `dense` or `text`."""


class _Question:
    """A query on its way: its terms, its vectors (once per space), the searches of every leg."""

    def __init__(
        self, query: str, plans: Mapping[UUID, Plan], resources: Resources, failures: Failures
    ) -> None:
        self.cap = resources.settings.retrieval.candidate_depth
        self._query, self._plans = query, plans
        self._index, self._threads = resources.index, resources.pool
        self._failures = failures
        self._embedders: dict[str, Embedder] = {}
        for space in {plan.space for plan in plans.values()}:
            with failures.of(self._in(space.name)):
                self._index.ensure_space(space)
        for name in {plan.space.name for plan in plans.values() if plan.method.uses_dense}:
            with failures.of(self._embedded_in(name)):
                self._embedders[name] = resources.embedders(name)
        self._vectors: dict[str, Vector] = {}
        self._passing: dict[UUID, dict[UUID, bool]] = {}
        self._terms, _ = terms_of_query(query)

    def _in(self, space_name: str) -> list[UUID]:
        return [i for i, plan in self._plans.items() if plan.space.name == space_name]

    def _embedded_in(self, space_name: str) -> list[UUID]:
        return [i for i in self._in(space_name) if self._plans[i].method.uses_dense]

    def ask_text(self, dataset_ids: Iterable[UUID], depth: int) -> dict[_LegName, Search]:
        """Have the text legs of these datasets searched, while the query is embedded."""
        searches: dict[_LegName, Search] = {
            (plan.dataset_id, "text"): partial(self._best, plan)
            for plan in map(self._plans.__getitem__, dataset_ids)
            if plan.method.uses_text
        }
        return self._guarded(
            start(searches, depth, self._threads, but_the_last=not self._embedders)
        )

    def embed(self) -> None:
        """Embed the query in every space, one of them in this thread; repeats for nothing.

        Raises:
            TransientError: an embedder did not answer.
        """
        if self._vectors or not self._embedders:
            return
        *others, own = self._embedders.items()
        ahead = {
            name: self._threads.submit(carried(_embed_query), e, self._query) for name, e in others
        }
        with self._failures.of(self._embedded_in(own[0])):
            self._vectors[own[0]] = _embed_query(own[1], self._query)
        for name, vector in ahead.items():
            with self._failures.of(self._embedded_in(name)):
                self._vectors[name] = vector.result()

    def ask_dense(self, dataset_ids: Iterable[UUID], depth: int) -> dict[_LegName, Search]:
        """Have the dense legs of these datasets searched; the query is embedded."""
        searches: dict[_LegName, Search] = {
            (plan.dataset_id, "dense"): partial(self._nearest, plan)
            for plan in map(self._plans.__getitem__, dataset_ids)
            if plan.method.uses_dense
        }
        return self._guarded(start(searches, depth, self._threads, but_the_last=True))

    def _guarded(self, searches: dict[_LegName, Search]) -> dict[_LegName, Search]:
        """The same searches; one that fails finds nothing, and its dataset is left out."""

        def guarded(dataset_id: UUID, search: Search, limit: int) -> list[Scored]:
            with self._failures.of([dataset_id]):
                return search(limit)
            return []

        return {name: partial(guarded, name[0], search) for name, search in searches.items()}

    def _best(self, plan: Plan, limit: int) -> list[Scored]:
        with _TEXT_LEG.time(), span("leg text", limit=limit):
            return self._index.best(
                plan.space, plan.dataset_id, self._terms, limit, where=plan.where
            )

    def _nearest(self, plan: Plan, limit: int) -> list[Scored]:
        vector = self._vectors[plan.space.name]
        with _DENSE_LEG.time(), span("leg dense", limit=limit):
            return self._index.nearest(plan.space, plan.dataset_id, vector, limit, where=plan.where)

    def passing(self, session: Session) -> Callable[[_LegName, Set[UUID]], Set[UUID]] | None:
        """Which documents a leg may find: the index may lag behind, SQL does not."""
        if all(plan.filter is None for plan in self._plans.values()):
            return None

        def passing(name: _LegName, documents: Set[UUID]) -> Set[UUID]:
            filter = self._plans[name[0]].filter
            if filter is None:
                return documents
            known = self._passing.setdefault(name[0], {})
            asked = documents - known.keys()
            if asked:
                kept = filter.passing(session, asked)
                known.update((document_id, document_id in kept) for document_id in asked)
            return {document_id for document_id in documents if known[document_id]}

        return passing

    def drafts(self, legs: Mapping[_LegName, Leg], dataset_ids: Iterable[UUID]) -> dict[UUID, Pool]:
        """What the legs of these datasets found."""
        return {dataset_id: self._draft(legs, dataset_id) for dataset_id in dataset_ids}

    def _draft(self, legs: Mapping[_LegName, Leg], dataset_id: UUID) -> Pool:
        plan = self._plans[dataset_id]
        dense, text = legs.get((dataset_id, "dense")), legs.get((dataset_id, "text"))
        if plan.fuses and dense is not None and text is not None:
            dense, text = dense.cut(self.cap), text.cut(self.cap)
        return gather(plan, dense, text)

    def completed(self, drafts: Mapping[UUID, Pool], segments: Set[UUID]) -> dict[UUID, Pool]:
        """The same with the candidates of these segments alone; missing scores are looked up."""
        if not drafts:
            return {}
        fill = partial(self._completed, segments)
        *others, own = drafts.values()
        ahead = self._threads.map(fill, others)
        done = [fill(own), *ahead]
        return {pool.plan.dataset_id: pool for pool in done}

    def _completed(self, segments: Set[UUID], draft: Pool) -> Pool:
        vector = self._vectors.get(draft.plan.space.name)
        with self._failures.of([draft.plan.dataset_id]):
            return complete(draft, segments, vector, self._terms, self._index)
        return draft


def _embed_query(embedder: Embedder, query: str) -> Vector:
    with span("embed query"):
        return embedder.embed_query(query)


class _Candidate(NamedTuple):
    score: float
    id: UUID
    pool: Pool
    rerank: RerankScore | None = None

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


def _reordered(
    groups: Sequence[_Group], judgement: Judgement, settings: RetrievalSettings
) -> list[_Group]:
    """The top_k best groups by the scores of the rerank step that reach the threshold."""
    found: list[_Group] = []
    for group in groups:
        judged = [(c, judgement.of(c)) for c in group]
        rescored = [
            c if rerank is None else c._replace(score=rerank.final, rerank=rerank)
            for c, rerank in judged
        ]
        kept = [
            c
            for c in rescored
            if settings.score_threshold is None or c.score >= settings.score_threshold
        ]
        if kept:
            found.append(sorted(kept, key=lambda c: (-c.score, c.id)))
    found.sort(key=lambda group: (-group[0].score, group[0].id))
    return found[: settings.top_k]


def _rows(session: Session, groups: Sequence[_Group]) -> Rows:
    return load(
        session,
        [group[0].segment_id for group in groups],
        [c.id for group in groups for c in group if c.id != c.segment_id],
    )


def _hits(rows: Rows, groups: Sequence[_Group], best_text: float) -> tuple[Hit, ...]:
    """Groups with their rows; one whose row went away meanwhile is left out."""
    hits: list[Hit] = []
    for group in groups:
        best = group[0]
        if (row := rows.segments.get(best.segment_id)) is None:
            continue
        dense, text = best.pool.explain(best.id, best_text)
        shares = best.pool.plan.weights.shares
        explanation = Explanation(best.id, dense, text, *shares, best.rerank)
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
            with span(name):
                yield
        finally:
            took_ms = (time.perf_counter() - started) * 1000
            self.stages[name] = round(self.stages.get(name, 0.0) + took_ms, 3)
