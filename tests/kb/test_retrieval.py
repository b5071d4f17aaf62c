"""retrieve() over real SQL and the real index, against brute force."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf, nan
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from kb.db import reading
from kb.errors import ProviderNotInitialized, StoreUnavailable
from kb.models import ChildChunk, Dataset, DocForm, Document, Segment
from kb.ports import SegmentIndex
from kb.resources import Resources
from kb.retrieval.analysis import terms_of_query
from kb.retrieval.fusion import Weights
from kb.retrieval.service import retrieve
from kb.retrieval.types import Hit, RetrievalSettings, SearchMethod
from kb.settings import Retrieval
from kb.wiring import open_resources
from pipelines.errors import TransientError
from pipelines.ports import Embedder
from pipelines.types import Vector
from tests.contracts.segment_index import unit
from tests.kb.retrieval_oracle import (
    FULL_TEXT,
    HYBRID,
    KEYWORD,
    SEMANTIC,
    SPACE,
    WORDS,
    Builder,
    Corpus,
    TinyEmbedder,
    assert_best,
    direction,
)
from tests.kb.server import test_settings

pytestmark = pytest.mark.integration

ALL = 1000
"""A top_k beyond every dataset of these tests."""


class World:
    """Datasets to read. Tests that change something roll it back, or make a dataset of their own.

    Attributes:
        flat, tree, economy: with every kind of point that may not be found, and equal texts.
        ten: small ones.
    """

    def __init__(self, opened: Resources) -> None:
        self.embedder = TinyEmbedder()
        self.resources = replace(opened, embedders=lambda name: {SPACE.name: self.embedder}[name])
        self.build = build = Builder(self.resources, seed=11)
        self.ten = [flat_corpus(build, f"ten-{i}", documents=1, dead=1) for i in range(10)]
        self.flat = flat_corpus(build, "flat", documents=45, dead=12)
        self.tree = tree_corpus(build)
        self.economy = flat_corpus(build, "economy", documents=6, dead=5, economy=True)

    def ask(
        self,
        corpora: Sequence[Corpus],
        query: str,
        asked: RetrievalSettings,
        *,
        session: Session | None = None,
        depth: int | None = None,
    ) -> tuple[Hit, ...]:
        """Retrieve; `depth` is the process's candidate depth."""
        resources = self.resources if depth is None else at_depth(self.resources, depth)
        datasets = [corpus.dataset for corpus in corpora]
        if session is not None:
            return retrieve(session, query, datasets, asked, resources).hits
        with reading(resources.sessions) as fresh:
            return retrieve(fresh, query, datasets, asked, resources).hits

    def groups(self) -> dict[str, list[Corpus]]:
        """Datasets that are asked together."""
        return {
            "flat": [self.flat],
            "tree": [self.tree],
            "economy": [self.economy],
            "mixed": [self.flat, self.tree, self.economy],
            "ten": self.ten,
        }


@pytest.fixture(scope="module")
def world(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_resources(test_settings(tmp_path_factory.mktemp("retrieval") / "data")) as opened:
        yield World(opened)


def at_depth(resources: Resources, depth: int) -> Resources:
    """With this candidate depth."""
    changed = {"retrieval": Retrieval(candidate_depth=depth)}
    return replace(resources, settings=resources.settings.model_copy(update=changed))


def flat_corpus(
    build: Builder, name: str, *, documents: int, dead: int, economy: bool = False
) -> Corpus:
    """Ten texts a document, of which two are those of the document before."""
    corpus = build.corpus(name, economy=economy, doc_form=DocForm.TEXT)
    repeated: list[str] = []
    for _ in range(documents):
        texts = [*repeated, *texts_of(build, 10 - len(repeated))]
        repeated = texts[-2:]
        build.add(corpus, build.document(corpus), texts)
    whole = build.document(corpus)
    build.add(corpus, whole, texts_of(build, dead), findable=False, in_sql=False)
    build.add(corpus, whole, texts_of(build, dead), findable=False, enabled=False)
    build.add(corpus, whole, texts_of(build, dead), findable=False, live=False)
    build.add(corpus, whole, texts_of(build, dead), findable=False, has_children=True)
    for columns in ({"enabled": False}, {"archived": True}):
        hidden = build.document(corpus, **columns)
        build.add(corpus, hidden, texts_of(build, dead), findable=False)
    return corpus


def tree_corpus(build: Builder) -> Corpus:
    """Parents of 1 to 8 children, and one of 80."""
    corpus = build.corpus("tree")
    document = build.document(corpus)
    for number in range(30):
        children = texts_of(build, 1 + number % 8)
        build.add_parent(corpus, document, children, dead_children=texts_of(build, number % 3))
    build.add_parent(corpus, document, texts_of(build, 80))
    hidden = build.document(corpus, archived=True)
    for _ in range(4):
        build.add_parent(corpus, document, texts_of(build, 3), findable=False, enabled=False)
        build.add_parent(corpus, document, texts_of(build, 3), findable=False, live=False)
        build.add_parent(corpus, hidden, texts_of(build, 3), findable=False)
    return corpus


def texts_of(build: Builder, number: int) -> list[str]:
    return [build.words() for _ in range(number)]


words = st.sampled_from([*WORDS, "nowhere"])
queries = st.lists(words, min_size=1, max_size=4).map(" ".join)
methods = st.sampled_from(list(SearchMethod))
groups = st.sampled_from(["flat", "tree", "economy", "mixed", "ten"])
weights = st.one_of(
    st.sampled_from([Weights(0.5, 0.5), Weights(1, 0), Weights(0, 1), Weights(0.9, 0.1)]),
    st.builds(Weights, st.floats(0.01, 10), st.floats(0.01, 10)),
)
top_ks = st.integers(1, 40)
thresholds = st.none() | st.floats(0, 1)


# -- the same as brute force


@settings(max_examples=80)
@given(queries, groups, methods, weights, top_ks | st.just(ALL), thresholds)
def test_the_answer_is_that_of_brute_force_over_every_live_text(
    world: World,
    query: str,
    group: str,
    method: SearchMethod,
    weights: Weights,
    top_k: int,
    threshold: float | None,
) -> None:
    asked = RetrievalSettings(method, top_k, threshold, weights)
    corpora = world.groups()[group]
    assert_best(world.ask(corpora, query, asked, depth=1000), corpora, query, asked)


@settings(max_examples=40)
@given(queries, groups, weights, top_ks | st.just(ALL), st.integers(1, 60))
def test_a_hybrid_query_takes_the_best_of_each_leg_down_to_the_candidate_depth(
    world: World, query: str, group: str, weights: Weights, top_k: int, depth: int
) -> None:
    asked = RetrievalSettings(HYBRID, top_k, None, weights)
    corpora = world.groups()[group]
    hits = world.ask(corpora, query, asked, depth=depth)
    assert_best(hits, corpora, query, asked, depth=depth)


@settings(max_examples=40)
@given(queries, groups, methods, weights, top_ks, top_ks, thresholds)
def test_results_for_k_are_a_prefix_of_those_for_a_larger_k(
    world: World,
    query: str,
    group: str,
    method: SearchMethod,
    weights: Weights,
    one: int,
    other: int,
    threshold: float | None,
) -> None:
    fewer, more = (
        shown(
            world.ask(
                world.groups()[group], query, RetrievalSettings(method, k, threshold, weights)
            )
        )
        for k in sorted((one, other))
    )
    assert fewer == more[: min(one, other)]


def shown(hits: Sequence[Hit]) -> list[tuple[Any, ...]]:
    """What a caller sees of hits, without the ranks, which are known only as deep as was read."""
    return [
        (
            hit.segment.id,
            hit.score,
            hit.children,
            hit.explanation.point_id,
            *(
                (leg.raw, leg.normalised)
                for leg in (hit.explanation.dense, hit.explanation.text)
                if leg
            ),
        )
        for hit in hits
    ]


@settings(max_examples=40)
@given(queries, groups, methods, weights, top_ks, st.data())
def test_raising_the_threshold_only_takes_the_worst_away(
    world: World,
    query: str,
    group: str,
    method: SearchMethod,
    weights: Weights,
    top_k: int,
    data: st.DataObject,
) -> None:
    corpora = world.groups()[group]
    everything = world.ask(corpora, query, RetrievalSettings(method, ALL, None, weights))
    scores = st.sampled_from([hit.score for hit in everything] or [0.5])
    threshold = data.draw(scores | st.floats(-1, 2), "threshold")
    found = world.ask(corpora, query, RetrievalSettings(method, top_k, threshold, weights))
    reached = [hit.segment.id for hit in everything if hit.score >= threshold]
    assert [hit.segment.id for hit in found] == reached[:top_k]
    assert all(child.score >= threshold for hit in found for child in hit.children)


@settings(max_examples=30)
@given(queries, groups.filter(lambda group: group != "mixed"), top_ks)
def test_a_leg_with_all_the_weight_is_that_leg(
    world: World, query: str, group: str, top_k: int
) -> None:
    corpora = world.groups()[group]
    for pure, weights in ((SEMANTIC, Weights(1, 0)), (FULL_TEXT, Weights(0, 3))):
        alone = world.ask(corpora, query, RetrievalSettings(pure, top_k))
        hybrid = world.ask(corpora, query, RetrievalSettings(HYBRID, top_k, None, weights), depth=2)
        assert [(h.segment.id, h.score, h.children) for h in hybrid] == [
            (h.segment.id, h.score, h.children) for h in alone
        ]
        for hit in hybrid:
            if hit.segment.dataset_id != world.economy.dataset.id:
                assert hit.explanation.dense is not None, "the other leg still shows its score"
                assert hit.explanation.text is not None


# -- raw scores


@settings(max_examples=20)
@given(queries, st.sampled_from([SEMANTIC, FULL_TEXT, HYBRID]), st.data())
def test_what_is_filtered_in_sql_changes_no_raw_score(
    world: World, query: str, method: SearchMethod, data: st.DataObject
) -> None:
    asked = RetrievalSettings(method, ALL)
    before = raw_scores(world.ask([world.flat], query, asked))
    documents = sorted({text.point.document_id for text in world.flat.live})
    hidden = set(data.draw(st.lists(st.sampled_from(documents), min_size=1), "documents"))
    with world.resources.sessions.write() as session:
        session.execute(update(Document).where(Document.id.in_(hidden)).values(enabled=False))
        after = raw_scores(world.ask([world.flat], query, asked, session=session))
    home = {text.point.segment_id: text.point.document_id for text in world.flat.texts}
    assert after == {id: raw for id, raw in before.items() if home[id] not in hidden}


@settings(max_examples=20)
@given(queries, st.data())
def test_the_document_filter_of_the_index_changes_no_raw_score(
    world: World, query: str, data: st.DataObject
) -> None:
    index, dataset_id = world.resources.index, world.flat.dataset.id
    documents = sorted({text.point.document_id for text in world.flat.texts})
    kept = data.draw(st.lists(st.sampled_from(documents), unique=True), "documents")
    home = {text.point.id: text.point.document_id for text in world.flat.texts}
    vector = world.embedder.embed_query(query)
    terms, _ = terms_of_query(query)
    for everything, some in (
        (
            index.nearest(SPACE, dataset_id, vector, ALL),
            index.nearest(SPACE, dataset_id, vector, ALL, documents=kept),
        ),
        (
            index.best(SPACE, dataset_id, terms, ALL),
            index.best(SPACE, dataset_id, terms, ALL, documents=kept),
        ),
    ):
        assert some == [point for point in everything if home[point.id] in kept]


def raw_scores(hits: Sequence[Hit]) -> dict[UUID, tuple[float | None, ...]]:
    """By segment: cosine and BM25 score."""
    return {
        hit.segment.id: tuple(
            leg.raw if leg is not None else None
            for leg in (hit.explanation.dense, hit.explanation.text)
        )
        for hit in hits
    }


@settings(max_examples=15)
@given(queries, methods, weights)
def test_ten_datasets_of_one_space_cost_one_embedding_and_share_one_scale(
    world: World, query: str, method: SearchMethod, weights: Weights
) -> None:
    asked = RetrievalSettings(method, ALL, None, weights)
    world.embedder.queries.clear()
    together = world.ask(world.ten, query, asked)
    assert world.embedder.queries == ([query] if method.uses_dense else [])
    raw = raw_scores(together)
    best_text = max((text or 0.0 for _, text in raw.values()), default=0.0)
    for corpus in world.ten:
        alone = world.ask([corpus], query, asked)
        assert raw_scores(alone).items() <= raw.items(), "raw scores know no other dataset"
    for hit in together:
        text = hit.explanation.text
        if text is not None and best_text:
            assert text.normalised == pytest.approx(text.raw / best_text, abs=1e-12)


# -- ties


@pytest.mark.parametrize("method", list(SearchMethod))
def test_equal_scores_are_ordered_by_id_however_many_are_asked_for(
    world: World, method: SearchMethod
) -> None:
    corpus = world.build.corpus(f"ties-{method}")
    document = world.build.document(corpus)
    better = world.build.add(corpus, document, ["anchor anchor basil"])
    ids = world.build.add(corpus, document, ["anchor basil copper"] * 300)
    query = "anchor anchor basil"  # also the first text's vector
    for top_k in (1, 2, 49, 50, 51, 100, 301):
        asked = RetrievalSettings(method, top_k)
        hits = world.ask([corpus], query, asked)
        assert [hit.segment.id for hit in hits] == [*better, *sorted(ids)][:top_k]
        assert len({hit.score for hit in hits[1:]}) <= 1


# -- parents


def test_top_k_counts_parents_even_when_one_has_all_the_best_children(world: World) -> None:
    build = world.build
    corpus = build.corpus("greedy")
    document = build.document(corpus)
    greedy = build.add_parent(corpus, document, ["quartz quartz quartz"] * 400)
    modest = [build.add_parent(corpus, document, [f"quartz {word} dune"]) for word in WORDS[:5]]
    query = "quartz quartz quartz"
    for method in SearchMethod:
        asked = RetrievalSettings(method, 6)
        hits = world.ask([corpus], query, asked)
        assert hits[0].segment.id == greedy
        assert {hit.segment.id for hit in hits[1:]} == set(modest), method
        assert_best(hits, [corpus], query, asked)
        assert len(hits[0].children) == 50
        assert [len(hit.children) for hit in hits[1:]] == [1] * 5


def test_a_parent_lists_the_children_that_matched_best_first(world: World) -> None:
    build = world.build
    corpus = build.corpus("family")
    children = ["ember falcon", "ember", "garnet harbor", "ember ember falcon falcon"]
    parent = build.add_parent(
        corpus, build.document(corpus), children, dead_children=["ember falcon indigo"]
    )
    (hit,) = world.ask([corpus], "ember falcon", RetrievalSettings(FULL_TEXT, 5))
    assert hit.segment.id == parent
    assert [child.content for child in hit.children] == [children[i] for i in (3, 0, 1)]
    assert [child.position for child in hit.children] == [4, 1, 2]
    assert hit.score == hit.children[0].score == 1.0
    second = hit.children[1].score
    (hit,) = world.ask([corpus], "ember falcon", RetrievalSettings(FULL_TEXT, 5, second))
    assert [child.content for child in hit.children] == [children[3], children[0]]


# -- what may not be found


def kill(session: Session, how: str, segment: Segment, point: UUID) -> None:
    """Make what was found unfindable, without a word to the index."""
    if how == "deleted":
        session.execute(delete(Segment).where(Segment.id == segment.id))
    elif how == "disabled":
        session.execute(update(Segment).where(Segment.id == segment.id).values(enabled=False))
    elif how == "superseded":
        session.execute(update(Segment).where(Segment.id == segment.id).values(live=False))
    elif how == "child superseded":
        session.execute(update(ChildChunk).where(ChildChunk.id == point).values(live=False))
    elif how == "child deleted":
        session.execute(delete(ChildChunk).where(ChildChunk.id == point))
    else:
        values = {"document disabled": {"enabled": False}, "document archived": {"archived": True}}
        session.execute(
            update(Document).where(Document.id == segment.document_id).values(**values[how])
        )
    session.expire_all()


def survivors(corpus: Corpus, how: str, segment: Segment, point: UUID) -> Corpus:
    """The corpus as it is after `kill`."""

    def dies(text: Any) -> bool:
        if how.startswith("child"):
            return bool(text.point.id == point)
        if how.startswith("document"):
            return bool(text.point.document_id == segment.document_id)
        return bool(text.point.segment_id == segment.id)

    texts = [replace(text, live=text.live and not dies(text)) for text in corpus.texts]
    return replace(corpus, texts=texts)


DEATHS = ["deleted", "disabled", "superseded", "document disabled", "document archived"]
CHILD_DEATHS = ["child superseded", "child deleted"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("flat", how) for how in DEATHS),
        *(("economy", how) for how in DEATHS[:3]),
        *(("tree", how) for how in [*DEATHS[:3], *CHILD_DEATHS]),
    ],
)
@pytest.mark.parametrize("method", [SEMANTIC, FULL_TEXT, HYBRID])
def test_what_is_not_live_gives_its_place_to_the_next_at_once(
    world: World, name: str, how: str, method: SearchMethod
) -> None:
    corpus = world.groups()[name][0]
    query, asked = "anchor basil copper", RetrievalSettings(method, 5)
    with world.resources.sessions.write() as session:
        for _ in range(4):
            best = world.ask([corpus], query, asked, session=session)[0]
            point = best.explanation.point_id
            kill(session, how, best.segment, point)
            corpus = survivors(corpus, how, best.segment, point)
            hits = world.ask([corpus], query, asked, session=session)
            assert len(hits) == 5
            assert_best(hits, [corpus], query, asked)


def test_points_of_nothing_but_the_dead_are_passed_over_at_any_depth(world: World) -> None:
    build = world.build
    corpus = build.corpus("graveyard")
    document = build.document(corpus)
    build.add(corpus, document, ["raven raven raven"] * 700, findable=False, enabled=False)
    alive = build.add(corpus, document, ["raven dune", "raven ember", "timber"])
    for method in SearchMethod:
        hits = world.ask([corpus], "raven raven raven", RetrievalSettings(method, 2))
        assert {hit.segment.id for hit in hits} <= set(alive)
        assert len(hits) == 2
        assert_best(hits, [corpus], "raven raven raven", RetrievalSettings(method, 2))


# -- economy


@settings(max_examples=20)
@given(queries, methods, weights, top_ks)
def test_every_method_is_full_text_in_an_economy_dataset(
    world: World, query: str, method: SearchMethod, weights: Weights, top_k: int
) -> None:
    world.embedder.queries.clear()
    hits = world.ask([world.economy], query, RetrievalSettings(method, top_k, None, weights))
    full_text = world.ask([world.economy], query, RetrievalSettings(FULL_TEXT, top_k))
    assert shown(hits) == shown(full_text)
    assert world.embedder.queries == []
    assert all(hit.explanation.dense is None for hit in hits)


# -- legs are read as deep as it takes


def test_a_text_that_is_good_on_both_sides_is_found_below_the_best_of_either(world: World) -> None:
    corpus = world.build.corpus("both-sides")
    document = world.build.document(corpus)
    query = "anchor basil"
    near, across = direction(query), orthogonal(direction(query))
    world.build.add(corpus, document, ["dune ember"] * 120, dense=near)
    world.build.add(corpus, document, [query] * 120, dense=across)
    (both,) = world.build.add(
        corpus, document, ["anchor basil copper dune"], dense=unit(near + 0.3 * across)
    )
    asked = RetrievalSettings(HYBRID, 1)
    (hit,) = world.ask([corpus], query, asked)
    assert hit.segment.id == both
    assert_best([hit], [corpus], query, asked)
    (hit,) = world.ask([corpus], query, asked, depth=120)
    assert hit.segment.id != both, "the setting bounds how deep a hybrid query reads"


def test_an_easy_hybrid_query_reads_no_deeper_than_the_first_depth(world: World) -> None:
    corpus = world.build.corpus("easy")
    document = world.build.document(corpus)
    query = "harbor indigo"
    (best,) = world.build.add(corpus, document, [query])
    world.build.add(corpus, document, ["harbor quartz raven saddle timber"] * 400)
    index = Watched(world.resources.index)
    resources = replace(world.resources, index=index)
    with reading(resources.sessions) as session:
        asked = RetrievalSettings(HYBRID, 1)
        (hit,) = retrieve(session, query, [corpus.dataset], asked, resources).hits
    assert hit.segment.id == best
    assert index.limits == {"nearest": [50], "best": [50]}


def test_of_many_datasets_little_is_read_at_first_and_more_of_the_one_that_has_more(
    world: World,
) -> None:
    build, query = world.build, "harbor indigo"
    poor = [build.corpus(f"poor-{n}", doc_form=DocForm.TEXT) for n in range(17)]
    for corpus in poor:
        build.add(corpus, build.document(corpus), ["quartz raven saddle timber"] * 30)
    rich = build.corpus("rich", doc_form=DocForm.TEXT)
    ids = build.add(rich, build.document(rich), [query] * 25)
    few, many = [*poor[:7], rich], [*poor, rich]
    # 80 of one dataset are 20 of each of 8; 50 of one are 10 of each of 18, of which one has more.
    for corpora, top_k, limits in ((few, 20, [20] * 8), (many, 12, [10] * 18 + [20])):
        index = Watched(world.resources.index)
        resources = replace(world.resources, index=index)
        with reading(resources.sessions) as session:
            asked = RetrievalSettings(SEMANTIC, top_k)
            datasets = [corpus.dataset for corpus in corpora]
            hits = retrieve(session, query, datasets, asked, resources).hits
        assert [hit.segment.id for hit in hits] == sorted(ids)[:top_k]
        assert index.limits["nearest"] == limits


def test_equal_scores_do_not_make_a_query_read_deeper(world: World) -> None:
    corpus = world.build.corpus("all-equal")
    document = world.build.document(corpus)
    ids = world.build.add(corpus, document, ["harbor indigo"] * 300)
    index = Watched(world.resources.index)
    resources = replace(world.resources, index=index)
    for method in (SEMANTIC, FULL_TEXT, HYBRID):
        with reading(resources.sessions) as session:
            asked = RetrievalSettings(method, 5)
            hits = retrieve(session, "harbor", [corpus.dataset], asked, resources).hits
        assert [hit.segment.id for hit in hits] == sorted(ids)[:5]
    assert index.limits == {"nearest": [50, 50], "best": [50, 50]}


def test_an_equal_score_below_the_depth_comes_first_if_its_id_does(world: World) -> None:
    build, text = world.build, ["jungle kettle"]
    first, second = build.corpus("equal-children"), build.corpus("equal-segment")
    document = build.document(first)
    build.next_ids = [UUID(int=n) for n in range(1, 72)]
    greedy = build.add_parent(first, document, text * 60)
    hidden = build.add_parent(first, document, text * 9)
    build.next_ids = [UUID(int=1000)]
    (last,) = build.add(second, build.document(second), text)
    # Of the semantic leg: BM25 scores of two datasets are never equal, their idfs differ.
    for top_k in (2, 3):
        hits = world.ask([first, second], "jungle kettle", RetrievalSettings(SEMANTIC, top_k))
        assert [hit.segment.id for hit in hits] == [greedy, hidden, last][:top_k]


def orthogonal(vector: Vector) -> Vector:
    """A unit vector across this one."""
    other = direction("another direction")
    return unit(other - vector * float(vector @ other))


class Watched:
    """The real index; before each call of a method, `before[name]` runs, and limits are noted."""

    def __init__(self, index: SegmentIndex, **before: Callable[[], object]) -> None:
        self._index, self._before = index, before
        self.limits: dict[str, list[int]] = {"nearest": [], "best": []}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._index, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._before.get(name, bool)()
            if name in self.limits:
                self.limits[name].append(args[-1])
            return method(*args, **kwargs)

        return call


# -- the world goes on while a query is answered


def test_points_that_vanish_during_a_query_do_no_harm(world: World) -> None:
    corpus = world.build.corpus("vanishing")
    document = world.build.document(corpus)
    query = "kettle lantern"
    across = orthogonal(direction(query))
    lexical = world.build.add(corpus, document, [query] * 60, dense=-direction(query))
    dense = world.build.add(corpus, document, ["dune"] * 60, dense=direction(query))
    world.build.add(corpus, document, ["kettle ember"] * 60, dense=across)
    index = world.resources.index

    def vanish() -> None:
        index.delete(SPACE, [*lexical, *dense], up_to_version=1)

    resources = at_depth(replace(world.resources, index=Watched(index, dense_scores=vanish)), 50)
    with reading(resources.sessions) as session:
        asked = RetrievalSettings(HYBRID, 5, None, Weights(0.4, 0.6))
        hits = retrieve(session, query, [corpus.dataset], asked, resources).hits
    # SQL still has them all, so they are answered, with what is known of them.
    assert [hit.segment.id for hit in hits] == sorted(lexical)[:5]
    for hit in hits:
        assert hit.explanation.dense is None
        assert hit.explanation.text is not None
        assert hit.score == pytest.approx(0.6 * hit.explanation.text.normalised, abs=1e-6)


def test_rows_that_vanish_during_a_query_are_left_out(world: World) -> None:
    corpus = world.tree
    query = "anchor basil"
    asked = RetrievalSettings(HYBRID, 5)
    expected = world.ask([corpus], query, asked)
    gone = expected[1].segment.id
    with world.resources.sessions.write() as session:
        # The rows are deleted after the legs were read; as by another transaction, where the
        # database shows what was committed meanwhile.
        index = Watched(
            world.resources.index,
            dense_scores=lambda: session.execute(delete(Segment).where(Segment.id == gone)),
        )
        resources = replace(world.resources, index=index)
        hits = retrieve(session, query, [corpus.dataset], asked, resources).hits
    assert shown(hits) == shown([hit for hit in expected if hit.segment.id != gone])


# -- nothing to find, nothing to find it with


def test_a_query_without_any_term_is_answered_by_the_dense_leg(world: World) -> None:
    asked = RetrievalSettings(HYBRID, 5)
    hits = world.ask([world.flat], "?!", asked)
    assert_best(hits, [world.flat], "?!", asked)
    assert len(hits) == 5
    assert all(hit.score <= 0.5 for hit in hits)
    assert world.ask([world.flat], "?!", RetrievalSettings(FULL_TEXT, 5)) == ()


def test_terms_that_no_text_holds_find_nothing(world: World) -> None:
    for method in (FULL_TEXT, KEYWORD):
        assert world.ask([world.flat], "nowhere", RetrievalSettings(method, 5)) == ()


@pytest.mark.parametrize("query", ["", " \n\t"])
def test_an_empty_query_finds_nothing_and_costs_nothing(world: World, query: str) -> None:
    world.embedder.queries.clear()
    assert world.ask([world.flat], query, RetrievalSettings(HYBRID, 5)) == ()
    assert world.embedder.queries == []


def test_datasets_without_documents_are_passed_over(world: World) -> None:
    empty = world.build.corpus("empty")
    never = world.build.corpus("never")
    never.dataset = Dataset(id=never.dataset.id, name="never")  # no technique yet
    asked = RetrievalSettings(HYBRID, 5)
    assert world.ask([empty, never], "anchor", asked) == ()
    assert world.ask([never], "anchor", asked) == ()
    assert shown(world.ask([empty, never, world.flat], "anchor", asked)) == shown(
        world.ask([world.flat], "anchor", asked)
    )


@pytest.mark.parametrize("method", list(SearchMethod))
def test_a_dataset_that_is_named_twice_is_asked_once(world: World, method: SearchMethod) -> None:
    asked = RetrievalSettings(method, 10)
    once = world.ask([world.tree], "anchor basil", asked)
    assert shown(world.ask([world.tree, world.tree], "anchor basil", asked)) == shown(once)


def test_a_space_without_an_embedder_is_an_error_unless_full_text_is_asked(world: World) -> None:
    def refuse(name: str) -> Embedder:
        raise ProviderNotInitialized(f"no model for {name}")

    resources = replace(world.resources, embedders=refuse)
    with reading(resources.sessions) as session:
        for method in (SEMANTIC, HYBRID):
            with pytest.raises(ProviderNotInitialized, match="no model for retrieval-test"):
                retrieve(
                    session, "anchor", [world.flat.dataset], RetrievalSettings(method, 5), resources
                )
        asked = RetrievalSettings(FULL_TEXT, 5)
        assert retrieve(session, "anchor", [world.flat.dataset], asked, resources).hits


def test_what_the_model_raises_reaches_the_caller(world: World) -> None:
    class Broken(TinyEmbedder):
        def embed_query(self, text: str) -> Vector:
            raise TransientError("the model's server does not answer")

    resources = replace(world.resources, embedders=lambda name: Broken())
    with (
        reading(resources.sessions) as session,
        pytest.raises(TransientError, match="does not answer"),
    ):
        retrieve(session, "anchor", [world.flat.dataset], RetrievalSettings(HYBRID, 5), resources)


def test_what_the_index_raises_reaches_the_caller(world: World) -> None:
    def refuse() -> None:
        raise StoreUnavailable("test", "search")

    for method in ("nearest", "best", "dense_scores"):
        resources = replace(
            world.resources, index=Watched(world.resources.index, **{method: refuse})
        )
        asked = RetrievalSettings(HYBRID, 5)
        with reading(resources.sessions) as session, pytest.raises(StoreUnavailable):
            retrieve(session, "anchor basil", [world.flat.dataset], asked, resources)


class Torn:
    """The real index; one method fails for one dataset."""

    def __init__(self, index: SegmentIndex, method: str, dataset_id: UUID) -> None:
        self._index, self._method, self._dataset_id = index, method, dataset_id

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._index, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name == self._method and args[1] == self._dataset_id:
                raise StoreUnavailable("test", name)
            return method(*args, **kwargs)

        return call


@pytest.mark.parametrize(
    ("method", "broken"),
    [("nearest", 0), ("nearest", 1), ("best", 1), ("best", 2), ("dense_scores", 1)],
)
def test_a_partial_answer_leaves_out_the_dataset_whose_index_fails_and_no_other(
    world: World, method: str, broken: int
) -> None:
    three = [world.ten[0], world.flat, world.ten[1]]
    others = [corpus for n, corpus in enumerate(three) if n != broken]
    asked = RetrievalSettings(HYBRID, 8)
    failing = three[broken].dataset.id
    resources = replace(world.resources, index=Torn(world.resources.index, method, failing))
    with reading(resources.sessions) as session:
        datasets = [corpus.dataset for corpus in three]
        found = retrieve(session, "anchor basil", datasets, asked, resources, partial=True)
    assert set(found.failures) == {failing}
    assert isinstance(found.failures[failing], StoreUnavailable)
    assert [(h.segment.id, h.score) for h in found.hits] == [
        (h.segment.id, h.score) for h in world.ask(others, "anchor basil", asked)
    ]


def test_a_partial_answer_leaves_out_the_datasets_of_a_space_that_cannot_embed(
    world: World,
) -> None:
    class Broken(TinyEmbedder):
        def embed_query(self, text: str) -> Vector:
            raise TransientError("the model's server does not answer")

    def refuse(name: str) -> Embedder:
        raise ProviderNotInitialized(f"no model for {name}")

    asked = RetrievalSettings(HYBRID, 5)
    alone = [hit.segment.id for hit in world.ask([world.economy], "anchor", asked)]
    assert alone
    datasets = [world.flat.dataset, world.economy.dataset, world.tree.dataset]
    for embedders in (refuse, lambda name: Broken()):
        resources = replace(world.resources, embedders=embedders)
        with reading(resources.sessions) as session:
            found = retrieve(session, "anchor", datasets, asked, resources, partial=True)
        assert set(found.failures) == {world.flat.dataset.id, world.tree.dataset.id}
        assert [hit.segment.id for hit in found.hits] == alone
        with reading(resources.sessions) as session:
            nothing = retrieve(session, "anchor", datasets[:1], asked, resources, partial=True)
        assert (nothing.hits, set(nothing.failures)) == ((), {world.flat.dataset.id})


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_below_one_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k is {top_k}; give a number above 0"):
        RetrievalSettings(HYBRID, top_k)


@pytest.mark.parametrize("threshold", [nan, inf, -inf])
def test_a_threshold_that_is_no_number_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"score_threshold is .*; give a finite number"):
        RetrievalSettings(HYBRID, 5, threshold)


def test_every_stage_is_timed(world: World) -> None:
    with reading(world.resources.sessions) as session:
        asked = RetrievalSettings(HYBRID, 5)
        found = retrieve(session, "anchor", [world.flat.dataset], asked, world.resources)
    assert found.timings_ms.keys() == {"embed", "search", "fuse", "hydrate"}
    assert all(took_ms >= 0 for took_ms in found.timings_ms.values())
