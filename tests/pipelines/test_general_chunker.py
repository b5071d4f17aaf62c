"""Flat chunks: sections, leading symbols, offsets into the extracted text."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.errors import NodeError
from pipelines.node import RunContext, node_class
from pipelines.nodes.chunk import GeneralChunker
from pipelines.nodes.clean import Clean
from pipelines.types import Block, Chunked, Origin, ParsedDocument

SYMBOLS = set("\"#$%&'()*+,./:;<=>?@^_`~。…\u3000—⸺")
PIECES = st.sampled_from(
    [*"ab!-.。#(\n \u3000|", "\n\n", ". ", "  ", "\r\n", "word ", "…", "字。", "x@y.zz", "\x00"]
)
TEXTS = st.lists(PIECES, max_size=30).map("".join)


def chunk(text: str, **options: object) -> list[str]:
    document = ParsedDocument(text)
    chunked = GeneralChunker.model_validate(options).run(document, RunContext())
    assert chunked.source_text == text
    assert [c.position for c in chunked.chunks] == [*range(1, len(chunked.chunks) + 1)]
    assert all(text[c.start : c.end] == c.text for c in chunked.chunks)
    return [c.text for c in chunked.chunks]


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("one\ntwo\n\n three ", r"\n", ["one", "two", "three"]),
        ("第一句。第二句。\n第三句", "。", ["第一句", "第二句", "第三句"]),
        ("第一句。第二句", r"\u3002", ["第一句", "第二句"]),
        ("一\r\n二\r\n\r\n三\r\n", r"\n", ["一", "二", "三"]),
        ("一\r\n二\r\n\r\n三\r\n", r"\n\n", ["一\r\n二", "三"]),
        (r"a\b", "\\", ["a", "b"]),
        ("a***b", "***", ["a", "b"]),
        ("whole\ntext", "", ["whole\ntext"]),
    ],
)
def test_a_custom_rule_cuts_at_its_separator(
    text: str, separator: str, expected: list[str]
) -> None:
    assert chunk(text, separator=separator) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("## Heading", ["Heading"]),
        ("(a) first", ["a) first"]),
        ("。。后半句", ["后半句"]),
        ("\u3000\u3000（一）总则", ["（一）总则"]),
        ("![pic](x.png)", ["![pic](x.png)"]),
        ("- item", ["- item"]),
        (" # after a space", ["# after a space"]),
        ("***", []),
        ("... \n kept", ["kept"]),
        (" \n\t\n", []),
    ],
)
def test_leading_symbols_go_and_chunks_of_symbols_only_too(text: str, expected: list[str]) -> None:
    assert chunk(text) == expected


def test_automatic_merges_paragraphs_and_custom_does_not() -> None:
    text = "one\n\ntwo\n\nthree"
    assert chunk(text, mode="automatic") == [text]
    assert chunk(text, mode="custom") == ["one", "two", "three"]


def test_automatic_ignores_the_separator() -> None:
    assert chunk("one two", mode="automatic", separator=" ") == ["one two"]


def test_the_defaults_are_those_of_the_automatic_rule() -> None:
    text = "".join(f"{i:04d} " for i in range(400))
    chunks = chunk(text, mode="automatic")
    assert max(map(len, chunks)) == 499  # 100 words of 5, the last space trimmed
    assert [c[:4] for c in chunks] == ["0000", "0090", "0180", "0270", "0360"]  # 50 repeated


def test_text_of_punctuation_only_is_told() -> None:
    chunked = GeneralChunker().run(ParsedDocument("***", warnings=("w",)), RunContext())
    assert chunked.chunks == ()
    assert chunked.warnings == ("w", "the text is punctuation only; no chunk is left of it")


def assert_nothing_lost(
    text: str, sections: list[tuple[int, int]], spans: list[tuple[int, int]], separator: str
) -> None:
    """Between the spans of a section stand only white space, separators and symbols."""
    for start, end in sections:
        inside = [(a, b) for a, b in spans if a >= start and b <= end]
        done = start
        for a, b in [*inside, (end, end)]:
            gap = text[done:a]
            if separator:
                gap = gap.replace(separator, "")
            assert set("".join(gap.split())) <= SYMBOLS, (gap, spans)
            done = max(done, b)


@st.composite
def documents(draw: st.DrawFn) -> ParsedDocument:
    blocks: list[Block] = []
    text = ""
    for page, piece in enumerate(draw(st.lists(TEXTS, max_size=4)), start=1):
        start = len(text)
        text += piece
        blocks.append(Block(start, len(text), Origin(page=page), draw(st.booleans())))
    return ParsedDocument(text, tuple(blocks))


@given(
    documents(),
    st.sampled_from(["automatic", "custom"]),
    st.sampled_from(["\n", "。", "|", "\n\n", ""]),
    st.integers(1, 15),
    st.data(),
)
def test_text_is_neither_lost_nor_doubled_nor_joined_across_sections(
    document: ParsedDocument, mode: str, separator: str, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size))
    node = GeneralChunker.model_validate(
        {"mode": mode, "separator": separator, "max_chars": size, "overlap_chars": overlap}
    )
    chunked = node.run(document, RunContext())
    spans = [(c.start, c.end) for c in chunked.chunks]
    sections = [*document.sections()]
    for c in chunked.chunks:
        assert c.text == document.text[c.start : c.end] == c.text.strip()
        assert 0 < len(c.text) <= size
        assert sum(start <= c.start and c.end <= end for start, end in sections) == 1
        assert c.origin == document.origin(c.start, c.end)
    for (a, b), (next_a, next_b) in pairwise(spans):
        assert a < next_a
        assert b < next_b
        assert b - overlap <= next_a
    assert_nothing_lost(document.text, sections, spans, separator if mode == "custom" else "")


@given(documents(), st.sampled_from(["automatic", "custom"]), st.integers(1, 15))
def test_offsets_of_cleaned_chunks_lead_to_the_extracted_text(
    document: ParsedDocument, mode: str, size: int
) -> None:
    cleaned = Clean(remove_urls_emails=True).run(document, RunContext())
    node = GeneralChunker.model_validate({"mode": mode, "max_chars": size, "overlap_chars": 0})
    chunked = node.run(cleaned, RunContext())
    assert chunked.source_text == document.text
    for c in chunked.chunks:
        source = iter(document.text[c.start : c.end])
        assert c.text[0] == document.text[c.start]
        assert c.text[-1] == document.text[c.end - 1]
        assert all(letter in source for letter in "".join(c.text.split()))  # in this order
    for before, after in pairwise(chunked.chunks):
        assert before.end <= after.start


def test_every_chunk_knows_its_page_and_headings() -> None:
    text = "# One\n\nfirst  page\n\n\n\nsecond page"
    start = text.index("second")
    document = ParsedDocument(
        text,
        (
            Block(0, start, Origin(page=1, headings=("One",))),
            Block(start, len(text), Origin(page=2, headings=("One", "Two")), opens_section=True),
        ),
    )
    cleaned = Clean().run(document, RunContext())
    chunked = GeneralChunker(mode="automatic").run(cleaned, RunContext())
    assert [(c.text, c.origin) for c in chunked.chunks] == [
        ("One\n\nfirst page", Origin(page=1, page_end=1, headings=("One",))),
        ("second page", Origin(page=2, page_end=2, headings=("One", "Two"))),
    ]
    assert [text[c.start : c.end] for c in chunked.chunks] == [
        "One\n\nfirst  page",
        "second page",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_chars": 0, "overlap_chars": 0}, "greater than or equal to 1"),
        ({"max_chars": 10, "overlap_chars": 20}, "20 is more than max_chars, 10"),
        ({"max_chars": 10}, "50 is more than max_chars, 10"),
        ({"overlap_chars": -1}, "greater than or equal to 0"),
        ({"mode": "hierarchical"}, "'automatic' or 'custom'"),
        ({"max_tokens": 500}, "max_tokens"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GeneralChunker.model_validate(options)


@pytest.mark.parametrize(("mode", "size"), [("custom", 401), ("automatic", 501)])
def test_the_limit_of_the_run_is_enforced(mode: str, size: int) -> None:
    node = GeneralChunker.model_validate({"mode": mode, "max_chars": size})
    with pytest.raises(NodeError, match=f"{size} characters; at most 400") as caught:
        node.run(ParsedDocument("x"), RunContext(limits={"max_chunk_chars": 400}))
    assert caught.value.code == "invalid_process_rule"


def test_the_automatic_rule_works_under_every_limit() -> None:
    ctx = RunContext(limits={"max_chunk_chars": 400})
    assert GeneralChunker(mode="automatic").run(ParsedDocument("x"), ctx).chunks[0].text == "x"


def test_the_kind_is_registered_and_typed() -> None:
    chunker = node_class("chunk.general")
    assert chunker is GeneralChunker
    assert (chunker.takes(), chunker.gives()) == (ParsedDocument, Chunked)


def test_importing_the_chunkers_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipelines.nodes.chunk, pipelines.nodes.clean\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    heavy = {"torch", "transformers", "onnxruntime", "sentence_transformers", "lxml", "qdrant_edge"}
    assert not heavy & set(child.stdout.split())
