"""What the domain asks of the outside: SegmentIndex, BlobStore, JobQueue, Reranker, ChatModel;
each has adapters. `Embedder` stands in `pipelines.ports`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Literal, Protocol, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pipelines.types import Vector

Shape = TypeVar("Shape", bound=BaseModel)


class Queue(StrEnum):
    """Where a document waits for a worker; each worker serves the queues that it is told to."""

    INTERACTIVE = "interactive"
    """Small files: somebody is likely to wait for them."""
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Space:
    """One collection of the index: everything embedded by one model.

    Attributes:
        name: safe as a directory or collection name (`[a-z0-9_-]`, at most 100 characters).
        dim: length of the dense vectors; None for a space that holds full-text data only.
    """

    name: str
    dim: int | None


@dataclass(frozen=True, slots=True)
class Terms:
    """Weighted terms: of a text (BM25 term weights) or of a query (how often each occurs).

    Attributes:
        ids: uint32[n], distinct, ascending; stable hashes of the analysed terms.
        weights: float32[n], finite, > 0.
    """

    ids: NDArray[np.uint32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a point can be filtered by: its document's metadata.

    Attributes:
        tags: distinct, ascending; told apart character by character.
        numbers: (slot, value) by ascending slot >= 0; values are finite float64, never -0.0.
    """

    tags: tuple[str, ...] = ()
    numbers: tuple[tuple[int, float], ...] = ()


NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class Tagged:
    """Points with at least one of these tags, of which there is at least one."""

    any_of: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """Points whose number in this slot lies between two bounds; None is no bound, not both.

    Attributes:
        open_low, open_high: the bound itself is left out.
    """

    slot: int
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False


@dataclass(frozen=True, slots=True)
class Every:
    """Points that all parts hold for; one part at least."""

    parts: tuple[Where, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """Points that at least one part holds for; one part at least."""

    parts: tuple[Where, ...]


@dataclass(frozen=True, slots=True)
class Except:
    """Points that the part does not hold for."""

    part: Where


Where = Tagged | Between | Every | Some | Except


def slots_of(where: Where) -> set[int]:
    """The numbers that it asks for."""
    if isinstance(where, Between):
        return {where.slot}
    if isinstance(where, Except):
        return slots_of(where.part)
    if isinstance(where, Tagged):
        return set()
    return {slot for part in where.parts for slot in slots_of(part)}


@dataclass(frozen=True, slots=True)
class Point:
    """What the index knows of one segment or child chunk.

    Attributes:
        id: the segment's or the child chunk's own id; writing it again replaces it.
        segment_id: the segment that is returned for it (the parent of a child chunk).
        version: the document version that wrote it.
        text_hash: of the text that was indexed, so that a stale point can be told.
        dense: float32[dim], finite; None in a space without dense vectors.
        terms: may be empty (a text without any term).
        facts: of its document.
    """

    id: UUID
    dataset_id: UUID
    document_id: UUID
    segment_id: UUID
    version: int
    text_hash: str
    dense: Vector | None
    terms: Terms
    facts: Facts = NO_FACTS

    @property
    def head(self) -> PointHead:
        """The point without its vectors."""
        return PointHead(
            self.id,
            self.dataset_id,
            self.document_id,
            self.segment_id,
            self.version,
            self.text_hash,
            self.facts,
        )


@dataclass(frozen=True, slots=True)
class PointHead:
    """A point without its vectors."""

    id: UUID
    dataset_id: UUID
    document_id: UUID
    segment_id: UUID
    version: int
    text_hash: str
    facts: Facts = NO_FACTS

    def whole(self, dense: Vector | None, terms: Terms) -> Point:
        """The point, with its vectors."""
        return Point(
            id=self.id,
            dataset_id=self.dataset_id,
            document_id=self.document_id,
            segment_id=self.segment_id,
            version=self.version,
            text_hash=self.text_hash,
            dense=dense,
            terms=terms,
            facts=self.facts,
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """A point and its score; higher is better. `text_hash` is that of the text it was made of."""

    id: UUID
    segment_id: UUID
    score: float
    text_hash: str


class SegmentIndex(Protocol):
    """Nearest by embedding and best by BM25, in one store.

    Every method may be called from any thread. Writes are durable when they return: they survive
    a kill of the process, and after `flush` a loss of power. `dataset_id` is the tenant: nothing
    of another dataset is ever returned or influences a score.

    All methods raise `StoreUnavailable` when the store does not answer (safe to retry) and
    `ValueError` for vectors of a wrong length or with values that are not finite; then nothing
    of the call is stored.
    """

    def ensure_space(self, space: Space) -> None:
        """Make the collection if it is not there; repeats safely.

        Raises:
            ValueError: it exists with another `dim`.
        """
        ...

    def upsert(self, space: Space, points: Sequence[Point]) -> None:
        """Write points; a point whose id is known is replaced whole."""
        ...

    def flush(self, space: Space) -> None:
        """Make all that was written survive a loss of power."""
        ...

    def delete(self, space: Space, ids: Sequence[UUID], *, up_to_version: int) -> None:
        """Remove those of the points that were written by version `up_to_version` or an older one.

        The bound makes a late delete harmless: a point written anew since then stays.
        """
        ...

    def delete_document(self, space: Space, dataset_id: UUID, document_id: UUID) -> None:
        """Remove every point of a document."""
        ...

    def delete_dataset(self, space: Space, dataset_id: UUID) -> None:
        """Remove every point of a dataset."""
        ...

    def label(self, space: Space, dataset_id: UUID, facts: Mapping[UUID, Facts]) -> None:
        """Give all points of these documents these facts in place of those that they have.

        Nothing else of a point changes. A document without points is passed over.
        """
        ...

    def nearest(
        self,
        space: Space,
        dataset_id: UUID,
        vector: Vector,
        limit: int,
        *,
        documents: Sequence[UUID] | None = None,
        where: Where | None = None,
    ) -> list[Scored]:
        """Closest points first; score = cosine similarity in [-1, 1]; equal scores by ascending id.

        Args:
            vector: float32[dim], not zero.
            limit: at most this many, > 0.
            documents: only points of these documents; empty gives nothing; None means all.
            where: only points that it holds for, exactly.
        """
        ...

    def best(
        self,
        space: Space,
        dataset_id: UUID,
        query: Terms,
        limit: int,
        *,
        documents: Sequence[UUID] | None = None,
        where: Where | None = None,
    ) -> list[Scored]:
        """Best full-text matches first; equal scores by ascending id.

        Score = sum over common terms of query weight x idf x term weight, > 0, where
        idf = ln(1 + (N - n + 0.5) / (n + 0.5)), N = points of the dataset, n = those of them
        that hold the term ("Okapi BM25" as in Lucene). Points without a common term are left out.
        `documents` and `where` restrict what is returned, never the statistics.
        """
        ...

    def dense_scores(
        self, space: Space, dataset_id: UUID, vector: Vector, ids: Sequence[UUID]
    ) -> dict[UUID, float]:
        """The score that `nearest` would give each of these points; unknown ids are left out."""
        ...

    def text_scores(
        self, space: Space, dataset_id: UUID, query: Terms, ids: Sequence[UUID]
    ) -> dict[UUID, float]:
        """The score that `best` would give each of these points; no common term: left out."""
        ...

    def count(self, space: Space, dataset_id: UUID | None = None) -> int:
        """How many points there are, exactly."""
        ...

    def scan(self, space: Space, dataset_id: UUID | None = None) -> Iterator[PointHead]:
        """Every point once, ascending by id; points written during the scan may be missing."""
        ...

    def scan_points(self, space: Space, dataset_id: UUID | None = None) -> Iterator[Point]:
        """As `scan`, the whole points: vectors as in `vectors`.

        Read page by page as it is consumed; a page is what is held in memory.
        """
        ...

    def read(self, space: Space, ids: Sequence[UUID]) -> dict[UUID, Point]:
        """These points, whole; unknown ids are left out."""
        ...

    def vectors(self, space: Space, ids: Sequence[UUID]) -> dict[UUID, tuple[Vector | None, Terms]]:
        """The stored vectors (float32, as normalised by the engine); unknown ids are left out."""
        ...

    def optimize(self, *, budget_s: float) -> bool:
        """Do pending upkeep in small steps for about `budget_s` seconds; True: more is pending.

        Queries and writes go on meanwhile.
        """
        ...

    def close(self) -> None:
        """Flush and let go of the store; repeats safely."""
        ...


class BlobStore(Protocol):
    """Immutable files by key.

    Keys are relative paths of `[A-Za-z0-9._-]` parts joined by `/`; a part has 1 to 200 characters
    and does not start with a dot, a key has at most 512. No key is the folder of another one.

    Every method may be called from any thread. All raise `ValueError` for what is not a key, and
    `StoreUnavailable` when the store failed for a while (safe to retry).
    """

    def put(self, key: str, data: bytes) -> None:
        """Keep the bytes; durable and whole when it returns; the same key again replaces."""
        ...

    def get(self, key: str) -> bytes:
        """The bytes.

        Raises:
            NotFound: no such blob.
        """
        ...

    def exists(self, key: str) -> bool:
        """Whether the blob is there."""
        ...

    def delete(self, key: str) -> None:
        """Remove the blob; removing a missing one is fine."""
        ...

    def keys(self, prefix: str = "", *, older_than_s: float = 0.0) -> Iterator[str]:
        """Every key that starts with `prefix`, ascending.

        Args:
            older_than_s: leave out blobs that were written less than so many seconds ago.
        """
        ...

    def close(self) -> None:
        """Let go of connections; repeats safely."""
        ...


class Reranker(Protocol):
    """Judges how well texts answer a query, each together with the query."""

    def rerank(
        self, query: str, texts: Sequence[str], *, budget_s: float | None = None
    ) -> list[float | None]:
        """A score in [0, 1] for each text, in the order of `texts`; higher is better.

        A text's score depends on the query and itself alone. None: its turn did not come within
        the budget. Texts have their turn in the order given, so the most promising come first.
        May be called from any thread; no text gives an empty list.

        Args:
            budget_s: time for the whole call, > 0; None: the model's own setting.
        Raises:
            TransientError: no text at all was judged in time, or the model's server does not
                answer; safe to retry.
            RateLimited: its server asks to come later.
            ProviderNotInitialized: it refuses; the message names what to change.
        """
        ...

    def close(self) -> None:
        """Let go of the model; repeats safely."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that an answer cost, as the model's server counts them; 0 where it does not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a chat model answered.

    Attributes:
        cut: it ended at `max_tokens`, not at its own end.
    """

    text: str
    usage: Usage
    cut: bool = False


@dataclass(frozen=True, slots=True)
class ShapedReply(Generic[Shape]):
    """An answer that was asked for, and given, as data; `usage` of all attempts together."""

    value: Shape
    usage: Usage


class ChatModel(Protocol):
    """Continues a conversation. May be called from any thread.

    Both methods raise `TransientError` (no answer within the time, or none that is one),
    `RateLimited` (the server asks to come later than the call can wait) and
    `ProviderNotInitialized` (the server refuses; the message names what to change).
    """

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """The model's next turn.

        Args:
            messages: the conversation, at least one.
            max_tokens: of the answer, > 0; None: the model's own setting.
            temperature: in [0, 2]; None: the model's own setting.
            timeout_s: for the whole call with its retries, > 0; None: the model's own setting.
        """
        ...

    def chat_as(
        self,
        shape: type[Shape],
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        timeout_s: float | None = None,
    ) -> ShapedReply[Shape]:
        """The model's next turn as a value of this Pydantic model, validated.

        An answer that does not validate is asked for again, with what is wrong with it.
        """
        ...

    def close(self) -> None:
        """Let go of the model; repeats safely."""
        ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a webhook's receiver answered.

    Attributes:
        status: of HTTP, 100-599.
        retry_after_s: how long it asked to be left alone, >= 0; None: it did not.
    """

    status: int
    retry_after_s: float | None = None


class NotDelivered(Exception):
    """No answer came, or the address may not be spoken to; the message says why."""


class WebhookSender(Protocol):
    """Carries a message to an address that a user gave."""

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Receipt:
        """Send it once, without following redirects.

        Raises:
            NotDelivered: no connection, no answer in time, or a forbidden address.
        """
        ...


class JobQueue(Protocol):
    """Tells workers that there is something to do.

    What there is to do stands in the database; a message only says "look". So every method is
    called after the commit, none of them raises, and a message may be lost, late or repeated.
    """

    def index_document(self, document_id: UUID, queue: Queue) -> None:
        """A document waits. Its worker takes whichever document of the queue has its turn."""
        ...

    def run_jobs(self) -> None:
        """Jobs were written down in the outbox."""
        ...

    def waiting(self, queue: Queue) -> int | None:
        """Messages of `index_document` that no worker has taken; None: the broker is silent."""
        ...

    def close(self) -> None:
        """Let go of the broker; repeats safely."""
        ...


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What a service answered, unread."""

    status: int
    body: bytes


class ExternalKnowledge(Protocol):
    """Asks services that speak the external-knowledge contract. May be called from any thread."""

    def post(self, endpoint: str, api_key: str, body: bytes) -> RawAnswer:
        """Send JSON to `{endpoint}/retrieval`; a service that falters is asked again.

        Returns:
            The answer of whatever status; after the last attempt also one of 429, 500 and above.
        Raises:
            ExternalKnowledgeFailed: no answer in time, too large a one, or an address that may not
                be spoken to.
        """
        ...
