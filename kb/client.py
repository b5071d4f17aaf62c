"""Client: a kb server in Python, from file to answer in five lines.

```python
from kb.client import Client
with Client("http://127.0.0.1:8000", api_key="dataset-...") as kb:
    kb.ingest("handbook", "warranty.pdf")
    for passage in kb.search("handbook", "How long is the warranty?"):
        print(passage.score, passage.document, passage.text)
```
"""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx2 as httpx

Json = dict[str, Any]
Method = Literal["hybrid", "vector", "fulltext"]

METHODS: Mapping[str, str] = {
    "hybrid": "hybrid_search",
    "vector": "semantic_search",
    "fulltext": "full_text_search",
}
"""Our names of the search methods -> those on the wire."""

FINISHED = frozenset({"completed", "error", "paused"})
"""Indexing states that a document does not leave by itself."""

_PAGE_ROWS = 100
_EXTERNAL_APIS = "/v1/datasets/external-knowledge-api"
_LONG_S = 3600.0
"""For what takes long on the server: the doctor, moving a dataset."""


class ClientError(Exception):
    """The server did not do what was asked; the message says why and what would help."""


class Unreachable(ClientError):
    """No kb server answers at this address; may be retried."""


class ApiError(ClientError):
    """The server refused.

    Attributes:
        status: of HTTP.
        code: machine-readable reason, such as `invalid_param`.
    """

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Missing(ClientError):
    """No dataset or document has this name; the message names those that exist."""


class IngestionFailed(ClientError):
    """The document was accepted but cannot be indexed.

    Attributes:
        document: as the server shows it, with `error_code` and `error`.
    """

    def __init__(self, message: str, document: Json) -> None:
        super().__init__(message)
        self.document = document


@dataclass(frozen=True)
class Passage:
    """A piece of a document that answers a query.

    Attributes:
        score: in [0, 1], higher is better.
        text: of a question with an answer, the question.
        answer: None in documents of other forms.
        source: where the passage stands: `start` and `end` (characters of the extracted text)
            and, as far as the format has them, `page`, `page_end`, `headings`, `sheet`, `rows`.
        children: the parts that matched, of a passage that was found by its parts.
        explanation: how the score came about, when it was asked for.
    """

    score: float
    text: str
    document: str
    document_id: str
    segment_id: str
    position: int
    source: Json
    answer: str | None = None
    children: tuple[Json, ...] = ()
    explanation: Json | None = None

    @staticmethod
    def of_item(item: Json) -> Passage:
        """An item of a knowledge-retrieval answer; ids of other services' are empty."""
        metadata = item["metadata"]
        return Passage(
            score=metadata["score"],
            text=item["content"],
            document=item["title"],
            document_id=metadata["document_id"],
            segment_id=metadata["segment_id"] or "",
            position=metadata["segment_position"],
            source={},
            children=tuple(metadata["child_chunks"]),
        )

    @staticmethod
    def of(record: Json) -> Passage:
        """A record of a retrieve answer."""
        segment = record["segment"]
        return Passage(
            score=record["score"],
            text=segment["content"],
            document=segment["document"]["name"],
            document_id=segment["document"]["id"],
            segment_id=segment["id"],
            position=segment["position"],
            source=segment.get("source") or {},
            answer=segment.get("answer"),
            children=tuple(record.get("child_chunks") or ()),
            explanation=record.get("explain"),
        )


@dataclass(frozen=True)
class Answer:
    """What a search found, best passage first; iterates over the passages.

    Attributes:
        timings_ms: milliseconds per stage in the server, when an explanation was asked for.
        raw: the body as it came.
    """

    passages: tuple[Passage, ...]
    raw: Json = field(repr=False)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Passage]:
        return iter(self.passages)

    def __len__(self) -> int:
        return len(self.passages)


class Client:
    """A kb server over HTTP. Datasets and documents are given by name or id.

    Every method raises ClientError: Unreachable, ApiError or Missing; the constructor does when
    `url` is none.

    Args:
        url: such as http://127.0.0.1:8000.
        api_key: what `kb serve` printed at its first start, or its KB_API_KEY.
        timeout_s: for one answer.
        transport: another way to the server than the network.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as exc:
            raise ClientError(f"{url!r} is not a URL: {exc}") from exc
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ClientError(f"{url!r} is not a URL of a server, such as http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            # As bytes: a key that is not ASCII is the server's to refuse.
            headers={b"Authorization": f"Bearer {api_key.strip()}".encode()},
            timeout=timeout_s,
            transport=transport,
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- datasets

    def datasets(self, keyword: str = "") -> list[Json]:
        """Every dataset, newest first; `keyword` is a part of the name."""
        return list(self._pages("/v1/datasets", {"keyword": keyword, "include_all": "true"}))

    def find_dataset(self, name: str) -> Json | None:
        """The dataset of this name or id, or None."""
        if _is_id(name):
            try:
                return self._json("GET", f"/v1/datasets/{name}")
            except ApiError as exc:
                if exc.status != 404:
                    raise
        return next((d for d in self.datasets(name) if d["name"] == name), None)

    def dataset(self, name: str) -> Json:
        """The dataset of this name or id.

        Raises:
            Missing: the message names the datasets that exist.
        """
        found = self.find_dataset(name)
        if found is not None:
            return found
        names = sorted(d["name"] for d in self.datasets())
        if not names:
            raise Missing(
                f"no dataset {name!r}, and no other; create one: kb datasets create NAME, or "
                "kb ingest PATH --dataset NAME"
            )
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        raise Missing(f"no dataset {name!r}; there is: {shown}")

    def create_dataset(self, name: str, **settings: Any) -> Json:
        """Create a dataset; `settings` are other keys of the request's body."""
        return self._json("POST", "/v1/datasets", json={"name": name, **settings})

    def update_dataset(self, name: str, /, **settings: Any) -> Json:
        """Change a dataset; `settings` are keys of the request's body.

        Another embedding model or technique begins a switch, see `switch`.
        """
        return self._json("PATCH", self._path(name), json=settings)

    def switch(self, name: str) -> Json:
        """The dataset's switch to another model or technique that was started last."""
        return self._json("GET", f"{self._path(name)}/switch")

    def cancel_switch(self, name: str) -> Json:
        """Cancel the dataset's running switch; the dataset stays as it is."""
        return self._json("DELETE", f"{self._path(name)}/switch")

    def switches(self, status: str = "") -> list[Json]:
        """The switches of all datasets, newest first; `status` leaves those of one state."""
        return list(self._pages("/v1/switches", {"status": status}))

    def delete_dataset(self, name: str) -> None:
        """Delete a dataset with its documents."""
        self._send("DELETE", f"/v1/datasets/{self.dataset(name)['id']}")

    def export_dataset(
        self,
        name: str,
        file: str | Path,
        *,
        with_vectors: bool = False,
        progress: Callable[[int], None] = lambda size: None,
    ) -> int:
        """Write a dataset to an archive, as it arrives; the file appears when it is whole.

        Args:
            progress: called with the bytes of each part.
        Returns:
            The archive's bytes.
        Raises:
            OSError: the file cannot be written.
        """
        path, size = Path(file), 0
        part = path.with_name(f"{path.name}.part")
        params = {"vectors": "true"} if with_vectors else None
        try:
            with (
                self._reached(),
                self._http.stream(
                    "GET", f"{self._path(name)}/export", params=params, timeout=_LONG_S
                ) as response,
            ):
                if not response.is_success:
                    response.read()
                    raise self._refusal(response)
                with part.open("wb") as out:
                    for piece in response.iter_bytes():
                        out.write(piece)
                        size += len(piece)
                        progress(len(piece))
            if not zipfile.is_zipfile(part):
                raise ClientError(
                    f"{self.url} broke off while it sent the archive; look at its log, try again"
                )
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return size

    def import_dataset(
        self,
        file: str | Path,
        *,
        name: str | None = None,
        progress: Callable[[int], None] = lambda size: None,
    ) -> Json:
        """Send an archive; its dataset appears when all of it is there.

        Returns:
            The dataset; `imported` says how many documents answer and how many are `queued`.
        Raises:
            OSError: the file cannot be read.
        """
        path = Path(file)

        def pieces() -> Iterator[bytes]:
            with path.open("rb") as opened:
                while piece := opened.read(2**20):
                    progress(len(piece))
                    yield piece

        return self._json(
            "POST",
            "/v1/datasets/import",
            params={"name": name} if name is not None else None,
            content=pieces(),
            headers={
                "Content-Type": "application/zip",
                "Content-Length": str(path.stat().st_size),
            },
            timeout=_LONG_S,
        )

    def unfinished(self, dataset: str) -> int:
        """How many documents of a dataset wait or are in work."""
        path = f"{self._path(dataset)}/documents"
        return sum(
            int(self._json("GET", path, params={"status": status, "limit": 1})["total"])
            for status in ("queuing", "indexing")
        )

    # -- documents

    def documents(self, dataset: str, keyword: str = "") -> list[Json]:
        """Every document of a dataset, newest first; `keyword` is a part of the name."""
        return list(self._pages(f"{self._path(dataset)}/documents", {"keyword": keyword}))

    def document(self, dataset: str, name: str) -> Json:
        """One document with its outcome, its timings and its segment count.

        Raises:
            Missing: the message names documents with similar names.
        """
        path = self._path(dataset)
        return self._json("GET", f"{path}/documents/{self._document_id(path, name)}")

    def delete_document(self, dataset: str, name: str) -> None:
        """Delete a document with its segments."""
        path = self._path(dataset)
        self._send("DELETE", f"{path}/documents/{self._document_id(path, name)}")

    def retry_document(self, dataset: str, name: str) -> Json:
        """Queue a failed document again; it goes on after its last checkpoint."""
        path = self._path(dataset)
        return self._json("POST", f"{path}/documents/{self._document_id(path, name)}/retry")

    def steer_document(self, dataset: str, name: str, action: str, **body: Any) -> Json:
        """`pause`, `resume`, `retry`, `cancel` or `rechunk` (with `process_rule`) a document."""
        path = self._path(dataset)
        path = f"{path}/documents/{self._document_id(path, name)}/{action}"
        return self._json("POST", path, json=body)

    def steer_documents(self, action: str, matching: Json, **body: Any) -> Json:
        """The same with all documents that match: `dataset_id`, `status`, `error_code`, `tag` ...

        Returns:
            `matched` and `affected` (how many), `document_ids` and `documents` (those affected).
        """
        return self._json(
            "POST", f"/v1/documents/{action}", json={"filter": matching, **body}, timeout=_LONG_S
        )

    def rename_document(self, dataset: str, name: str, to: str) -> Json:
        """Give a document another name; nothing is indexed anew."""
        path = self._path(dataset)
        path = f"{path}/documents/{self._document_id(path, name)}/rename"
        return self._json("POST", path, json={"name": to})

    def document_report(self, dataset: str, name: str, version: int | None = None) -> Json:
        """What became of a document's file: pages, rows, chunks, times, errors."""
        path = self._path(dataset)
        path = f"{path}/documents/{self._document_id(path, name)}/report"
        return self._json("GET", path, params={"version": version} if version else {})

    # -- segments

    def _segments(self, dataset: str, document: str) -> str:
        path = self._path(dataset)
        return f"{path}/documents/{self._document_id(path, document)}/segments"

    def segments(self, dataset: str, document: str, keyword: str = "") -> list[Json]:
        """Every segment of a document in order; `keyword` is a part of the content."""
        return list(self._pages(self._segments(dataset, document), {"keyword": keyword}))

    def segment(self, dataset: str, document: str, segment_id: str) -> Json:
        """One segment."""
        answer = self._json("GET", f"{self._segments(dataset, document)}/{segment_id}")
        return dict(answer["data"])

    def add_segments(self, dataset: str, document: str, segments: list[Json]) -> list[Json]:
        """Append segments (`content`, `answer`, `keywords`), all or none; found at once."""
        path = self._segments(dataset, document)
        body = {"segments": segments}
        return list(self._json("POST", path, json=body, timeout=_LONG_S)["data"])

    def update_segment(self, dataset: str, document: str, segment_id: str, **change: Any) -> Json:
        """Change a segment: `content`, `answer`, `keywords`, `enabled`, ...; found so at once."""
        path = f"{self._segments(dataset, document)}/{segment_id}"
        return dict(self._json("POST", path, json={"segment": change})["data"])

    def delete_segment(self, dataset: str, document: str, segment_id: str) -> None:
        """Delete a segment with its child chunks."""
        self._send("DELETE", f"{self._segments(dataset, document)}/{segment_id}")

    def import_segments(self, dataset: str, document: str, file: str | Path) -> Json:
        """Append the rows of a CSV, TSV, XLSX or XLS file; ask `segment_import` about large ones.

        Raises:
            OSError: this process cannot read it.
        """
        path = Path(file)
        return self._json(
            "POST",
            f"{self._segments(dataset, document)}/import",
            files={"file": (path.name, path.read_bytes())},
            timeout=_LONG_S,
        )

    def segment_import(self, dataset: str, document: str, import_id: str) -> Json:
        """How far an import of segments has got."""
        return self._json("GET", f"{self._segments(dataset, document)}/import/{import_id}")

    def upload(
        self, dataset: str, name: str, data: bytes, settings: Json | None = None
    ) -> tuple[Json, str]:
        """Send one file; it is indexed in the background, in place of one of the same name.

        Args:
            name: the document's name, with the extension that tells the format.
            settings: `indexing_technique` (needed by the first document of a dataset that was
                created without), `doc_form`, `process_rule` and others.
        Returns:
            The document, and the batch to ask `indexing_status` with.
        """
        answer = self._json(
            "POST",
            f"{self._path(dataset)}/document/create-by-file",
            data={"data": json.dumps(settings or {})},
            files={"file": (name, data)},
        )
        return answer["document"], answer["batch"]

    def indexing_status(self, dataset: str, batch: str) -> Json:
        """How far the document of an upload has got."""
        answer = self._json("GET", f"{self._path(dataset)}/documents/{batch}/indexing-status")
        status: Json = answer["data"][0]
        return status

    def ingest(self, dataset: str, file: str | Path, *, poll_s: float = 0.2) -> Json:
        """Send one file, creating the dataset if it is missing, and wait until it is searchable.

        Raises:
            IngestionFailed: the server cannot read it.
            OSError: this process cannot.
        """
        path = Path(file)
        data = path.read_bytes()
        found = self.find_dataset(dataset) or self.create_dataset(
            dataset, indexing_technique="high_quality"
        )
        technique = found["indexing_technique"] or "high_quality"
        document, batch = self.upload(
            found["id"], path.name, data, {"indexing_technique": technique}
        )
        while self.indexing_status(found["id"], batch)["indexing_status"] not in FINISHED:
            time.sleep(poll_s)
        document = self.document(found["id"], document["id"])
        if document["indexing_status"] == "error":
            raise IngestionFailed(f"{document['error_code']}: {document['error']}", document)
        return document

    # -- search and upkeep

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
            "dataset_ids": [d if _is_id(d) else self.dataset(d)["id"] for d in datasets],
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

    # -- knowledge of other services

    def external_apis(self) -> list[Json]:
        """The services that are kept, newest first."""
        return list(self._pages(_EXTERNAL_APIS, {}))

    def add_external_api(
        self, name: str, endpoint: str, api_key: str, *, description: str = ""
    ) -> Json:
        """Try out a service and keep it."""
        settings = {"endpoint": endpoint, "api_key": api_key}
        body = {"name": name, "description": description, "settings": settings}
        return self._json("POST", _EXTERNAL_APIS, json=body)

    def probe_external_api(self, api_id: str) -> Json:
        """Try out a service that is kept; `status` is that of its answer."""
        return self._json("POST", f"{_EXTERNAL_APIS}/{api_id}/probe")

    def delete_external_api(self, api_id: str) -> None:
        """Forget a service that no dataset is bound to."""
        self._send("DELETE", f"{_EXTERNAL_APIS}/{api_id}")

    def add_external_dataset(self, name: str, api_id: str, knowledge_id: str) -> Json:
        """Create a dataset whose knowledge a service holds."""
        body = {
            "name": name,
            "external_knowledge_api_id": api_id,
            "external_knowledge_id": knowledge_id,
        }
        return self._json("POST", "/v1/datasets/external", json=body)

    # -- metadata

    def metadata(self, dataset: str) -> Json:
        """`doc_metadata`, the fields with their counts; and `built_in_field_enabled`."""
        return self._json("GET", f"{self._path(dataset)}/metadata")

    def add_metadata_field(self, dataset: str, name: str, type: str) -> Json:
        """Make a field of type `string`, `number` or `time`."""
        body = {"name": name, "type": type}
        return self._json("POST", f"{self._path(dataset)}/metadata", json=body)

    def rename_metadata_field(self, dataset: str, field_id: str, name: str) -> Json:
        """Give a field another name."""
        path = f"{self._path(dataset)}/metadata/{field_id}"
        return self._json("PATCH", path, json={"name": name})

    def delete_metadata_field(self, dataset: str, field_id: str) -> None:
        """Delete a field, with its value in every document."""
        self._send("DELETE", f"{self._path(dataset)}/metadata/{field_id}")

    def set_metadata(
        self, dataset: str, document: str, values: Mapping[str, str | float | None]
    ) -> None:
        """Set values of a document, by field id; its other values stay.

        Args:
            document: name or id.
        """
        path = self._path(dataset)
        operation = {
            "document_id": self._document_id(path, document),
            "metadata_list": [{"id": i, "name": "", "value": v} for i, v in values.items()],
            "partial_update": True,
        }
        self._send("POST", f"{path}/documents/metadata", json={"operation_data": [operation]})

    # -- models

    def models(self, type: str | None = None) -> list[Json]:
        """The models that are configured: `text-embedding`, `rerank` or `llm`; None: all."""
        answer = self._json("GET", "/v1/models", params={"type": type} if type else None)
        return list(answer["data"])

    def add_model(self, model: Json) -> Json:
        """Configure a model: `type`, `provider`, `model`, `kind`, and where it is."""
        return self._json("POST", "/v1/models", json=model)

    def update_model(self, model_id: str, changes: Json) -> Json:
        """Change where a model is, its API key or its options."""
        return self._json("PATCH", f"/v1/models/{model_id}", json=changes)

    def test_model(self, model_id: str) -> Json:
        """Call a model for real; `ok` says whether it answered."""
        return self._json("POST", f"/v1/models/{model_id}/test", timeout=_LONG_S)

    def delete_model(self, model_id: str) -> None:
        """Remove a model that no dataset needs."""
        self._send("DELETE", f"/v1/models/{model_id}")

    def status(self) -> Json:
        """Queues, errors, workers, jobs, throughput, the slowest stage, and the time to finish."""
        return self._json("GET", "/v1/status")

    def doctor(self, *, repair: bool = False, deep: bool = False) -> Json:
        """Compare database, index and files; with `repair` heal what differs. May take minutes.

        Args:
            deep: also compare vectors, terms, texts and the bytes of files.
        """
        asked = {"repair": repair, "deep": deep}
        return self._json(
            "POST",
            "/v1/doctor",
            params={name: "true" for name, on in asked.items() if on} or None,
            timeout=_LONG_S,
        )

    # -- how it is done

    def _path(self, dataset: str) -> str:
        found = dataset if _is_id(dataset) else self.dataset(dataset)["id"]
        return f"/v1/datasets/{found}"

    def _document_id(self, path: str, name: str) -> str:
        if _is_id(name):
            return name
        found = list(self._pages(f"{path}/documents", {"keyword": name}))
        for document in found:
            if document["name"] == name:
                return str(document["id"])
        found = found or list(self._pages(f"{path}/documents", {}))
        names = sorted(d["name"] for d in found)
        if not names:
            raise Missing(f"no document {name!r}; the dataset is empty")
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        raise Missing(f"no document {name!r}; there is: {shown}")

    def _pages(self, path: str, params: Json) -> Iterator[Json]:
        page = 1
        while True:
            body = self._json("GET", path, params={**params, "page": page, "limit": _PAGE_ROWS})
            yield from body["data"]
            if page * _PAGE_ROWS >= body["total"] or not body["data"]:
                return
            page += 1

    def _json(self, method: str, path: str, **request: Any) -> Json:
        response = self._send(method, path, **request)
        try:
            body = response.json()
        except ValueError as exc:
            raise self._stranger(response) from exc
        if not isinstance(body, dict):
            raise self._stranger(response)
        return body

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._reached():
            response = self._http.request(method, path, **request)
        if response.is_success:
            return response
        raise self._refusal(response)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises: Unreachable: no server, or none that answers in time."""
        try:
            yield
        except httpx.TimeoutException as exc:
            raise Unreachable(
                f"{self.url} did not answer in time; look at the server's log, and try again"
            ) from exc
        except httpx.TransportError as exc:
            reason = re.sub(r"^\[Errno -?\d+\] ", "", str(exc)) or type(exc).__name__
            raise Unreachable(
                f"cannot reach {self.url}: {reason}; is `kb serve` running there?"
            ) from exc

    def _refusal(self, response: httpx.Response) -> ClientError:
        try:
            body = response.json()
            code, message = str(body["code"]), str(body["message"])
        except (ValueError, KeyError, TypeError):
            return self._stranger(response)
        return ApiError(_readable(code, message), status=response.status_code, code=code)

    def _stranger(self, response: httpx.Response) -> ClientError:
        return ClientError(
            f"{self.url} answered {response.status_code} {response.reason_phrase} to "
            f"{response.request.method} {response.request.url.path}, not as a kb server does; "
            "check the URL"
        )


def _readable(code: str, message: str) -> str:
    """The message; of a body that did not validate it is a JSON list of errors."""
    if code != "unprocessable_entity":
        return message
    try:
        return "; ".join(error["msg"] for error in json.loads(message))
    except (ValueError, KeyError, TypeError):
        return message


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
