"""Conditions on metadata as requests send them become one tree."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kb.retrieval.conditions import Comparison, Conditions, Group, Not, Operator, comparisons, depth
from kb.schemas import MetadataFilter


def tree(**body: Any) -> Conditions | None:
    """What a filter of a request asks for."""
    return MetadataFilter.model_validate(body).tree()


def one(name: Any, operator: str, value: Any = None, **more: Any) -> Conditions | None:
    """What a single condition asks for."""
    given = {"name": name, "comparison_operator": operator, "value": value, **more}
    return tree(conditions=[given])


@pytest.mark.parametrize(
    ("spelling", "operator"),
    [
        *((operator.value, operator) for operator in Operator),
        ("=", Operator.IS),
        ("==", Operator.IS),
        ("≠", Operator.IS_NOT),
        ("!=", Operator.IS_NOT),
        ("before", Operator.BELOW),
        ("after", Operator.ABOVE),
        ("<=", Operator.AT_MOST),
        (">=", Operator.AT_LEAST),
        ("starts with", Operator.START_WITH),
        ("ends with", Operator.END_WITH),
    ],
)
def test_every_operator_is_known_in_its_spellings(spelling: str, operator: Operator) -> None:
    value = 3 if operator.takes_value else None
    assert one("year", spelling, 3) == Comparison("year", operator, value)


def test_an_unknown_operator_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ValidationError, match="no such operator; use one of: contains, not cont"):
        one("year", "like", 3)


@pytest.mark.parametrize("value", [True, {"a": 1}, [[1]], [None]])
def test_a_value_is_a_text_a_number_or_a_list_of_them(value: Any) -> None:
    with pytest.raises(ValidationError):
        one("year", "is", value)


@pytest.mark.parametrize(
    "without_effect",
    [
        {},
        {"conditions": None},
        {"conditions": []},
        {"conditions": [{"name": "a", "comparison_operator": "is", "value": None}]},
        {"conditions": [{"name": "a", "comparison_operator": "is not", "value": ["x"]}]},
        {"conditions": [{"conditions": []}]},
        {"conditions": [{"not": {"conditions": []}}]},
    ],
)
def test_what_compares_nothing_restricts_nothing(without_effect: dict[str, Any]) -> None:
    assert tree(**without_effect) is None


@pytest.mark.parametrize("operator", ["empty", "not empty"])
def test_empty_compares_without_a_value_and_forgets_one_that_is_sent(operator: str) -> None:
    assert one("a", operator, "x") == Comparison("a", Operator(operator))


@pytest.mark.parametrize(
    ("sent", "every"),
    [
        ({}, True),
        ({"logical_operator": "and"}, True),
        ({"logical_operator": "or"}, False),
        ({"logical_operator": None}, False),
    ],
)
def test_conditions_are_joined_by_and_unless_or_or_null_is_sent(
    sent: dict[str, Any], every: bool
) -> None:
    parts = [{"name": n, "comparison_operator": "empty"} for n in "ab"]
    wanted = tuple(Comparison(n, Operator.EMPTY) for n in "ab")
    assert tree(conditions=parts, **sent) == Group(wanted, every)


def test_a_list_of_names_is_met_by_any_one_of_them() -> None:
    a, b = Comparison("a", Operator.IS, "x"), Comparison("b", Operator.IS, "x")
    assert one(["a", "b"], "is", "x") == Group((a, b), every=False)
    assert one(["a"], "is", "x") == a


def test_groups_and_negations_nest() -> None:
    year = {"name": "year", "comparison_operator": ">", "value": 2020}
    author = {"name": "author", "comparison_operator": "in", "value": ["Ann", "Bo"]}
    found = tree(
        conditions=[
            year,
            {"logical_operator": "or", "conditions": [author, {"not": year}]},
        ]
    )
    newer = Comparison("year", Operator.ABOVE, 2020)
    by = Comparison("author", Operator.IN, ("Ann", "Bo"))
    assert found == Group((newer, Group((by, Not(newer)), every=False)))
    assert found is not None
    assert list(comparisons(found)) == [newer, by, newer]
    assert depth(found) == 3


def test_case_may_be_ignored() -> None:
    assert one("a", "is", "X", ignore_case=True) == Comparison("a", Operator.IS, "X", True)
