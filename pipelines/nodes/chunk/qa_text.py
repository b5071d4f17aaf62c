"""Questions and answers from a text: those that it has, or those that a chat model writes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Literal

from pydantic import Field

from pipelines.errors import Cancelled, NodeError
from pipelines.node import Node, RunContext, node
from pipelines.nodes.chunk.general import AUTOMATIC_MAX_CHARS, GeneralChunker
from pipelines.nodes.chunk.qa_marks import Marks, find_pairs
from pipelines.nodes.chunk.qa_writing import WrittenPair, WrittenPairs, instruction
from pipelines.nodes.extract.base import one_line
from pipelines.types import Chunk, Chunked, ParsedDocument

_MOSTLY_PAIRS = 0.5
AT_ONCE = 4
"""Passages that are with the chat model together, unless `RunContext.limits["chat_at_once"]` says
otherwise."""


@node("chunk.qa_text")
class QAText(Node[ParsedDocument, Chunked]):
    """Make question-and-answer chunks of a text.

    A text that is written as `Q1: ... A1: ...` (or `问：... 答：...`) gives the pairs that it has,
    and no model is asked. Any other text is cut as by `chunk.general`, and the run's chat model
    writes the questions that each passage answers.

    Attributes:
        source: `marked` takes the pairs that the text has, `written` has them written, `auto`
            takes them if they are at least half of the text.
        language: in which pairs are written: `English`, `Chinese`, `Japanese` or another.
        mode, separator, max_chars, overlap_chars: how passages are cut; see `chunk.general`.
    """

    source: Literal["auto", "marked", "written"] = "auto"
    language: str = "English"
    mode: Literal["automatic", "custom"] = "automatic"
    separator: str = "\n"
    max_chars: int = Field(default=AUTOMATIC_MAX_CHARS, ge=1)
    overlap_chars: int = Field(default=50, ge=0)

    def run(self, value: ParsedDocument, ctx: RunContext) -> Chunked:
        """Chunks in text order.

        Raises:
            NodeError: code `no_pairs` when the text has none, `no_chat_model` when there is nobody
                to write them, `limit_exceeded` when it has more passages than the run's limit
                `qa_passages`.
            TransientError, RateLimited: of the chat model; what was written is not asked for again.
            Cancelled: the run was stopped in between.
        """
        if self.source != "written":
            marks = find_pairs(value.text)
            if self.source == "marked" or _is_mostly_pairs(marks):
                return _of_marks(value, marks)
        return self._written(value, ctx)

    def _written(self, value: ParsedDocument, ctx: RunContext) -> Chunked:
        if ctx.chat is None:
            raise NodeError(
                "there is no chat model in this run to write questions; give RunContext a chat, or "
                "mark the pairs in the text (Q1: ... A1: ...)",
                code="no_chat_model",
            )
        passages = GeneralChunker(
            mode=self.mode,
            separator=self.separator,
            max_chars=self.max_chars,
            overlap_chars=self.overlap_chars,
        ).run(value, ctx)
        found = _ask_for_each([chunk.text for chunk in passages.chunks], self.language, ctx)
        chunks: list[Chunk] = []
        for passage, pairs in zip(passages.chunks, found, strict=True):
            chunks += _of_passage(passage, pairs, len(chunks) + 1)
        empty = sum(1 for pairs in found if not pairs)
        warnings = passages.warnings
        if empty:
            warnings += (f"{empty} of {len(found)} passages hold nothing to ask about",)
        return replace(passages, chunks=tuple(chunks), warnings=warnings)


def holds_pairs(text: str) -> bool:
    """Whether `auto` takes the pairs that a text has."""
    return _is_mostly_pairs(find_pairs(text))


def _is_mostly_pairs(marks: Marks) -> bool:
    return bool(marks.pairs) and marks.covered >= _MOSTLY_PAIRS


def _of_marks(value: ParsedDocument, marks: Marks) -> Chunked:
    if not marks.pairs:
        raise NodeError(
            "the text has no pair of a question and an answer; write them as 'Q1: ...' and "
            "'A1: ...', or let a chat model write them (source 'auto' or 'written')",
            code="no_pairs",
        )
    chunks = tuple(
        Chunk(
            pair.question,
            *value.source_span(pair.start, pair.end),
            position=position,
            origin=value.origin(pair.start, pair.end),
            answer=pair.answer,
        )
        for position, pair in enumerate(marks.pairs, start=1)
    )
    warnings = value.warnings
    if marks.incomplete:
        warnings += (f"left out, without question or answer: {marks.incomplete} marked pairs",)
    if marks.covered < 1:
        share = max(1, round(100 * (1 - marks.covered)))
        warnings += (f"about {share} % of the text stands outside of the pairs and was left out",)
    return Chunked(chunks, value.extracted_text, warnings, value.read)


def _of_passage(passage: Chunk, pairs: Sequence[WrittenPair], position: int) -> list[Chunk]:
    return [
        replace(passage, text=pair.question, answer=pair.answer, position=at)
        for at, pair in enumerate(pairs, start=position)
    ]


def _ask_for_each(
    texts: Sequence[str], language: str, ctx: RunContext
) -> list[tuple[WrittenPair, ...]]:
    """The pairs of each text, blank and repeated ones left out; each text is asked about once."""
    distinct = list(dict.fromkeys(texts))
    most = ctx.limits.get("qa_passages")
    if most is not None and len(distinct) > most:
        raise NodeError(
            f"the text has {len(distinct):,} passages, and a chat model may be asked about "
            f"{most:,} of a document; split the document, or cut longer passages",
            code="limit_exceeded",
        )
    told = instruction(language)
    ended = threading.Event()
    chat = ctx.chat
    assert chat is not None

    def ask(text: str) -> tuple[WrittenPair, ...]:
        if ended.is_set() or ctx.cancelled():
            return ()
        try:
            return _usable(chat.ask(WrittenPairs, told, text))
        except BaseException:
            ended.set()  # what is under way is finished and kept, the rest is not begun
            raise

    at_once = ctx.limits.get("chat_at_once", AT_ONCE)
    with ThreadPoolExecutor(max(1, at_once), "kb-questions") as pool:
        asked: list[Future[tuple[WrittenPair, ...]]] = [
            pool.submit(copy_context().run, ask, text) for text in distinct
        ]
    if ctx.cancelled():
        raise Cancelled("the run was cancelled")
    pairs = dict(zip(distinct, [future.result() for future in asked], strict=True))
    return [pairs[text] for text in texts]


def _usable(written: WrittenPairs) -> tuple[WrittenPair, ...]:
    clean = (
        WrittenPair(question=one_line(pair.question), answer=pair.answer.strip())
        for pair in written.pairs
    )
    known = {(pair.question, pair.answer): pair for pair in clean if pair.question and pair.answer}
    return tuple(known.values())
