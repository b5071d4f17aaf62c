"""Parent-child chunks: children cover their parent; full-doc is the extracted text, uncleaned."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.errors import NodeError
from pipelines.node import RunContext, node_class
from pipelines.nodes.chunk import ParentChildChunker
from pipelines.nodes.clean import Clean
from pipelines.types import Block, ChildChunk, Chunk, Chunked, Origin, ParsedDocument, SourceMap

SMALL = {"max_chars": 100, "child_max_chars": 50}


def chunk(document: ParsedDocument, **options: object) -> Chunked:
    return ParentChildChunker.model_validate(options).run(document, RunContext())


def family(chunked: Chunked) -> list[tuple[str, list[str]]]:
    return [(c.text, [child.text for child in c.children]) for c in chunked.chunks]


def test_paragraphs_are_parents_and_lines_are_children() -> None:
    text = "Intro line\nSecond line\n\nBody one.\nBody two."
    assert family(chunk(ParsedDocument(text), **SMALL)) == [
        ("Intro line\nSecond line", ["Intro line", "Second line"]),
        ("Body one.\nBody two.", ["Body one.", "Body two."]),
    ]


def test_full_doc_is_one_parent_and_children_lose_one_full_stop() -> None:
    text = "Intro line\nSecond line\n\n.Body one.\n.Body two."
    assert family(chunk(ParsedDocument(text), parent_mode="full-doc", **SMALL)) == [
        (text, ["Intro line", "Second line", "Body one.", "Body two."]),
    ]


@pytest.mark.parametrize(
    ("text", "options", "parents"),
    [
        (
            "see http://a.b/c  now   x@y.zz\n\n\n\nend",
            {"remove_extra_spaces": True, "remove_urls_emails": True},
            ["see  now", "end"],
        ),
        (
            "see http://a.b/c  now   x@y.zz ![pic](http://i.j/k.png)",
            {"remove_extra_spaces": False, "remove_urls_emails": True},
            ["see   now    ![image](http://i.j/k.png)"],
        ),
    ],
)
def test_paragraph_parents_are_cleaned_by_both_rules(
    text: str, options: dict[str, bool], parents: list[str]
) -> None:
    cleaned = Clean.model_validate(options).run(ParsedDocument(text), RunContext())
    assert [c.text for c in chunk(cleaned, **SMALL).chunks] == parents


def test_full_doc_undoes_the_cleaning() -> None:
    text = "see  http://a.b/c\n\n\n\nx@y.zz  <|end|>"
    cleaned = Clean(remove_urls_emails=True).run(ParsedDocument(text), RunContext())
    assert cleaned.text != text
    chunked = chunk(cleaned, parent_mode="full-doc")
    assert family(chunked) == [(text, ["see  http://a.b/c", "x@y.zz  <|end|>"])]
    assert chunked == chunk(ParsedDocument(text), parent_mode="full-doc")
    assert chunked.source_text == text


def test_full_doc_covers_the_pages_and_has_no_single_heading() -> None:
    blocks = (
        Block(0, 3, Origin(page=1, headings=("One",))),
        Block(3, 6, Origin(page=2, headings=("Two",)), opens_section=True),
    )
    (parent,) = chunk(ParsedDocument("onetwo", blocks), parent_mode="full-doc").chunks
    assert (parent.text, parent.origin) == ("onetwo", Origin(page=1, page_end=2))


def test_full_doc_without_the_extracted_text_says_what_is_missing() -> None:
    edited = ParsedDocument("a", source_map=SourceMap(((0, 0, 1),)))
    with pytest.raises(NodeError, match="source_text"):
        chunk(edited, parent_mode="full-doc")


def test_chinese_sentences_are_children() -> None:
    text = "第一段。还是第一段。\r\n\r\n。第二段"
    assert family(chunk(ParsedDocument(text), child_separator="。")) == [
        ("第一段。还是第一段。", ["第一段", "还是第一段"]),
        ("第二段", ["第二段"]),
    ]


def test_a_parent_without_children_is_kept_unless_it_is_blank() -> None:
    chunked = chunk(ParsedDocument("..\n\n.\n\n \n\nx"))
    assert family(chunked) == [(".", []), ("x", ["x"])]


def test_a_document_of_one_full_stop_is_told() -> None:
    chunked = chunk(ParsedDocument(" . ", warnings=("w",)), separator=" ")
    assert chunked.chunks == ()
    assert chunked.warnings == ("w", "the text is a full stop only; no chunk is left of it")


PIECES = st.sampled_from(
    [*"ab!.。\n \u3000", "\n\n", ". ", "  ", "\r\n", "word ", "字。", "x@y.zz", "\x00", "\n\n."]
)


@st.composite
def documents(draw: st.DrawFn) -> ParsedDocument:
    blocks: list[Block] = []
    text = ""
    for page, pieces in enumerate(draw(st.lists(st.lists(PIECES), max_size=4)), start=1):
        start = len(text)
        text += "".join(pieces)
        blocks.append(Block(start, len(text), Origin(page=page), draw(st.booleans())))
    return ParsedDocument(text, tuple(blocks))


@st.composite
def options(draw: st.DrawFn) -> dict[str, object]:
    size, child = draw(st.integers(1, 20)), draw(st.integers(1, 8))
    return {
        "parent_mode": draw(st.sampled_from(["paragraph", "full-doc"])),
        "separator": draw(st.sampled_from([r"\n\n", r"\n", "。"])),
        "max_chars": size,
        "overlap_chars": draw(st.integers(0, size)),
        "child_separator": r"\n",
        "child_max_chars": child,
        "child_overlap_chars": draw(st.integers(0, child)),
    }


@given(documents(), options())
def test_children_lie_in_their_parent_and_cover_it(
    document: ParsedDocument, asked: dict[str, object]
) -> None:
    child_max, child_overlap = asked["child_max_chars"], asked["child_overlap_chars"]
    assert isinstance(child_max, int)
    assert isinstance(child_overlap, int)
    text = document.text
    chunked = chunk(document, **asked)
    if asked["parent_mode"] == "full-doc":
        assert len(chunked.chunks) <= 1
    else:
        sections = [*document.sections()]
        for parent in chunked.chunks:
            assert len(parent.text) <= asked["max_chars"]  # type: ignore[operator]
            assert sum(a <= parent.start and parent.end <= b for a, b in sections) == 1
    for before, after in pairwise(chunked.chunks):
        assert before.start < after.start
        assert before.end < after.end
        assert before.end - asked["overlap_chars"] <= after.start  # type: ignore[operator]
    for parent in chunked.chunks:
        assert text[parent.start : parent.end] == parent.text == parent.text.strip() != ""
        covered = {i for c in parent.children for i in range(c.start, c.end)}
        assert covered <= {*range(parent.start, parent.end)}
        left = [i for i in range(parent.start, parent.end) if i not in covered]
        assert "".join(text[i] for i in left).replace("。", "").replace(".", "").strip() == ""
        for before_child, child in pairwise(parent.children):
            assert before_child.start < child.start
            assert before_child.end < child.end
            assert before_child.end - child_overlap <= child.start
        for child in parent.children:
            assert text[child.start : child.end] == child.text
            assert 0 < len(child.text) <= child_max


@given(documents(), options())
def test_no_letter_is_lost_and_offsets_lead_to_the_extracted_text(
    document: ParsedDocument, asked: dict[str, object]
) -> None:
    cleaned = Clean().run(document, RunContext())
    chunked = chunk(cleaned, **asked)
    assert chunked.source_text == document.text
    held: set[int] = set()
    for parent in chunked.chunks:
        family_spans: list[Chunk | ChildChunk] = [parent, *parent.children]
        for span in family_spans:
            assert span.text[0] == document.text[span.start]
            assert span.text[-1] == document.text[span.end - 1]
            held.update(range(span.start, span.end))
            assert parent.start <= span.start < span.end <= parent.end
    lost = "".join(c for i, c in enumerate(document.text) if i not in held)
    assert set("".join(lost.split())) <= set(".。\x00")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_chars": 10, "overlap_chars": 11}, "11 is more than max_chars, 10"),
        ({"child_max_chars": 10, "child_overlap_chars": 11}, "11 is more than child_max_chars, 10"),
        ({"child_max_chars": 0}, "greater than or equal to 1"),
        ({"parent_mode": "full_doc"}, "'paragraph' or 'full-doc'"),
    ],
)
def test_options_that_cannot_work_are_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ParentChildChunker.model_validate(asked)


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"max_chars": 401, "child_max_chars": 400}, True),
        ({"max_chars": 400, "child_max_chars": 401}, True),
        ({"max_chars": 400, "child_max_chars": 400}, False),
        ({"max_chars": 401, "child_max_chars": 400, "parent_mode": "full-doc"}, False),
    ],
)
def test_the_limit_of_the_run_is_enforced_on_the_sizes_in_use(
    asked: dict[str, object], refused: bool
) -> None:
    node = ParentChildChunker.model_validate(asked)
    ctx = RunContext(limits={"max_chunk_chars": 400})
    if refused:
        with pytest.raises(NodeError, match="401 characters; at most 400"):
            node.run(ParsedDocument("x"), ctx)
    else:
        assert node.run(ParsedDocument("x"), ctx).chunks[0].text == "x"


def test_the_kind_is_registered_and_typed() -> None:
    chunker = node_class("chunk.parent_child")
    assert chunker is ParentChildChunker
    assert (chunker.takes(), chunker.gives()) == (ParsedDocument, Chunked)
