"""Retrieval with a rerank model: its scores count, and the fused order stands when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kb.settings import Retrieval
from tests import embedding_provider as bad
from tests.judging import JUDGE, Judge, share_of_words
from tests.kb.api import fresh_name, refused
from tests.kb.ingesting import ECONOMY, PARENTS, Lab, open_lab

QUERY = "red apples taste sweet"
LINES = [
    "red apples taste sweet",
    "red apples taste",
    "red apples and apples",
    "sweet sweet sweet sweet cake",
    "red red red foxes",
    "blue whales sing",
    "apples",
    "red apples taste sweet, says " + " ".join(f"w{n}" for n in range(80)),
]
"""The last one holds all words of the query, and so many others that no leg sees it high up."""


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _well(judge: Judge) -> None:
    judge.always(bad.well)
    judge.asked.clear()


@pytest.fixture(scope="module")
def lab(database: str, tmp_path_factory: pytest.TempPathFactory, judge: Judge) -> Iterator[Lab]:
    """One process, its rerank model behind a server, for all tests of this module."""
    with open_lab(tmp_path_factory.mktemp("rerank")) as opened:
        add_judge(opened, judge)
        yield opened


@pytest.fixture(scope="module")
def dataset(lab: Lab) -> str:
    return filled(lab)


def filled(lab: Lab, **body: Any) -> str:
    made = lab.dataset(fresh_name(), **body)
    lab.add(made, "d", "\n".join(LINES))
    lab.settle()
    return made


def add_judge(lab: Lab, judge: Judge, **changes: Any) -> str:
    body = {
        "type": "rerank",
        "provider": "court",
        "model": JUDGE,
        "kind": "jina",
        "url": judge.url,
        "options": {"retry_base_s": 0.01},
        **changes,
    }
    answer = lab.client.post("/v1/models", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def model(**changes: Any) -> dict[str, Any]:
    return {
        "search_method": "hybrid_search",
        "reranking_enable": True,
        "reranking_mode": "reranking_model",
        "reranking_model": {"reranking_provider_name": "court", "reranking_model_name": JUDGE},
        "top_k": 8,
        **changes,
    }


def ask(lab: Lab, dataset: str, query: str = QUERY, **changes: Any) -> dict[str, Any]:
    body = {"query": query, "retrieval_model": model(**changes)}
    answer = lab.client.post(f"/v1/datasets/{dataset}/retrieve?explain=true", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def texts(answer: dict[str, Any]) -> list[str]:
    return [record["segment"]["content"] for record in answer["records"]]


def scores(answer: dict[str, Any]) -> list[float]:
    return [record["score"] for record in answer["records"]]


PLAIN = {"reranking_enable": False}


def test_the_models_scores_order_and_are_returned(lab: Lab, dataset: str, judge: Judge) -> None:
    answer = ask(lab, dataset)
    assert scores(answer) == [share_of_words(QUERY, text) for text in texts(answer)]
    assert scores(answer) == sorted(scores(answer), reverse=True)
    assert set(texts(answer)) == set(LINES)
    assert LINES[-1] in texts(answer)[:2]
    assert LINES[-1] not in texts(ask(lab, dataset, **PLAIN))[:3], "the fused order is another"
    assert answer["rerank"] == {
        "provider": "court",
        "model": JUDGE,
        "applied": True,
        "complete": True,
        "candidates": 8,
        "judged": 8,
        "error": None,
    }
    assert answer["timings_ms"]["rerank"] > 0
    (asked,) = judge.asked
    assert asked.body["query"] == QUERY
    assert sorted(asked.body["documents"]) == sorted(LINES)


def test_the_threshold_is_on_the_models_scores_and_the_cut_comes_last(
    lab: Lab, dataset: str
) -> None:
    """Checklist: rerank model path, threshold on rerank scores, cut to top_k."""
    everything = list(zip(texts(ask(lab, dataset)), scores(ask(lab, dataset)), strict=True))
    for threshold in (0.0, 0.2, 0.25, 0.3, 0.75, 1.0):
        for top_k in range(1, 9):
            answer = ask(
                lab, dataset, top_k=top_k, score_threshold_enabled=True, score_threshold=threshold
            )
            wanted = [row for row in everything if row[1] >= threshold][:top_k]
            assert list(zip(texts(answer), scores(answer), strict=True)) == wanted


@pytest.mark.parametrize("method", ["semantic_search", "full_text_search", "hybrid_search"])
def test_each_score_recombines_from_its_explanation(lab: Lab, dataset: str, method: str) -> None:
    answer = ask(lab, dataset, search_method=method)
    assert answer["records"]
    for record in answer["records"]:
        why = record["explain"]
        legs = [leg for leg in (why["vector"], why["full_text"]) if leg]
        fused = sum(leg["contribution"] for leg in legs)
        assert why["rerank"]["fused_score"] == pytest.approx(fused, abs=1e-6)
        assert record["score"] == why["score"] == why["rerank"]["score"]


def test_what_stands_too_far_down_to_be_judged_keeps_its_order_behind(
    tmp_path: Path, judge: Judge
) -> None:
    with open_lab(tmp_path, changes={"retrieval": Retrieval(rerank_depth=3)}) as lab:
        add_judge(lab, judge)
        dataset = filled(lab)
        fused = texts(ask(lab, dataset, **PLAIN))
        answer = ask(lab, dataset)
        assert sorted(judge.asked[0].body["documents"]) == sorted(fused[:3])
        assert sorted(texts(answer)[:3]) == sorted(fused[:3])
        assert texts(answer)[3:] == fused[3:]
        assert (answer["rerank"]["candidates"], answer["rerank"]["complete"]) == (3, True)
        lowest = min(scores(answer)[:3])
        for record in answer["records"][3:]:
            step = record["explain"]["rerank"]
            assert (step["score"], step["behind"]) == (None, lowest)
            assert record["score"] == pytest.approx(step["fused_score"] * lowest, abs=1e-9)
        for top_k in range(1, 8):
            assert texts(ask(lab, dataset, top_k=top_k)) == texts(answer)[:top_k]


def test_what_was_not_judged_in_time_is_said(tmp_path: Path, judge: Judge) -> None:
    with open_lab(tmp_path) as lab:
        options = {"request_texts": 3, "max_requests": 1, "budget_s": 1.2}
        add_judge(lab, judge, options=options)
        dataset = filled(lab)
        fused = texts(ask(lab, dataset, **PLAIN))
        judge.next(bad.well, bad.slow(3.0))
        answer = ask(lab, dataset)
        assert answer["rerank"]["applied"] is True
        assert answer["rerank"]["complete"] is False
        assert (answer["rerank"]["judged"], answer["rerank"]["candidates"]) == (3, 8)
        assert texts(answer)[3:] == fused[3:]


@pytest.mark.parametrize(
    "behaviour", [bad.status(500), bad.status(403), bad.dropped, bad.body("[]")]
)
def test_without_an_answer_the_fused_order_stands_and_that_is_said(
    lab: Lab, dataset: str, judge: Judge, behaviour: bad.Behaviour
) -> None:
    judge.always(behaviour)
    for changes in (
        {},
        {"top_k": 2},
        {"score_threshold_enabled": True, "score_threshold": 0.4},
    ):
        plain = ask(lab, dataset, **changes, **PLAIN)
        answer = ask(lab, dataset, **changes)
        assert texts(answer) == texts(plain)
        assert scores(answer) == pytest.approx(scores(plain), abs=1e-6)
        assert "rerank" not in plain
        assert answer["rerank"]["applied"] is False
        assert "the rerank server http" in answer["rerank"]["error"]
        assert answer["records"][0]["explain"]["rerank"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"reranking_enable": False},
        {"reranking_mode": "weighted_score"},
        {"reranking_model": None},
        {"reranking_model": {"reranking_provider_name": "", "reranking_model_name": ""}},
    ],
)
def test_the_model_is_only_asked_when_it_should_be(
    lab: Lab, dataset: str, judge: Judge, changes: dict[str, Any]
) -> None:
    assert "rerank" not in ask(lab, dataset, **changes)
    assert judge.asked == []


def test_a_null_mode_and_a_name_without_provider_mean_the_model(
    lab: Lab, dataset: str, judge: Judge
) -> None:
    named = {"reranking_model_name": JUDGE}
    assert ask(lab, dataset, reranking_mode=None, reranking_model=named)["rerank"]["applied"]
    assert len(judge.asked) == 1


def test_a_model_that_is_not_configured_is_refused_with_those_that_are(
    lab: Lab, dataset: str
) -> None:
    unknown = {"reranking_provider_name": "court", "reranking_model_name": "other"}
    body = {"query": QUERY, "retrieval_model": model(reranking_model=unknown)}
    answer = lab.client.post(f"/v1/datasets/{dataset}/retrieve", json=body)
    message = refused(answer, 400, "provider_not_initialize")
    assert f"rerank model 'other' of provider 'court' is not configured; configured: {JUDGE!r}" in (
        message
    )
    made = {"name": fresh_name(), "retrieval_model": model(reranking_model=unknown)}
    message = refused(lab.client.post("/v1/datasets", json=made), 400, "invalid_param")
    assert f"configured: {JUDGE!r} of provider 'court'" in message
    changed = {"retrieval_model": model(reranking_enable=False, reranking_model=unknown)}
    refused(lab.client.patch(f"/v1/datasets/{dataset}", json=changed), 400, "invalid_param")


def test_a_datasets_own_model_counts_and_is_not_removed_under_it(lab: Lab, judge: Judge) -> None:
    model_id = add_judge(lab, judge, provider=fresh_name("court"))
    shown = lab.client.get(f"/v1/models/{model_id}").json()
    named = {"reranking_provider_name": shown["provider"], "reranking_model_name": JUDGE}
    own = filled(lab, retrieval_model=model(reranking_model=named))
    answer = lab.client.post(f"/v1/datasets/{own}/retrieve", json={"query": QUERY}).json()
    assert answer["rerank"]["provider"] == shown["provider"]
    external = {"knowledge_id": own, "query": QUERY, "retrieval_setting": {"top_k": 3}}
    records = lab.client.post("/retrieval", json=external).json()["records"]
    assert [record["score"] for record in records] == scores(answer)[:3]
    removed = lab.client.delete(f"/v1/models/{model_id}")
    assert "need it" in refused(removed, 409, "model_in_use")
    plain = {"retrieval_model": model(reranking_enable=False, reranking_model=None)}
    assert lab.client.patch(f"/v1/datasets/{own}", json=plain).status_code == 200
    assert lab.client.delete(f"/v1/models/{model_id}").status_code == 204


def test_a_dataset_without_vectors_is_reranked_too(lab: Lab, judge: Judge) -> None:
    own = filled(lab, **ECONOMY)
    answer = ask(lab, own, search_method="keyword_search")
    assert scores(answer) == [share_of_words(QUERY, text) for text in texts(answer)]
    assert "blue whales sing" not in texts(answer), "it shares no word with the question"


def test_a_parent_has_the_score_of_its_best_child_and_children_their_own(
    lab: Lab, judge: Judge
) -> None:
    own = lab.dataset(fresh_name())
    text = (
        "red foxes\nred apples taste sweet\n\nsweet cake\nblue whales\n\nred apples\napples taste"
    )
    lab.add(own, "d", text, **PARENTS)
    lab.settle()
    answer = ask(lab, own)
    assert "red apples taste sweet" in judge.asked[0].body["documents"], "children are judged"
    for record in answer["records"]:
        children = record["child_chunks"]
        assert record["score"] == children[0]["score"]
        listed = [child["score"] for child in children]
        assert listed == sorted(listed, reverse=True)
        assert listed == [share_of_words(QUERY, child["content"]) for child in children]
    assert scores(answer) == [1.0, 0.5, 0.25]
    high = ask(lab, own, score_threshold_enabled=True, score_threshold=0.5)
    assert scores(high) == [1.0, 0.5]
    assert [len(record["child_chunks"]) for record in high["records"]] == [1, 2]


def test_several_datasets_are_judged_together_in_one_call(
    lab: Lab, dataset: str, judge: Judge
) -> None:
    other = lab.dataset(fresh_name(), **ECONOMY)
    lab.add(other, "d", "red apples taste very sweet\nsweet apples\nold red barn")
    lab.settle()
    judge.asked.clear()
    body = {
        "query": QUERY,
        "dataset_ids": [dataset, other],
        "multiple_retrieval_config": {
            "top_k": 5,
            "score_threshold": 0.5,
            "reranking_enable": True,
            "reranking_mode": "reranking_model",
            "reranking_model": {"provider": "court", "model": JUDGE},
        },
    }
    answer = lab.client.post("/v1/knowledge-retrieval", json=body)
    assert answer.status_code == 200, answer.text
    found = [
        (item["content"], item["metadata"]["score"], item["metadata"]["dataset_id"])
        for item in answer.json()["result"]
    ]
    assert len(judge.asked) == 1
    assert len(judge.asked[0].body["documents"]) >= 9
    assert [score for _, score, _ in found] == [share_of_words(QUERY, text) for text, _, _ in found]
    assert [score for _, score, _ in found] == [1.0, 1.0, 1.0, 0.75, 0.5]
    assert {of for _, _, of in found} == {dataset, other}
