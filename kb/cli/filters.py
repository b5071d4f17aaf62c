"""Filters as people write them: `year >= 2020 and not (author is "Ann" or tags in (a, b))`.

    filter      = part { "or" part }
    part        = condition { "and" condition }
    condition   = "not" condition | "(" filter ")" | comparison [ "ignoring case" ]
    comparison  = NAME ( "=" | "==" | "!=" | "≠" | "<" | "<=" | "≤" | ">" | ">=" | "≥" ) VALUE
                | NAME ( "before" | "after" | [ "not" ] "contains" ) VALUE
                | NAME ( "starts with" | "ends with" ) VALUE
                | NAME "is" [ "not" ] ( "empty" | VALUE )
                | NAME [ "not" ] "in" "(" VALUE { "," VALUE } ")"

A name or value is a word, or anything between quotes, where a backslash keeps the next character.
A value that looks like a number is one, unless it is quoted. Words of the grammar may be written in
any case; where one of them is meant as a name or value, quote it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kb.cli.options import CliError

Json = dict[str, Any]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<open>["'])
      | (?P<sign><=|>=|==|!=|[=<>≤≥≠(),])
      | (?P<word>[^\s()=<>≤≥≠!,"']+)
      | (?P<other>.)
    )""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_COMPARE = frozenset(["=", "==", "!=", "≠", "<", "<=", "≤", ">", ">=", "≥"])
_OPERATORS = (
    "=, !=, <, <=, >, >=, is, is not, in, contains, starts with, ends with, before or after"
)
_MOST_LEVELS = 50


@dataclass(frozen=True)
class _Token:
    text: str
    at: int
    quoted: bool = False

    def says(self, *words: str) -> bool:
        """Whether it is one of these words or signs."""
        return not self.quoted and self.text.lower() in words


def parse_filter(text: str) -> Json:
    """The `metadata_filtering_conditions` that a filter means.

    Raises:
        CliError: it cannot be read; the message says what is wrong, and at which character.
    """
    reader = _Reader(text)
    found = reader.any_of()
    if (rest := reader.peek()) is not None:
        raise reader.wrong(f"expected 'and', 'or' or the end, found {rest.text!r}", rest)
    return found if "conditions" in found else {"conditions": [found]}


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._cut())
        self._next = self._level = 0

    def _cut(self) -> list[_Token]:
        tokens: list[_Token] = []
        for match in _TOKEN.finditer(self._text.rstrip()):
            kind = str(match.lastgroup)
            raw, at = match[kind], match.start(kind)
            if kind == "open":
                raise self.wrong(f"the quote {raw} is not closed", _Token(raw, at))
            if kind == "other":
                raise self.wrong(f"{raw!r} means nothing here", _Token(raw, at))
            if kind == "quoted":
                tokens.append(_Token(re.sub(r"\\(.)", r"\1", raw[1:-1], flags=re.DOTALL), at, True))
            else:
                tokens.append(_Token(raw, at))
        return tokens

    def wrong(self, what: str, token: _Token | None) -> CliError:
        """The error; None: at the end."""
        at = len(self._text.rstrip()) if token is None else token.at
        return CliError(f"filter: {what}, at character {at + 1} of {self._text!r}")

    def peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def take(self, *words: str) -> bool:
        """Whether the next token is one of these; then it is passed."""
        token = self.peek()
        if token is None or not token.says(*words):
            return False
        self._next += 1
        return True

    def need(self, what: str) -> _Token:
        token = self.peek()
        if token is None:
            raise self.wrong(f"{what} is missing", None)
        self._next += 1
        return token

    # -- the grammar

    def any_of(self) -> Json:
        return self._joined("or", self._all_of)

    def _all_of(self) -> Json:
        return self._joined("and", self._condition)

    def _joined(self, word: str, part: Any) -> Json:
        parts = [part()]
        while self.take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else {"logical_operator": word, "conditions": parts}

    def _condition(self) -> Json:
        start = self.peek()
        self._level += 1
        if self._level > _MOST_LEVELS:
            raise self.wrong(f"more than {_MOST_LEVELS} levels", start)
        try:
            if self.take("not"):
                return {"not": self._condition()}
            if self.take("("):
                found = self.any_of()
                if not self.take(")"):
                    raise self.wrong("a closing ) is missing", self.peek())
                return found
            return self._comparison()
        finally:
            self._level -= 1

    def _comparison(self) -> Json:
        name = self._name()
        found = {"name": name, **self._operation()}
        if self.take("ignoring"):
            if not self.take("case"):
                raise self.wrong("expected 'case' after 'ignoring'", self.peek())
            found["ignore_case"] = True
        return found

    def _name(self) -> str:
        token = self.need("the name of a field")
        if not token.quoted and token.text in _COMPARE | {"(", ")", ","}:
            raise self.wrong(f"expected the name of a field, found {token.text!r}", token)
        return token.text

    def _operation(self) -> Json:
        token = self.need(f"an operator ({_OPERATORS})")
        word = token.text.lower()
        if not token.quoted and word in _COMPARE:
            return self._with_value(word)
        if token.says("before", "after", "contains"):
            return self._with_value(word)
        if token.says("starts", "ends"):
            if not self.take("with"):
                raise self.wrong(f"expected 'with' after {token.text!r}", self.peek())
            return self._with_value(f"{word} with")
        if token.says("is"):
            return self._is()
        if token.says("in"):
            return self._in("in")
        if token.says("not"):
            if self.take("in"):
                return self._in("not in")
            if self.take("contains"):
                return self._with_value("not contains")
            raise self.wrong("expected 'in' or 'contains' after 'not'", self.peek())
        raise self.wrong(f"expected an operator ({_OPERATORS}), found {token.text!r}", token)

    def _is(self) -> Json:
        negated = self.take("not")
        if self.take("empty"):
            return {"comparison_operator": "not empty" if negated else "empty"}
        return self._with_value("is not" if negated else "is")

    def _in(self, operator: str) -> Json:
        if not self.take("("):
            raise self.wrong(f"expected ( after {operator!r}", self.peek())
        values = [self._value()]
        while self.take(","):
            values.append(self._value())
        if not self.take(")"):
            raise self.wrong("expected , or ) in the list", self.peek())
        return {"comparison_operator": operator, "value": values}

    def _with_value(self, operator: str) -> Json:
        return {"comparison_operator": operator, "value": self._value()}

    def _value(self) -> str | int | float:
        token = self.need("a value")
        if token.quoted:
            return token.text
        if token.text in _COMPARE | {"(", ")", ","} or token.says("and", "or"):
            raise self.wrong(f"expected a value, found {token.text!r}", token)
        if not _NUMBER.fullmatch(token.text):
            return token.text
        return float(token.text) if re.search("[.eE]", token.text) else int(token.text)
