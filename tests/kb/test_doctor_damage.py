"""The doctor against random damage: all of it is found, and made good without the model.

On both databases and both index adapters; then counters, stuck documents and damaged files.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, select, update

from kb.db import now, reading, transaction
from kb.doctor import KEPT, Kind, Report, examine
from kb.doctor import points as doctor_points
from kb.ingestion.claims import claim_next
from kb.ingestion.embedding_cache import text_hash
from kb.models import (
    CachedEmbedding,
    ChildChunk,
    Dataset,
    Document,
    DocumentVersion,
    IndexingStatus,
    Job,
    Segment,
    SegmentStatus,
    UploadFile,
)
from kb.ports import Point, Space, Terms
from kb.resources import FULL_TEXT_SPACE
from tests.contracts.qdrant_double import Double
from tests.contracts.qdrant_server import options_for
from tests.kb.ingesting import ECONOMY, PARENTS, Lab, lines, open_lab

Damage = Callable[[Point, random.Random], Point]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is at work here, so a second look may follow at once."""
    monkeypatch.setattr(doctor_points, "_PAUSE_S", 0.0)


@pytest.fixture(params=["edge", "server"])
def lab(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Lab]:
    if request.param == "edge":
        with open_lab(tmp_path / "data", batch_segments=128) as opened:
            yield opened
        return
    double = Double(tmp_path / "qdrant")
    try:
        changes = {"qdrant": options_for(double)}
        with open_lab(tmp_path / "data", changes=changes, batch_segments=128) as opened:
            yield opened
    finally:
        double.close()


@pytest.fixture
def small(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path / "data") as opened:
        yield opened


def refuse(_texts: Sequence[str]) -> None:
    raise AssertionError("the model was asked")


def look(lab: Lab, *, repair: bool = False, deep: bool = True) -> Report:
    return examine(lab.resources, repair=repair, deep=deep)


def dense_space(lab: Lab) -> Space:
    return Space(lab.embedder.id, lab.embedder.dim)


def everything(lab: Lab, space: Space) -> dict[uuid.UUID, Point]:
    return {p.id: p for p in lab.resources.index.scan_points(space)}


def assert_same(found: dict[uuid.UUID, Point], wanted: dict[uuid.UUID, Point]) -> None:
    """Bit by bit; a version may be one that the document has got since."""
    assert found.keys() == wanted.keys()
    for i, point in found.items():
        assert replace(point.head, version=0) == replace(wanted[i].head, version=0)
        assert np.array_equal(point.terms.ids, wanted[i].terms.ids)
        assert np.array_equal(point.terms.weights, wanted[i].terms.weights)
        if point.dense is not None:
            np.testing.assert_allclose(point.dense, wanted[i].dense, rtol=0, atol=1e-7)


# -- random damage to the index


def _turned(point: Point, chance: random.Random) -> Point:
    assert point.dense is not None
    dense = point.dense.copy()
    dense[chance.randrange(len(dense))] += np.float32(1e-4)
    return replace(point, dense=dense)


def _reweighed(point: Point, chance: random.Random) -> Point:
    weights = point.terms.weights.copy()
    weights[chance.randrange(len(weights))] *= np.float32(1.001)
    return replace(point, terms=Terms(point.terms.ids, weights))


def _without_a_term(point: Point, chance: random.Random) -> Point:
    return replace(point, terms=Terms(point.terms.ids[1:], point.terms.weights[1:]))


def _another_hash(point: Point, chance: random.Random) -> Point:
    return replace(point, text_hash=f"{chance.getrandbits(256):064x}")


HEADS: dict[str, Damage] = {
    "text": _another_hash,
    "dataset": lambda p, c: replace(p, dataset_id=uuid.UUID(int=c.getrandbits(128))),
    "document": lambda p, c: replace(p, document_id=uuid.UUID(int=c.getrandbits(128))),
    "segment": lambda p, c: replace(p, segment_id=uuid.UUID(int=c.getrandbits(128))),
    "version": lambda p, c: replace(p, version=c.choice([0, 9, 2**53])),
}
INSIDES: dict[str, Damage] = {
    "vector": _turned,
    "terms": _reweighed,
    "terms lost": _without_a_term,
    "a stranger's": lambda p, c: replace(p, id=uuid.UUID(int=c.getrandbits(128))),
    "a stranger's of no dataset": lambda p, c: replace(
        p, id=uuid.UUID(int=c.getrandbits(128)), dataset_id=uuid.UUID(int=c.getrandbits(128))
    ),
}


def fill(lab: Lab, *, turns: int) -> None:
    """Flat and parent-child documents with several versions, and a dataset without vectors."""
    flat, parents = lab.dataset("flat"), lab.dataset("parents")
    cheap = lab.dataset("cheap", **ECONOMY)
    for turn in range(turns):
        lab.add(flat, f"f{turn}", lines(150, f"flat{turn}"))
        text = "\n\n".join(lines(5, f"w{turn}x{n}") for n in range(20))
        lab.add(parents, f"p{turn}", text, **PARENTS)
        lab.add(cheap, f"c{turn}", lines(50, f"cheap{turn}"))
    lab.settle()
    lab.add(flat, "f0", lines(160, "flat0"))  # a second version; most points are the first one's
    lab.settle()


def test_one_percent_of_random_damage_is_found_whole_and_made_good_without_the_model(
    lab: Lab,
) -> None:
    fill(lab, turns=8)
    spaces = (dense_space(lab), FULL_TEXT_SPACE)
    before = {space: everything(lab, space) for space in spaces}
    size = sum(map(len, before.values()))
    assert size > 2300
    assert look(lab).healthy()
    chance = random.Random(20260301)
    damaged: dict[str, set[uuid.UUID]] = {"deleted": set()}
    for space in spaces:
        points = chance.sample(
            sorted(before[space].values(), key=lambda p: p.id), k=len(before[space]) // 100 + 11
        )
        kinds = {**HEADS, **INSIDES, "deleted": None}
        for number, point in enumerate(points):
            name = sorted(kinds)[number % len(kinds)]
            if name == "vector" and space.dim is None:
                name = "deleted"
            damage = kinds[name]
            if damage is None:
                lab.resources.index.delete(space, [point.id], up_to_version=2**53)
                damaged["deleted"].add(point.id)
                continue
            changed = damage(point, chance)
            lab.resources.index.upsert(space, [changed])
            damaged.setdefault(name, set()).add(changed.id)
    assert set(damaged) == {*HEADS, *INSIDES, "deleted"}
    assert sum(map(len, damaged.values())) >= size // 100
    lab.embedder.before = refuse

    found = look(lab)
    named = {kind: {line.split(" ")[0] for line in found.first(kind)} for kind in Kind}
    strangers = damaged["a stranger's"] | damaged["a stranger's of no dataset"]
    assert named[Kind.MISSING] == {str(i) for i in damaged["deleted"]}
    assert named[Kind.STALE] == {str(i) for i in damaged["text"]}
    assert named[Kind.EXTRA] == {str(i) for i in strangers}
    wrong = ("dataset", "document", "segment", "version", "vector", "terms", "terms lost")
    assert sorted(found.first(Kind.WRONG)) == sorted(
        f"{i} ({name.removesuffix(' lost')})" for name in wrong for i in damaged[name]
    )
    assert found.unchecked_vectors == 0

    assert look(lab, repair=True).shape() | {"repaired": False} == found.shape()
    assert look(lab).healthy()
    for space in spaces:
        assert_same(everything(lab, space), before[space])


def test_the_quick_look_finds_all_damage_to_heads_and_makes_it_good(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(40, "red"))
    lab.settle()
    space = dense_space(lab)
    before = everything(lab, space)
    chance = random.Random(1)
    ids = sorted(before)
    for number, damage in enumerate([*HEADS.values(), INSIDES["a stranger's"]]):
        lab.resources.index.upsert(space, [damage(before[ids[number]], chance)])
    lab.resources.index.delete(space, [ids[20]], up_to_version=2**53)
    found = look(lab, deep=False, repair=True)
    assert {kind: found.count(kind) for kind in found.findings} == {
        Kind.MISSING: 1,
        Kind.STALE: 1,
        Kind.WRONG: 4,
        Kind.EXTRA: 1,
    }
    assert look(lab).healthy()
    assert_same(everything(lab, space), before)


def test_points_of_another_space_and_of_parents_are_extra(small: Lab) -> None:
    dataset = small.dataset()
    small.add(dataset, "p", "\n\n".join(lines(3, f"w{n}") for n in range(2)), **PARENTS)
    small.settle()
    space = dense_space(small)
    point = next(iter(everything(small, space).values()))
    parent = replace(point, id=point.segment_id)
    small.resources.index.upsert(space, [parent])
    small.resources.index.ensure_space(FULL_TEXT_SPACE)
    small.resources.index.upsert(FULL_TEXT_SPACE, [replace(point, dense=None)])
    found = look(small, repair=True)
    assert sorted(found.first(Kind.EXTRA)) == sorted(map(str, [parent.id, point.id]))
    assert look(small).healthy()
    assert len(everything(small, space)) == 6


def test_more_strangers_than_are_named_are_all_counted_and_removed(
    small: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_points, "_SUSPECTS", 64)
    dataset = small.dataset()
    small.add(dataset, "a", lines(3))
    small.settle()
    space = dense_space(small)
    point = next(iter(everything(small, space).values()))
    strangers = [replace(point, id=uuid.uuid4()) for _ in range(3 * KEPT)]
    small.resources.index.upsert(space, strangers)
    found = look(small, repair=True)
    assert (found.count(Kind.EXTRA), len(found.first(Kind.EXTRA))) == (3 * KEPT, KEPT)
    assert len(everything(small, space)) == 3


def test_a_vector_that_is_not_in_the_cache_is_counted_as_not_compared(small: Lab) -> None:
    dataset = small.dataset()
    small.add(dataset, "a", lines(5))
    small.settle()
    with transaction(small.resources.sessions) as session:
        hashes = session.scalars(select(CachedEmbedding.text_hash)).all()
        session.execute(delete(CachedEmbedding).where(CachedEmbedding.text_hash.in_(hashes[:2])))
    report = look(small)
    assert report.healthy()
    assert report.unchecked_vectors == 2


# -- rows


def change(lab: Lab, table: Any, where: Any, **values: Any) -> None:
    with transaction(lab.resources.sessions) as session:
        session.execute(update(table).where(where).values(**values))


def snapshot(lab: Lab) -> list[Any]:
    """Every counter, flag and position that is stored."""
    with reading(lab.resources.sessions) as session:
        return [
            *session.execute(
                select(
                    Document.id, Document.position, Document.word_count, Document.tokens
                ).order_by(Document.id)
            ),
            *session.execute(
                select(
                    Segment.id,
                    Segment.position,
                    Segment.text_hash,
                    Segment.word_count,
                    Segment.term_count,
                    Segment.has_children,
                    Segment.status,
                    Segment.hit_count,
                ).order_by(Segment.id)
            ),
            *session.execute(
                select(
                    ChildChunk.id,
                    ChildChunk.position,
                    ChildChunk.text_hash,
                    ChildChunk.word_count,
                    ChildChunk.term_count,
                ).order_by(ChildChunk.id)
            ),
            *session.execute(select(Dataset.id, Dataset.average_length).order_by(Dataset.id)),
        ]


@pytest.fixture
def parents(small: Lab) -> Lab:
    """Two documents of three parents with two children each."""
    dataset = small.dataset()
    for name in ("a", "b"):
        text = "\n\n".join(lines(2, f"{name}{n}") for n in range(3))
        small.add(dataset, name, text, **PARENTS)
    small.settle()
    assert look(small).healthy()
    small.embedder.before = refuse
    return small


BROKEN: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "a document's words": (Document, {"word_count": 7}, False),
    "a document's tokens": (Document, {"tokens": None}, False),
    "documents' positions": (Document, {"position": 1}, False),
    "positions of segments": (Segment, {"position": 2}, False),
    "positions below one": (ChildChunk, {"position": -1}, False),
    "a parent that denies its children": (Segment, {"has_children": False}, False),
    "a live segment that waits": (Segment, {"status": SegmentStatus.WAITING}, False),
    "a live segment nobody indexed": (Segment, {"indexed_at": None}, False),
    "hits below none": (Segment, {"hit_count": -3}, False),
    "an average that is none": (Dataset, {"average_length": None}, False),
    "an average that is far off": (Dataset, {"average_length": 900.0}, False),
    "a segment's hash": (Segment, {"text_hash": "0" * 64}, True),
    "a child's words": (ChildChunk, {"word_count": 1}, True),
    "a child's terms": (ChildChunk, {"term_count": 99}, True),
    "a child's hash": (ChildChunk, {"text_hash": "1" * 64}, True),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_counters_are_found_and_recomputed(parents: Lab, case: str) -> None:
    table, values, deep = BROKEN[case]
    before = snapshot(parents)
    with reading(parents.resources.sessions) as session:
        ids = session.scalars(select(table.id).order_by(table.id)).all()
    change(parents, table, table.id.in_(ids[:2]), **values)
    found = look(parents, deep=deep)
    # A parent that counts as a leaf seems to lack its point, too.
    also = {Kind.MISSING} if case == "a parent that denies its children" else set()
    assert set(found.findings) == {Kind.COUNTERS, *also}, found.shape()
    look(parents, deep=deep, repair=True)
    after = look(parents)
    assert after.healthy(), after.shape()
    # A position that repeated cannot say any more which one it was: the later document goes last.
    if case != "documents' positions":
        assert snapshot(parents) == before


def test_a_damaged_hash_in_sql_costs_no_vector(parents: Lab) -> None:
    """The text is what counts; a deep repair asks the cache by the text's own hash."""
    space = dense_space(parents)
    before = everything(parents, space)
    change(parents, ChildChunk, ChildChunk.position == 1, text_hash="f" * 64)
    look(parents, repair=True)
    assert look(parents).healthy()
    assert_same(everything(parents, space), before)
    with reading(parents.resources.sessions) as session:
        for child in session.scalars(select(ChildChunk)):
            assert child.text_hash == text_hash(child.content)


# -- stuck documents and jobs


STUCK: dict[str, dict[str, Any]] = {
    "unfinished without a version": {
        "indexing_status": IndexingStatus.INDEXING,
        "pending_version": None,
    },
    "waiting for a version that is not there": {
        "indexing_status": IndexingStatus.WAITING,
        "pending_version": 77,
    },
    "completed with a version to come": {
        "indexing_status": IndexingStatus.COMPLETED,
        "pending_version": 1,
    },
    "completed with nothing live": {
        "indexing_status": IndexingStatus.COMPLETED,
        "version": 0,
        "pending_version": None,
    },
    "leased for a year": {
        "indexing_status": IndexingStatus.PARSING,
        "pending_version": 2,
        "lease_owner": "a clock that jumped",
        "lease_expires_at": now() + timedelta(days=365),
    },
    "put off for a year": {
        "indexing_status": IndexingStatus.WAITING,
        "pending_version": 2,
        "next_attempt_at": now() + timedelta(days=365),
    },
}


@pytest.mark.parametrize("case", sorted(STUCK))
def test_a_stuck_document_is_found_queued_again_and_completed(small: Lab, case: str) -> None:
    dataset = small.dataset()
    document = small.add(dataset, "a", lines(4))
    small.settle()
    values = STUCK[case]
    if values["pending_version"] == 2:
        with transaction(small.resources.sessions) as session:
            row = session.get_one(Document, document)
            session.add(
                DocumentVersion(
                    document_id=document,
                    number=2,
                    upload_file_id=row.upload_file_id,
                    process_rule_id=row.process_rule_id,
                )
            )
    change(small, Document, Document.id == document, **values)
    if case == "waiting for a version that is not there":  # it would be claimed again for ever
        small.ingest(small.claim())
        assert small.document(document).pending_version == 77
    else:
        assert small.work() == 0
    found = look(small)
    assert found.count(Kind.STUCK_DOCUMENTS) == 1, found.shape()
    assert str(document) in found.first(Kind.STUCK_DOCUMENTS)[0]
    look(small, repair=True)
    small.settle()
    assert small.document(document).indexing_status is IndexingStatus.COMPLETED
    assert small.document(document).pending_version is None
    assert len(small.segments(document)) == 4
    assert look(small).healthy()
    small.assert_index_is_what_sql_says(dataset)


def test_what_waits_is_worked_on_paused_or_failed_is_not_stuck(small: Lab) -> None:
    dataset = small.dataset()
    documents = [small.add(dataset, f"d{n}", lines(3, f"w{n}")) for n in range(4)]
    assert claim_next(small.resources.sessions, "w1", lease_s=60) is not None
    waits = now() + timedelta(seconds=600)
    change(small, Document, Document.id == documents[1], is_paused=True)
    change(small, Document, Document.id == documents[2], next_attempt_at=waits)
    change(small, Document, Document.id == documents[3], indexing_status=IndexingStatus.ERROR)
    assert look(small, repair=True).healthy()


def test_a_job_put_off_for_a_year_is_found_and_done(small: Lab) -> None:
    dataset = small.dataset()
    document = small.add(dataset, "a", lines(3))
    small.settle()
    small.delete(dataset, document)
    change(small, Job, Job.id.is_not(None), not_before=now() + timedelta(days=365))
    assert small.jobs() == 0
    assert look(small, repair=True).count(Kind.STUCK_JOBS) == 2
    assert small.jobs() == 2
    assert look(small).healthy()
    assert everything(small, dense_space(small)) == {}


# -- files


def test_a_file_with_other_bytes_is_found_by_the_deep_look_only(small: Lab) -> None:
    dataset = small.dataset()
    small.add(dataset, "a", lines(3))
    small.settle()
    with reading(small.resources.sessions) as session:
        key = session.scalars(select(UploadFile.blob_key)).one()
    small.resources.blobs.put(key, b"something else")
    assert look(small, deep=False).healthy()
    found = look(small, repair=True)
    assert found.first(Kind.DAMAGED_FILES) == [f"a ({key})"]
    assert not look(small).healthy()


def test_a_thousand_orphans_among_files_in_use_are_removed(small: Lab) -> None:
    dataset = small.dataset()
    small.add(dataset, "a", lines(3))
    small.settle()
    blobs = small.resources.blobs
    used = set(blobs.keys())
    then = time.time() - 7200
    for number in range(1000):
        blobs.put(f"uploads/orphan-{number}", b"x")
    for key in blobs.keys():  # noqa: SIM118 - not a dict
        os.utime(small.resources.settings.data_dir / "blobs" / key, (then, then))
    assert look(small, repair=True).count(Kind.ORPHAN_FILES) == 1000
    assert set(blobs.keys()) == used
