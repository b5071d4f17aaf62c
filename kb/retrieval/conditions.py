"""What a query asks of documents' metadata, before any dataset's fields are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

Scalar = str | float | int
Operand = Scalar | tuple[Scalar, ...] | None


class Operator(StrEnum):
    """How a field is compared; the value is what the wire says."""

    CONTAINS = "contains"
    NOT_CONTAINS = "not contains"
    START_WITH = "start with"
    END_WITH = "end with"
    IS = "is"
    IS_NOT = "is not"
    IN = "in"
    NOT_IN = "not in"
    EMPTY = "empty"
    NOT_EMPTY = "not empty"
    BELOW = "<"
    ABOVE = ">"
    AT_MOST = "≤"
    AT_LEAST = "≥"

    @property
    def takes_value(self) -> bool:
        """Whether it compares with anything at all."""
        return self not in (Operator.EMPTY, Operator.NOT_EMPTY)


OTHER_SPELLINGS = {
    "=": Operator.IS,
    "==": Operator.IS,
    "≠": Operator.IS_NOT,
    "!=": Operator.IS_NOT,
    "before": Operator.BELOW,
    "after": Operator.ABOVE,
    "<=": Operator.AT_MOST,
    ">=": Operator.AT_LEAST,
    "starts with": Operator.START_WITH,
    "ends with": Operator.END_WITH,
}


def find_operator(text: str) -> Operator | None:
    """The operator of this name, in any of its spellings."""
    known = OTHER_SPELLINGS.get(text)
    if known is not None:
        return known
    return Operator(text) if text in frozenset(Operator) else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One field compared with a value.

    Attributes:
        name: of a metadata field or built-in field; each dataset looks it up for itself.
        value: None only with `empty` and `not empty`; a tuple only with `in` and `not in`.
        ignore_case: of texts.
    """

    name: str
    operator: Operator
    value: Operand = None
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """All of its parts (`every`), or at least one; never without parts."""

    parts: tuple[Conditions, ...]
    every: bool = True


@dataclass(frozen=True, slots=True)
class Not:
    """Holds exactly where its part does not: also for documents that lack the field."""

    part: Conditions


Conditions = Comparison | Group | Not


def grouped(parts: list[Conditions], *, every: bool) -> Conditions | None:
    """One condition of several; None of none, which restricts nothing."""
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else Group(tuple(parts), every)


def comparisons(conditions: Conditions) -> Iterator[Comparison]:
    """Every comparison in it, from left to right."""
    if isinstance(conditions, Comparison):
        yield conditions
    elif isinstance(conditions, Not):
        yield from comparisons(conditions.part)
    else:
        for part in conditions.parts:
            yield from comparisons(part)


def depth(conditions: Conditions) -> int:
    """How deeply groups and negations are nested; 0: a comparison alone."""
    if isinstance(conditions, Comparison):
        return 0
    parts = (conditions.part,) if isinstance(conditions, Not) else conditions.parts
    return 1 + max(map(depth, parts))
