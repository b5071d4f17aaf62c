"""Archives: a dataset arrives as it was, or not at all."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from kb.archive import importing
from kb.db import now, reading, transaction
from kb.doctor import examine
from kb.doctor import points as doctor_points
from kb.metadata.labels import label_documents
from kb.models import (
    CachedEmbedding,
    ChildChunk,
    Dataset,
    Document,
    FieldType,
    IndexingStatus,
    Job,
    MetadataField,
    ProcessRule,
    Segment,
    UploadFile,
)
from kb.ports import Space
from kb.settings import Limits
from tests.kb.ingesting import ECONOMY, PARENTS, Killed, Lab, lines, open_lab
from tests.kb.server import search


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_points, "_PAUSE_S", 0.0)


@pytest.fixture
def labs(database: str, tmp_path: Path) -> Iterator[tuple[Lab, Lab]]:
    """Two installations."""
    with ExitStack() as stack:
        yield (
            stack.enter_context(open_lab(tmp_path / "source")),
            stack.enter_context(open_lab(tmp_path / "target")),
        )


@pytest.fixture
def target(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path / "data") as opened:
        yield opened


def refuse(*_: object) -> None:
    raise AssertionError("this was not to be asked for")


def fill(lab: Lab, **body: Any) -> str:
    """A dataset with edits, hits, a document in work beside its live version, and a new one."""
    dataset = lab.dataset("books", description="of all kinds", **body)
    extra = {} if body else PARENTS
    lab.add(dataset, "a", lines(7, "red"), **extra)
    text = "\n\n".join(lines(3, f"w{n}") for n in range(4))
    lab.add(dataset, "b", text, **extra)
    lab.add(dataset, "doomed", lines(2, "bad"), **extra)
    lab.settle()
    with transaction(lab.resources.sessions) as session:
        rows = session.scalars(select(Segment).order_by(Segment.id)).all()
        rows[0].enabled, rows[0].disabled_at = False, now()
        rows[1].hit_count, rows[2].keywords = 41, ["gauge", "雨"]
        document = session.scalars(select(Document).where(Document.name == "doomed")).one()
        document.enabled, document.doc_metadata = False, metadata(session, uuid.UUID(dataset))
    label_documents(lab.resources, uuid.UUID(dataset))
    lab.add(dataset, "b", lines(2, "a version in work"), **extra)
    lab.add(dataset, "new", lines(3, "not yet live"), **extra)
    return dataset


def metadata(session: Session, dataset_id: uuid.UUID) -> dict[str, Any]:
    """Values of new fields of the dataset, with some of one that is gone."""
    values: dict[str, Any] = {str(uuid.uuid4()): "of a field that was deleted"}
    for name, type, slot, value in (
        ("author", FieldType.STRING, None, "Ana"),
        ("year", FieldType.NUMBER, 7, 2024),
        ("at", FieldType.TIME, 5, None),
    ):
        field = MetadataField(
            dataset_id=dataset_id, name=name, type=type, slot=slot, created_by=dataset_id
        )
        session.add(field)
        session.flush()
        values[str(field.id)] = value
    return values


def shown_metadata(lab: Lab, dataset: str) -> list[tuple[str, dict[str, Any]]]:
    """Of every document its name, and its metadata by the fields' names."""
    documents = lab.client.get(f"/v1/datasets/{dataset}/documents").json()["data"]
    return sorted(
        (one["name"], {entry["name"]: entry["value"] for entry in one["doc_metadata"]})
        for one in documents
    )


def exported(lab: Lab, dataset: str, *, vectors: bool = False) -> bytes:
    answer = lab.client.get(f"/v1/datasets/{dataset}/export?vectors={str(vectors).lower()}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    return answer.content


def imported(lab: Lab, archive: bytes, name: str | None = None) -> dict[str, Any]:
    answer = lab.client.post(
        "/v1/datasets/import", params={"name": name} if name else None, content=archive
    )
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def contents(lab: Lab, dataset: str) -> dict[str, Any]:
    """What a dataset holds, with ids and without what belongs to an installation."""
    one = uuid.UUID(dataset)

    def rows(table: Any, where: Any, leave: set[str]) -> list[Any]:
        names = [c.key for c in table.__table__.columns if c.key not in leave]
        columns = [getattr(table, name) for name in names]
        found = session.execute(select(*columns).where(where).order_by(table.id)).all()
        return [dict(zip(names, row, strict=True)) for row in found]

    with reading(lab.resources.sessions) as session:
        settings = rows(Dataset, Dataset.id == one, {"workspace_id", *OWN})
        live = session.scalars(
            select(Document.id).where(Document.dataset_id == one, Document.version > 0)
        ).all()
        documents = rows(Document, Document.id.in_(live), {*WORK, *OWN})
        segments = rows(Segment, Segment.document_id.in_(live) & Segment.live, {*WORK, *OWN})
        children = rows(
            ChildChunk, ChildChunk.document_id.in_(live) & ChildChunk.live, {*WORK, *OWN}
        )
        rules = rows(ProcessRule, ProcessRule.dataset_id == one, OWN)
        fields = rows(MetadataField, MetadataField.dataset_id == one, {"slot", *OWN})
    known = {str(field["id"]) for field in fields}
    for document in documents:
        values = document["doc_metadata"] or {}
        document["doc_metadata"] = {i: v for i, v in values.items() if i in known}
    return {
        "dataset": settings,
        "documents": documents,
        "segments": segments,
        "children": children,
        "rules": rules,
        "fields": fields,
    }


OWN = {"created_by", "updated_by", "updated_at", "metadata_revision"}
WORK = {
    *("upload_file_id", "version", "pending_version", "indexing_status", "queue", "queued_at"),
    *("lease_owner", "lease_expires_at", "attempts", "next_attempt_at", "batch", "completed_at"),
    *("error", "error_code", "error_stage", "processing_started_at", "parsing_completed_at"),
    *("cleaning_completed_at", "splitting_completed_at", "stopped_at", "indexing_latency"),
    *("process_rule_id", "indexing_at", "indexed_at", "staged_version", "staged"),
}


def answers(lab: Lab, dataset: str) -> list[tuple[str, float]]:
    return [
        (record["segment"]["content"], record["score"])
        for query in ("red number 3", "what does w2 speak of", "bad number 1", "speaks")
        for record in search(lab.client, dataset, query)
    ]


def assert_nothing_is_there(lab: Lab) -> None:
    lab.settle()
    with reading(lab.resources.sessions) as session:
        for table in (Dataset, Document, Segment, ChildChunk, UploadFile, Job, ProcessRule):
            assert session.scalars(select(table)).all() == [], table
    space = Space(lab.embedder.id, lab.embedder.dim)
    lab.resources.index.ensure_space(space)
    assert lab.resources.index.count(space) == 0
    assert list(lab.resources.blobs.keys()) == []
    assert examine(lab.resources, repair=False, deep=True).healthy()


# -- there and back


def test_with_vectors_a_dataset_arrives_as_it_was_without_a_model_call(
    labs: tuple[Lab, Lab],
) -> None:
    source, target = labs
    dataset = fill(source)
    before = answers(source, dataset)
    archive = exported(source, dataset, vectors=True)
    target.embedder.before = refuse
    made = imported(target, archive)
    assert made["id"] == dataset
    assert made["imported"] == {
        "documents": 4,
        "indexed": 3,
        "queued": 1,
        "segments": 6,
        "vectors": made["imported"]["vectors"],
    }
    assert contents(target, dataset) == contents(source, dataset)
    assert answers(target, dataset) == before != []
    report = examine(target.resources, repair=False, deep=True)
    assert report.healthy(), report.shape()
    target.embedder.before = lambda texts: None
    target.settle()
    source.settle()
    new = lines(3, "not yet live").split("\n")
    assert sorted(target.embedder.texts) == sorted(new)  # the one that never went live, anew
    for lab in labs:
        assert examine(lab.resources, repair=False, deep=True).healthy()


def test_without_vectors_segments_keep_their_ids_and_edits_and_are_embedded_in_the_background(
    labs: tuple[Lab, Lab],
) -> None:
    source, target = labs
    dataset = fill(source)
    made = imported(target, exported(source, dataset))
    assert (made["imported"]["indexed"], made["imported"]["queued"]) == (0, 4)
    assert answers(target, dataset) == []
    with reading(target.resources.sessions) as session:
        states = set(session.scalars(select(Document.indexing_status)))
    assert states == {IndexingStatus.INDEXING, IndexingStatus.WAITING}
    before, wanted = answers(source, dataset), contents(source, dataset)
    target.settle()
    found = contents(target, dataset)
    new = {d["id"] for d in found["documents"]} - {d["id"] for d in wanted["documents"]}
    assert len(new) == 1
    for part in ("documents", "segments", "children"):
        key = "id" if part == "documents" else "document_id"
        assert [r for r in found[part] if r[key] not in new] == wanted[part]
    assert examine(target.resources, repair=False, deep=True).healthy()
    assert {text for text, _ in before} <= {text for text, _ in answers(target, dataset)}


def test_an_economy_dataset_answers_at_once(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    dataset = fill(source, **ECONOMY)
    before = answers(source, dataset)
    made = imported(target, exported(source, dataset))
    assert made["imported"]["indexed"] == 3
    assert answers(target, dataset) == before != []
    assert contents(target, dataset) == contents(source, dataset)


def test_a_copy_beside_the_original_has_ids_of_its_own_that_uploads_find_again(
    labs: tuple[Lab, Lab],
) -> None:
    lab, _ = labs
    dataset = fill(lab)
    lab.settle()
    archive = exported(lab, dataset, vectors=True)
    answer = lab.client.post("/v1/datasets/import", content=archive)
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_name_duplicate")
    assert "?name=NEW" in answer.json()["message"]
    copy = imported(lab, archive, "books, a copy")["id"]
    assert copy != dataset
    assert shown_metadata(lab, copy) == shown_metadata(lab, dataset)
    assert ("doomed", {"author": "Ana", "year": 2024, "at": None}) in shown_metadata(lab, copy)
    assert sorted(answers(lab, copy)) == sorted(answers(lab, dataset))
    original = {row["id"] for row in contents(lab, dataset)["segments"]}
    ids = {row["id"] for row in contents(lab, copy)["segments"]}
    assert len(ids) == len(original)
    assert not ids & original
    lab.embedder.before = refuse
    lab.add(copy, "a", lines(7, "red"), **PARENTS)  # the same text again
    lab.settle()
    assert {row["id"] for row in contents(lab, copy)["segments"]} == ids
    assert examine(lab.resources, repair=False, deep=True).healthy()
    lab.assert_index_is_what_sql_says(copy)


def test_the_archive_of_the_copy_is_that_of_the_original(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    dataset = source.dataset()
    source.add(dataset, "a", lines(5))
    source.settle()
    first = exported(source, dataset, vectors=True)
    imported(target, first)
    second = exported(target, dataset, vectors=True)
    names = [n for n in members(first) if n not in ("manifest.json",)]
    own = {"documents/000001.jsonl"}  # says when it was changed last
    assert {n: members(second)[n] for n in names if n not in own} == {
        n: members(first)[n] for n in names if n not in own
    }


def test_a_damaged_or_lost_source_travels_as_what_it_is(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    dataset = source.dataset()
    source.add(dataset, "a", lines(3, "a"))
    source.add(dataset, "b", lines(3, "b"))
    source.settle()
    with reading(source.resources.sessions) as session:
        keys = session.scalars(select(UploadFile.blob_key).order_by(UploadFile.name)).all()
    source.resources.blobs.delete(keys[0])
    source.resources.blobs.put(keys[1], b"other bytes")
    imported(target, exported(source, dataset, vectors=True))
    found = examine(target.resources, repair=False, deep=True).shape()["findings"]
    assert {kind: f["count"] for kind, f in found.items()} == {"lost_files": 1}
    assert len(answers(target, dataset)) > 0


# -- what is refused


def members(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def packed(files: dict[str, bytes], *, seal: bool = True, fix: bool = True) -> bytes:
    """An archive of these files; `fix` writes their sizes and checksums into the manifest."""
    files = dict(files)
    manifest = json.loads(files["manifest.json"])
    if fix:
        manifest["members"] = {
            name: {"bytes": len(data), "sha256": sha256(data).hexdigest()}
            for name, data in files.items()
            if name != "manifest.json"
        }
        files["manifest.json"] = json.dumps(manifest, separators=(",", ":")).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
        if seal:
            zipped.comment = b"sha256:" + sha256(files["manifest.json"]).hexdigest().encode()
    return out.getvalue()


def with_manifest(**changes: Any) -> Callable[[bytes], bytes]:
    def change(archive: bytes) -> bytes:
        files = members(archive)
        manifest = json.loads(files["manifest.json"]) | changes
        files["manifest.json"] = json.dumps(manifest, separators=(",", ":")).encode()
        return packed(files)

    return change


def with_file(name: str, data: bytes) -> Callable[[bytes], bytes]:
    return lambda archive: packed({**members(archive), name: data})


def with_lines(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(archive: bytes) -> bytes:
        files = members(archive)
        assert old in files["documents/000001.jsonl"]
        files["documents/000001.jsonl"] = files["documents/000001.jsonl"].replace(old, new)
        return packed(files)

    return change


def flipped(archive: bytes) -> bytes:
    """One bit of a source, which the zip itself notices."""
    at = len(archive) // 3
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]


def swapped(archive: bytes) -> bytes:
    """A source with other bytes of the same length, in a zip that is sound."""
    files = members(archive)
    name = next(n for n in files if n.startswith("sources/"))
    return packed({**files, name: files[name][::-1]}, fix=False)


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no zip": (lambda a: b"hello", "no zip"),
    "nothing": (lambda a: b"", "no zip"),
    "cut off": (lambda a: a[:-1000], "no zip"),
    "a flipped bit": (flipped, "archive again"),
    "swapped bytes": (swapped, "checksum"),
    "a manifest that is not sealed": (lambda a: packed(members(a), seal=False), "comment"),
    "another version": (with_manifest(format_version=2), "reads 'kb-dataset' version 1"),
    "another format": (with_manifest(format="tar"), "format 'tar'"),
    "a path that climbs": (with_file("../../etc/passwd", b"x"), "has no place in it"),
    "an absolute path": (with_file("/etc/passwd", b"x"), "has no place in it"),
    "a stranger's file": (with_file("documents/x.jsonl", b"x"), "has no place in it"),
    "a line that is no record": (with_file("documents/000002.jsonl", b"{}"), "line 1"),
    "a record of a segment alone": (
        lambda a: with_file(
            "documents/000002.jsonl", members(a)["documents/000001.jsonl"].split(b"\n")[1]
        )(a),
        "no live document",
    ),
    "a key that nobody knows": (with_lines(b'{"type":"segment"', b'{"x":1,"type":"segment"'), "x"),
    "a number that is none": (with_lines(b'"hit_count":0', b'"hit_count":-1'), "hit_count"),
    "NUL in a text": (with_lines(b"red number 1", b"red \\u0000 1"), "NUL"),
    "fewer records than promised": (
        with_manifest(
            counts=dict.fromkeys(
                ("documents", "live_documents", "segments", "children", "sources", "vectors"), 9
            )
        ),
        "as many records",
    ),
    "vectors that are none": (with_file("vectors/000001.npy", b"\x93NUMPY"), "no array"),
    "no dataset": (
        lambda a: packed({n: d for n, d in members(a).items() if n != "dataset.json"}),
        "dataset.json",
    ),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with open_lab(tmp_path_factory.mktemp("archive") / "data") as lab:
        dataset = lab.dataset()
        lab.add(dataset, "a", lines(20, "red"))
        lab.settle()
        return exported(lab, dataset, vectors=True)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("empty") / "data") as lab:
        yield lab


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_no_sound_archive_is_refused_before_anything_is_written(
    empty: Lab, archive: bytes, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing._Building, "start", refuse)
    change, said = REFUSED[case]
    answer = empty.client.post("/v1/datasets/import", content=change(archive))
    body = answer.json()
    assert (answer.status_code, body["code"]) == (400, "invalid_archive"), body
    assert said in body["message"], body
    assert_nothing_is_there(empty)


def test_a_sound_archive_that_was_taken_apart_and_packed_again_is_accepted(
    tmp_path: Path, archive: bytes
) -> None:
    with open_lab(tmp_path / "data") as lab:
        assert imported(lab, packed(members(archive)))["imported"]["indexed"] == 1


def test_a_bomb_is_refused_before_it_is_unpacked(empty: Lab, archive: bytes) -> None:
    bomb = with_file("documents/000002.jsonl", b" " * 300_000_000)(archive)
    assert len(bomb) < 1_000_000
    answer = empty.client.post("/v1/datasets/import", content=bomb)
    assert (answer.status_code, answer.json()["code"]) == (413, "archive_too_large")
    assert "KB_LIMITS__ARCHIVE_PART_BYTES" in answer.json()["message"]
    assert_nothing_is_there(empty)


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("archive_bytes", 1000),
        ("archive_unpacked_bytes", 1000),
        ("archive_part_bytes", 100),
        ("archive_files", 3),
        ("file_bytes", 10),
    ],
)
def test_every_limit_names_its_setting(
    tmp_path: Path, archive: bytes, limit: str, value: int
) -> None:
    changes = {"limits": Limits(**{limit: value})}
    with open_lab(tmp_path / "data", changes=changes) as lab:
        answer = lab.client.post("/v1/datasets/import", content=archive)
        assert (answer.status_code, answer.json()["code"]) == (413, "archive_too_large")
        assert f"KB_LIMITS__{limit.upper()}" in answer.json()["message"]
        assert_nothing_is_there(lab)


@pytest.mark.parametrize("name", ["", " ", "x" * 41])
def test_a_name_that_cannot_be_used_is_refused(empty: Lab, archive: bytes, name: str) -> None:
    answer = empty.client.post("/v1/datasets/import", params={"name": name}, content=archive)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    assert_nothing_is_there(empty)


# -- killed


def test_an_import_killed_at_any_transaction_leaves_nothing(
    target: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_lab(tmp_path / "source") as source:
        dataset = fill(source)
        archive = exported(source, dataset, vectors=True)
        wanted = contents(source, dataset)
    alive = importing._Building._alive
    monkeypatch.setattr(importing._Building, "abandon", lambda self: None)  # nobody is there to
    moment = 0
    while True:
        moment += 1
        left = [moment]

        def dies(building: Any, session: Any, left: list[int] = left, **values: Any) -> None:
            alive(building, session, **values)
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        monkeypatch.setattr(importing._Building, "_alive", dies)
        try:
            importing.import_dataset(target.resources, io.BytesIO(archive), name=None)
        except Killed:
            pass
        else:
            break
        assert target.client.get("/v1/datasets").json()["data"] == []
        # Still hidden, and nothing that a doctor would complain of.
        report = examine(target.resources, repair=False, deep=True)
        assert report.healthy(), (moment, report.shape())
        with transaction(target.resources.sessions) as session:
            session.execute(update(Job).values(not_before=now()))
        assert_nothing_is_there(target)
    assert moment > 10
    assert contents(target, dataset) == wanted
    assert examine(target.resources, repair=False, deep=True).healthy()


def test_an_import_that_fails_takes_back_what_it_wrote_at_once(target: Lab, tmp_path: Path) -> None:
    with open_lab(tmp_path / "source") as source:
        archive = exported(source, fill(source), vectors=True)

    def fails(_points: object) -> None:
        raise OSError("the disk is gone")

    target.index.after_upsert = fails
    with pytest.raises(OSError, match="the disk is gone"):
        importing.import_dataset(target.resources, io.BytesIO(archive), name=None)
    target.index.after_upsert = lambda points: None
    assert_nothing_is_there(target)


def test_an_import_that_was_taken_for_dead_gives_up(target: Lab, tmp_path: Path) -> None:
    with open_lab(tmp_path / "source") as source:
        archive = exported(source, fill(source), vectors=True)

    def removed(_points: object) -> None:
        target.index.before_upsert = lambda points: None
        with transaction(target.resources.sessions) as session:
            session.execute(update(Job).values(not_before=now()))
        target.jobs()

    target.index.before_upsert = removed
    with pytest.raises(importing.Conflict, match="taken for dead"):
        importing.import_dataset(target.resources, io.BytesIO(archive), name=None)
    assert_nothing_is_there(target)


def test_cached_vectors_are_not_replaced_by_those_of_an_archive(
    target: Lab, archive: bytes
) -> None:
    with transaction(target.resources.sessions) as session:
        for digest in members(archive)["vectors/000001.txt"].decode().split("\n")[:1]:
            session.add(
                CachedEmbedding(
                    model=target.embedder.id,
                    text_hash=digest,
                    vector=b"\x01" * 64,
                    created_at=now(),
                )
            )
    with reading(target.resources.sessions) as session:
        before = session.scalars(select(CachedEmbedding.vector)).one()
    imported(target, archive)
    with reading(target.resources.sessions) as session:
        assert before in session.scalars(select(CachedEmbedding.vector)).all()
