"""Metadata beside everything else: workers, deaths between two steps, the doctor, the database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from kb.db import transaction
from kb.doctor import examine
from kb.doctor import points as doctor_points
from kb.doctor.report import Kind
from kb.errors import StoreUnavailable
from kb.metadata import rules
from kb.metadata.labels import Owed, settle
from kb.models import Dataset, FieldType, Job, JobKind
from kb.ports import Facts, Point, Space
from kb.resources import space_of
from tests.kb.ingesting import PARENTS, Killed, Lab, lines, open_lab

YEAR = {"name": "year", "comparison_operator": ">", "value": 2000}
NO_YEAR = {"name": "year", "comparison_operator": "empty"}


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path, keep_replaced_s=0.0) as opened:
        yield opened


def add_year(lab: Lab, dataset: str) -> uuid.UUID:
    """A number field of the dataset."""
    with transaction(lab.resources.sessions) as session:
        row = session.get_one(Dataset, uuid.UUID(dataset), with_for_update=True)
        actor = lab.resources.owner_id
        return rules.add_field(session, row, "year", FieldType.NUMBER, most=9, actor=actor).id


def assign(lab: Lab, dataset: str, values: dict[uuid.UUID, Any], year: uuid.UUID) -> Owed:
    """Set the year of documents in SQL; the index does not know of it yet."""
    with transaction(lab.resources.sessions) as session:
        row = session.get_one(Dataset, uuid.UUID(dataset), with_for_update=True)
        given = [
            rules.Assignment(document, [(str(year), value)], merge=False)
            for document, value in values.items()
        ]
        return rules.assign(session, row, given, lab.resources.settings.limits)


def change(lab: Lab, dataset: str, values: dict[uuid.UUID, Any], year: uuid.UUID) -> None:
    """What the route does."""
    settle(lab.resources, assign(lab, dataset, values, year))


def found(lab: Lab, dataset: str, condition: dict[str, Any]) -> set[str]:
    """The names of documents that a filter leaves."""
    model = {"top_k": 50, "metadata_filtering_conditions": {"conditions": [condition]}}
    body = {"query": "number speaks", "retrieval_model": model}
    answer = lab.client.post(f"/v1/datasets/{dataset}/retrieve", json=body)
    assert answer.status_code == 200, answer.text
    return {record["segment"]["document"]["name"] for record in answer.json()["records"]}


def space(lab: Lab) -> Space:
    return Space(lab.embedder.id, lab.embedder.dim)


def test_a_change_whose_process_died_before_the_index_knew_is_carried_out_by_its_job(
    lab: Lab,
) -> None:
    dataset = lab.dataset()
    a, b = lab.add(dataset, "a", lines(3, "red")), lab.add(dataset, "b", lines(3, "blue"))
    lab.settle()
    year = add_year(lab, dataset)
    change(lab, dataset, {a: 2024}, year)
    embedded = len(lab.embedder.texts)
    assign(lab, dataset, {a: None, b: 2025}, year)  # and nothing more: the process died
    assert found(lab, dataset, YEAR) == set(), "an index that lags behind shows no wrong hit"
    assert lab.jobs() == 0, "a job leaves the work to its call for a while"
    assert lab.later() == 1
    assert found(lab, dataset, YEAR) == {"b"}
    assert found(lab, dataset, NO_YEAR) == {"a"}
    assert len(lab.embedder.texts) == embedded, "nothing was embedded anew"
    lab.assert_index_is_what_sql_says(dataset)


def test_a_change_is_kept_while_the_index_is_away_and_its_job_goes_on_trying(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(3, "red"))
    lab.settle()
    year = add_year(lab, dataset)

    def away(*_: object) -> None:
        raise StoreUnavailable("index", "label", "away")

    monkeypatch.setattr(lab.index, "label", away, raising=False)
    answer = lab.client.post(
        f"/v1/datasets/{dataset}/documents/metadata",
        json={
            "operation_data": [
                {
                    "document_id": str(document),
                    "metadata_list": [{"id": str(year), "name": "year", "value": 2024}],
                }
            ]
        },
    )
    assert answer.status_code == 503
    assert found(lab, dataset, NO_YEAR) == set()
    monkeypatch.undo()
    assert lab.later() == 1
    assert found(lab, dataset, YEAR) == {"a"}


@pytest.mark.parametrize("body", [{}, PARENTS])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_document_that_is_being_written_gets_the_metadata_that_it_was_given_meanwhile(
    lab: Lab, body: dict[str, Any], at: int
) -> None:
    dataset = lab.dataset()
    text = "\n\n".join(lines(3, f"w{n}") for n in range(3))
    document = lab.add(dataset, "a", text, **body)
    year = add_year(lab, dataset)
    writes = 0

    def change_before(_points: Sequence[Point]) -> None:
        nonlocal writes
        writes += 1
        if writes == at:  # these points were made of what SQL said before
            change(lab, dataset, {document: 2024}, year)

    lab.index.before_upsert = change_before
    lab.settle()
    assert writes > at
    lab.assert_index_is_what_sql_says(dataset)
    assert found(lab, dataset, YEAR) == {"a"}
    assert len(lab.embedder.texts) == len(set(lab.embedder.texts)), "nothing was embedded twice"


def test_a_worker_that_dies_after_its_write_leaves_no_old_metadata(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(6, "red"))
    year = add_year(lab, dataset)

    def change_and_die(_points: Sequence[Point]) -> None:
        change(lab, dataset, {document: 2024}, year)
        raise Killed

    lab.index.before_upsert = lambda points: change(lab, dataset, {document: 2023}, year)
    lab.index.after_upsert = change_and_die
    with pytest.raises(Killed):
        lab.work()
    lab.index.before_upsert = lab.index.after_upsert = lambda points: None
    lab.restart()
    lab.settle()
    lab.assert_index_is_what_sql_says(dataset)
    assert found(lab, dataset, YEAR) == {"a"}


def test_a_rebuild_beside_a_change_writes_what_is_true_afterwards(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(6, "red"))
    lab.settle()
    year = add_year(lab, dataset)
    changed = False

    def change_once(_points: Sequence[Point]) -> None:
        nonlocal changed
        if not changed:
            changed = True
            change(lab, dataset, {document: 2024}, year)

    lab.index.before_upsert = change_once
    with transaction(lab.resources.sessions) as session:
        session.add(Job(kind=JobKind.REBUILD_DATASET, payload={"dataset_id": dataset}))
    lab.settle()
    assert changed
    lab.assert_index_is_what_sql_says(dataset)


def test_of_two_changes_at_once_the_later_one_stays(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(3, "red"))
    lab.settle()
    year = add_year(lab, dataset)
    label = lab.index.label
    between = [lambda: change(lab, dataset, {document: 2025}, year)]

    def label_late(*given: Any) -> None:
        if between:
            between.pop()()
        label(*given)

    monkeypatch.setattr(lab.index, "label", label_late, raising=False)
    change(lab, dataset, {document: 1999}, year)
    assert not between
    lab.assert_index_is_what_sql_says(dataset)
    assert found(lab, dataset, YEAR) == {"a"}


def test_a_new_version_keeps_the_metadata_of_its_document(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(3, "red"))
    lab.settle()
    year = add_year(lab, dataset)
    change(lab, dataset, {document: 2024}, year)
    assert lab.add(dataset, "a", lines(5, "red")) == document
    lab.settle()
    lab.assert_index_is_what_sql_says(dataset)
    assert found(lab, dataset, YEAR) == {"a"}


def test_built_in_fields_follow_uploads_new_versions_and_their_switch(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(3, "red"))
    lab.settle()
    path = f"/v1/datasets/{dataset}/metadata/built-in"
    assert lab.client.post(f"{path}/enable").status_code == 200
    lab.assert_index_is_what_sql_says(dataset)
    lab.add(dataset, "b", lines(3, "blue"))
    lab.add(dataset, "a", lines(4, "red"))
    lab.settle()
    lab.assert_index_is_what_sql_says(dataset)
    named = {"name": "document_name", "comparison_operator": "is", "value": "b"}
    assert found(lab, dataset, named) == {"b"}
    assert lab.client.post(f"{path}/disable").status_code == 200
    lab.assert_index_is_what_sql_says(dataset)
    assert {head.facts for head in lab.points(dataset).values()} == {Facts()}


def test_a_deleted_field_leaves_nothing_in_the_index_once_its_job_is_done(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(3, "red"))
    lab.settle()
    year = add_year(lab, dataset)
    change(lab, dataset, {document: 2024}, year)
    answer = lab.client.delete(f"/v1/datasets/{dataset}/metadata/{year}")
    assert answer.status_code == 204
    assert found(lab, dataset, YEAR) == set()
    assert lab.jobs() == 1
    assert {head.facts for head in lab.points(dataset).values()} == {Facts()}


def test_the_doctor_finds_and_heals_metadata_without_writing_a_vector(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_points, "_PAUSE_S", 0.0)
    dataset = lab.dataset()
    a, b = lab.add(dataset, "a", lines(3, "red")), lab.add(dataset, "b", lines(2, "blue"))
    lab.settle()
    year = add_year(lab, dataset)
    change(lab, dataset, {a: 2024, b: 2024}, year)
    assert examine(lab.resources, repair=False).healthy()
    wrong = {a: Facts(("x",), ((2, 1.0),)), b: Facts()}
    lab.resources.index.label(space(lab), uuid.UUID(dataset), wrong)
    upserts = lab.index.upserts
    report = examine(lab.resources, repair=False)
    assert report.count(Kind.WRONG) == 5
    assert {item.split(" ", 1)[1] for item in report.first(Kind.WRONG)} == {"(metadata)"}
    examine(lab.resources, repair=True)
    assert examine(lab.resources, repair=False, deep=True).healthy()
    assert lab.index.upserts == upserts
    lab.assert_index_is_what_sql_says(dataset)


def test_the_doctor_leaves_to_a_job_what_a_job_will_do(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_points, "_PAUSE_S", 0.0)
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(3, "red"))
    lab.settle()
    assign(lab, dataset, {document: 2024}, add_year(lab, dataset))
    assert examine(lab.resources, repair=False).healthy()
    with transaction(lab.resources.sessions) as session:
        session.execute(delete(Job))
    assert examine(lab.resources, repair=False).count(Kind.WRONG) == 3


def test_a_dataset_without_a_space_takes_metadata(lab: Lab) -> None:
    answer = lab.client.post("/v1/datasets", json={"name": "empty"})
    dataset = answer.json()["id"]
    with transaction(lab.resources.sessions) as session:
        assert space_of(session.get_one(Dataset, uuid.UUID(dataset))) is None
    add_year(lab, dataset)
    assert lab.client.post(f"/v1/datasets/{dataset}/metadata/built-in/enable").status_code == 200
