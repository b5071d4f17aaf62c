"""Random calls of the API, each done to the books as well, and what both must agree about."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

from tests.api.bookkeeping import Books, Doc, Seg, Shelf
from tests.kb.ingesting import LINES, Lab

_LETTERS = "bcdfghjkmnpqrtvwxz"  # no vowels: nothing that a stemmer would cut off
EVERYWHERE = "kqrt"
"""A word of every text."""


class Calls:
    """Makes calls at random; `step` makes one and then compares what is listed and found."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.books = Books()
        self.chance = random.Random(seed)
        self.done: list[str] = []
        self._numbers = itertools.count()
        self._steps: list[tuple[int, Callable[[], str | None]]] = [
            (2, self.create_dataset),
            (1, self.rename_dataset),
            (1, self.delete_dataset),
            (12, self.add_document),
            (5, self.replace_document),
            (3, self.delete_document),
            (8, self.switch_documents),
            (6, self.add_segment),
            (6, self.edit_segment),
            (5, self.switch_segment),
            (4, self.delete_segment),
            (2, self.create_tag),
            (3, self.bind_tag),
            (1, self.delete_tag),
            (2, self.create_field),
            (8, self.assign),
            (1, self.delete_field),
            (1, self.switch_built_in),
        ]

    # --- calls ---------------------------------------------------------------------------

    def call(self, method: str, path: str, status: int = 200, json: Any = None) -> Any:
        answer = self.lab.client.request(method, f"/v1{path}", json=json)
        assert answer.status_code == status, f"{method} {path} {json}: {answer.text}"
        return answer.json() if answer.content else None

    def step(self) -> None:
        """One call that can be made now."""
        while True:
            weights = [weight for weight, _ in self._steps]
            ((_, act),) = self.chance.choices(self._steps, weights)
            touched = act()
            if touched is not None:
                break
        self.done.append(f"{act.__name__} {touched}")
        self.lab.settle()
        if touched in self.books.shelves:
            self.compare(touched)

    def word(self) -> str:
        number = next(self._numbers)
        digits = [_LETTERS[number // 18**place % 18] for place in range(3)]
        return "q" + "".join(digits)

    def text(self) -> str:
        return f"{self.word()} {EVERYWHERE} {self.word()}"

    def pick(self) -> tuple[str, Shelf] | None:
        return self.chance.choice(list(self.books.shelves.items())) if self.books.shelves else None

    def pick_document(
        self, fits: Callable[[Doc], bool] = lambda doc: True
    ) -> tuple[str, str, Doc] | None:
        found = [
            (dataset, document, doc)
            for dataset, shelf in self.books.shelves.items()
            for document, doc in shelf.documents.items()
            if fits(doc)
        ]
        return self.chance.choice(found) if found else None

    def pick_segment(
        self, fits: Callable[[Seg], bool] = lambda segment: True
    ) -> tuple[str, str, Doc, str] | None:
        found = self.pick_document(
            lambda doc: doc.status == "available" and any(map(fits, doc.segments.values()))
        )
        if found is None:
            return None
        dataset, document, doc = found
        ids = [key for key, segment in doc.segments.items() if fits(segment)]
        return dataset, document, doc, self.chance.choice(ids)

    # --- datasets ------------------------------------------------------------------------

    def create_dataset(self) -> str | None:
        if len(self.books.shelves) == 3:
            return None
        technique = self.chance.choice(["economy", "high_quality"])
        name = self.word()
        body = {"name": name, "indexing_technique": technique}
        dataset = str(self.call("POST", "/datasets", json=body)["id"])
        self.call("POST", "/datasets", 409, json=body)
        self.books.shelves[dataset] = Shelf(name, technique)
        return dataset

    def rename_dataset(self) -> str | None:
        if (found := self.pick()) is None:
            return None
        dataset, shelf = found
        shelf.name = self.word()
        self.call("PATCH", f"/datasets/{dataset}", json={"name": shelf.name})
        return dataset

    def delete_dataset(self) -> str | None:
        if len(self.books.shelves) < 3 or (found := self.pick()) is None:
            return None
        self.call("DELETE", f"/datasets/{found[0]}", 204)
        self.call("GET", f"/datasets/{found[0]}", 404)
        del self.books.shelves[found[0]]
        return found[0]

    # --- documents -----------------------------------------------------------------------

    def lines(self) -> str:
        return "\n".join(self.text() for _ in range(self.chance.randint(1, 3)))

    def add_document(self) -> str | None:
        found = self.pick()
        if found is None or len(found[1].documents) == 8:
            return None
        dataset, shelf = found
        name = self.word()
        document = self._upload(dataset, name, self.lines())
        assert document not in shelf.documents
        shelf.documents[document] = Doc(name)
        self._read_segments(dataset, document)
        return dataset

    def _upload(self, dataset: str, name: str, text: str) -> str:
        body = {"name": name, "text": text, "process_rule": LINES}
        answer = self.call("POST", f"/datasets/{dataset}/document/create-by-text", json=body)
        self.lab.settle()
        self._sent = text.split("\n")
        return str(answer["document"]["id"])

    def _read_segments(self, dataset: str, document: str) -> None:
        rows = self.call("GET", f"/datasets/{dataset}/documents/{document}/segments")["data"]
        assert [row["content"] for row in rows] == self._sent
        doc = self.books.shelves[dataset].documents[document]
        doc.segments = {row["id"]: Seg(row["content"]) for row in rows}

    def replace_document(self) -> str | None:
        """By the same name, or by an update: the id stays, and the metadata."""
        found = self.pick_document(lambda doc: doc.status == "available" and not doc.edited)
        if found is None:
            return None
        dataset, document, doc = found
        text = self.lines()
        if self.chance.random() < 0.5:
            assert self._upload(dataset, doc.name, text) == document
        else:
            path = f"/datasets/{dataset}/documents/{document}/update-by-text"
            self.call("POST", path, json={"name": doc.name, "text": text, "process_rule": LINES})
            self.lab.settle()
            self._sent = text.split("\n")
        self._read_segments(dataset, document)
        return dataset

    def delete_document(self) -> str | None:
        if (found := self.pick_document()) is None:
            return None
        dataset, document, doc = found
        path = f"/datasets/{dataset}/documents/{document}"
        if doc.archived:
            assert self.call("DELETE", path, 403)["code"] == "archived_document_immutable"
        else:
            self.call("DELETE", path, 204)
            self.call("GET", path, 404)
            del self.books.shelves[dataset].documents[document]
        return dataset

    def switch_documents(self) -> str | None:
        if (found := self.pick()) is None or not found[1].documents:
            return None
        dataset, shelf = found
        some = self.chance.sample(
            list(shelf.documents), self.chance.randint(1, len(shelf.documents))
        )
        action = self.chance.choice(["enable", "disable", "archive", "un_archive"])
        path = f"/datasets/{dataset}/documents/status/{action}"
        self.call("PATCH", path, json={"document_ids": some})
        for document in some:
            doc = shelf.documents[document]
            if action in ("enable", "disable"):
                doc.enabled = action == "enable"
            else:
                doc.archived = action == "archive"
        return dataset

    # --- segments ------------------------------------------------------------------------

    def add_segment(self) -> str | None:
        if (found := self.pick_document()) is None:
            return None
        dataset, document, doc = found
        path = f"/datasets/{dataset}/documents/{document}/segments"
        body = {"segments": [{"content": self.text()}]}
        if doc.status == "disabled":
            self.call("POST", path, 404, json=body)
        elif doc.status == "available":
            (row,) = self.call("POST", path, json=body)["data"]
            doc.segments[row["id"]] = Seg(row["content"])
            doc.edited = True
        return dataset

    def edit_segment(self) -> str | None:
        if (found := self.pick_segment()) is None:
            return None
        dataset, document, doc, segment = found
        path = f"/datasets/{dataset}/documents/{document}/segments/{segment}"
        content = self.text()
        known = doc.segments[segment]
        if known.enabled:
            self.call("POST", path, json={"segment": {"content": content}})
            known.content = content
            doc.edited = True
        else:
            self.call("POST", path, 400, json={"segment": {"content": content}})
        return dataset

    def switch_segment(self) -> str | None:
        if (found := self.pick_segment()) is None:
            return None
        dataset, document, doc, segment = found
        known = doc.segments[segment]
        known.enabled = not known.enabled
        doc.edited = True
        path = f"/datasets/{dataset}/documents/{document}/segments/{segment}"
        self.call("POST", path, json={"segment": {"enabled": known.enabled}})
        return dataset

    def delete_segment(self) -> str | None:
        if (found := self.pick_segment()) is None:
            return None
        dataset, document, doc, segment = found
        self.call("DELETE", f"/datasets/{dataset}/documents/{document}/segments/{segment}", 204)
        del doc.segments[segment]
        doc.edited = True
        return dataset

    # --- tags and metadata -----------------------------------------------------------------

    def create_tag(self) -> str | None:
        if len(self.books.tags) == 4:
            return None
        name = self.word()
        tag = str(self.call("POST", "/datasets/tags", json={"name": name})["id"])
        self.call("POST", "/datasets/tags", 400, json={"name": name})
        self.books.tags[tag] = name
        return tag

    def bind_tag(self) -> str | None:
        if (found := self.pick()) is None or not self.books.tags:
            return None
        dataset, shelf = found
        tag = self.chance.choice(list(self.books.tags))
        body = {"tag_ids": [tag], "target_id": dataset}
        if tag in shelf.tags:
            self.call("POST", "/datasets/tags/unbinding", 204, json=body)
            shelf.tags.discard(tag)
        else:
            self.call("POST", "/datasets/tags/binding", 204, json=body)
            shelf.tags.add(tag)
        return dataset

    def delete_tag(self) -> str | None:
        if len(self.books.tags) < 3:
            return None
        tag = self.chance.choice(list(self.books.tags))
        self.call("DELETE", "/datasets/tags", 204, json={"tag_id": tag})
        del self.books.tags[tag]
        for shelf in self.books.shelves.values():
            shelf.tags.discard(tag)
        return tag

    def create_field(self) -> str | None:
        if (found := self.pick()) is None or len(found[1].fields) == 3:
            return None
        dataset, shelf = found
        body = {"type": "string", "name": self.word()}
        row = self.call("POST", f"/datasets/{dataset}/metadata", 201, json=body)
        shelf.fields[row["id"]] = body["name"]
        return dataset

    def assign(self) -> str | None:
        if (found := self.pick_document()) is None:
            return None
        dataset, document, doc = found
        shelf = self.books.shelves[dataset]
        if not shelf.fields:
            return None
        some = self.chance.sample(list(shelf.fields), self.chance.randint(1, len(shelf.fields)))
        given = {key: self.chance.choice(["red", "green"]) for key in some}
        keeps = self.chance.random() < 0.5
        values = [{"id": k, "name": shelf.fields[k], "value": v} for k, v in given.items()]
        one = {"document_id": document, "metadata_list": values, "partial_update": keeps}
        self.call("POST", f"/datasets/{dataset}/documents/metadata", json={"operation_data": [one]})
        doc.values = {**(doc.values if keeps else {}), **given}
        return dataset

    def delete_field(self) -> str | None:
        if (found := self.pick()) is None or len(found[1].fields) < 3:
            return None
        dataset, shelf = found
        key = self.chance.choice(list(shelf.fields))
        self.call("DELETE", f"/datasets/{dataset}/metadata/{key}", 204)
        del shelf.fields[key]
        for doc in shelf.documents.values():
            doc.values.pop(key, None)
        return dataset

    def switch_built_in(self) -> str | None:
        if (found := self.pick()) is None:
            return None
        dataset, shelf = found
        shelf.built_in = not shelf.built_in
        action = "enable" if shelf.built_in else "disable"
        self.call("POST", f"/datasets/{dataset}/metadata/built-in/{action}")
        return dataset

    # --- comparing -------------------------------------------------------------------------

    def compare(self, dataset: str) -> None:
        """What the API says of a dataset is what the books say."""
        self._compare_dataset(dataset)
        self._compare_documents(dataset)
        self._compare_answers(dataset)

    def compare_all(self) -> None:
        """The same of everything, and each segment."""
        listed = self.call("GET", "/datasets?limit=100")["data"]
        assert {row["id"]: row["name"] for row in listed} == {
            key: shelf.name for key, shelf in self.books.shelves.items()
        }
        for tag, name in self.books.tags.items():
            carrying = self.call("GET", f"/datasets?tag_ids={tag}")["data"]
            expected = {key for key, shelf in self.books.shelves.items() if tag in shelf.tags}
            assert {row["id"] for row in carrying} == expected, name
        for dataset, shelf in self.books.shelves.items():
            self.compare(dataset)
            for document, doc in shelf.documents.items():
                path = f"/datasets/{dataset}/documents/{document}/segments?limit=100"
                rows = self.call("GET", path)["data"]
                assert [(r["id"], r["content"], r["enabled"]) for r in rows] == [
                    (key, seg.content, seg.enabled) for key, seg in doc.segments.items()
                ]

    def _compare_dataset(self, dataset: str) -> None:
        shelf = self.books.shelves[dataset]
        shown = self.call("GET", f"/datasets/{dataset}")
        available = sum(doc.status == "available" for doc in shelf.documents.values())
        assert shown["name"] == shelf.name
        assert {tag["id"] for tag in shown["tags"]} == shelf.tags
        assert shown["document_count"] == len(shelf.documents)
        assert shown["total_available_documents"] == available
        assert shown["built_in_field_enabled"] is shelf.built_in
        own = {f["id"]: f["name"] for f in shown["doc_metadata"] if f["id"] != "built-in"}
        assert own == shelf.fields
        counts = self.call("GET", f"/datasets/{dataset}/metadata")["doc_metadata"]
        assert {row["id"]: row["count"] for row in counts} == {
            key: sum(key in doc.values for doc in shelf.documents.values()) for key in shelf.fields
        }

    def _compare_documents(self, dataset: str) -> None:
        shelf = self.books.shelves[dataset]
        rows = self.call("GET", f"/datasets/{dataset}/documents?limit=100")["data"]
        assert {row["id"] for row in rows} == set(shelf.documents)
        for row in rows:
            doc = shelf.documents[row["id"]]
            assert (row["name"], row["display_status"]) == (doc.name, doc.status)
            assert (row["enabled"], row["archived"]) == (doc.enabled, doc.archived)
            own = {m["id"]: m["value"] for m in row["doc_metadata"] if m["id"] != "built-in"}
            assert own == doc.values
            built_in = [m["name"] for m in row["doc_metadata"] if m["id"] == "built-in"]
            assert bool(built_in) is shelf.built_in
            assert row["word_count"] == sum(len(s.content) for s in doc.segments.values())

    def _compare_answers(self, dataset: str) -> None:
        shelf = self.books.shelves[dataset]
        methods = ["full_text_search", "keyword_search"]
        if shelf.technique == "high_quality":
            methods = ["semantic_search", "full_text_search", "hybrid_search"]
        method = self.chance.choice(methods)
        assert self.found(dataset, EVERYWHERE, method) == shelf.live(), method
        if shelf.fields:
            key = self.chance.choice(list(shelf.fields))
            condition = {"name": shelf.fields[key], "comparison_operator": "is", "value": "red"}
            expected = [d.live() for d in shelf.documents.values() if d.values.get(key) == "red"]
            found = self.found(dataset, EVERYWHERE, method, [condition])
            assert found == set().union(*expected), method

    def found(
        self, dataset: str, query: str, method: str, conditions: list[Any] | None = None
    ) -> set[str]:
        """Texts that a query finds."""
        model: dict[str, Any] = {"search_method": method, "top_k": 50}
        if conditions:
            model["metadata_filtering_conditions"] = {"conditions": conditions}
        body = {"query": query, "retrieval_model": model}
        records = self.call("POST", f"/datasets/{dataset}/retrieve", json=body)["records"]
        return {record["segment"]["content"] for record in records}
