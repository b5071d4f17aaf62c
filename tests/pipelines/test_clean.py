"""Cleaning: what goes, what stays, and that every kept character can be found in the source."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.node import RunContext
from pipelines.nodes.clean import Clean
from pipelines.types import Block, Origin, ParsedDocument


def clean(text: str, *, spaces: bool = False, urls: bool = False) -> str:
    node = Clean(remove_extra_spaces=spaces, remove_urls_emails=urls)
    document = node.run(ParsedDocument(text), RunContext())
    assert_map_is_true(document, text)
    return document.text


def assert_map_is_true(document: ParsedDocument, extracted: str) -> None:
    """Kept stretches are equal on both sides and ascend on both sides without overlap."""
    assert document.extracted_text == extracted
    if document.source_map is None:
        assert document.text == extracted
        return
    runs = document.source_map.runs
    for at, source, length in runs:
        assert length > 0
        assert document.text[at : at + length] == extracted[source : source + length]
    for (at, source, length), (next_at, next_source, _) in pairwise(runs):
        assert at + length <= next_at
        assert source + length <= next_source


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<|im_start|>", "<im_start>"),
        ("<||>", "<>"),
        ("a\x00b\x08c\x0bd\x0ce\x1ff\x7fg\ufffeh", "abcdefgh"),
        ("tab\tline\nreturn\rkept", "tab\tline\nreturn\rkept"),
        ("one\r\ntwo\r\n\r\nthree", "one\ntwo\n\nthree"),
        ("naïve ¿qué? ¾ cup", "naïve ¿qué? ¾ cup"),
        ("a    b\n\n\n\n\nc", "a    b\n\n\n\n\nc"),
        ("", ""),
        ("\x00", ""),
    ],
)
def test_control_characters_and_markers_go_and_letters_stay(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\n\nb", "a\n\nb"),
        ("a\n\n\nb\n\n\n\n\nc", "a\n\nb\n\nc"),
        ("a  b\t c \td\u3000\u3000e\u00a0 f", "a b c d e f"),
        ("a\tb\u3000c", "a\tb\u3000c"),
        ("one\r\n\r\n\r\n\r\ntwo", "one\n\ntwo"),
        ("  \n  x", " \n x"),
    ],
)
def test_extra_spaces_collapse_and_single_ones_stay(text: str, cleaned: str) -> None:
    assert clean(text, spaces=True) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (
            "see http://a.b/c  now   x@y.zz ![pic](http://i.j/k.png)",
            "see   now    ![image](http://i.j/k.png)",
        ),
        ("mail a.b+c_d-e@host-1.co.uk!", "mail !"),
        ("no@dot and @name and a@b", "no@dot and @name and a@b"),
        ("@b.c@d.e", "@"),
        ("a@b.c_d@e.f", ""),
        ("(https://x.y/z?q=1) HTTPS", "() HTTPS"),
        ("邮箱：x@y.cn，网址 https://例子.cn/路径 完", "邮箱：，网址  完"),
        ("[text](https://x.y/z)", "[text]()"),
        ("![](http://i.j/k.png)", "![image](http://i.j/k.png)"),
        ("![a [b] c](http://i.j/k.png)", "![image](http://i.j/k.png)"),
        (
            "![one](http://a.b/1)![two](http://a.b/2)",
            "![image](http://a.b/1)![image](http://a.b/2)",
        ),
        ("x http://a.b![p](http://i.j/k@2x.png) u@v.ww", "x ![image](http://i.j/k@2x.png) "),
        ("![local](pictures/k.png)", "![local](pictures/k.png)"),
        ("![open](http://i.j/k.png", "![open]("),
        ("![foo] text [link](http://a.b)", "![foo] text [link]()"),
    ],
)
def test_addresses_go_and_images_keep_theirs(text: str, cleaned: str) -> None:
    assert clean(text, urls=True) == cleaned


def test_both_rules_work_together() -> None:
    text = "see http://a.b/c  now   x@y.zz\n\n\n\nend"
    assert clean(text, spaces=True, urls=True) == "see  now \n\nend"


def by_substitution(text: str, *, spaces: bool, urls: bool) -> str:
    """The same rules as plain substitutions; fine for short texts without images."""
    text = text.replace("<|", "<").replace("|>", ">")
    text = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe]|\r(?=\n)", "", text)
    if spaces:
        text = re.sub("\n{3,}", "\n\n", text)
        text = re.sub("[\t\f\r \u00a0\u1680\u180e\u2000-\u200a\u202f\u205f\u3000]{2,}", " ", text)
    if urls:
        text = re.sub(r"[a-zA-Z0-9_.+-]+@[a-zA-Z0-9-]+\.[a-zA-Z0-9-.]+", "", text)
        text = re.sub(r"https?://[^\s)]+", "", text)
    return text


FRAGMENTS = st.lists(
    st.sampled_from(
        [
            *"ab.@_-)( \t\n\r\x00\u3000<|>。",
            "\r\n",
            "  ",
            "\n\n\n",
            "http://",
            "https://a.b",
            "x@y.z",
        ]
    ),
    max_size=25,
).map("".join)


@given(FRAGMENTS, st.booleans(), st.booleans())
def test_cleaning_equals_plain_substitution(text: str, spaces: bool, urls: bool) -> None:
    assert clean(text, spaces=spaces, urls=urls) == by_substitution(text, spaces=spaces, urls=urls)


@given(FRAGMENTS, FRAGMENTS)
def test_cleaning_twice_leads_back_to_the_extracted_text(first: str, second: str) -> None:
    extracted = first + "![a](http://i.j/k)" + second
    once = Clean(remove_extra_spaces=False).run(ParsedDocument(extracted), RunContext())
    twice = Clean(remove_urls_emails=True).run(once, RunContext())
    assert_map_is_true(twice, extracted)


@given(st.lists(st.tuples(FRAGMENTS, st.booleans()), min_size=1, max_size=6))
def test_sections_are_cleaned_by_themselves_and_blocks_move_along(
    pieces: list[tuple[str, bool]],
) -> None:
    blocks: list[Block] = []
    text = ""
    for page, (piece, opens) in enumerate(pieces, start=1):
        blocks.append(Block(len(text), len(text) + len(piece), Origin(page=page), opens))
        text += piece
    document = ParsedDocument(text, tuple(blocks))
    sections = [text[a:b] for a, b in document.sections()]
    cleaned = Clean(remove_urls_emails=True).run(document, RunContext())
    assert_map_is_true(cleaned, text)
    assert cleaned.text == "".join(
        by_substitution(section, spaces=True, urls=True) for section in sections
    )
    assert [b.origin for b in cleaned.blocks] == [b.origin for b in blocks]
    ends = [0, *(offset for b in cleaned.blocks for offset in (b.start, b.end))]
    assert ends == sorted(ends)
    left = [by_substitution(section, spaces=True, urls=True) for section in sections]
    assert [cleaned.text[a:b] for a, b in cleaned.sections() if a < b] == [s for s in left if s]
    for block, moved in zip(blocks, cleaned.blocks, strict=True):
        if cleaned.text[moved.start : moved.end].strip():
            start, end = cleaned.source_span(moved.start, moved.end)
            assert block.start <= start <= end <= block.end


def test_a_blank_run_across_a_page_break_is_not_joined() -> None:
    text = "one\n\n\n\ntwo"
    document = ParsedDocument(
        text, (Block(0, 5, Origin(page=1)), Block(5, 10, Origin(page=2), opens_section=True))
    )
    cleaned = Clean().run(document, RunContext())
    assert cleaned is document


def test_a_page_that_is_deleted_whole_still_ends_the_section_before_it() -> None:
    text = "onex@y.zz three"
    document = ParsedDocument(
        text,
        (
            Block(0, 3, Origin(page=1)),
            Block(3, 9, Origin(page=2), opens_section=True),
            Block(9, 15, Origin(page=2)),
        ),
    )
    cleaned = Clean(remove_urls_emails=True).run(document, RunContext())
    assert cleaned.text == "one three"
    assert [cleaned.text[a:b] for a, b in cleaned.sections()] == ["one", " three"]
    assert cleaned.origin(3, 9).page == 2


def test_a_space_put_in_at_the_end_of_a_section_stays_in_it() -> None:
    blocks = (Block(0, 3, Origin(page=1)), Block(3, 3, Origin(page=2), opens_section=True))
    cleaned = Clean().run(ParsedDocument("a\t ", blocks), RunContext())
    assert cleaned.text == "a "
    assert [*cleaned.sections()] == [(0, 2)]


def test_everything_else_of_the_document_is_kept() -> None:
    document = ParsedDocument("a  b", media_type="text/x", extractor="e", warnings=("w",))
    cleaned = Clean().run(document, RunContext())
    assert (cleaned.media_type, cleaned.extractor, cleaned.warnings) == ("text/x", "e", ("w",))


@pytest.mark.parametrize(
    "pattern", ["x", "![", "![a](http://", "![a[b]", "@a.b", "a@b", "<|", "\r"]
)
def test_hostile_texts_are_cleaned_in_linear_time(pattern: str) -> None:
    """A million characters: linear takes up to a second, quadratic would take hours."""
    clean_all = Clean(remove_urls_emails=True)
    text = pattern * (1_000_000 // len(pattern))
    assert len(clean_all.run(ParsedDocument(text), RunContext()).text) <= len(text)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError, match="remove_urls"):
        Clean.model_validate({"remove_urls": True})
