"""What every SegmentIndex promises, run on each adapter."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from pathlib import Path
from threading import Event
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from kb.errors import StoreUnavailable
from kb.ports import (
    Between,
    Every,
    Except,
    Facts,
    Point,
    PointHead,
    Scored,
    SegmentIndex,
    Some,
    Space,
    Tagged,
    Terms,
    Where,
)
from kb.retrieval.analysis import analyse, terms_of_query
from kb.retrieval.bm25 import K1, B, idf, terms_of_document
from tests.contracts.segment_index import (
    ADAPTERS,
    DIM,
    SPACE,
    Oracle,
    assert_ranked,
    numbered,
    point,
    random_points,
    terms,
    unit,
)

TEXT_ONLY = Space("contract-text", None)
NOTHING = terms({})

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=sorted(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def index(adapter: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SegmentIndex]:
    """One store for all tests: each has a dataset of its own, and the others as neighbours."""
    opened = ADAPTERS[adapter](tmp_path_factory.mktemp(adapter))
    opened.ensure_space(SPACE)
    opened.ensure_space(TEXT_ONLY)
    yield opened
    opened.close()


@pytest.fixture
def dataset() -> UUID:
    return uuid4()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


def along(*values: float) -> list[float]:
    """A vector of DIM numbers that starts with these."""
    return [*values, *[0.0] * (DIM - len(values))]


def vector(*values: float) -> np.ndarray:
    return np.array(along(*values), dtype=np.float32)


def optimized(index: SegmentIndex) -> None:
    while index.optimize(budget_s=5.0):
        pass


# -- scores


def test_nearest_ranks_as_brute_force_does(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = random_points(rng, dataset, 300)
    index.upsert(SPACE, points)
    for limit in (1, 10, 299, 300, 1000):
        query = rng.normal(size=DIM).astype(np.float32) * 3
        expected = Oracle.of(points).dense(dataset, query)
        assert_ranked(index.nearest(SPACE, dataset, query, limit), expected, limit)


def test_best_ranks_as_brute_force_does(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = random_points(rng, dataset, 300)
    index.upsert(SPACE, points)
    for limit in (1, 10, 100, 1000):
        query = terms({int(i): float(rng.integers(1, 4)) for i in rng.integers(1, 45, size=4)})
        expected = Oracle.of(points).text(dataset, query)
        assert_ranked(index.best(SPACE, dataset, query, limit), expected, limit)


def test_hits_name_the_segment_that_is_returned(index: SegmentIndex, dataset: UUID) -> None:
    child = point(dataset, along(1), {1: 1.0})
    index.upsert(SPACE, [child])
    for hit in (
        *index.nearest(SPACE, dataset, vector(1), 1),
        *index.best(SPACE, dataset, terms({1: 1.0}), 1),
    ):
        assert (hit.id, hit.segment_id) == (child.id, child.segment_id)


class LuceneBM25(BM25Okapi):  # type: ignore[misc]
    """rank_bm25 with Lucene's idf, which is never negative, and a given average length."""

    def __init__(self, corpus: list[list[str]], average_length: float) -> None:
        super().__init__(corpus, k1=K1, b=B)
        self.avgdl = average_length

    def _calc_idf(self, nd: dict[str, int]) -> None:
        self.idf = {word: idf(self.corpus_size, holding) for word, holding in nd.items()}


SENTENCES = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Dogs and foxes are running; a fox runs faster than a dog.",
    "GPT-3.5-turbo and GPT-4 answer questions about foxes in v1.01.",
    "foo_bar calls getUserName() in C++, never in C# or .NET.",
    "知识库检索引擎支持中文和英文的混合检索。",
    "东京タワーは東京にある。引擎的检索速度很快。",
    "Лисы бегают быстрее собак.",
    "An engine that runs on two cores, and a dog that sleeps on four legs.",
    "",
    "!!!",
]


@pytest.mark.parametrize("average_length", [5.0, 20.0, 80.0])
@pytest.mark.parametrize(
    "question",
    ["fox and dog", "the the dogs running", "检索引擎", "GPT-3.5-turbo", "foo_bar C++", "собака"],
)
def test_best_agrees_with_rank_bm25_on_texts(
    index: SegmentIndex, dataset: UUID, question: str, average_length: float
) -> None:
    texts = [analyse(sentence) for sentence in SENTENCES]
    points = [
        replace(
            point(dataset, None, {}),
            terms=terms_of_document(tokens, average_length=average_length),
        )
        for tokens in texts
    ]
    index.upsert(TEXT_ONLY, points)
    query, names = terms_of_query(question)
    words = [
        names[i]
        for i, w in zip(query.ids.tolist(), query.weights, strict=True)
        for _ in range(int(w))
    ]
    reference = LuceneBM25(texts, average_length).get_scores(words)
    expected = {p.id: float(s) for p, s in zip(points, reference, strict=True) if s > 0}
    assert expected
    assert_ranked(index.best(TEXT_ONLY, dataset, query, 10), expected, 10)


def test_scores_of_given_points_equal_the_scores_of_the_legs(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = random_points(rng, dataset, 400)
    index.upsert(SPACE, points)
    query, words = rng.normal(size=DIM).astype(np.float32), terms({1: 1.0, 3: 2.0})
    ids = [p.id for p in points]
    nearest = {hit.id: hit.score for hit in index.nearest(SPACE, dataset, query, 1000)}
    best = {hit.id: hit.score for hit in index.best(SPACE, dataset, words, 1000)}
    assert index.dense_scores(SPACE, dataset, query, ids) == pytest.approx(nearest, abs=1e-6)
    assert index.text_scores(SPACE, dataset, words, ids) == pytest.approx(best, rel=1e-6)
    assert 0 < len(best) < len(points), "some points must have no common term"
    some = [ids[3], uuid4(), ids[5]]
    assert index.dense_scores(SPACE, dataset, query, some) == pytest.approx(
        {id: nearest[id] for id in some if id in nearest}, abs=1e-6
    )
    assert index.text_scores(SPACE, dataset, words, some) == pytest.approx(
        {id: best[id] for id in some if id in best}, rel=1e-6
    )
    assert index.dense_scores(SPACE, dataset, query, []) == {}
    assert index.text_scores(SPACE, dataset, words, []) == {}


def test_scores_of_given_points_leave_out_other_datasets(
    index: SegmentIndex, dataset: UUID
) -> None:
    stranger = point(uuid4(), along(1), {1: 1.0})
    index.upsert(SPACE, [point(dataset, along(1), {1: 1.0}), stranger])
    assert index.dense_scores(SPACE, dataset, vector(1), [stranger.id]) == {}
    assert index.text_scores(SPACE, dataset, terms({1: 1.0}), [stranger.id]) == {}


def test_cosine_stays_within_one_and_ignores_length(index: SegmentIndex, dataset: UUID) -> None:
    same, opposite, zero = (
        point(dataset, np.full(DIM, x, dtype=np.float32), {}) for x in (1e30, -1e-30, 0.0)
    )
    index.upsert(SPACE, [same, opposite, zero])
    scores = index.dense_scores(
        SPACE, dataset, np.full(DIM, 0.3, dtype=np.float32), [same.id, opposite.id, zero.id]
    )
    assert scores == pytest.approx({same.id: 1.0, opposite.id: -1.0, zero.id: 0.0}, abs=1e-6)
    assert all(-1 <= score <= 1 for score in scores.values())


@pytest.mark.parametrize("limit", [1, 7, 60, 61, 100])
def test_equal_scores_come_by_ascending_id_and_the_cut_respects_it(
    index: SegmentIndex, dataset: UUID, limit: int
) -> None:
    ids = sorted(uuid4() for _ in range(100))
    better, equal = ids[40:42], [id for id in ids if id not in ids[40:42]]
    points = [point(dataset, along(1, 0.1), {1: 2.0}, id=id) for id in better]
    points += [point(dataset, along(1, 2), {1: 1.0}, id=id) for id in equal]
    random.Random(5).shuffle(points)
    for start in range(0, 100, 25):
        index.upsert(SPACE, points[start : start + 25])
    expected = [*better, *equal][:limit]
    assert [h.id for h in index.nearest(SPACE, dataset, vector(1), limit)] == expected
    assert [h.id for h in index.best(SPACE, dataset, terms({1: 1.0}), limit)] == expected


# -- datasets are strangers to each other


def test_other_datasets_never_influence_a_score(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    query, words = rng.normal(size=DIM).astype(np.float32), terms({1: 1.0, 2: 1.0, 39: 1.0})
    index.upsert(SPACE, random_points(rng, dataset, 80))

    def answers() -> list[list[Scored]]:
        return [
            index.nearest(SPACE, dataset, query, 80),
            index.best(SPACE, dataset, words, 80),
        ]

    before = answers()

    def assert_unchanged() -> None:
        for hits, expected in zip(answers(), before, strict=True):
            assert [h.id for h in hits] == [h.id for h in expected]
            assert [h.score for h in hits] == pytest.approx(
                [h.score for h in expected], rel=1e-6, abs=1e-6
            )

    other = random_points(rng, uuid4(), 700)
    index.upsert(SPACE, other)
    assert_unchanged()
    index.delete(SPACE, [p.id for p in other[:300]], up_to_version=1)
    assert_unchanged()
    optimized(index)
    assert_unchanged()
    index.delete_dataset(SPACE, other[0].dataset_id)
    optimized(index)
    assert_unchanged()


def test_deleted_points_stop_counting_in_the_statistics_at_once(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = random_points(rng, dataset, 500)
    words = terms({1: 1.0, 2: 1.0, 5: 1.0})
    index.upsert(SPACE, points)
    optimized(index)
    index.delete(SPACE, [p.id for p in points[::2]], up_to_version=1)
    left = Oracle.of(points[1::2])
    assert_ranked(index.best(SPACE, dataset, words, 500), left.text(dataset, words), 500)
    optimized(index)
    assert_ranked(index.best(SPACE, dataset, words, 500), left.text(dataset, words), 500)


def test_points_without_terms_count_in_the_statistics(index: SegmentIndex, dataset: UUID) -> None:
    points = [point(dataset, along(1), {}) for _ in range(9)]
    points.append(point(dataset, along(1), {1: 1.5}))
    index.upsert(SPACE, points)
    query = terms({1: 1.0})
    expected = Oracle.of(points).text(dataset, query)
    assert expected == pytest.approx({points[-1].id: 1.5 * idf(10, 1)})
    assert_ranked(index.best(SPACE, dataset, query, 10), expected, 10)


def test_a_filter_on_documents_restricts_but_never_changes_scores(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    documents = [uuid4() for _ in range(5)]
    points = random_points(rng, dataset, 200, documents=documents)
    index.upsert(SPACE, points)
    query, words = rng.normal(size=DIM).astype(np.float32), terms({1: 1.0, 2: 1.0})
    for chosen in ([documents[0]], documents[1:4], [uuid4()], [documents[2], uuid4()]):
        inside = {p.id for p in points if p.document_id in chosen}
        for all_hits, hits in (
            (
                index.nearest(SPACE, dataset, query, 200),
                index.nearest(SPACE, dataset, query, 200, documents=chosen),
            ),
            (
                index.best(SPACE, dataset, words, 200),
                index.best(SPACE, dataset, words, 200, documents=chosen),
            ),
        ):
            expected = [hit for hit in all_hits if hit.id in inside]
            assert [hit.id for hit in hits] == [hit.id for hit in expected]
            assert [hit.score for hit in hits] == pytest.approx(
                [hit.score for hit in expected], rel=1e-6, abs=1e-6
            )


def holds(where: Where, facts: Facts) -> bool:
    """The port's definition of a filter, for one point."""
    numbers = dict(facts.numbers)
    if isinstance(where, Tagged):
        return not set(where.any_of).isdisjoint(facts.tags)
    if isinstance(where, Between):
        value = numbers.get(where.slot)
        if value is None:
            return False
        low = -inf if where.low is None else where.low
        high = inf if where.high is None else where.high
        above = value > low if where.open_low else value >= low
        return above and (value < high if where.open_high else value <= high)
    if isinstance(where, Except):
        return not holds(where.part, facts)
    parts = [holds(part, facts) for part in where.parts]
    return all(parts) if isinstance(where, Every) else any(parts)


def random_facts(rng: np.random.Generator) -> Facts:
    """Few distinct values, so that filters meet them."""
    tags = [f"k={word}" for word in ("", "a", "A", "ä", "北京", '"x" AND [y].z', "a" * 300)]
    kept = sorted({str(rng.choice(tags)) for _ in range(rng.integers(0, 4))})
    values = (-1e300, -2.5, 0.0, 1.0, 2.0, 2024.0, 1767225600.123456, 1e300)
    slots = sorted({int(rng.choice([0, 2, 7])) for _ in range(rng.integers(0, 3))})
    return Facts(tuple(kept), tuple((slot, float(rng.choice(values))) for slot in slots))


def random_where(rng: np.random.Generator, depth: int = 3) -> Where:
    """A filter over what `random_facts` makes."""
    kind = rng.integers(0, 5 if depth else 2)
    if kind == 0:
        tags = {tag for _ in range(3) for tag in random_facts(rng).tags} or {"k=nobody"}
        return Tagged(tuple(sorted(tags)))
    if kind == 1:
        bounds = sorted(float(rng.choice([-2.5, 0.0, 2.0, 1767225600.123456])) for _ in range(2))
        low, high = ((bounds[0], bounds[1]), (None, bounds[1]), (bounds[0], None))[rng.integers(3)]
        opened = rng.integers(0, 2, size=2)
        return Between(int(rng.choice([0, 2, 7, 9])), low, high, bool(opened[0]), bool(opened[1]))
    if kind == 2:
        return Except(random_where(rng, depth - 1))
    parts = tuple(random_where(rng, depth - 1) for _ in range(rng.integers(1, 4)))
    return Every(parts) if kind == 3 else Some(parts)


def test_filters_hold_exactly_where_they_should(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = [replace(made, facts=random_facts(rng)) for made in random_points(rng, dataset, 300)]
    elsewhere = [replace(p, id=uuid4(), dataset_id=uuid4()) for p in points[:50]]
    index.upsert(SPACE, points + elsewhere)
    query = vector(1, 0.5)
    for _ in range(150):
        where = random_where(rng)
        wanted = {p.id for p in points if holds(where, p.facts)}
        found = index.nearest(SPACE, dataset, query, 400, where=where)
        assert {hit.id for hit in found} == wanted, where


def test_a_filter_restricts_the_text_leg_and_never_changes_its_scores(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = [replace(made, facts=random_facts(rng)) for made in random_points(rng, dataset, 200)]
    index.upsert(SPACE, points)
    query = terms({1: 1.0, 2: 1.0})
    scores = {hit.id: hit.score for hit in index.best(SPACE, dataset, query, 200)}
    for _ in range(20):
        where = random_where(rng)
        kept = {p.id for p in points if holds(where, p.facts)} & scores.keys()
        found = index.best(SPACE, dataset, query, 200, where=where)
        assert {hit.id: hit.score for hit in found} == {i: scores[i] for i in kept}


def test_a_label_replaces_the_facts_of_a_document_and_nothing_else(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    documents = [uuid4() for _ in range(5)]
    before = Facts(("k", "k=old"), ((0, 1.0), (7, 3.0)))
    points = [
        replace(made, facts=before) for made in random_points(rng, dataset, 40, documents=documents)
    ]
    stranger = replace(points[0], id=uuid4(), dataset_id=uuid4())
    index.upsert(SPACE, [*points, stranger])
    vectors = index.vectors(SPACE, [p.id for p in points])
    labels = {
        documents[0]: Facts(("k", "k=new"), ((2, 2.0),)),
        documents[1]: Facts(("k", "k=new"), ((2, 2.0),)),
        documents[2]: Facts(),
        documents[3]: Facts((), ((11, -4.5),)),
        uuid4(): Facts(("k",)),
    }
    index.label(SPACE, dataset, labels)
    wanted = {p.id: labels.get(p.document_id, before) for p in points} | {stranger.id: before}
    stored = {found.id: found.facts for found in index.scan(SPACE)}
    assert {id: stored[id] for id in wanted} == wanted
    found = index.nearest(SPACE, dataset, vector(1), 50, where=Tagged(("k=new",)))
    assert {hit.id for hit in found} == {p.id for p in points if p.document_id in documents[:2]}
    found = index.nearest(SPACE, dataset, vector(1), 50, where=Between(11, high=0.0))
    assert {hit.id for hit in found} == {p.id for p in points if p.document_id == documents[3]}
    found = index.nearest(SPACE, dataset, vector(1), 50, where=Between(7, low=0.0))
    assert {hit.id for hit in found} == {p.id for p in points if p.document_id == documents[4]}
    for id, (dense, sparse) in index.vectors(SPACE, [p.id for p in points]).items():
        assert np.array_equal(dense, vectors[id][0])
        assert np.array_equal(sparse.ids, vectors[id][1].ids)


def test_many_documents_are_labelled_each_with_its_own_facts(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    documents = [uuid4() for _ in range(700)]
    index.upsert(SPACE, random_points(rng, dataset, 700, documents=documents))
    labels = {d: Facts((f"k={n % 600}",), ((3, float(n)),)) for n, d in enumerate(documents)}
    index.label(SPACE, dataset, labels)
    stored = list(index.scan(SPACE, dataset))
    assert {found.document_id: found.facts for found in stored} == labels
    assert len(stored) == 700


def test_no_documents_give_nothing(index: SegmentIndex, dataset: UUID) -> None:
    index.upsert(SPACE, [point(dataset, along(1), {1: 1.0})])
    assert index.nearest(SPACE, dataset, vector(1), 5, documents=[]) == []
    assert index.best(SPACE, dataset, terms({1: 1.0}), 5, documents=[]) == []


def test_a_query_without_terms_finds_nothing(index: SegmentIndex, dataset: UUID) -> None:
    stored = point(dataset, along(1), {1: 1.0})
    index.upsert(SPACE, [stored])
    assert index.best(SPACE, dataset, NOTHING, 5) == []
    assert index.text_scores(SPACE, dataset, NOTHING, [stored.id]) == {}


def test_an_unknown_dataset_is_empty(index: SegmentIndex, dataset: UUID) -> None:
    assert index.nearest(SPACE, dataset, vector(1), 5) == []
    assert index.best(SPACE, dataset, terms({1: 1.0}), 5) == []
    assert index.count(SPACE, dataset) == 0
    assert list(index.scan(SPACE, dataset)) == []


# -- writing


def test_writing_a_point_again_replaces_it_whole(index: SegmentIndex, dataset: UUID) -> None:
    old = point(dataset, along(1), {1: 1.0, 2: 1.0})
    new = replace(point(dataset, along(0, 1), {3: 1.0}, version=2), id=old.id)
    index.upsert(SPACE, [old])
    index.upsert(SPACE, [new])
    assert list(index.scan(SPACE, dataset)) == [head(new)]
    dense, weights = index.vectors(SPACE, [new.id])[new.id]
    assert dense is not None
    assert dense.tolist() == along(0, 1)
    assert weights.ids.tolist() == [3]
    assert index.best(SPACE, dataset, terms({1: 1.0, 2: 1.0}), 5) == []
    assert [hit.segment_id for hit in index.best(SPACE, dataset, terms({3: 1.0}), 5)] == [
        new.segment_id
    ]


def test_a_text_that_lost_its_terms_is_not_found_by_them(
    index: SegmentIndex, dataset: UUID
) -> None:
    old = point(dataset, along(1), {1: 1.0})
    index.upsert(SPACE, [old])
    index.upsert(SPACE, [replace(old, terms=NOTHING)])
    assert index.best(SPACE, dataset, terms({1: 1.0}), 5) == []
    assert len(index.vectors(SPACE, [old.id])[old.id][1]) == 0


def test_a_point_can_move_to_another_dataset(index: SegmentIndex, dataset: UUID) -> None:
    old = point(uuid4(), along(1), {1: 1.0})
    index.upsert(SPACE, [old])
    index.upsert(SPACE, [replace(old, dataset_id=dataset)])
    assert index.count(SPACE, old.dataset_id) == 0
    assert [hit.id for hit in index.nearest(SPACE, dataset, vector(1), 5)] == [old.id]


def test_delete_spares_points_of_newer_versions(index: SegmentIndex, dataset: UUID) -> None:
    points = [point(dataset, along(1), {}, version=v) for v in (1, 2, 3, 4)]
    index.upsert(SPACE, points)
    index.delete(SPACE, [*(p.id for p in points), uuid4()], up_to_version=2)
    assert {h.id for h in index.scan(SPACE, dataset)} == {p.id for p in points[2:]}
    index.delete(SPACE, [points[3].id], up_to_version=9)
    assert [h.id for h in index.scan(SPACE, dataset)] == [points[2].id]


def test_deleting_a_document_or_a_dataset_removes_all_of_it_and_nothing_else(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    first, second = uuid4(), uuid4()
    points = random_points(rng, dataset, 700, documents=[first, second])
    # A copy of the document's id in another dataset is another document.
    stranger = point(uuid4(), along(1), {1: 1.0}, document_id=first)
    index.upsert(SPACE, [*points, stranger])
    index.delete_document(SPACE, dataset, first)
    assert {h.id for h in index.scan(SPACE, dataset)} == {
        p.id for p in points if p.document_id == second
    }
    index.delete_dataset(SPACE, dataset)
    assert index.count(SPACE, dataset) == 0
    assert index.nearest(SPACE, dataset, vector(1), 5) == []
    assert [h.id for h in index.scan(SPACE, stranger.dataset_id)] == [stranger.id]
    index.delete_document(SPACE, dataset, first)
    index.delete_dataset(SPACE, dataset)


def test_empty_writes_do_nothing(index: SegmentIndex, dataset: UUID) -> None:
    total = index.count(SPACE)
    index.upsert(SPACE, [])
    index.delete(SPACE, [], up_to_version=9)
    assert index.vectors(SPACE, []) == {}
    assert index.count(SPACE) == total


BAD: dict[str, tuple[Callable[[Point], Point], str]] = {
    "too short": (lambda p: replace(p, dense=np.ones(DIM - 1, dtype=np.float32)), "shape"),
    "a matrix": (lambda p: replace(p, dense=np.ones((1, DIM), dtype=np.float32)), "shape"),
    "not a number": (lambda p: replace(p, dense=vector(float("nan"))), "not finite"),
    "infinite": (lambda p: replace(p, dense=vector(float("-inf"))), "not finite"),
    "missing": (lambda p: replace(p, dense=None), "needs a dense vector"),
    "weight nan": (lambda p: replace(p, terms=terms({1: float("nan")})), "not finite"),
    "weight zero": (lambda p: replace(p, terms=terms({1: 0.0})), "above 0"),
    "weight negative": (lambda p: replace(p, terms=terms({1: -1.0})), "above 0"),
    "term twice": (
        lambda p: replace(p, terms=_raw([3, 3], [1.0, 1.0])),
        "distinct and ascending",
    ),
    "terms descend": (lambda p: replace(p, terms=_raw([4, 3], [1.0, 1.0])), "ascending"),
    "lengths differ": (lambda p: replace(p, terms=_raw([3, 4], [1.0])), r"use uint32\[n\]"),
    "version negative": (lambda p: replace(p, version=-1), "version -1"),
}


def _raw(ids: list[int], weights: list[float]) -> Terms:
    return Terms(np.array(ids, dtype=np.uint32), np.array(weights, dtype=np.float32))


@pytest.mark.parametrize("case", sorted(BAD))
def test_one_bad_point_anywhere_stores_nothing_of_the_call(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator, case: str
) -> None:
    spoil, message = BAD[case]
    points = random_points(rng, dataset, 600)
    index.upsert(SPACE, points[:1])
    points[500] = spoil(points[500])
    with pytest.raises(ValueError, match=message) as caught:
        index.upsert(SPACE, points)
    assert str(points[500].id) in str(caught.value)
    assert [h.id for h in index.scan(SPACE, dataset)] == [points[0].id]


def test_an_id_given_twice_stores_nothing(index: SegmentIndex, dataset: UUID) -> None:
    twice = point(dataset, along(1), {})
    with pytest.raises(ValueError, match=f"{twice.id} is given twice"):
        index.upsert(SPACE, [twice, point(dataset, along(1), {}), twice])
    assert index.count(SPACE, dataset) == 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones(DIM + 1, dtype=np.float32), "shape"),
        (vector(float("nan")), "not finite"),
        (vector(0), "zero"),
    ],
)
def test_a_query_vector_that_cannot_be_compared_is_refused(
    index: SegmentIndex, dataset: UUID, query: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        index.nearest(SPACE, dataset, query, 5)
    with pytest.raises(ValueError, match=message):
        index.dense_scores(SPACE, dataset, query, [uuid4()])


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(index: SegmentIndex, dataset: UUID, limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit}"):
        index.nearest(SPACE, dataset, vector(1), limit)
    with pytest.raises(ValueError, match=f"limit is {limit}"):
        index.best(SPACE, dataset, terms({1: 1.0}), limit)


# -- spaces


def test_ensure_space_repeats_safely_and_keeps_the_points(
    index: SegmentIndex, dataset: UUID
) -> None:
    index.upsert(SPACE, [point(dataset, along(1), {})])
    index.ensure_space(SPACE)
    assert index.count(SPACE, dataset) == 1


def test_a_space_keeps_its_dim(index: SegmentIndex) -> None:
    for dim in (DIM + 1, None):
        with pytest.raises(ValueError, match=f"dim {DIM}"):
            index.ensure_space(Space(SPACE.name, dim))


@pytest.mark.parametrize("name", ["", "Upper", "../up", "a/b", "x" * 101, "dot.dot"])
def test_a_name_that_is_no_directory_name_is_refused(index: SegmentIndex, name: str) -> None:
    with pytest.raises(ValueError, match="space name"):
        index.ensure_space(Space(name, DIM))


def test_a_space_that_was_never_made_is_named_in_the_error(index: SegmentIndex) -> None:
    with pytest.raises(ValueError, match=r"'never-made'.*ensure_space"):
        index.count(Space("never-made", DIM))


def test_a_space_without_dense_vectors_finds_by_text_only(
    index: SegmentIndex, dataset: UUID
) -> None:
    stored = point(dataset, None, {1: 1.0, 2: 0.5})
    index.upsert(TEXT_ONLY, [stored])
    assert [h.id for h in index.best(TEXT_ONLY, dataset, terms({2: 1.0}), 5)] == [stored.id]
    dense, weights = index.vectors(TEXT_ONLY, [stored.id])[stored.id]
    assert dense is None
    assert weights.ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="takes no dense vectors"):
        index.upsert(TEXT_ONLY, [point(dataset, along(1), {})])
    with pytest.raises(ValueError, match="no dense vectors"):
        index.nearest(TEXT_ONLY, dataset, vector(1), 5)


def test_spaces_do_not_share_points(index: SegmentIndex, dataset: UUID) -> None:
    index.upsert(SPACE, [point(dataset, along(1), {1: 1.0})])
    assert index.count(TEXT_ONLY, dataset) == 0


# -- looking at what is stored


def head(p: Point) -> PointHead:
    return PointHead(
        p.id, p.dataset_id, p.document_id, p.segment_id, p.version, p.text_hash, p.facts
    )


def test_scan_gives_every_point_once_by_ascending_id(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = random_points(rng, dataset, 1100)
    index.upsert(SPACE, points)
    assert list(index.scan(SPACE, dataset)) == [head(p) for p in sorted(points, key=lambda p: p.id)]
    everything = [h.id for h in index.scan(SPACE)]
    assert everything == sorted(set(everything))
    assert len(everything) == index.count(SPACE)
    assert index.count(SPACE, dataset) == 1100


def test_whole_points_come_back_by_scan_and_by_id_as_they_were_written(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = sorted(random_points(rng, dataset, 700), key=lambda p: p.id)
    index.upsert(SPACE, points)
    index.upsert(SPACE, random_points(rng, uuid4(), 20))
    scanned = list(index.scan_points(SPACE, dataset))
    assert [p.head for p in scanned] == [head(p) for p in points]
    read = index.read(SPACE, [points[0].id, uuid4(), points[-1].id])
    assert read.keys() == {points[0].id, points[-1].id}
    stored = {p.id: p for p in points}
    for found in [*scanned, *read.values()]:
        written = stored[found.id]
        assert found.head == head(written)
        assert found.dense is not None
        assert written.dense is not None
        np.testing.assert_allclose(found.dense, unit(written.dense), rtol=0, atol=1e-7)
        assert found.terms.ids.tolist() == written.terms.ids.tolist()
        assert found.terms.weights.tolist() == written.terms.weights.tolist()


def test_a_scan_of_whole_points_covers_every_dataset_and_a_space_without_vectors(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    index.upsert(SPACE, random_points(rng, dataset, 3))
    everything = [p.id for p in index.scan_points(SPACE)]
    assert everything == sorted(set(everything))
    assert len(everything) == index.count(SPACE)
    bare = point(dataset, None, {3: 0.5})
    index.upsert(TEXT_ONLY, [bare])
    (found,) = index.scan_points(TEXT_ONLY, dataset)
    assert (found.head, found.dense, found.terms.ids.tolist()) == (head(bare), None, [3])
    assert index.read(TEXT_ONLY, [bare.id])[bare.id].dense is None
    assert index.read(SPACE, []) == {}


def test_vectors_come_back_at_unit_length_with_their_terms(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = random_points(rng, dataset, 300)
    index.upsert(SPACE, points)
    found = index.vectors(SPACE, [*(p.id for p in points), uuid4()])
    assert found.keys() == {p.id for p in points}
    for p in points:
        dense, weights = found[p.id]
        assert dense is not None
        assert p.dense is not None
        assert dense.dtype == np.float32
        np.testing.assert_allclose(dense, unit(p.dense), rtol=0, atol=1e-7)
        assert weights.ids.dtype == np.uint32
        assert weights.ids.tolist() == p.terms.ids.tolist()
        assert weights.weights.tolist() == p.terms.weights.tolist()


def test_what_was_read_can_be_written_back_bit_by_bit(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = random_points(rng, dataset, 50)
    index.upsert(SPACE, points)
    first = index.vectors(SPACE, [p.id for p in points])
    index.upsert(SPACE, [replace(p, dense=first[p.id][0]) for p in points])
    second = index.vectors(SPACE, [p.id for p in points])
    for p in points:
        assert np.array_equal(first[p.id][0], second[p.id][0])  # type: ignore[arg-type]


# -- any history


Step = tuple[str, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["upsert", "upsert", "upsert", "delete", "document", "dataset", "optimize"]
        ),
        st.integers(0, 11),  # which point
        st.integers(0, 2),  # which document
        st.integers(1, 3),  # version, and what the text says
    ),
    max_size=25,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_after_any_history_the_index_equals_a_plain_dictionary(
    index: SegmentIndex, steps: list[Step]
) -> None:
    dataset, documents = uuid4(), [uuid4() for _ in range(3)]
    ids = [uuid4() for _ in range(12)]
    model: dict[UUID, Point] = {}
    for what, which, document, version in steps:
        if what == "upsert":
            written = point(
                dataset,
                along(1, which % 4, version),
                {version: 1.0 + which % 3, 10 + which: 1.0} if which else {},
                id=ids[which],
                document_id=documents[document],
                version=version,
            )
            index.upsert(SPACE, [written])
            model[written.id] = written
        elif what == "delete":
            index.delete(SPACE, ids[which:], up_to_version=version)
            model = {id: p for id, p in model.items() if id in ids[:which] or p.version > version}
        elif what == "document":
            index.delete_document(SPACE, dataset, documents[document])
            model = {id: p for id, p in model.items() if p.document_id != documents[document]}
        elif what == "dataset":
            index.delete_dataset(SPACE, dataset)
            model = {}
        else:
            index.optimize(budget_s=0.5)
    oracle, query, words = Oracle(model), vector(1, 1, 1), terms({1: 1.0, 2: 2.0, 13: 1.0})
    assert list(index.scan(SPACE, dataset)) == [head(model[id]) for id in sorted(model)]
    assert index.count(SPACE, dataset) == len(model)
    assert_ranked(index.nearest(SPACE, dataset, query, 5), oracle.dense(dataset, query), 5)
    assert_ranked(index.best(SPACE, dataset, words, 5), oracle.text(dataset, words), 5)


# -- at the same time


def test_queries_answer_rightly_while_other_threads_write(
    index: SegmentIndex, dataset: UUID, rng: np.random.Generator
) -> None:
    points = random_points(rng, dataset, 200)
    index.upsert(SPACE, points)
    query, words = rng.normal(size=DIM).astype(np.float32), terms({1: 1.0, 2: 1.0})
    expected = index.nearest(SPACE, dataset, query, 20), index.best(SPACE, dataset, words, 20)
    others = [random_points(rng, uuid4(), 800) for _ in range(2)]
    done = Event()

    def write(points: Sequence[Point]) -> None:
        for start in range(0, len(points), 40):
            index.upsert(SPACE, points[start : start + 40])
            index.optimize(budget_s=0.1)
            if start % 200 == 0:
                index.flush(SPACE)

    def read(other: UUID) -> int:
        rounds, seen = 0, 0
        while not done.is_set():
            assert index.nearest(SPACE, dataset, query, 20) == expected[0]
            assert index.best(SPACE, dataset, words, 20) == expected[1]
            count = index.count(SPACE, other)
            assert count >= seen
            seen = count
            assert all(h.dataset_id == other for h in index.scan(SPACE, other))
            rounds += 1
        return rounds

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, other[0].dataset_id) for other in others]
        writers = [pool.submit(write, other) for other in others]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        assert all(reader.result() > 0 for reader in readers)
    for other in others:
        assert index.count(SPACE, other[0].dataset_id) == 800


# -- durability


def test_every_acknowledged_point_survives_a_kill(adapter: str, tmp_path: Path) -> None:
    chance, acknowledged = random.Random(), 0
    for _ in range(3):
        command = [sys.executable, "-m", "tests.contracts.segment_index", adapter, str(tmp_path)]
        with subprocess.Popen(
            [*command, str(acknowledged)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 60)):
                acknowledged = int(child.stdout.readline())
            child.kill()
            acknowledged = max([acknowledged, *map(int, child.stdout.read().split())])
        index = ADAPTERS[adapter](tmp_path)
        index.ensure_space(SPACE)
        expected = [numbered(n) for n in range(acknowledged)]
        found = index.vectors(SPACE, [p.id for p in expected])
        heads = {h.id: h for h in index.scan(SPACE)}
        for p in expected:
            assert heads[p.id] == head(p)
            dense, weights = found[p.id]
            assert np.array_equal(dense, p.dense)  # type: ignore[arg-type]
            assert weights.ids.tolist() == p.terms.ids.tolist()
        # At most the one call that was not acknowledged is there too.
        assert len(heads) - acknowledged in range(9)
        words = terms({3: 1.0, 1000 + acknowledged - 1: 1.0})
        stored = Oracle.of(numbered(h.id.int) for h in heads.values())
        assert_ranked(
            index.best(SPACE, UUID(int=7), words, 50), stored.text(UUID(int=7), words), 50
        )
        index.close()


def test_points_survive_a_close_and_closing_repeats_safely(adapter: str, tmp_path: Path) -> None:
    first = ADAPTERS[adapter](tmp_path)
    first.ensure_space(SPACE)
    stored = numbered(3)
    first.upsert(SPACE, [stored])
    first.close()
    first.close()
    for call in (
        lambda: first.ensure_space(SPACE),
        lambda: first.upsert(SPACE, [stored]),
        lambda: first.count(SPACE),
        lambda: list(first.scan(SPACE)),
        lambda: first.nearest(SPACE, stored.dataset_id, vector(1), 1),
        lambda: first.flush(SPACE),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            call()
    second = ADAPTERS[adapter](tmp_path)
    assert [h.id for h in second.scan(SPACE)] == [stored.id]
    second.close()
