"""Search, and the history of queries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from kb.client.datasets import Datasets
from kb.client.passages import Answer, Passage
from kb.client.wire import METHODS, Json, Method, is_id


class Search(Datasets):
    """Calls that retrieve."""

    def search(
        self,
        dataset: str,
        query: str,
        *,
        method: Method = "hybrid",
        top_k: int = 5,
        threshold: float | None = None,
        vector_weight: float | None = None,
        conditions: Json | None = None,
        explain: bool = False,
    ) -> Answer:
        """The passages that answer a query, best first.

        Args:
            method: by meaning and words, by meaning (`vector`), or by words (`fulltext`). A
                dataset of technique `economy` is always searched by words.
            threshold: only scores >= this, in [0, 1].
            vector_weight: the share of meaning in a hybrid score, in [0, 1]; None: the server's.
            conditions: on metadata, as `metadata_filtering_conditions` has them.
            explain: also return how each score came about, and the stages' times.
        """
        model: Json = {
            "search_method": METHODS[method],
            "reranking_enable": False,
            "top_k": top_k,
            "score_threshold_enabled": threshold is not None,
            "score_threshold": threshold,
        }
        if vector_weight is not None:
            model["weights"] = {
                "vector_setting": {"vector_weight": vector_weight},
                "keyword_setting": {"keyword_weight": round(1 - vector_weight, 9)},
            }
        if conditions is not None:
            model["metadata_filtering_conditions"] = conditions
        answer = self._json(
            "POST",
            f"{self._path(dataset)}/retrieve",
            params={"explain": "true"} if explain else None,
            json={"query": query, "retrieval_model": model},
        )
        return Answer(
            tuple(Passage.of(record) for record in answer["records"]),
            raw=answer,
            timings_ms=answer.get("timings_ms", {}),
        )

    def search_all(
        self,
        datasets: Sequence[str],
        query: str,
        *,
        method: Method = "hybrid",
        top_k: int = 5,
        threshold: float | None = None,
        vector_weight: float = 0.5,
        conditions: Json | None = None,
    ) -> Answer:
        """The passages of several datasets that answer a query, best first over all of them.

        `raw["errors"]` names datasets that could not be asked. Arguments as of `search`.
        """
        dense = {"hybrid": vector_weight, "vector": 1.0, "fulltext": 0.0}[method]
        config: Json = {
            "top_k": top_k,
            "score_threshold": threshold,
            "reranking_enable": True,
            "reranking_mode": "weighted_score",
            "weights": {
                "vector_setting": {"vector_weight": dense},
                "keyword_setting": {"keyword_weight": round(1 - dense, 9)},
            },
        }
        body: Json = {
            "query": query,
            "dataset_ids": [d if is_id(d) else self.dataset(d)["id"] for d in datasets],
            "multiple_retrieval_config": config,
        }
        if conditions is not None:
            body["metadata_filtering_mode"] = "manual"
            body["metadata_filtering_conditions"] = conditions
        answer = self._json("POST", "/v1/knowledge-retrieval", json=body)
        passages = tuple(Passage.of_item(item) for item in answer["result"])
        return Answer(passages, raw=answer, timings_ms=answer.get("timings_ms", {}))

    def queries(
        self,
        dataset: str | None = None,
        *,
        keyword: str | None = None,
        source: str | None = None,
        most: int = 100,
    ) -> list[Json]:
        """What was asked, newest first; None: of all datasets."""
        path = "/v1/queries" if dataset is None else f"{self._path(dataset)}/queries"
        params = {"keyword": keyword, "source": source}
        given = {name: value for name, value in params.items() if value is not None}
        return list(islice(self._pages(path, given), most))

    def replay_query(self, query_id: str) -> Json:
        """Ask a query of the history again; `identical` and `differences` say what came of it."""
        return self._json("POST", f"/v1/queries/{query_id}/replay")

    def knowledge_retrieval(
        self, query: str, datasets: Sequence[str], **configuration: Any
    ) -> list[Json]:
        """What a workflow's knowledge-retrieval node would give out; its `configuration` by name.

        `search_all` gives the same as passages.
        """
        ids = [self.dataset(name)["id"] for name in datasets]
        body = {"query": query, "dataset_ids": ids, **configuration}
        return list(self._json("POST", "/v1/knowledge-retrieval", json=body)["result"])

    def query(self, query_id: str) -> Json:
        """One entry of the history."""
        return self._json("GET", f"/v1/queries/{query_id}")

    def retrieve_as_service(self, dataset: str, query: str, *, top_k: int = 5) -> list[Json]:
        """The records that the external-knowledge contract gives of a dataset."""
        body = {
            "knowledge_id": self.dataset(dataset)["id"],
            "query": query,
            "retrieval_setting": {"top_k": top_k},
        }
        return list(self._json("POST", "/retrieval", json=body)["records"])
