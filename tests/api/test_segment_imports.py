"""Rows of a file become segments: which column is what, which row is wrong, all or none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update

from kb.cli.main import kb
from kb.db import now, reading, transaction
from kb.errors import StoreUnavailable
from kb.models import SegmentImport
from kb.settings import Limits
from kb.sweeper import clean_up
from pipelines.errors import TransientError
from tests.api.shelf import BIRDS, PARENTS, TREES, Book, book
from tests.kb.api import refused
from tests.kb.ingesting import open_lab
from tests.kb.server import test_settings as settings_of
from tests.pipelines.extract.files import row, xlsx

ROWS = [
    ["content", "keywords", "colour"],
    ["delta moles\ndig", "mole; dig", "red"],
    ["echo", "", ""],
]


@pytest.fixture
def b(tmp_path: Path) -> Iterator[Book]:
    """A document that takes three rows at once and no more than five."""
    limits = Limits(segment_import_at_once=3, segment_import_rows=5, segment_import_bytes=20_000)
    with open_lab(tmp_path / "lab", changes={"limits": limits}) as lab:
        yield Book(lab)


def workbook(rows: list[list[str]]) -> bytes:
    return xlsx({"Sheet1": b"".join(row(n, *cells) for n, cells in enumerate(rows, start=1))})


def send(b: Book, name: str, data: bytes | str) -> Any:
    path = f"/v1/datasets/{b.dataset}/documents/{b.id}/segments/import"
    return b.lab.client.post(path, files={"file": (name, data)})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.csv", 'content,keywords,colour\n"delta moles\ndig",mole; dig,red\necho,,\n'),
        ("rows.csv", '内容;关键词;colour\n"delta moles\ndig";"mole，dig";red\necho;;\n'),
        ("rows.tsv", 'Text\tTags\tcolour\n"delta moles\ndig"\tmole,dig\tred\necho\t\t\n'),
        ("rows.xlsx", workbook(ROWS)),
    ],
)
def test_columns_are_found_by_the_names_in_the_first_row(
    b: Book, name: str, data: bytes | str
) -> None:
    answer = send(b, name, data)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["state"], told["rows"], told["added"], told["error"]) == ("completed", 2, 2, None)
    assert told["warnings"] == ["column 'colour' was left out"]
    rows = b.rows()[3:]
    assert [(r["content"], r["keywords"]) for r in rows] == [
        ("delta moles\ndig", ["mole", "dig"]),
        ("echo", []),
    ]
    assert b.found("moles") == ["delta moles\ndig"]
    b.sound()


def test_without_names_the_first_column_is_the_content(b: Book) -> None:
    assert send(b, "rows.csv", "delta moles dig,,mole\necho seals,,\n").json()["added"] == 2
    rows = b.rows()[3:]
    assert [(r["content"], r["keywords"]) for r in rows] == [
        ("delta moles dig", ["mole"]),
        ("echo seals", []),
    ]


def test_rows_that_cannot_be_used_are_all_named_and_nothing_is_added(b: Book) -> None:
    data = "content,answer\ngood,\n,lost\nalso good,but answered\n"
    message = refused(send(b, "rows.csv", data), 400, "invalid_param")
    assert message.split("\n") == [
        "nothing was imported",
        "row 3: content is blank",
        "row 4: it has an answer, and the document has no answers; leave that column out",
    ]
    assert b.texts() == BIRDS.split("\n")


@pytest.mark.parametrize(
    ("name", "data", "status", "code", "part"),
    [
        ("rows.csv", "content\n" + "x\n" * 6, 400, "invalid_param", "SEGMENT_IMPORT_ROWS"),
        ("rows.csv", "x" * 20_001, 413, "file_too_large", "SEGMENT_IMPORT_BYTES"),
        ("rows.csv", "content,keywords\n", 400, "invalid_param", "no row"),
        ("rows.csv", "", 400, "invalid_param", "empty"),
        ("rows.xlsx", b"PK no zip", 400, "invalid_param", "rows.xlsx"),
        ("rows.pdf", b"%PDF-1.4\n", 415, "unsupported_file_type", "rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    b: Book, name: str, data: bytes | str, status: int, code: str, part: str
) -> None:
    assert part in refused(send(b, name, data), status, code)
    assert b.texts() == BIRDS.split("\n")


def test_a_body_without_a_file_is_refused(b: Book) -> None:
    path = f"/v1/datasets/{b.dataset}/documents/{b.id}/segments/import"
    refused(b.lab.client.post(path, json={}), 400, "no_file_uploaded")
    refused(b.lab.client.post(path, files=[("file", ("", b"x"))]), 400, "filename_not_exists_error")
    two = [("file", ("a.csv", b"x")), ("file", ("b.csv", b"x"))]
    refused(b.lab.client.post(path, files=two), 400, "too_many_files")


def test_a_large_file_is_imported_by_a_job_that_says_how_far_it_got(
    database: str, tmp_path: Path
) -> None:
    with open_lab(tmp_path / "lab", changes={"limits": Limits(segment_import_at_once=1)}) as lab:
        b = Book(lab)
        answer = send(b, "rows.csv", "content\ndelta moles dig\necho seals\n")
        assert answer.status_code == 200
        told = answer.json()
        assert (told["state"], told["rows"], told["added"]) == ("waiting", 2, 0)
        path = f"/v1/datasets/{b.dataset}/documents/{b.id}/segments/import/{told['id']}"

        def away(_: object) -> None:
            assert b.texts() == BIRDS.split("\n")
            raise TransientError("no model answers")

        lab.embedder.before = away
        lab.jobs()
        assert lab.client.get(path).json()["state"] == "waiting"
        lab.embedder.before = lambda texts: None
        lab.later()
        told = lab.client.get(path).json()
        assert (told["state"], told["embedded"], told["added"]) == ("completed", 2, 2)
        assert told["finished_at"]
        assert b.found("seals") == ["echo seals"]
        assert len(b.rows()) == 5
        b.sound()
        refused(lab.client.get(path[:-4] + "ffff"), 404, "not_found")


def test_a_large_file_for_a_document_that_was_replaced_meanwhile_ends_with_the_reason(
    tmp_path: Path,
) -> None:
    with open_lab(tmp_path / "lab", changes={"limits": Limits(segment_import_at_once=0)}) as lab:
        b = Book(lab)
        told = send(b, "rows.csv", "content\ndelta\n").json()
        b.upload("another text")
        lab.jobs()
        path = f"/v1/datasets/{b.dataset}/documents/{b.id}/segments/import/{told['id']}"
        told = lab.client.get(path).json()
        assert (told["state"], told["added"]) == ("error", 0)
        assert "completed and enabled" in told["error"]
        lab.settle()
        assert b.texts() == ["another text"]


def test_records_of_old_imports_are_removed_and_waiting_ones_kept(b: Book) -> None:
    send(b, "rows.csv", "content\ndelta\n")
    send(b, "rows.csv", "content\na\nb\nc\nd\n")
    with transaction(b.lab.resources.sessions) as session:
        session.execute(update(SegmentImport).values(created_at=now() - timedelta(days=900)))
        done = SegmentImport.finished_at.is_not(None)
        session.execute(
            update(SegmentImport).where(done).values(finished_at=now() - timedelta(days=900))
        )
    assert clean_up(b.lab.resources) == 1
    with reading(b.lab.resources.sessions) as session:
        assert session.scalars(select(SegmentImport.rows)).all() == [4]
    b.lab.jobs()
    assert len(b.rows()) == 8


def test_an_index_that_fails_leaves_no_part_of_a_file(b: Book) -> None:
    def away(_: object) -> None:
        raise StoreUnavailable("index", "upsert")

    b.lab.index.before_upsert = away
    assert send(b, "rows.csv", "content\ndelta\necho\n").status_code == 503
    b.lab.index.before_upsert = lambda points: None
    assert b.texts() == BIRDS.split("\n")
    b.sound()


def test_rows_of_a_hierarchical_document_get_children(tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        assert send(b, "rows.csv", 'content\n"fig is sweet\nfig is small"\n').status_code == 200
        assert list(b.children("fig is sweet\nfig is small")) == ["fig is sweet", "fig is small"]
        b.sound()


def test_the_command_line_edits_and_imports_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    settings = settings_of(data)
    monkeypatch.setenv("KB_EMBEDDING__CACHE_DIR", str(settings.embedding.cache_dir))
    source = tmp_path / "birds.txt"
    source.write_text("Owls hunt at night.")
    rows = tmp_path / "rows.csv"
    rows.write_text("content\nMoles dig.\nSeals rest.\n")
    bad = tmp_path / "bad.csv"
    bad.write_text("content,answer\nx,y\n")

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(kb, [*arguments, "--data-dir", str(data)])
        assert result.exit_code == code, result.output
        return result.output

    where = ("birds.txt", "-d", "books")
    run("ingest", str(source), "--dataset", "books")
    assert "added segment" in run("segments", "add", "birds.txt", "Cats sleep.", "-d", "books")
    assert "added 2 segments of rows.csv" in run(
        "segments", "import", "birds.txt", str(rows), "-d", "books"
    )
    assert "row 2: it has an answer" in run(
        "segments", "import", "birds.txt", str(bad), "-d", "books", code=1
    )
    run("segments", "edit", "birds.txt", "1", "--content", "Hawks hunt by day.", "-d", "books")
    run("segments", "disable", "birds.txt", "2", "-d", "books")
    run("segments", "delete", "birds.txt", "3", "-d", "books", "--yes")
    listed = run("segments", "list", *where)
    assert "Hawks hunt by day." in listed
    assert "Moles" not in listed
    assert [line.split("\t")[2] for line in listed.splitlines()[1:]] == [
        "completed",
        "disabled",
        "completed",
    ]
    run("segments", "enable", "birds.txt", "2", "-d", "books")
    shown = run("segments", "show", "birds.txt", "2", "-d", "books")
    assert "Cats sleep." in shown
    assert "completed" in shown
    assert "no segment at position 9" in run(
        "segments", "show", "birds.txt", "9", "-d", "books", code=1
    )
