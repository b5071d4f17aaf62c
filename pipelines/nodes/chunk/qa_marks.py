"""Questions and answers that a text already has: `Q1: ... A1: ...`, `问：... 答：...`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.nodes.extract.base import one_line

_Q = "Question|Q|问题|問題|質問|问|問"
_A = "Answer|A|答案|回答|答"
_LEAD = r"^[ \t]*(?:(?:[-*+>]|\#{1,6}|\d{1,4}[.)])[ \t]+)*"
_BOLD = r"(?:\*\*|__)?"
# At the start of a line a number may be left out; within a line only a number tells a mark.
_MARK = re.compile(
    rf"{_LEAD}{_BOLD}(?:(?P<q>{_Q})|(?:{_A}))[ \t]?(?P<n>\d*)[ \t]*{_BOLD}[ \t]*[:：]{_BOLD}"
    rf"|(?<=\s){_BOLD}(?:(?P<q2>Q)|A)(?P<n2>\d+)[ \t]*{_BOLD}[ \t]*[:：]{_BOLD}",
    re.MULTILINE,
)
_BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class Marked:
    """A pair and where it stands: half-open offsets into the text, marks included."""

    question: str
    answer: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Marks:
    """What was found.

    Attributes:
        incomplete: questions without an answer, or with an empty one.
        covered: share of the text's characters, white space apart, that stand in pairs.
    """

    pairs: tuple[Marked, ...]
    incomplete: int
    covered: float


def find_pairs(text: str) -> Marks:
    """The marked pairs of a text, in order.

    An answer goes on to the next question mark or the end; blank lines in it become one line
    break. An answer mark belongs to the question before it that has the same number.
    """
    pairs: list[Marked] = []
    incomplete = 0
    marks = list(_MARK.finditer(text))
    starts = [at for at, mark in enumerate(marks) if _is_question(mark)]
    for here, at in enumerate(starts):
        mark = marks[at]
        upto = starts[here + 1] if here + 1 < len(starts) else len(marks)
        end = marks[upto].start() if upto < len(marks) else len(text)
        answer = next((m for m in marks[at + 1 : upto] if _number(m) == _number(mark)), None)
        question = one_line(text[mark.end() : answer.start() if answer else end]).strip()
        said = _BLANK_LINES.sub("\n", text[answer.end() : end].strip()) if answer else ""
        if question and said:
            end = mark.start() + len(text[mark.start() : end].rstrip())
            pairs.append(Marked(question, said, mark.start(), end))
        else:
            incomplete += 1
    inside = sum(_ink(text[pair.start : pair.end]) for pair in pairs)
    return Marks(tuple(pairs), incomplete, inside / max(1, _ink(text)))


def _is_question(mark: re.Match[str]) -> bool:
    return bool(mark["q"] or mark["q2"])


def _number(mark: re.Match[str]) -> str:
    return (mark["n"] or mark["n2"] or "").lstrip("0")


def _ink(text: str) -> int:
    """Characters that are not white space."""
    return len("".join(text.split()))
