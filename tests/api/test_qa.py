"""Datasets of questions and answers through the API: the question is found, the answer given."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from kb.db import reading
from kb.models import CachedAnswer
from kb.settings import Limits
from tests import embedding_provider as bad
from tests.judging import TALKER, Judge
from tests.kb.api import fresh_name, refused
from tests.kb.ingesting import Killed, Lab, dies, open_lab
from tests.kb.server import LINES, add_file
from tests.pipelines.extract.files import row, xlsx

QA = {"doc_form": "qa_model"}
FAQ = """question,answer
How long is the warranty?,"Two years.
Batteries: one year."
Where is the serial number?,Below the lid.
How long is the warranty?,Ask your dealer.
,No question here
"""
PROSE = "owls hunt at night\nfish swim in the sea\ncats sleep all day"
"""Of tests by whom no model is asked; others have words of their own, as answers are kept."""


@pytest.fixture(scope="module")
def lab(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One process for the tests of this module; it has no chat model."""
    with open_lab(tmp_path_factory.mktemp("lab")) as opened:
        yield opened


@pytest.fixture(scope="module")
def talking(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Another one, which has a chat model."""
    directory = tmp_path_factory.mktemp("talking")
    with Judge() as server, open_lab(directory, max_attempts=1) as opened:
        add_chat_model(opened, server)
        opened.judge = server  # type: ignore[attr-defined]
        yield opened


@pytest.fixture
def judge(talking: Lab) -> Judge:
    """The server of `talking`: its model asks one question about each passage."""
    server: Judge = talking.judge  # type: ignore[attr-defined]
    server.asked.clear()
    server.speaks = lambda messages: write(messages[-1]["content"])
    return server


def prose(word: str) -> str:
    return f"owls hunt {word}\nfish swim {word}\ncats sleep {word}"


def write(passage: str) -> str:
    return json.dumps(
        {"pairs": [{"question": f"What do {passage.split()[0]} do?", "answer": passage}]}
    )


def add_chat_model(lab: Lab, judge: Judge) -> None:
    body = {
        "type": "llm",
        "provider": "talkers",
        "model": TALKER,
        "kind": "openai",
        "url": judge.url,
        "options": {"retries": 0, "retry_base_s": 0.01},
    }
    answer = lab.client.post("/v1/models", json=body)
    assert answer.status_code == 201, answer.text


def upload(
    lab: Lab, dataset: str, data: bytes | str = FAQ, name: str = "faq.csv", **body: Any
) -> uuid.UUID:
    """Send a file and work on it; the document's id."""
    data = data.encode() if isinstance(data, str) else data
    created = add_file(lab.client, dataset, name, data, **QA, **body)
    lab.settle()
    return uuid.UUID(created["document"]["id"])


def shown(lab: Lab, dataset: str, document: uuid.UUID, part: str = "") -> Any:
    answer = lab.client.get(f"/v1/datasets/{dataset}/documents/{document}{part}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows(lab: Lab, dataset: str, document: uuid.UUID) -> list[dict[str, Any]]:
    return list(shown(lab, dataset, document, "/segments?limit=100")["data"])


def pairs(lab: Lab, dataset: str, document: uuid.UUID) -> list[tuple[str, str]]:
    assert shown(lab, dataset, document)["indexing_status"] == "completed"
    return [(one["content"], one["answer"]) for one in rows(lab, dataset, document)]


def records(lab: Lab, dataset: str, query: str, method: str = "hybrid_search") -> list[Any]:
    body = {"query": query, "retrieval_model": {"search_method": method, "top_k": 10}}
    answer = lab.client.post(f"/v1/datasets/{dataset}/retrieve", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["records"])


def healthy(lab: Lab, dataset: str) -> None:
    lab.settle()
    lab.later()
    lab.assert_index_is_what_sql_says(dataset)
    report = lab.client.post("/v1/doctor?deep=true").json()
    assert report["healthy"], report


# --- tables --------------------------------------------------------------------------------------


def test_each_row_of_a_table_is_one_segment_and_no_model_is_asked(lab: Lab) -> None:
    dataset = lab.dataset(fresh_name())
    document = upload(lab, dataset)
    assert pairs(lab, dataset, document) == [
        ("How long is the warranty?", "Two years.\nBatteries: one year."),
        ("Where is the serial number?", "Below the lid."),
        ("How long is the warranty?", "Ask your dealer."),
    ]
    found = shown(lab, dataset, document)
    assert (found["doc_form"], found["segment_count"]) == ("qa_model", 3)
    assert found["warnings"] == ["left out, without question: row 5"]
    first = rows(lab, dataset, document)[0]
    assert first["word_count"] == len(first["content"]) + len(first["answer"])
    assert first["source"]["rows"] == [2, 2]
    text = lab.client.get(f"/v1/datasets/{dataset}/documents/{document}/text").text
    block = text[first["source"]["start"] : first["source"]["end"]]
    assert block == f"Q1: {first['content']}\nA1: {first['answer']}"
    report = shown(lab, dataset, document, "/report")
    assert report["table_rows"] == {"in": 4, "out": 3}
    healthy(lab, dataset)


def test_the_question_is_found_and_its_answer_returned_by_every_route(lab: Lab) -> None:
    dataset = lab.dataset(fresh_name())
    upload(lab, dataset)
    for method in ("semantic_search", "full_text_search", "hybrid_search"):
        best = records(lab, dataset, "serial number", method)[0]["segment"]
        assert (best["content"], best["answer"]) == (
            "Where is the serial number?",
            "Below the lid.",
        )
    assert records(lab, dataset, "lid", "full_text_search") == [], "answers are not searched"
    whole = "question:Where is the serial number? \nanswer:Below the lid."
    body = {"query": "serial number", "dataset_ids": [dataset]}
    answer = lab.client.post("/v1/knowledge-retrieval", json=body).json()
    assert answer["result"][0]["content"] == whole
    body = {
        "knowledge_id": dataset,
        "query": "serial number",
        "retrieval_setting": {"top_k": 1, "score_threshold": 0},
    }
    answer = lab.client.post("/retrieval", json=body).json()
    assert [record["content"] for record in answer["records"]] == [whole]


@pytest.mark.parametrize("columns", [("Frage", "Antwort"), (1, 2)])
def test_columns_are_chosen_by_name_or_position(lab: Lab, columns: tuple[object, object]) -> None:
    sheet = row(1, "Nr", "Frage", "Antwort") + row(2, "7", "Wie lange?", "Zwei Jahre.")
    rule = {
        "mode": "custom",
        "rules": {
            "qa": {"question_column": columns[0], "answer_column": columns[1], "header": True}
        },
    }
    dataset = lab.dataset(fresh_name())
    document = upload(lab, dataset, xlsx({"F": sheet}), "faq.xlsx", process_rule=rule)
    assert pairs(lab, dataset, document) == [("Wie lange?", "Zwei Jahre.")]
    stored = shown(lab, dataset, document)["document_process_rule"]["rules"]["qa"]
    assert stored["question_column"] == str(columns[0])
    assert stored["header"] == "yes"


def test_a_table_without_its_columns_fails_and_says_which_there_are(lab: Lab) -> None:
    rule = {"mode": "custom", "rules": {"qa": {"question_column": "Frage"}}}
    dataset = lab.dataset(fresh_name())
    document = upload(lab, dataset, process_rule=rule)
    found = shown(lab, dataset, document)
    assert (found["indexing_status"], found["error_code"]) == ("error", "column_not_found")
    assert "no column 'Frage'; its columns are 'question', 'answer'" in found["error"]


def test_unchanged_rows_keep_their_segments_from_version_to_version(lab: Lab) -> None:
    dataset = lab.dataset(fresh_name())
    document = upload(lab, dataset)
    before = {(r["content"], r["answer"]): r["id"] for r in rows(lab, dataset, document)}
    embedded = len(lab.embedder.texts)
    changed = FAQ.replace("Below the lid.", "On the back.") + "Who made it?,Tarnfell.\n"
    assert upload(lab, dataset, changed) == document
    after = {(r["content"], r["answer"]): r["id"] for r in rows(lab, dataset, document)}
    assert len(after) == 4
    assert {key: after[key] for key in before if key in after} == {
        key: before[key] for key in before if key[1] != "Below the lid."
    }
    assert lab.embedder.texts[embedded:] == ["Who made it?"], "a known question has its vector"
    healthy(lab, dataset)


def test_edits_by_hand_work_on_real_pairs_and_survive_the_next_version(lab: Lab) -> None:
    dataset = lab.dataset(fresh_name())
    document = upload(lab, dataset)
    path = f"/v1/datasets/{dataset}/documents/{document}/segments"
    refused(
        lab.client.post(path, json={"segments": [{"content": "No answer?"}]}), 400, "invalid_param"
    )
    pair = {"content": "Is it waterproof?", "answer": "Yes."}
    (added,) = lab.client.post(path, json={"segments": [pair]}).json()["data"]
    assert (added["answer"], added["word_count"]) == ("Yes.", len("Is it waterproof?Yes."))
    serial = next(r for r in rows(lab, dataset, document) if "serial" in r["content"])
    change = {"segment": {"content": serial["content"], "answer": "On the back."}}
    answer = lab.client.post(f"{path}/{serial['id']}", json=change)
    assert answer.json()["data"]["answer"] == "On the back."
    assert records(lab, dataset, "waterproof")[0]["segment"]["answer"] == "Yes."
    assert records(lab, dataset, "serial number")[0]["segment"]["answer"] == "On the back."
    upload(lab, dataset, FAQ + "Who made it?,Tarnfell.\n")
    held = dict(pairs(lab, dataset, document))
    assert held["Where is the serial number?"] == "On the back."
    assert held["Is it waterproof?"] == "Yes."
    assert held["Who made it?"] == "Tarnfell."
    healthy(lab, dataset)


def test_an_archive_keeps_questions_with_their_answers(lab: Lab) -> None:
    dataset = lab.dataset(fresh_name())
    document = upload(lab, dataset)
    archive = lab.client.get(f"/v1/datasets/{dataset}/export").content
    answer = lab.client.post(f"/v1/datasets/import?name={fresh_name()}", content=archive)
    assert answer.status_code == 201, answer.text
    copy = answer.json()["id"]
    lab.settle()
    (listed,) = lab.client.get(f"/v1/datasets/{copy}/documents").json()["data"]
    assert pairs(lab, copy, uuid.UUID(listed["id"])) == pairs(lab, dataset, document)
    assert records(lab, copy, "serial number")[0]["segment"]["answer"] == "Below the lid."
    healthy(lab, copy)


def test_a_worker_that_dies_after_staging_goes_on_without_reading_the_file_again(lab: Lab) -> None:
    dataset = lab.dataset(fresh_name())
    lab.index.before_upsert = dies
    with pytest.raises(Killed):
        upload(lab, dataset)
    lab.index.before_upsert = lambda points: None
    lab.restart()
    lab.settle()
    (listed,) = lab.client.get(f"/v1/datasets/{dataset}/documents").json()["data"]
    assert len(pairs(lab, dataset, uuid.UUID(listed["id"]))) == 3
    healthy(lab, dataset)


def test_questions_and_answers_need_vectors(lab: Lab) -> None:
    dataset = lab.dataset(fresh_name(), indexing_technique="economy")
    answer = lab.client.post(
        f"/v1/datasets/{dataset}/document/create-by-file",
        data={"data": json.dumps(QA)},
        files={"file": ("faq.csv", FAQ.encode())},
    )
    assert "needs indexing_technique 'high_quality'" in refused(answer, 400, "invalid_param")


# --- texts ---------------------------------------------------------------------------------------


def test_pairs_that_a_text_marks_need_no_model(lab: Lab) -> None:
    dataset = lab.dataset(fresh_name())
    text = "Q1: How long is the warranty?\nA1: Two years.\n\nQ2: Where is it?\nA2: Here."
    document = lab.add(dataset, "faq", text, process_rule=None, **QA)
    lab.settle()
    assert pairs(lab, dataset, document) == [
        ("How long is the warranty?", "Two years."),
        ("Where is it?", "Here."),
    ]
    healthy(lab, dataset)


def test_a_chat_model_writes_the_pairs_of_any_other_text(talking: Lab, judge: Judge) -> None:
    text = prose("at night")
    dataset = talking.dataset(fresh_name())
    document = talking.add(dataset, "animals", text, doc_language="Chinese", **QA)
    talking.settle()
    assert pairs(talking, dataset, document) == [
        ("What do owls do?", "owls hunt at night"),
        ("What do fish do?", "fish swim at night"),
        ("What do cats do?", "cats sleep at night"),
    ]
    assert len(judge.asked) == 3
    told = judge.asked[0].body["messages"]
    assert any("简体中文" in message["content"] for message in told)
    fish = rows(talking, dataset, document)[1]
    assert text[fish["source"]["start"] : fish["source"]["end"]] == "fish swim at night"
    best = records(talking, dataset, "What do fish do?")[0]["segment"]
    assert best["answer"] == "fish swim at night"
    healthy(talking, dataset)


def test_without_a_chat_model_a_text_is_refused_before_anything_is_kept(tmp_path: Path) -> None:
    with open_lab(tmp_path) as lab:
        dataset = lab.dataset(fresh_name())
        before = set(lab.resources.blobs.keys())
        path = f"/v1/datasets/{dataset}/document"
        body = {"name": "animals", "text": PROSE, **QA}
        said = refused(
            lab.client.post(f"{path}/create-by-text", json=body), 400, "provider_not_initialize"
        )
        assert "POST /v1/models" in said
        assert "Q1: ..." in said
        answer = lab.client.post(
            f"{path}/create-by-file",
            data={"data": json.dumps(QA)},
            files={"file": ("animals.md", PROSE.encode())},
        )
        refused(answer, 400, "provider_not_initialize")
        assert lab.client.get(f"/v1/datasets/{dataset}/documents").json()["total"] == 0
        assert set(lab.resources.blobs.keys()) == before


def test_what_only_the_worker_can_tell_fails_the_document_until_a_model_is_there(
    tmp_path: Path, judge: Judge
) -> None:
    with open_lab(tmp_path) as lab:
        dataset = lab.dataset(fresh_name())
        page = f"<html><body><p>{PROSE}</p></body></html>"
        document = upload(lab, dataset, page, "animals.html")
        found = shown(lab, dataset, document)
        assert found["error_code"] == "provider_not_initialize"
        assert "POST /v1/models" in found["error"]
        assert found["attempts"] == 0 or found["indexing_status"] == "error"
        add_chat_model(lab, judge)
        lab.retry(dataset, document)
        lab.settle()
        assert len(pairs(lab, dataset, document)) == 1


def kept(lab: Lab) -> int:
    """How many answers of the model are kept."""
    with reading(lab.resources.sessions) as session:
        return session.scalar(select(func.count()).select_from(CachedAnswer)) or 0


def test_nothing_is_asked_twice_after_a_worker_died(talking: Lab, judge: Judge) -> None:
    dataset = talking.dataset(fresh_name())
    before = kept(talking)
    written = talking.resources.blobs.put
    texts: list[str] = []

    def dies_with_the_text(key: str, data: bytes) -> None:
        if key.startswith("texts/") and not texts:
            texts.append(key)
            raise Killed
        written(key, data)

    talking.resources.blobs.put = dies_with_the_text  # type: ignore[method-assign]
    document = talking.add(dataset, "animals", prose("twice"), **QA)
    with pytest.raises(Killed):
        talking.settle()
    assert len(judge.asked) == 3
    talking.resources.blobs.put = written  # type: ignore[method-assign]
    talking.restart()
    talking.settle()
    assert len(pairs(talking, dataset, document)) == 3
    assert len(judge.asked) == 3
    talking.add(dataset, "animals", f"{prose('twice')}\ndogs bark", **QA)
    talking.settle()
    assert [a.body["messages"][-1]["content"] for a in judge.asked[3:]] == ["dogs bark"]
    assert kept(talking) == before + 4


def test_a_provider_that_says_later_delays_the_document_and_fails_no_attempt(
    talking: Lab, judge: Judge
) -> None:
    dataset = talking.dataset(fresh_name())
    judge.next(bad.well, bad.status(429), bad.well, bad.status(429))
    document = talking.add(dataset, "animals", prose("later"), **QA)
    talking.settle()
    assert len(pairs(talking, dataset, document)) == 3
    assert [run.error_code for run in talking.runs(document)] == ["rate_limited"] * 2 + [None]
    assert len(judge.asked) == 5, "what was written before is not asked for again"


def test_a_model_that_gives_no_pairs_at_all_fails_the_document(talking: Lab, judge: Judge) -> None:
    judge.speaks = lambda messages: "I would rather not."
    dataset = talking.dataset(fresh_name())
    document = talking.add(dataset, "animals", prose("none"), **QA)
    talking.settle()
    found = shown(talking, dataset, document)
    assert found["indexing_status"] == "error"
    assert "gave no answer of the shape" in found["error"]


def test_a_text_of_too_many_passages_is_not_sent_to_the_model(tmp_path: Path, judge: Judge) -> None:
    with open_lab(tmp_path, changes={"limits": Limits(qa_passages=2)}) as lab:
        add_chat_model(lab, judge)
        dataset = lab.dataset(fresh_name())
        document = lab.add(dataset, "animals", PROSE, **QA)
        lab.settle()
        found = shown(lab, dataset, document)
        assert (found["indexing_status"], found["error_code"]) == ("error", "limit_exceeded")
        assert not judge.asked


def test_the_process_rule_names_the_model_that_writes(talking: Lab, judge: Judge) -> None:
    dataset = talking.dataset(fresh_name())
    rules = {**LINES["rules"], "qa": {"model": "another"}}  # type: ignore[dict-item]
    body = {
        "name": "animals",
        "text": prose("by name"),
        "process_rule": {"mode": "custom", "rules": rules},
        **QA,
    }
    path = f"/v1/datasets/{dataset}/document/create-by-text"
    said = refused(talking.client.post(path, json=body), 400, "provider_not_initialize")
    assert "'another'" in said
    rules["qa"] = {"model": TALKER, "provider": "talkers"}
    assert talking.client.post(path, json=body).status_code == 200
    talking.settle()
    assert len(judge.asked) == 3
