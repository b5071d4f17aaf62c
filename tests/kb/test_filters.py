"""Filters agree with plain Python: thousands of random ones, over random values of every type."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session

from kb.db import reading, transaction
from kb.errors import InvalidParam
from kb.metadata import rules
from kb.metadata.labels import settle
from kb.models import Dataset, FieldType
from kb.ports import Every, Except, Some, Tagged, Terms, Where
from kb.resources import Resources
from kb.retrieval.analysis import terms_of_query
from kb.retrieval.filters import Filter, compile_filters
from kb.schemas import MetadataFilter
from kb.settings import Limits
from kb.wiring import open_resources
from tests.kb.retrieval_oracle import Builder, Corpus
from tests.kb.server import test_settings

FILTERS = 2500
DOCUMENTS = 60
TEXTS = ["", "a", "A", "ab", "Straße", "STRASSE", "100%_", "北京", "x, y", "z" * 300, "z" * 299]
NUMBERS = [-1e300, -2.5, -1, 0, 0.1, 1, 2, 2024, 2**53, 1e300]
TIMES = [0, 1_600_000_000, 1_767_225_600, 1_767_225_600.25]
VALUES: dict[str, list[Any]] = {"text": TEXTS, "number": NUMBERS, "time": TIMES}
TYPES = {"text": FieldType.STRING, "number": FieldType.NUMBER, "time": FieldType.TIME}
OF_ALL = ["is", "is not", "=", "≠", "in", "not in", "empty", "not empty"]
OF_TEXTS = ["contains", "not contains", "start with", "end with"]
OF_NUMBERS = ["<", ">", "≤", "≥", "before", "after", "<=", ">="]

Held = dict[str, Any]
"""What a document holds, by field name; None and absent are the same."""


@dataclass(frozen=True)
class Library:
    """Documents with random metadata, in SQL and in an index."""

    resources: Resources
    corpus: Corpus
    held: dict[uuid.UUID, Held]
    document_of: dict[uuid.UUID, uuid.UUID]
    query: Terms

    def compiled(self, session: Session, body: dict[str, Any]) -> Filter:
        """A filter as a request sends it."""
        dataset = session.get_one(Dataset, self.corpus.dataset.id)
        tree = MetadataFilter.model_validate(body).tree()
        assert tree is not None
        return compile_filters(session, [dataset], tree, Limits())[dataset.id]

    def found(self, filter: Filter) -> set[uuid.UUID]:
        """The documents that the index gives."""
        if filter.where is False:
            return set()
        hits = self.resources.index.best(
            self.corpus.space,
            self.corpus.dataset.id,
            self.query,
            DOCUMENTS,
            where=None if filter.where is True else filter.where,
        )
        return {self.document_of[hit.id] for hit in hits}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """One for all tests of this module."""
    rng = np.random.default_rng(20)
    directory: Path = tmp_path_factory.mktemp("library")
    with open_resources(test_settings(directory)) as resources:
        builder = Builder(resources, seed=1)
        corpus = builder.corpus("library", economy=True)
        documents = [builder.document(corpus) for _ in range(DOCUMENTS)]
        points = {builder.add(corpus, d, ["walrus"])[0]: d for d in documents}
        held = {document: random_values(rng) for document in documents}
        with transaction(resources.sessions) as session:
            dataset = session.get_one(Dataset, corpus.dataset.id)
            fields = {
                name: str(
                    rules.add_field(
                        session, dataset, name, type, most=9, actor=resources.owner_id
                    ).id
                )
                for name, type in TYPES.items()
            }
            given = [
                rules.Assignment(d, [(fields[n], v) for n, v in values.items()], merge=False)
                for d, values in held.items()
            ]
            owed = rules.assign(session, dataset, given, Limits())
        settle(resources, owed)
        yield Library(resources, corpus, held, points, terms_of_query("walrus")[0])


def random_values(rng: np.random.Generator) -> Held:
    """Some of the fields, some of those without a value."""
    return {
        name: None if rng.random() < 0.15 else values[rng.integers(len(values))]
        for name, values in VALUES.items()
        if rng.random() < 0.8
    }


def random_condition(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    """A comparison, a group or a negation, as requests have them."""
    kind = rng.random()
    if depth and kind < 0.15:
        return {"not": random_condition(rng, depth - 1)}
    if depth and kind < 0.45:
        return random_group(rng, depth - 1)
    name = str(rng.choice([*VALUES, "unknown"]))
    of_type = OF_TEXTS if name in ("text", "unknown") else OF_NUMBERS
    operator = str(rng.choice(OF_ALL + of_type))
    values = VALUES.get(name, TEXTS)
    value: Any = values[rng.integers(len(values))]
    if operator in ("in", "not in"):
        value = [values[rng.integers(len(values))] for _ in range(rng.integers(0, 4))]
    elif isinstance(value, str) and operator in OF_TEXTS and value:
        start = int(rng.integers(len(value)))
        value = value[start : start + int(rng.integers(1, 3))]
    elif not isinstance(value, str) and rng.random() < 0.2:
        value = repr(value)
    condition = {"name": name, "comparison_operator": operator, "value": value}
    return condition | ({"ignore_case": True} if rng.random() < 0.3 else {})


def random_group(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    """One to three conditions."""
    return {
        "logical_operator": [None, "and", "or"][rng.integers(3)],
        "conditions": [random_condition(rng, depth) for _ in range(rng.integers(1, 4))],
    }


# -- the oracle: what the manual says, word by word


def holds(condition: dict[str, Any], held: Held) -> bool:
    """Whether a document with these values meets a condition."""
    if "not" in condition:
        return not holds(condition["not"], held)
    if "conditions" in condition:
        parts = [holds(part, held) for part in condition["conditions"]]
        return all(parts) if condition["logical_operator"] == "and" else any(parts)
    value, operator = held.get(condition["name"]), condition["comparison_operator"]
    asked = condition["value"]
    if operator == "empty":
        return value is None
    if operator == "not empty":
        return value is not None
    if asked == []:
        return operator == "not in"
    if value is None:
        return False
    listed = [asked] if not isinstance(asked, list) else asked
    if isinstance(value, str):
        if condition.get("ignore_case"):
            value, listed = value.casefold(), [one.casefold() for one in listed]
    else:
        value, listed = float(value), [float(one) for one in listed]
    one = listed[0]
    return {
        "is": lambda: value == one,
        "=": lambda: value == one,
        "is not": lambda: value != one,
        "≠": lambda: value != one,
        "in": lambda: value in listed,
        "not in": lambda: value not in listed,
        "contains": lambda: one in value,
        "not contains": lambda: one not in value,
        "start with": lambda: value.startswith(one),
        "end with": lambda: value.endswith(one),
        "<": lambda: value < one,
        "before": lambda: value < one,
        ">": lambda: value > one,
        "after": lambda: value > one,
        "≤": lambda: value <= one,
        "<=": lambda: value <= one,
        "≥": lambda: value >= one,
        ">=": lambda: value >= one,
    }[operator]()


def test_random_filters_find_exactly_what_they_should(library: Library) -> None:
    rng = np.random.default_rng(7)
    sizes = []
    with reading(library.resources.sessions) as session:
        for number in range(FILTERS):
            body = random_group(rng, depth=number % 3)
            wanted = {d for d, held in library.held.items() if holds(body, held)}
            filter = library.compiled(session, body)
            assert library.found(filter) == wanted, body
            if number % 10 == 0:
                assert filter.passing(session, library.held) == wanted, body
            sizes.append(len(wanted))
    assert 0 in sizes
    assert DOCUMENTS in sizes
    assert sum(0 < size < DOCUMENTS for size in sizes) > FILTERS / 2, "filters that tell apart"


def tags_in(where: Where | bool) -> int:
    """How many tags a filter of the index names."""
    if isinstance(where, Tagged):
        return len(where.any_of)
    if isinstance(where, Except):
        return tags_in(where.part)
    return sum(map(tags_in, where.parts)) if isinstance(where, Every | Some) else 0


@pytest.mark.parametrize("value", ["", "z", "a", "nowhere"])
def test_at_most_half_of_the_texts_are_named(library: Library, value: str) -> None:
    with reading(library.resources.sessions) as session:
        for operator in ("contains", "not contains"):
            one = {"name": "text", "comparison_operator": operator, "value": value}
            where = library.compiled(session, {"conditions": [one]}).where
            assert tags_in(where) <= 1 + len(TEXTS) / 2


@pytest.mark.parametrize("operator", ["contains", "start with", "not contains", "end with"])
def test_text_operators_do_not_compare_numbers(library: Library, operator: str) -> None:
    body = {"conditions": [{"name": "number", "comparison_operator": operator, "value": 1}]}
    with (
        reading(library.resources.sessions) as session,
        pytest.raises(InvalidParam, match=f"'number' is of type number, which '{operator}'"),
    ):
        library.compiled(session, body)
