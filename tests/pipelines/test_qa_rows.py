"""Questions and answers from tables: one chunk per row, and a word about every row left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ExtractionError, NodeError
from pipelines.node import RunContext
from pipelines.nodes.chunk import QARows, QAText
from pipelines.nodes.extract.rows import ExtractTable
from pipelines.types import Blob, Chunked, Origin, ParsedDocument, Read, Table
from tests.pipelines.extract.files import row, xlsx

FAQ = "question,answer\nWhat is it?,A thing.\nWhere is it?,Here.\n"


def table(data: bytes | str, name: str = "faq.csv") -> Table:
    data = data.encode() if isinstance(data, str) else data
    return ExtractTable().run(Blob(data, name), RunContext())


def cut(data: bytes | str, name: str = "faq.csv", **options: object) -> Chunked:
    """The chunks; their offsets point at their own question and answer."""
    chunked = QARows.model_validate(options).run(table(data, name), RunContext())
    assert [c.position for c in chunked.chunks] == [*range(1, len(chunked.chunks) + 1)]
    for chunk in chunked.chunks:
        block = chunked.source_text[chunk.start : chunk.end]
        assert block == f"Q{chunk.position}: {chunk.text}\nA{chunk.position}: {chunk.answer}"
    return chunked


def pairs(data: bytes | str, name: str = "faq.csv", **options: object) -> list[tuple[str, str]]:
    return [(c.text, c.answer or "") for c in cut(data, name, **options).chunks]


TWO = [("What is it?", "A thing."), ("Where is it?", "Here.")]


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (FAQ, {}),
        ("Answer:,QUESTION\nA thing.,What is it?\nHere.,Where is it?\n", {}),
        ("\ufeff" + FAQ, {}),
        (FAQ.replace(",", ";"), {}),
        (FAQ.replace(",", "\t"), {}),
        ("问题,答案\n" + FAQ.split("\n", 1)[1], {}),
        ("质問,回答\n" + FAQ.split("\n", 1)[1], {"header": "yes"}),
        (FAQ.split("\n", 1)[1], {}),
        (FAQ.split("\n", 1)[1], {"header": "no"}),
        ("Frage,Text\n" + FAQ.split("\n", 1)[1], {"header": "yes"}),
        ("Frage,Text\n" + FAQ.split("\n", 1)[1], {"question_column": "Frage"}),
        ("id,question,answer\n1,What is it?,A thing.\n2,Where is it?,Here.\n", {}),
        (
            "id,F,T\n1,What is it?,A thing.\n2,Where is it?,Here.\n",
            {"question_column": "f", "answer_column": "T"},
        ),
        (
            "id,F,T\n1,What is it?,A thing.\n2,Where is it?,Here.\n",
            {"question_column": "1", "answer_column": "2.0", "header": "yes"},
        ),
        ("FAQ of June,\nquestion,answer\nWhat is it?,A thing.\n,\nWhere is it?,Here.\n", {}),
    ],
)
def test_each_row_is_a_pair_wherever_its_columns_stand(
    data: str, options: dict[str, object]
) -> None:
    assert pairs(data, **options) == TWO


def test_a_column_s_name_goes_before_its_position() -> None:
    data = "1,0\nWhat?,This.\nWhere?,Here.\n"
    found = pairs(data, question_column="0", answer_column="1", header="yes")
    assert found == [("This.", "What?"), ("Here.", "Where?")]


def test_a_number_in_the_first_row_is_no_name_unless_that_row_is_a_header() -> None:
    data = "1,What is it?,A thing.\n2,Where is it?,Here.\n"
    assert pairs(data, question_column="1", answer_column="2") == TWO


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_encodings_are_those_of_other_tables(encoding: str) -> None:
    rows = "".join(
        f"保修期有多长第{n}个问题？,主机为二十四个月，电池为十二个月。\n" for n in range(9)
    )
    data = ("问题,答案\n" + rows).encode(encoding)
    assert pairs(data)[0] == ("保修期有多长第0个问题？", "主机为二十四个月，电池为十二个月。")


def test_line_breaks_of_an_answer_stay_and_those_of_a_question_become_spaces() -> None:
    data = 'question,answer\r\n"How do I\r\nstart it?","1. Plug it in.\r\n2. Wait."\r\n'
    assert pairs(data) == [("How do I start it?", "1. Plug it in.\n2. Wait.")]
    sheet = row(1, "question", "answer") + row(2, "How do I\nstart it?", "1. Plug.\n2. Wait.")
    assert pairs(xlsx({"Sheet1": sheet}), "faq.xlsx") == [
        ("How do I start it?", "1. Plug.\n2. Wait.")
    ]


def test_rows_that_say_the_same_are_all_kept() -> None:
    assert pairs("question,answer\n" + "Same?,Yes.\n" * 3) == [("Same?", "Yes.")] * 3


def test_rows_that_are_no_pair_are_left_out_and_named() -> None:
    data = "question,answer\nOne?,1\n,2\nThree?,\n \n,,note\nFour?,4\n"
    chunked = cut(data)
    assert [c.text for c in chunked.chunks] == ["One?", "Four?"]
    assert chunked.warnings == (
        "left out, without question: row 3",
        "left out, without answer: row 4",
        "left out, without question or answer: row 6",
    )
    assert chunked.read == Read(table_rows=5)
    assert [c.origin.rows for c in chunked.chunks] == [(2, 2), (7, 7)]


def test_short_names_above_long_rows_are_taken_for_a_header_with_a_warning() -> None:
    long = "".join(
        f"What happens in case {n}?,You call us at once and we help.\n" for n in range(3)
    )
    chunked = cut("Frage,Text\n" + long)
    assert len(chunked.chunks) == 3
    assert chunked.warnings == (
        "row 1 was taken for the header ('Frage', 'Text'); if it is a pair, set header to 'no'",
    )
    assert len(pairs("Frage,Text\n" + long, header="no")) == 4
    assert len(pairs("Who?,Text\n" + long)) == 4, "a sentence is no name"


def test_every_sheet_has_a_header_of_its_own_and_one_without_columns_is_left_out() -> None:
    data = xlsx(
        {
            "Sales": row(1, "question", "answer") + row(2, "Price?", "10"),
            "Notes": row(1, "only one column") + row(2, "of notes"),
            "Service": row(1, "No.", "Answer", "Question") + row(2, "1", "Two years.", "How long?"),
        }
    )
    chunked = cut(data, "faq.xlsx")
    assert [(c.text, c.answer) for c in chunked.chunks] == [
        ("Price?", "10"),
        ("How long?", "Two years."),
    ]
    assert [c.origin for c in chunked.chunks] == [
        Origin(sheet="Sales", rows=(2, 2)),
        Origin(sheet="Service", rows=(2, 2)),
    ]
    assert chunked.warnings == (
        "sheet 'Notes': was left out: it has 1 column; a question and an answer need two",
    )


@pytest.mark.parametrize(
    ("data", "options", "code", "said"),
    [
        ("one\ntwo\n", {}, "column_not_found", "it has 1 column"),
        (FAQ, {"question_column": "Frage"}, "column_not_found", "no column 'Frage'; its columns"),
        (FAQ, {"answer_column": "7"}, "column_not_found", "'question', 'answer', by position 0"),
        (FAQ, {"answer_column": "0"}, "column_not_found", "would both be column 0"),
        ("question,answer\n", {}, "no_pairs", "no row has both"),
        ("question,answer\nOne?,\n", {}, "no_pairs", "without answer: row 2"),
    ],
)
def test_a_table_that_gives_no_pair_says_why(
    data: str, options: dict[str, object], code: str, said: str
) -> None:
    with pytest.raises(NodeError) as caught:
        cut(data, **options)
    assert caught.value.code == code
    assert said in caught.value.message


@pytest.mark.parametrize("name", ["notes.txt", "notes.md", "notes.html"])
def test_a_text_is_no_table(name: str) -> None:
    with pytest.raises(ExtractionError) as caught:
        table("Just some words.", name)
    assert caught.value.code == "unsupported_file_type"
    assert "has no rows and columns" in caught.value.message


def test_a_table_without_a_value_is_no_text() -> None:
    with pytest.raises(ExtractionError) as caught:
        table(",,\n,,\n")
    assert caught.value.code == "no_text"


def test_the_text_of_a_table_gives_its_pairs_again() -> None:
    chunked = cut(FAQ)
    again = QAText(source="marked").run(ParsedDocument(chunked.source_text), RunContext())
    assert [(c.text, c.answer, c.start, c.end) for c in again.chunks] == [
        (c.text, c.answer, c.start, c.end) for c in chunked.chunks
    ]


def test_the_example_gives_a_pair_per_row_and_no_warning() -> None:
    path = Path(__file__).parents[2] / "examples" / "tarnfell-qa" / "support-questions.csv"
    chunked = cut(path.read_bytes(), path.name)
    assert len(chunked.chunks) == 8
    assert chunked.warnings == ()
    assert chunked.chunks[6].text == "雨量计多久清洗一次？"
    assert (chunked.chunks[0].answer or "").count("\n") == 3
