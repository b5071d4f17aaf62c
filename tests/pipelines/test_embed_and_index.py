"""The last two nodes of an ingestion: nothing is embedded that the index does not ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pipelines.definitions import definition
from pipelines.engine import run
from pipelines.errors import NodeError, TransientError
from pipelines.graph import Graph
from pipelines.node import Node, RunContext
from pipelines.nodes.embed import Embed
from pipelines.nodes.index import Index
from pipelines.types import Blob, Chunk, Chunked, Embeddable, Indexed, Vector, Vectors

CHUNKED = Chunked(
    (Chunk("one", 0, 3, 1), Chunk("two", 4, 7, 2)), "one two", ("page 2 has no text",)
)
KINDS: Mapping[str, type[Node[Any, Any]]] = {"embed": Embed, "index": Index}


class LengthEmbedder:
    """Embeds a text as its length."""

    id, dim, max_tokens = "length", 1, 100

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        self.embedded += texts
        return np.array([[len(text)] for text in texts], np.float32)

    def embed_query(self, text: str) -> Vector:
        return np.array([len(text)], np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


class MemorySink:
    """Keeps vectors by text and asks only for those that it does not have."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.vectors: dict[str, list[float]] = {}

    def store(
        self, chunked: Chunked, embed: Callable[[Sequence[str]], Vectors] | None
    ) -> tuple[int, int]:
        self.texts = [chunk.text for chunk in chunked.chunks]
        new = [text for text in self.texts if text not in self.vectors]
        if embed is not None and new:
            self.vectors |= dict(zip(new, embed(new).tolist(), strict=True))
        return len(self.texts), len(self.vectors)


def graph(*kinds: str) -> Graph:
    nodes = [{"id": kind, "kind": kind} for kind in kinds]
    edges = [[a, b] for a, b in pairwise(kinds)]
    return Graph.from_dict({"name": "end", "nodes": nodes, "edges": edges}, kinds=KINDS)


def test_the_annotations_say_what_fits() -> None:
    assert (Embed.takes(), Embed.gives()) == (Chunked, Embeddable)
    assert (Index.takes(), Index.gives()) == (Chunked | Embeddable, Indexed)


def test_embedding_waits_until_the_index_asks() -> None:
    embedder = LengthEmbedder()
    value = Embed().run(CHUNKED, RunContext(embedder=embedder))
    assert value.chunked is CHUNKED
    assert embedder.embedded == []
    assert value.embed(["abc"]).tolist() == [[3.0]]


def test_chunks_are_stored_with_their_vectors_and_only_once() -> None:
    embedder, sink = LengthEmbedder(), MemorySink()
    ctx = RunContext(embedder=embedder, sink=sink)
    first, again = (run(graph("embed", "index"), CHUNKED, ctx).output for _ in range(2))
    assert first == again == Indexed(points=2, segments=2, warnings=("page 2 has no text",))
    assert sink.vectors == {"one": [3.0], "two": [3.0]}
    assert embedder.embedded == ["one", "two"]


def test_without_an_embed_node_chunks_are_stored_for_words_only() -> None:
    sink = MemorySink()
    result = run(graph("index"), CHUNKED, RunContext(sink=sink)).output
    assert result == Indexed(points=0, segments=2, warnings=("page 2 has no text",))
    assert sink.texts == ["one", "two"]


@pytest.mark.parametrize(
    ("kinds", "value", "ctx", "code", "message"),
    [
        (("embed",), CHUNKED, RunContext(), "no_embedder", "no embedding model"),
        (("index",), CHUNKED, RunContext(), "no_sink", "give RunContext a sink"),
        (
            ("index",),
            Chunked(()),
            RunContext(sink=MemorySink()),
            "no_chunks",
            "the document has no text to index after cleaning",
        ),
        (
            ("embed", "index"),
            Chunked((), "  "),
            RunContext(embedder=LengthEmbedder(), sink=MemorySink()),
            "no_chunks",
            "the document has no text to index after cleaning",
        ),
    ],
)
def test_what_is_missing_is_said(
    kinds: tuple[str, ...], value: Chunked, ctx: RunContext, code: str, message: str
) -> None:
    with pytest.raises(NodeError, match=message) as caught:
        run(graph(*kinds), value, ctx)
    assert caught.value.code == code
    assert caught.value.node_id == kinds[-1]


def test_a_model_that_is_away_makes_the_run_safe_to_retry() -> None:
    class Away(LengthEmbedder):
        def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
            raise TransientError("the model's server is away")

    with pytest.raises(TransientError) as caught:
        run(graph("embed", "index"), CHUNKED, RunContext(embedder=Away(), sink=MemorySink()))
    assert (caught.value.node_id, caught.value.kind) == ("index", "index")


TEXT = Blob(b"# Tea\n\nGreen   tea is mild.\nBlack tea is strong.\n\nMail tea@example.com", "t.txt")


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        (
            "general",
            {"remove_urls_emails": True, "overlap_chars": 0},
            ["Tea", "Green tea is mild.", "Black tea is strong.", "Mail"],
        ),
        (
            "general_economy",
            {"mode": "automatic", "max_chars": 60, "overlap_chars": 0},
            ["Tea\n\nGreen tea is mild.\nBlack tea is strong.", "Mail tea@example.com"],
        ),
        (
            "parent_child",
            {},
            ["# Tea", "Green tea is mild.\nBlack tea is strong.", "Mail tea@example.com"],
        ),
        ("parent_child_full_doc", {"child_max_chars": 20}, [TEXT.data.decode()]),
    ],
)
def test_a_built_in_pipeline_takes_a_file_to_the_index(
    name: str, parameters: dict[str, object], expected: list[str]
) -> None:
    embedder, sink = LengthEmbedder(), MemorySink()
    built_in = Graph.from_yaml(definition(name), parameters)
    result = run(built_in, TEXT, RunContext(embedder=embedder, sink=sink)).output
    assert sink.texts == expected
    assert embedder.embedded == ([] if name == "general_economy" else expected)
    assert (result.segments, result.points) == (len(expected), len(embedder.embedded))
