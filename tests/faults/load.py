"""What is uploaded in a round, and what must be there in the end."""

from __future__ import annotations

import json
import random
import re
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.kb.server import LINES

SMALL = (1, 2, 3)
"""Lines of small texts: a batch holds them."""
LONG = (9, 16, 25, 40)
"""Lines of texts that need several batches of 4."""
COPIES = 4
"""Contents of each length."""

_WORDS = re.findall(
    r"[a-z]+",
    "amber anchor april barley basket beacon bramble bridge candle canyon cedar cellar cinder "
    "clover copper cotton cradle dagger delta ember falcon fennel ferry flint forest garnet",
)


@dataclass(frozen=True)
class Content:
    """A text file; every line becomes a segment."""

    key: str
    text: str
    lines: int

    @property
    def extension(self) -> str:
        """Of the file; Markdown goes another way than plain text."""
        return self.key.rpartition(".")[2]


def contents() -> dict[str, Content]:
    """All that is ever uploaded; always the same."""
    chance = random.Random(7)
    made = []
    for lines in (*SMALL, *LONG):
        for copy in range(COPIES):
            rows = [
                f"{lines}-{copy}-{row} {' '.join(chance.choices(_WORDS, k=8))}"
                for row in range(lines)
            ]
            if lines > 2:  # a text that comes twice in a file, and one that other files have
                rows[-1], rows[1] = rows[0], "All rights reserved by the harbour office."
            key = f"{lines}-{copy}.{'md' if copy == 1 else 'txt'}"
            made.append(Content(key, "\n".join(rows), lines))
    return {content.key: content for content in made}


CONTENTS = contents()


@dataclass
class Expected:
    """A document as its client knows it.

    Attributes:
        contents: keys of what was accepted, the newest last.
        answered: an upload of it got its answer; without one it may be there or not.
    """

    name: str
    contents: list[str] = field(default_factory=list)
    id: str | None = None
    deleted: bool = False
    answered: bool = True


@dataclass
class Load:
    """A dataset of one round and its documents, uploaded through any client with `post`."""

    client: Any
    dataset: str
    chance: random.Random
    documents: dict[str, Expected] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *lines: int) -> list[Expected]:
        """Upload a new document of each of these lengths."""
        return [self._add(count) for count in lines]

    def _add(self, lines: int) -> Expected:
        content = self.some(lines)
        document = Expected(f"d{len(self.documents)}.{content.extension}")
        self.put(document, content)
        return document

    def add_exactly(self, content: Content) -> None:
        """Upload this content as a new document."""
        self.put(Expected(content.key), content)

    def some(self, lines: int, extension: str | None = None) -> Content:
        """A content of this length, by chance."""
        fitting = [
            content
            for content in CONTENTS.values()
            if content.lines == lines and extension in (None, content.extension)
        ]
        return self.chance.choice(fitting)

    def mix(self, small: int = 5, long: int = 3) -> None:
        """Upload small and long documents, in any order."""
        lines = [self.chance.choice(SMALL) for _ in range(small)]
        lines += [self.chance.choice(LONG) for _ in range(long)]
        self.chance.shuffle(lines)
        self.add(*lines)

    def replace(self, document: Expected, lines: int | None = None) -> None:
        """Upload another content under the same name."""
        ending = document.name.rpartition(".")[2]
        wanted = lines or self.chance.choice([*SMALL, *LONG])
        self.put(document, self.some(wanted, ending))

    def put(self, document: Expected, content: Content) -> None:
        """Upload; the document counts as accepted when the answer is there."""
        answer = self.send(document.name, content)
        assert answer.status_code == 200, answer.text
        document.id = answer.json()["document"]["id"]
        document.contents.append(content.key)
        self.documents[document.name] = document

    def send(self, name: str, content: Content) -> Any:
        """An upload and its answer."""
        return self.client.post(
            f"/v1/datasets/{self.dataset}/document/create-by-file",
            data={"data": json.dumps({"process_rule": LINES})},
            files={"file": (name, content.text.encode())},
        )

    def try_to_add(self, content: Content) -> int:
        """Upload a new document; without an answer of 200 it may be there or not.

        Returns:
            The answer's status; 0: there was none.
        """
        with self.lock:
            document = Expected(f"d{len(self.documents)}.{content.extension}", [content.key])
            document.answered = False
            self.documents[document.name] = document
        try:
            answer = self.send(document.name, content)
        except httpx.TransportError:
            return 0
        if answer.status_code == 200:
            document.id, document.answered = answer.json()["document"]["id"], True
        return int(answer.status_code)

    def delete(self, document: Expected) -> bool:
        """False: it is in work, which is no time to delete it."""
        answer = self.client.delete(f"/v1/datasets/{self.dataset}/documents/{document.id}")
        if answer.status_code in (200, 204):
            document.deleted = True
        else:
            assert answer.json()["code"] == "document_indexing", answer.text
        return document.deleted

    def disturb(self) -> None:
        """Replace two documents and try to delete one, whatever state they are in."""
        known = [d for d in self.documents.values() if not d.deleted]
        for document in self.chance.sample(known, min(2, len(known))):
            self.replace(document)
        self.delete(self.chance.choice(known))

    def remaining(self) -> list[Expected]:
        """What must be there."""
        return [d for d in self.documents.values() if not d.deleted and d.answered]


def new_name() -> str:
    """Of a dataset."""
    return f"round-{uuid.uuid4().hex[:12]}"
