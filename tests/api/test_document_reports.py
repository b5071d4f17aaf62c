"""The report of a document's ingestion: what of the file became chunks, and what went wrong."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kb.db import transaction
from kb.reports import note_conflicts
from pipelines.errors import NodeError, TransientError
from tests.kb.api import NOWHERE, keys, refused
from tests.kb.ingesting import PARENTS, Killed, Lab, dies, fails, lines, open_lab
from tests.kb.server import LINES, add_file, search
from tests.pipelines.extract.files import page, pdf

KEYS = keys(
    """id name version state display_status file process_rule characters_extracted pages table_rows
    segments child_chunks tokens word_count stages attempts runs error errors warnings conflicts"""
)
STAGES = ["extract", "clean", "chunk", "embed", "index"]


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    """A process whose every run is a call of the test; batches of 4 segments."""
    with open_lab(tmp_path / "data") as opened:
        yield opened


def report(lab: Lab, dataset: str, document: uuid.UUID, **query: Any) -> dict[str, Any]:
    path = f"/v1/datasets/{dataset}/documents/{document}/report"
    answer = lab.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    found = dict(answer.json())
    assert set(found) == KEYS
    return found


def kinds(found: dict[str, Any]) -> list[str]:
    return [stage["kind"].partition(".")[0] for stage in found["stages"]]


def add(lab: Lab, dataset: str, name: str, data: bytes) -> uuid.UUID:
    created = add_file(lab.client, dataset, name, data, process_rule=LINES)
    return uuid.UUID(created["document"]["id"])


def test_a_text_is_counted_from_character_to_token(lab: Lab) -> None:
    dataset = lab.dataset()
    text = lines(6)
    document = lab.add(dataset, "guide", text)
    lab.settle()
    found = report(lab, dataset, document)
    assert found["characters_extracted"] == len(text)
    assert (found["segments"], found["child_chunks"]) == (6, 0)
    assert found["tokens"] == sum(len(line.split()) for line in text.split("\n"))
    assert found["word_count"] == len(text) - 5  # without the line breaks
    assert (found["pages"], found["table_rows"]) == (None, None)
    assert (found["state"], found["version"], found["attempts"]) == ("live", 1, 1)
    assert kinds(found) == STAGES
    assert all(stage["seconds"] >= 0 for stage in found["stages"])
    assert [run["status"] for run in found["runs"]] == ["succeeded"]
    assert isinstance(found["runs"][0]["started_at"], int)
    assert (found["error"], found["errors"], found["warnings"], found["conflicts"]) == (
        None,
        [],
        [],
        [],
    )
    assert found["process_rule"]["mode"] == "custom"
    assert found["file"]["name"] == "guide.txt"


def test_children_are_counted(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", "One.\nTwo.\n\nThree.", **PARENTS)
    lab.settle()
    found = report(lab, dataset, document)
    assert (found["segments"], found["child_chunks"]) == (2, 3)


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("a.csv", b"name,age\nAnn,3\n\n,\nBob,4\n", {"in": 2, "out": 2}),
        ("a.csv", b"name,age\n", {"in": 1, "out": 1}),
        ("a.tsv", b"a note\nname\tage\nAnn\t3\n", {"in": 2, "out": 2}),
        ("a.csv", b"name,age,\nAnn,3,\n,,###\n", {"in": 2, "out": 1}),
    ],
)
def test_table_rows_are_counted_in_and_out(
    lab: Lab, name: str, data: bytes, rows: dict[str, int]
) -> None:
    dataset = lab.dataset()
    document = add(lab, dataset, name, data)
    lab.settle()
    assert report(lab, dataset, document)["table_rows"] == rows


def test_pages_without_text_are_named(lab: Lab) -> None:
    dataset = lab.dataset()
    document = add(lab, dataset, "pages.pdf", pdf([b"", page("The badger digs."), b"", b""]))
    lab.settle()
    found = report(lab, dataset, document)
    assert found["pages"] == {"total": 4, "empty": [1, 3, 4], "damaged": []}
    assert found["warnings"] == ["no text on pages 1, 3-4 of 4"]


def test_failed_attempts_are_listed_with_their_codes_and_stages(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(6))
    lab.embedder.before = fails(1, lambda: TransientError("the model is away"))
    lab.work()
    found = report(lab, dataset, document)
    assert found["attempts"] == 2
    assert [run["status"] for run in found["runs"]] == ["failed", "succeeded"]
    assert [error["code"] for error in found["errors"]] == ["temporarily_unavailable"]
    assert "away" in found["errors"][0]["message"]
    assert [run["resumed"] for run in found["runs"]] == [False, True]
    assert kinds(found) == STAGES, "the first run read the file, the second one indexed it"


def test_a_run_that_died_leaves_the_times_of_its_stages(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(6))
    lab.embedder.before = dies
    with pytest.raises(Killed):
        lab.ingest(lab.claim())
    lab.embedder.before = lambda texts: None
    lab.restart()
    assert kinds(report(lab, dataset, document)) == ["extract", "clean", "chunk"]
    lab.settle()
    found = report(lab, dataset, document)
    assert [error["code"] for error in found["errors"]] == [None]
    assert kinds(found) == STAGES


def test_a_document_that_failed_says_where_and_why(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(6))
    lab.embedder.before = fails(1, lambda: NodeError("no", code="refused"))
    lab.work()
    found = report(lab, dataset, document)
    assert (found["state"], found["version"]) == ("error", 1)
    assert (found["error"]["code"], found["error"]["stage"]) == ("refused", "indexing")
    assert found["segments"] == 6, "those are stored, and a retry goes on with them"


def test_each_version_has_its_own_report(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(2))
    lab.settle()
    lab.add(dataset, "guide", lines(3))
    path = f"/v1/datasets/{dataset}/documents/{document}"
    assert report(lab, dataset, document)["state"] == "waiting"
    assert report(lab, dataset, document, version=1)["segments"] == 2
    assert lab.client.post(f"{path}/cancel").status_code == 200
    assert report(lab, dataset, document)["version"] == 1
    assert report(lab, dataset, document, version=2)["state"] == "given_up"
    lab.add(dataset, "guide", lines(4))
    lab.settle()
    assert report(lab, dataset, document)["segments"] == 4
    replaced = report(lab, dataset, document, version=1)
    assert (replaced["state"], replaced["segments"]) == ("replaced", 2)
    refused(lab.client.get(f"{path}/report", params={"version": 9}), 404, "not_found")
    refused(lab.client.get(f"{path}/report", params={"version": "x"}), 400, "invalid_param")
    refused(lab.client.get(f"/v1/datasets/{dataset}/documents/{NOWHERE}/report"), 404, "not_found")


def test_conflicts_are_added_and_the_rest_stays(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(2))
    lab.settle()
    lab.embedder.before = fails(1, lambda: NodeError("no", code="refused"))
    lab.add(dataset, "guide", lines(6))
    lab.work()
    before = report(lab, dataset, document)
    for number in ("one", "two"):
        with transaction(lab.resources.sessions) as session:
            note_conflicts(session, document, 2, [{"overlay_id": number}])
    after = report(lab, dataset, document)
    assert after == before | {"conflicts": [{"overlay_id": "one"}, {"overlay_id": "two"}]}


def test_a_document_is_renamed_at_once_and_an_upload_of_the_new_name_replaces_it(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", "The badger digs.")
    lab.settle()
    path = f"/v1/datasets/{dataset}/documents/{document}/rename"
    answer = lab.client.post(path, json={"name": "handbook"})
    assert answer.json()["document"]["name"] == "handbook"
    assert lab.document(document).indexing_status.value == "completed"
    assert lab.work() == 0, "nothing is indexed anew"
    built_in = f"/v1/datasets/{dataset}/metadata/built-in/enable"
    assert lab.client.post(built_in).status_code == 200
    lab.client.post(path, json={"name": "manual"})
    assert _found_by_name(lab, dataset, "manual"), "filters know it when the call returns"
    lab.client.post(path, json={"name": "handbook"})
    assert not _found_by_name(lab, dataset, "manual")
    assert lab.add(dataset, "guide", "Another one.") != document
    assert lab.add(dataset, "handbook", "The otter swims.") == document
    refused(lab.client.post(path, json={"name": " "}), 400, "invalid_param")
    refused(lab.client.post(path, json={}), 400, "invalid_param")
    long = lab.client.post(path, json={"name": "x" * 300}).json()["document"]["name"]
    assert long == "x" * 200


def _found_by_name(lab: Lab, dataset: str, name: str) -> bool:
    condition = {"name": "document_name", "comparison_operator": "is", "value": name}
    return bool(
        search(
            lab.client,
            dataset,
            "badger",
            metadata_filtering_conditions={"logical_operator": "and", "conditions": [condition]},
        )
    )
