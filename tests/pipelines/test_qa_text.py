"""Questions and answers from a text: the pairs that it marks, and those that are written."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import Cancelled, NodeError, RateLimited, TransientError
from pipelines.node import RunContext
from pipelines.nodes.chunk import GeneralChunker, QAText
from pipelines.nodes.chunk.qa_marks import find_pairs
from pipelines.nodes.chunk.qa_writing import WrittenPair, WrittenPairs, instruction
from pipelines.nodes.clean import Clean
from pipelines.ports import Shape
from pipelines.types import Chunked, ParsedDocument

MARKED = "Q1: What is it?\nA1: A thing.\n\nQ2: Where?\nA2: Here."


class Writer:
    """Asks one question about each passage; `before` may fail or wait."""

    def __init__(self, before: Callable[[str], None] = lambda text: None) -> None:
        self.before = before
        self.asked: Counter[str] = Counter()
        self.told: set[str] = set()
        self.most_at_once = 0
        self._under_way = 0
        self._lock = threading.Lock()

    def ask(self, shape: type[Shape], instruction: str, text: str) -> Shape:
        with self._lock:
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            self.before(text)
            self.asked[text] += 1
            self.told.add(instruction)
            pair = WrittenPair(question=f"What of\n{text[:5]}?", answer=f" {text} ")
            blank = WrittenPair(question=" ", answer="nothing")
            return shape.model_validate({"pairs": [pair, pair, blank]}, from_attributes=True)
        finally:
            with self._lock:
                self._under_way -= 1


def cut(text: str, ctx: RunContext | None = None, **options: object) -> Chunked:
    document = ParsedDocument(text)
    return QAText.model_validate(options).run(document, ctx or RunContext())


def found(text: str) -> list[tuple[str, str]]:
    return [(pair.question, pair.answer) for pair in find_pairs(text).pairs]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MARKED, [("What is it?", "A thing."), ("Where?", "Here.")]),
        ("Q1: One? A1: Yes. Q2: Two? A2: No.", [("One?", "Yes."), ("Two?", "No.")]),
        ("Q: One?\nA: Yes.\nQ: Two?\nA: No.", [("One?", "Yes."), ("Two?", "No.")]),
        ("**Q1:** One?\n**A1:** Yes.", [("One?", "Yes.")]),
        ("## Question 1: One?\nAnswer 1: Yes.", [("One?", "Yes.")]),
        ("1. Q: One?\n   A: Yes.", [("One?", "Yes.")]),
        (
            "问：保修多久？\n答：两年。\n问题2：在哪里？\n答案2：这里。",
            [("保修多久？", "两年。"), ("在哪里？", "这里。")],
        ),
        ("Q1：質問は？\nA1：答えです。", [("質問は？", "答えです。")]),
        ("Q1: One\nlong question?\nA1: a\n\n\nb\n \nc", [("One long question?", "a\nb\nc")]),
        ("Q1: See A2: not it?\nA1: see A7: there", [("See A2: not it?", "see A7: there")]),
        ("Q1: lonely\nQ2: Two?\nA2: Yes.\nQ3: empty?\nA3: ", [("Two?", "Yes.")]),
        ("Sales in Q1: 5 M, in Q2: 6 M.", []),
        ("An answer: this. A question: that?", []),
    ],
)
def test_marked_pairs_are_found(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


@given(
    st.lists(
        st.sampled_from(["Q1:", "A1:", "Q:", "A:", "\n", " ", "word", "问：", "**"]), max_size=30
    )
)
def test_pairs_never_overlap_and_stand_where_they_say(parts: list[str]) -> None:
    text = "".join(parts)
    end = 0
    marks = find_pairs(text)
    assert 0 <= marks.covered <= 1
    for pair in marks.pairs:
        assert end <= pair.start < pair.end <= len(text)
        assert pair.question.strip()
        assert pair.answer.strip()
        assert text[pair.start : pair.end].strip().endswith(pair.answer.split("\n")[-1])
        end = pair.end


def test_pairs_point_into_the_text_before_it_was_cleaned() -> None:
    source = "Q1: What    is it?\nA1: A    thing."
    cleaned = Clean().run(ParsedDocument(source), RunContext())
    (chunk,) = QAText().run(cleaned, RunContext()).chunks
    assert (chunk.text, chunk.answer) == ("What is it?", "A thing.")
    assert source[chunk.start : chunk.end] == source


def test_what_stands_outside_of_the_pairs_is_told() -> None:
    chunked = cut(f"Our frequent questions.\n\n{MARKED}\nQ3: unanswered")
    assert len(chunked.chunks) == 2
    assert chunked.warnings[0] == "left out, without question or answer: 1 marked pairs"
    assert "of the text stands outside of the pairs" in chunked.warnings[1]


def test_a_text_with_few_marked_pairs_is_written_about_unless_they_are_asked_for() -> None:
    text = MARKED + "\n" + "Q" * 10 + " prose without any mark. " * 20
    text = text.replace("Here.", "Here.\nQ3: then")
    writer = Writer()
    assert cut(text, RunContext(chat=writer)).chunks
    assert writer.asked
    assert len(cut(text, source="marked").chunks) == 2


def test_pairs_that_are_asked_for_must_be_there() -> None:
    with pytest.raises(NodeError) as caught:
        cut("Some prose.", source="marked")
    assert caught.value.code == "no_pairs"


def test_without_a_chat_model_prose_is_an_error() -> None:
    with pytest.raises(NodeError) as caught:
        cut("Some prose.")
    assert caught.value.code == "no_chat_model"


def test_each_passage_is_asked_about_once_and_its_pairs_stand_where_it_does() -> None:
    text = "owls hunt\nfish swim\nowls hunt"
    writer = Writer()
    options = {"mode": "custom", "max_chars": 50, "overlap_chars": 0}
    chunked = cut(text, RunContext(chat=writer), **options)
    assert writer.asked == {"owls hunt": 1, "fish swim": 1}
    assert [(c.text, c.answer, c.position) for c in chunked.chunks] == [
        ("What of owls ?", "owls hunt", 1),
        ("What of fish ?", "fish swim", 2),
        ("What of owls ?", "owls hunt", 3),
    ]
    passages = GeneralChunker.model_validate(options).run(ParsedDocument(text), RunContext())
    assert [(c.start, c.end) for c in chunked.chunks] == [(c.start, c.end) for c in passages.chunks]
    assert chunked.source_text == text


def test_passages_are_asked_about_together_but_not_more_than_allowed() -> None:
    writer = Writer(before=lambda text: time.sleep(0.02))
    limits = {"chat_at_once": 3}
    text = "\n".join(f"passage {n}" for n in range(12))
    cut(text, RunContext(chat=writer, limits=limits), mode="custom", source="written")
    assert writer.most_at_once == 3


def test_a_failure_ends_the_asking_and_is_what_the_caller_sees() -> None:
    def refuse(text: str) -> None:
        if text == "passage 3":
            raise RateLimited("come later", retry_after_s=7.0)

    writer = Writer(before=refuse)
    text = "\n".join(f"passage {n}" for n in range(200))
    with pytest.raises(RateLimited) as caught:
        cut(text, RunContext(chat=writer, limits={"chat_at_once": 2}), mode="custom")
    assert caught.value.retry_after_s == 7.0
    assert isinstance(caught.value, TransientError)
    assert len(writer.asked) < 20


def test_a_run_that_is_stopped_asks_no_more() -> None:
    stopped = threading.Event()
    writer = Writer(before=lambda text: stopped.set())
    text = "\n".join(f"passage {n}" for n in range(200))
    ctx = RunContext(chat=writer, cancelled=stopped.is_set, limits={"chat_at_once": 2})
    with pytest.raises(Cancelled):
        cut(text, ctx, mode="custom")
    assert len(writer.asked) <= 4


def test_a_document_of_too_many_passages_is_refused_before_anything_is_asked() -> None:
    writer = Writer()
    with pytest.raises(NodeError) as caught:
        cut("a\nb\nc", RunContext(chat=writer, limits={"qa_passages": 2}), mode="custom")
    assert caught.value.code == "limit_exceeded"
    assert not writer.asked


def test_passages_without_anything_to_ask_are_counted() -> None:
    class Nothing(Writer):
        def ask(self, shape: type[Shape], instruction: str, text: str) -> Shape:
            return shape.model_validate({"pairs": []})

    chunked = cut("a b c", RunContext(chat=Nothing()))
    assert chunked.chunks == ()
    assert chunked.warnings == ("1 of 1 passages hold nothing to ask about",)


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("English", "in English"),
        ("", "in English"),
        ("en-US", "in English"),
        ("Chinese", "简体中文"),
        ("Chinese Simplified", "简体中文"),
        ("zh_Hans", "简体中文"),
        ("Chinese Traditional", "in Chinese Traditional"),
        ("Japanese", "日本語"),
        ("ja-JP", "日本語"),
        ("German", "in German"),
    ],
)
def test_the_model_is_told_in_which_language_to_write(language: str, said: str) -> None:
    assert said in instruction(language)
    writer = Writer()
    cut("Some prose.", RunContext(chat=writer), language=language)
    assert writer.told == {instruction(language)}


def test_the_shape_that_is_asked_for_tells_what_questions_are() -> None:
    assert set(WrittenPairs.model_json_schema()["$defs"]["WrittenPair"]["properties"]) == {
        "question",
        "answer",
    }
