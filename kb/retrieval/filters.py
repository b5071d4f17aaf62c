"""Conditions made exact: what the index is asked, and what is checked again in SQL's values."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from kb.errors import InvalidParam
from kb.metadata.facts import Held, held, holders, tag
from kb.metadata.fields import Field, Fields, fields_of
from kb.metadata.values import comparable, quoted, typed
from kb.metadata.vocabulary import texts_of
from kb.models import Dataset, FieldType
from kb.ports import Between, Every, Except, Some, Tagged, Where
from kb.retrieval.conditions import (
    Comparison,
    Conditions,
    Not,
    Operator,
    Scalar,
    comparisons,
    depth,
)
from kb.settings import Limits

Texts = Callable[[Field], Collection[str]]
"""The distinct texts of a field; more of them do no harm."""

_ANY_TYPE = (
    Operator.IS,
    Operator.IS_NOT,
    Operator.IN,
    Operator.NOT_IN,
    Operator.EMPTY,
    Operator.NOT_EMPTY,
)
_OF_TEXTS = (
    Operator.CONTAINS,
    Operator.NOT_CONTAINS,
    Operator.START_WITH,
    Operator.END_WITH,
)
_OF_NUMBERS = (Operator.BELOW, Operator.ABOVE, Operator.AT_MOST, Operator.AT_LEAST)
_NEGATED = (Operator.IS_NOT, Operator.NOT_IN, Operator.NOT_CONTAINS)


# -- what holds -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Test:
    """A field against operands of its type. A document without the field passes none but `empty`.

    Attributes:
        operands: one, but any number of `is`, `is not`, `in` and `not in`; texts are case-folded
            when `ignore_case`.
    """

    field: Field
    operator: Operator
    operands: frozenset[str] | frozenset[float] = frozenset()
    ignore_case: bool = False

    def holds(self, values: Held) -> bool:
        """Of a document with these values."""
        value = values.get(self.field.key)
        if not self.operator.takes_value:
            return (value is None) is (self.operator is Operator.EMPTY)
        if value is None:
            return False
        return self.matches(value) is not (self.operator in _NEGATED)

    def matches(self, value: str | float) -> bool:
        """Whether a value meets the operator before its negation."""
        if isinstance(value, str) and self.ignore_case:
            value = value.casefold()
        if self.operator in _ANY_TYPE:
            return value in self.operands
        (operand,) = self.operands
        if isinstance(value, str) or isinstance(operand, str):
            return _text_matches(self.operator, str(value), str(operand))
        return _number_matches(self.operator, value, operand)

    def where(self, texts: Texts, *, exactly: bool = False) -> Where | bool:
        """The same as a filter of the index.

        Args:
            exactly: it is negated, so nothing more may be left by it. Else a number is asked for
                alone, although its slot may still hold that of a field that was deleted: SQL drops
                such hits, and one condition takes half the time of two.
        """
        present = Tagged((self.field.key,))
        if not self.operator.takes_value:
            return present if self.operator is Operator.NOT_EMPTY else Except(present)
        found = self._numbers() if self.field.slot is not None else self._texts(texts)
        if self.operator in _NEGATED:
            return every([present, negated(found)])
        return every([present, found]) if self.field.slot is not None and exactly else found

    def _numbers(self) -> Where | bool:
        slot = self.field.slot
        assert slot is not None
        numbers = sorted(float(operand) for operand in self.operands)
        if self.operator in _ANY_TYPE:
            return some([Between(slot, number, number) for number in numbers])
        (bound,) = numbers
        if self.operator in (Operator.BELOW, Operator.AT_MOST):
            return Between(slot, high=bound, open_high=self.operator is Operator.BELOW)
        return Between(slot, low=bound, open_low=self.operator is Operator.ABOVE)

    def _texts(self, texts: Texts) -> Where | bool:
        """By the texts that match, or by those that do not, whichever are fewer."""
        if self.operator in _ANY_TYPE and not self.ignore_case:
            return self._tagged(str(operand) for operand in self.operands)
        known = texts(self.field)
        matching = {text for text in known if self.matches(text)}
        if 2 * len(matching) <= len(known):
            return self._tagged(matching)
        others = self._tagged(text for text in known if text not in matching)
        return every([Tagged((self.field.key,)), negated(others)])

    def _tagged(self, texts: Iterable[str]) -> Where | bool:
        tags = tuple(sorted({tag(self.field, text) for text in texts}))
        return Tagged(tags) if tags else False


def _text_matches(operator: Operator, value: str, operand: str) -> bool:
    if operator is Operator.START_WITH:
        return value.startswith(operand)
    if operator is Operator.END_WITH:
        return value.endswith(operand)
    return operand in value


def _number_matches(operator: Operator, value: float, operand: float) -> bool:
    if operator is Operator.BELOW:
        return value < operand
    if operator is Operator.ABOVE:
        return value > operand
    return value <= operand if operator is Operator.AT_MOST else value >= operand


@dataclass(frozen=True, slots=True)
class Both:
    """All of its parts, or (`every` off) at least one."""

    parts: tuple[Rule, ...]
    every: bool

    def holds(self, values: Held) -> bool:
        """Of a document with these values."""
        return (all if self.every else any)(part.holds(values) for part in self.parts)

    def where(self, texts: Texts, *, exactly: bool = False) -> Where | bool:
        """The same as a filter of the index."""
        parts = [part.where(texts, exactly=exactly) for part in self.parts]
        return every(parts) if self.every else some(parts)


@dataclass(frozen=True, slots=True)
class Reverse:
    """Where its part does not hold."""

    part: Rule

    def holds(self, values: Held) -> bool:
        """Of a document with these values."""
        return not self.part.holds(values)

    def where(self, texts: Texts, *, exactly: bool = False) -> Where | bool:
        """The same as a filter of the index."""
        return negated(self.part.where(texts, exactly=True))


@dataclass(frozen=True, slots=True)
class Constant:
    """Of every document, or of none."""

    true: bool

    def holds(self, values: Held) -> bool:
        """Whatever the values are."""
        return self.true

    def where(self, texts: Texts, *, exactly: bool = False) -> Where | bool:
        """The same as a filter of the index."""
        return self.true


Rule = Test | Both | Reverse | Constant


def every(parts: Sequence[Where | bool]) -> Where | bool:
    """All of them; True of none."""
    if False in parts:
        return False
    kept = tuple(part for part in parts if not isinstance(part, bool))
    return (kept[0] if len(kept) == 1 else Every(kept)) if kept else True


def some(parts: Sequence[Where | bool]) -> Where | bool:
    """At least one of them; False of none."""
    if True in parts:
        return True
    kept = tuple(part for part in parts if not isinstance(part, bool))
    return (kept[0] if len(kept) == 1 else Some(kept)) if kept else False


def negated(part: Where | bool) -> Where | bool:
    """Where it does not hold."""
    if isinstance(part, bool):
        return not part
    return part.part if isinstance(part, Except) else Except(part)


# -- from conditions --------------------------------------------------------------------------


def rule_of(conditions: Conditions, fields: Fields) -> Rule:
    """Conditions over a dataset's fields; a field that it does not have is one without a value.

    Raises:
        InvalidParam: an operator or value that the field's type does not go with.
    """
    if isinstance(conditions, Comparison):
        return _test(conditions, fields)
    if isinstance(conditions, Not):
        return Reverse(rule_of(conditions.part, fields))
    parts = tuple(rule_of(part, fields) for part in conditions.parts)
    return Both(parts, conditions.every)


def _test(asked: Comparison, fields: Fields) -> Rule:
    operator = asked.operator
    operands = list(_operands(asked))
    if operator in (Operator.IN, Operator.NOT_IN) and not operands:
        return Constant(operator is Operator.NOT_IN)
    field = fields.by_name.get(asked.name)
    if field is None:
        return Constant(operator is Operator.EMPTY)
    allowed = _ANY_TYPE + (_OF_TEXTS if field.type is FieldType.STRING else _OF_NUMBERS)
    if operator not in allowed:
        raise InvalidParam(
            f"metadata field {field.name!r} is of type {field.type.value}, which "
            f"{operator.value!r} does not compare (with {quoted(asked.value)}); use one of: "
            f"{', '.join(allowed)}"
        )
    values = [comparable(typed(operand, field)) for operand in operands]
    if asked.ignore_case:
        values = [value.casefold() if isinstance(value, str) else value for value in values]
    return Test(field, operator, frozenset(values), asked.ignore_case)  # type: ignore[arg-type]


def _operands(asked: Comparison) -> Sequence[Scalar]:
    """Of `in` a text is a list, with commas between its values."""
    if isinstance(asked.value, tuple):
        return asked.value
    if asked.value is None:
        return ()
    if asked.operator in (Operator.IN, Operator.NOT_IN) and isinstance(asked.value, str):
        return [part.strip() for part in asked.value.split(",") if part.strip()]
    return (asked.value,)


# -- for datasets -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Conditions compiled for one dataset.

    Attributes:
        where: for the index; True: all of the dataset, False: nothing of it.
    """

    rule: Rule
    fields: Fields
    where: Where | bool

    def passing(self, session: Session, document_ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
        """Those of these documents that SQL says it holds for, at this moment."""
        return {
            holder.id
            for holder in holders(session, document_ids)
            if self.rule.holds(held(holder, self.fields))
        }


Filters = Mapping[uuid.UUID, Filter]
"""By dataset id; a dataset without one is not filtered."""


def compile_filters(
    session: Session,
    datasets: Sequence[Dataset],
    conditions: Conditions | None,
    limits: Limits,
) -> dict[uuid.UUID, Filter]:
    """What `retrieve` takes: the conditions over each dataset's own fields; {} of none.

    Raises:
        InvalidParam: an operator or value that a field's type does not go with (the message names
            field, type and value), or more conditions, levels or values than a filter may have.
    """
    if conditions is None:
        return {}
    _check_size(conditions, limits)
    fields = fields_of(session, [dataset.id for dataset in datasets])
    found: dict[uuid.UUID, Filter] = {}
    for dataset in datasets:
        rule = rule_of(conditions, fields[dataset.id])

        def texts(field: Field, dataset: Dataset = dataset) -> Collection[str]:
            return texts_of(session, dataset, field)

        found[dataset.id] = Filter(rule, fields[dataset.id], rule.where(texts))
    return found


def _check_size(conditions: Conditions, limits: Limits) -> None:
    asked = list(comparisons(conditions))
    sizes = (
        (len(asked), limits.filter_conditions, "conditions", "CONDITIONS"),
        (depth(conditions), limits.filter_depth, "levels of groups", "DEPTH"),
        (sum(len(_operands(one)) for one in asked), limits.filter_values, "values", "VALUES"),
    )
    for size, most, what, setting in sizes:
        if size > most:
            raise InvalidParam(
                f"the filter has {size:,} {what}, the limit is {most:,}; ask for less, or raise "
                f"KB_LIMITS__FILTER_{setting}"
            )
