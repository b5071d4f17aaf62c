"""What several datasets give together: ours searched at once, other services asked meanwhile."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy.orm import Session

from kb.errors import InvalidParam, KBError, ProviderNotInitialized, Unavailable
from kb.external.asking import ask, source_of
from kb.external.records import ExternalHit
from kb.knowledge.choosing import Failure
from kb.models import EXTERNAL, Dataset
from kb.resources import Resources
from kb.retrieval.filters import Filter, compile_filters
from kb.retrieval.reranking import find
from kb.retrieval.service import retrieve
from kb.retrieval.types import Hit, Reranked, RetrievalSettings, Retrieved
from kb.schemas import ExternalRetrievalModel, MetadataFilter
from kb.tracing import carried
from pipelines.errors import TransientError

log = logging.getLogger("kb.knowledge")

AnyHit = Hit | ExternalHit


@dataclass(frozen=True)
class Gathered:
    """What several datasets gave together.

    Attributes:
        hits: best first over all datasets, equal scores of ours before those of others.
        failures: datasets that gave nothing because they could not.
        rerank: what came of the rerank step; None: it was not asked for.
    """

    hits: tuple[AnyHit, ...]
    failures: dict[uuid.UUID, Failure] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)
    rerank: Reranked | None = None


def dataset_of(hit: AnyHit) -> uuid.UUID:
    """Whose it is."""
    return hit.segment.dataset_id if isinstance(hit, Hit) else hit.dataset_id


def id_of(hit: AnyHit) -> uuid.UUID:
    """The segment's; of another service's record one that is made up, the same each time."""
    return hit.segment.id if isinstance(hit, Hit) else hit.id


class Gathering:
    """A question on its way to several datasets.

    What is ours is found when this is made, with a session; the others are waited for in `result`,
    which needs none: nobody's slow service holds a connection to the database.

    Args:
        conditions: of metadata; other services get them as they are.
        external: how datasets of other services are asked, where it is not as they say themselves.
    """

    def __init__(
        self,
        session: Session,
        query: str,
        datasets: Sequence[Dataset],
        settings: RetrievalSettings,
        resources: Resources,
        *,
        conditions: MetadataFilter | None = None,
        external: Mapping[uuid.UUID, ExternalRetrievalModel] | None = None,
    ) -> None:
        self._query, self._settings, self._resources = query, settings, resources
        self._asked = len(datasets)
        self._failures: dict[uuid.UUID, Failure] = {}
        self._answers: dict[uuid.UUID, Future[list[ExternalHit]]] = {}
        for dataset in datasets:
            if dataset.provider == EXTERNAL:
                asked = (external or {}).get(dataset.id)
                self._start(session, query, dataset, resources, conditions, asked)
        own = [dataset for dataset in datasets if dataset.provider != EXTERNAL]
        self._found = self._search(session, query, own, resources, conditions)
        self._failures |= self._found.failures

    def _start(
        self,
        session: Session,
        query: str,
        dataset: Dataset,
        resources: Resources,
        conditions: MetadataFilter | None,
        asked: ExternalRetrievalModel | None,
    ) -> None:
        try:
            most = resources.settings.limits.top_k
            source = source_of(session, dataset, resources).asked(asked, most=most)
        except KBError as exc:
            self._failures[dataset.id] = exc
            return
        work = partial(ask, source, query, conditions, resources.external)
        self._answers[dataset.id] = resources.waiting.submit(carried(work))

    def _search(
        self,
        session: Session,
        query: str,
        datasets: Sequence[Dataset],
        resources: Resources,
        conditions: MetadataFilter | None,
    ) -> Retrieved:
        tree = conditions.tree() if conditions is not None else None
        filters: dict[uuid.UUID, Filter] = {}
        for dataset in datasets:
            try:
                limits = resources.settings.limits
                filters |= compile_filters(session, [dataset], tree, limits)
            except InvalidParam as exc:  # its fields are of other types than the conditions are
                self._failures[dataset.id] = exc
        asked = [dataset for dataset in datasets if dataset.id not in self._failures]
        if not asked:
            return Retrieved(())
        return retrieve(
            session, query, asked, self._settings, resources, filters=filters, partial=True
        )

    def result(self) -> Gathered:
        """What all of them gave.

        Raises:
            KBError, TransientError: every one of them failed; what the first of them said.
        """
        others: list[ExternalHit] = []
        for dataset_id, answer in self._answers.items():
            try:
                others += answer.result()
            except CancelledError:
                self._failures[dataset_id] = Unavailable("this process stops; try again")
            except (KBError, TransientError) as exc:
                self._failures[dataset_id] = exc
        if self._asked and len(self._failures) == self._asked:
            raise next(iter(self._failures.values()))
        others, rerank = self._reranked(others)
        low = self._settings.score_threshold
        kept = [hit for hit in others if low is None or hit.score >= low]
        both: list[AnyHit] = [*self._found.hits, *kept]
        hits = sorted(both, key=lambda hit: -hit.score)
        return Gathered(
            tuple(hits[: self._settings.top_k]), self._failures, self._found.timings_ms, rerank
        )

    def _reranked(self, hits: list[ExternalHit]) -> tuple[list[ExternalHit], Reranked | None]:
        """Other services' records as the rerank model sees them, as ours were judged before: what
        it says of a text depends on the question and the text alone.
        """
        named, ours = self._settings.rerank, self._found.rerank
        if named is None or not hits or (ours is not None and not ours.applied):
            return hits, ours
        record = find(named, self._resources)
        depth = self._resources.settings.retrieval.rerank_depth
        best = sorted(hits, key=lambda hit: -hit.score)
        so_far = ours or Reranked(record.provider, record.model, applied=True, asked=0, judged=0)
        so_far = replace(so_far, asked=so_far.asked + len(best[:depth]))
        try:
            model = self._resources.models.reranker_of(record)
            scores = model.rerank(self._query, [hit.content for hit in best[:depth]])
        except (TransientError, ProviderNotInitialized) as exc:
            log.warning("records of other services keep their scores: %s", exc.message)
            return hits, replace(so_far, applied=ours is not None, error=exc.message)
        given = [score for score in scores if score is not None]
        behind = min(given, default=1.0)
        scores += [None] * (len(best) - len(scores))
        judged = [
            replace(hit, score=max(0.0, min(1.0, hit.score)) * behind if score is None else score)
            for hit, score in zip(best, scores, strict=True)
        ]
        return judged, replace(so_far, judged=so_far.judged + len(given))
