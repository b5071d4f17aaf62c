"""Helpers of the retrieval tests: made-up datasets in real stores, and brute force over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from uuid import UUID

import numpy as np
from sqlalchemy import insert

from kb.db import transaction
from kb.models import (
    ChildChunk,
    Dataset,
    DocForm,
    Document,
    IndexingTechnique,
    Segment,
    SegmentStatus,
    UploadFile,
)
from kb.ports import Point, Space
from kb.resources import FULL_TEXT_SPACE, Resources
from kb.retrieval.analysis import analyse, terms_of_query
from kb.retrieval.bm25 import terms_of_document
from kb.retrieval.types import Hit, RetrievalSettings, SearchMethod
from pipelines.types import Vector, Vectors
from tests.contracts import segment_index

DIM = 8
SPACE = Space("retrieval-test", DIM)
WORDS = [
    *("anchor", "basil", "copper", "dune", "ember", "falcon", "garnet", "harbor", "indigo"),
    *("jungle", "kettle", "lantern", "marble", "nectar", "orchid", "pepper", "quartz", "raven"),
    *("saddle", "timber"),
]
SEMANTIC, FULL_TEXT = SearchMethod.SEMANTIC, SearchMethod.FULL_TEXT
HYBRID, KEYWORD = SearchMethod.HYBRID, SearchMethod.KEYWORD
AVERAGE_LENGTH = 12.0
CLOSE = 2e-6
"""What float32 in the engine may differ from float64 here."""


class TinyEmbedder:
    """Stands in for a model: a text's vector is a random direction drawn from its hash."""

    id, dim, max_tokens = SPACE.name, DIM, 512

    def __init__(self) -> None:
        self.queries: list[str] = []

    def embed_query(self, text: str) -> Vector:
        """float32[dim] of unit length; every call is written down in `queries`."""
        self.queries.append(text)
        return direction(text)

    def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """float32[n, dim] of unit length."""
        return np.array([direction(text) for text in texts], dtype=np.float32).reshape(-1, DIM)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words per text."""
        return [len(text.split()) for text in texts]


def direction(text: str) -> Vector:
    """float32[DIM] of unit length."""
    seed = int.from_bytes(sha256(text.encode()).digest()[:4], "big")
    return segment_index.unit(np.random.default_rng(seed).normal(size=DIM))


@dataclass(frozen=True)
class Text:
    """One point of a dataset, and whether SQL lets it answer."""

    point: Point
    live: bool


@dataclass
class Corpus:
    """A dataset in SQL and in the index, and what should be found in it."""

    dataset: Dataset
    space: Space
    texts: list[Text] = field(default_factory=list)

    @property
    def live(self) -> list[Text]:
        """Those that may be found."""
        return [text for text in self.texts if text.live]


# -- filling the stores


class Builder:
    """Writes datasets straight into SQL and the index; no file is read, no model asked."""

    def __init__(self, resources: Resources, seed: int) -> None:
        self._resources = resources
        self.rng = np.random.default_rng(seed)
        self.next_ids: list[UUID] = []
        """Given to what is added next, in this order; then random ones."""

    def corpus(
        self, name: str, *, economy: bool = False, doc_form: DocForm | None = None
    ) -> Corpus:
        """An empty dataset; its form is known once it has a document."""
        space = FULL_TEXT_SPACE if economy else SPACE
        with transaction(self._resources.sessions) as session:
            dataset = Dataset(
                workspace_id=self._resources.workspace_id,
                name=name,
                indexing_technique=(
                    IndexingTechnique.ECONOMY if economy else IndexingTechnique.HIGH_QUALITY
                ),
                space_name=space.name,
                space_dim=space.dim,
                doc_form=doc_form,
                average_length=AVERAGE_LENGTH,
                created_by=self._resources.owner_id,
            )
            session.add(dataset)
        self._resources.index.ensure_space(space)
        return Corpus(dataset, space)

    def document(self, corpus: Corpus, **columns: object) -> UUID:
        """A document; the id."""
        with transaction(self._resources.sessions) as session:
            upload = UploadFile(
                workspace_id=self._resources.workspace_id,
                name="made-up.txt",
                size_bytes=1,
                extension="txt",
                sha256="0" * 64,
                blob_key="none",
                created_by=self._resources.owner_id,
            )
            session.add(upload)
            session.flush()
            values = {"version": 1, "position": 1, "name": "made-up.txt", "batch": "1", **columns}
            document = Document(
                dataset_id=corpus.dataset.id,
                upload_file_id=upload.id,
                created_by=self._resources.owner_id,
                **values,
            )
            session.add(document)
            session.flush()
            return document.id

    def _id(self) -> UUID:
        return self.next_ids.pop(0) if self.next_ids else UUID(bytes=self.rng.bytes(16), version=4)

    def words(self) -> str:
        """A text of 4 to 20 words, some far more frequent than others."""
        picked = self.rng.zipf(1.4, size=self.rng.integers(4, 20)) % len(WORDS)
        return " ".join(WORDS[i] for i in picked)

    def add(
        self,
        corpus: Corpus,
        document_id: UUID,
        contents: Sequence[str],
        *,
        findable: bool = True,
        in_sql: bool = True,
        dense: Vector | None = None,
        **columns: object,
    ) -> list[UUID]:
        """Segments, one for each text; equal texts get equal vectors. The segments' ids.

        Args:
            findable: what the oracle is told.
            in_sql: False leaves points behind that nothing stands for.
            dense: the vector of all of them, instead of those of their texts.
            columns: of Segment.
        """
        ids = [self._id() for _ in contents]
        if in_sql:
            self._insert(Segment, corpus, document_id, ids, contents, columns)
        self._index(
            corpus, document_id, list(zip(ids, ids, contents, strict=True)), findable, dense
        )
        return ids

    def add_parent(
        self,
        corpus: Corpus,
        document_id: UUID,
        children: Sequence[str],
        *,
        dead_children: Sequence[str] = (),
        findable: bool = True,
        **columns: object,
    ) -> UUID:
        """A segment with child chunks, the last of which were replaced by a newer version."""
        parent = self._id()
        columns = {**columns, "has_children": True}
        self._insert(Segment, corpus, document_id, [parent], [" ".join(children)], columns)
        for contents, alive in ((children, True), (dead_children, False)):
            ids = [self._id() for _ in contents]
            here = {"segment_id": parent, "live": alive}
            self._insert(ChildChunk, corpus, document_id, ids, contents, here)
            points = [(id, parent, content) for id, content in zip(ids, contents, strict=True)]
            self._index(corpus, document_id, points, findable and alive)
        return parent

    def _insert(
        self,
        table: type[Segment] | type[ChildChunk],
        corpus: Corpus,
        document_id: UUID,
        ids: Sequence[UUID],
        contents: Sequence[str],
        columns: dict[str, object],
    ) -> None:
        common = {
            "dataset_id": corpus.dataset.id,
            "document_id": document_id,
            "text_hash": "0" * 64,
            "start_offset": 0,
            "end_offset": 1,
            "live": True,
            "created_by": self._resources.owner_id,
        }
        if table is Segment:
            common["status"] = SegmentStatus.COMPLETED
        rows = [
            {
                **common,
                "id": id,
                "position": position,
                "content": content,
                "word_count": len(content.split()),
                "term_count": len(analyse(content)),
                **columns,
            }
            for position, (id, content) in enumerate(zip(ids, contents, strict=True), start=1)
        ]
        if rows:
            with transaction(self._resources.sessions) as session:
                session.execute(insert(table), rows)

    def _index(
        self,
        corpus: Corpus,
        document_id: UUID,
        points: Sequence[tuple[UUID, UUID, str]],
        findable: bool,
        dense: Vector | None = None,
    ) -> None:
        made = [
            Text(
                Point(
                    id=id,
                    dataset_id=corpus.dataset.id,
                    document_id=document_id,
                    segment_id=segment_id,
                    version=1,
                    text_hash="0" * 64,
                    dense=(direction(content) if dense is None else dense)
                    if corpus.space.dim
                    else None,
                    terms=terms_of_document(analyse(content), average_length=AVERAGE_LENGTH),
                ),
                findable,
            )
            for id, segment_id, content in points
        ]
        self._resources.index.upsert(corpus.space, [text.point for text in made])
        corpus.texts += made


def _dense(corpus: Corpus, content: str, given: Vector | None) -> Vector | None:
    if corpus.space.dim is None:
        return None
    return direction(content) if given is None else given


# -- brute force


@dataclass(frozen=True)
class Leg:
    """The raw scores of a dataset's live texts."""

    scores: dict[UUID, float]
    order: list[UUID]

    @staticmethod
    def of(scores: dict[UUID, float], live: set[UUID]) -> Leg:
        """Best first, equal scores by id."""
        scores = {id: score for id, score in scores.items() if id in live}
        return Leg(scores, sorted(scores, key=lambda id: (-scores[id], id)))


@dataclass(frozen=True)
class Score:
    """What a text should get.

    Attributes:
        dense, text: raw; None where the leg is not asked.
        legs: its dataset's; (dense, text).
        read: how deep every leg of the dataset is read at least.
        listed: whether it is shown among the children of a parent.
    """

    final: float
    dense: float | None
    text: float | None
    legs: tuple[Leg, Leg]
    read: int
    listed: bool


LISTED_DEPTH = 50


def expected_scores(
    corpora: Sequence[Corpus],
    query: str,
    settings: RetrievalSettings,
    *,
    depth: int | None = None,
) -> dict[UUID, Score]:
    """By point: the scores of every live text that the query finds, by the definitions alone.

    Args:
        depth: of hybrid, keep only the union of the legs' best `depth` texts per dataset.
    """
    terms, _ = terms_of_query(query)
    legs: list[tuple[Corpus, Leg, Leg]] = []
    for corpus in corpora:
        points = segment_index.Oracle.of(text.point for text in corpus.texts)
        live = {text.point.id for text in corpus.live}
        dense = points.dense(corpus.dataset.id, direction(query)) if corpus.space.dim else {}
        text = points.text(corpus.dataset.id, terms)
        legs.append((corpus, Leg.of(dense, live), Leg.of(text, live)))
    best = max(
        (
            score
            for corpus, _, text in legs
            if method_of(corpus, settings) is not SEMANTIC
            for score in text.scores.values()
        ),
        default=0.0,
    )
    scores: dict[UUID, Score] = {}
    for corpus, cosines, matches in legs:
        method = method_of(corpus, settings)
        scores |= _of_dataset(method, cosines, matches, best, settings, depth)
    return scores


def method_of(corpus: Corpus, settings: RetrievalSettings) -> SearchMethod:
    """Economy datasets have full text only."""
    return settings.method if corpus.space.dim else KEYWORD


def _of_dataset(
    method: SearchMethod,
    dense: Leg,
    text: Leg,
    best: float,
    settings: RetrievalSettings,
    depth: int | None,
) -> dict[UUID, Score]:
    weights = settings.weights if method is HYBRID else None
    of_dense = weights.shares[0] if weights else float(method is SEMANTIC)
    of_text = 1 - of_dense
    asked = [leg for leg, weight in ((dense, of_dense), (text, of_text)) if weight]
    cut = depth if len(asked) == 2 else None
    read = min(LISTED_DEPTH, cut or LISTED_DEPTH)
    found = {id for leg in asked for id in leg.order[:cut]}
    shown = {id for leg in asked for id in leg.order[:read]}
    scores: dict[UUID, Score] = {}
    for id in found:
        cosine, bm25 = dense.scores.get(id, 0.0), text.scores.get(id, 0.0)
        share = bm25 / best if best else 0.0
        scores[id] = Score(
            final=of_dense * _squeezed(cosine) + of_text * share,
            dense=cosine if method in (SEMANTIC, HYBRID) else None,
            text=bm25 if method is not SEMANTIC else None,
            legs=(dense, text),
            read=read,
            listed=id in shown,
        )
    return scores


def _squeezed(cosine: float) -> float:
    cosine = min(1.0, max(-1.0, cosine))
    return cosine if cosine >= 0.001 else 0.001 * (1 + cosine) / 1.001


def assert_best(
    hits: Iterable[Hit],
    corpora: Sequence[Corpus],
    query: str,
    settings: RetrievalSettings,
    *,
    depth: int | None = None,
) -> None:
    """The hits are the best `top_k` segments by brute force, in order, each with its score.

    Scores may differ by float32 rounding, and so may the order of segments closer than that.
    """
    hits = list(hits)
    scores = expected_scores(corpora, query, settings, depth=depth)
    segment_of = {t.point.id: t.point.segment_id for c in corpora for t in c.texts}
    points_of: dict[UUID, list[UUID]] = {}
    for id in sorted(scores, key=lambda id: (-scores[id].final, id)):
        points_of.setdefault(segment_of[id], []).append(id)
    best = {segment: scores[points[0]].final for segment, points in points_of.items()}
    floor = -1.0 if settings.score_threshold is None else settings.score_threshold
    at_most = sorted((s for s in best.values() if s >= floor - CLOSE), reverse=True)
    at_least = sum(s >= floor + CLOSE for s in best.values())
    assert min(at_least, settings.top_k) <= len(hits) <= min(len(at_most), settings.top_k)
    np.testing.assert_allclose([hit.score for hit in hits], at_most[: len(hits)], atol=CLOSE)
    assert len({hit.segment.id for hit in hits}) == len(hits)
    order = [(-hit.score, hit.explanation.point_id) for hit in hits]
    assert order == sorted(order), "best first, equal scores by id"
    for hit in hits:
        points = points_of[hit.segment.id]
        close(hit.score, best[hit.segment.id])
        close(scores[hit.explanation.point_id].final, hit.score)
        assert hit.explanation.point_id in points
        assert hit.document.id == hit.segment.document_id
        assert_explained(hit, scores[hit.explanation.point_id])
        assert_children(hit, [(id, scores[id]) for id in points], floor)


def assert_children(hit: Hit, points: Sequence[tuple[UUID, Score]], floor: float) -> None:
    """The best child, and those of the others that reach the floor and a leg's first depth."""
    if points[0][0] == hit.segment.id:
        assert hit.children == ()
        return
    expected = {
        id: score.final
        for id, score in points
        if score.final >= floor and (score.listed or id == hit.explanation.point_id)
    }
    assert {child.id for child in hit.children} == expected.keys()
    assert hit.children[0].id == hit.explanation.point_id
    assert hit.children[0].score == hit.score
    order = [(-child.score, child.id) for child in hit.children]
    assert order == sorted(order)
    for child in hit.children:
        close(child.score, expected[child.id])
        assert child.content in hit.segment.content


def assert_explained(hit: Hit, expected: Score) -> None:
    """Legs, ranks and weights are there, in range, as expected, and add up to the score."""
    why = hit.explanation
    assert 0 <= hit.score <= 1
    assert abs(why.dense_weight + why.text_weight - 1) < 1e-12
    total = 0.0
    for leg, weight, raw, oracle in (
        (why.dense, why.dense_weight, expected.dense, expected.legs[0]),
        (why.text, why.text_weight, expected.text, expected.legs[1]),
    ):
        assert (leg is None) == (raw is None)
        if leg is None or raw is None:
            assert weight == 0
            continue
        assert 0 <= leg.normalised <= 1
        total += weight * leg.normalised
        close(leg.raw, raw)
        best = [oracle.scores[id] for id in oracle.order]
        if leg.rank is not None:
            close(best[leg.rank - 1], raw)
        elif raw:
            assert raw <= best[expected.read - 1] + CLOSE, "among the first, yet without a rank"
    assert abs(total - hit.score) < 1e-6


def close(value: float, expected: float) -> None:
    """Equal but for float32 rounding."""
    assert abs(value - expected) <= CLOSE * max(1.0, abs(expected)), (value, expected)
