"""Markdown sections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.pipelines.extract.files import read, read_file, section_texts

TEXT = """\
Preamble.

# One *bold* [link](http://example.org)

Body of one.

```
# not a heading
```

## Two ##

- # not at the top level

> # nor this

Setext
------
Body of setext.

<!--
# hidden
-->

#hashtag

# Last
"""


def test_the_text_is_unchanged() -> None:
    assert read(TEXT.replace("\n", "\r\n").encode(), "a.md").text == TEXT


def test_each_heading_opens_a_section_with_its_path() -> None:
    document = read(TEXT.encode(), "a.md")
    assert [b.origin.headings for b in document.blocks] == [
        (),
        ("One bold link",),
        ("One bold link", "Two"),
        ("One bold link", "Setext"),
        ("Last",),
    ]
    assert all(block.opens_section for block in document.blocks)
    assert [s.splitlines()[0] for s in section_texts(document)] == [
        "Preamble.",
        "# One *bold* [link](http://example.org)",
        "## Two ##",
        "Setext",
        "# Last",
    ]
    start = TEXT.index("Body of setext.")
    assert document.origin(start, start + 4).headings == ("One bold link", "Setext")


def test_front_matter_is_no_heading() -> None:
    document = read(b"---\ntitle: T\nnote: n\n---\n\n# H\n\ntext\n", "a.md")
    assert [b.origin.headings for b in document.blocks] == [(), ("H",)]
    assert document.text.startswith("---\ntitle: T")


def test_a_rule_at_the_top_is_not_taken_for_front_matter() -> None:
    document = read(b"---\n\n# A\n\ntext\n\n---\n\n# B\n", "a.md")
    assert [b.origin.headings for b in document.blocks] == [(), ("A",), ("B",)]


def test_a_skipped_level_keeps_the_path() -> None:
    document = read(b"# A\n### C\n## B\n", "a.md")
    assert [b.origin.headings for b in document.blocks] == [("A",), ("A", "C"), ("A", "B")]


def test_sections_of_a_real_file() -> None:
    document = read_file("comprehensive.md")
    start = document.text.index("[Ward's method.]")
    assert document.origin(start, start + 9).headings == (
        "Additional markdown reader tests",
        "URLs with spaces and punctuation",
    )


@given(st.lists(st.sampled_from(["# a", "## b", "c", "", "```", "    x", "- d", "===", ">e"])))
def test_sections_cover_all_the_text(lines: list[str]) -> None:
    text = "\n".join([*lines, "end"])
    document = read(text.encode(), "a.md")
    assert document.text == text
    assert "".join(text[a:b] for a, b in document.sections()) == text
    inside = "".join(text[b.start : b.end] for b in document.blocks)
    assert "".join(inside.split()) == "".join(text.split())
