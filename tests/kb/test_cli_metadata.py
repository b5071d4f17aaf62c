"""`kb metadata` and `kb search --filter`: the grammar, its errors, one round through it all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kb.cli.filters import parse_filter
from kb.cli.main import kb
from kb.cli.options import CliError
from kb.schemas import MetadataFilter
from tests.kb.api import KEY, add_dataset, api, indexed_text, served, test_settings


def one(name: str, operator: str, value: Any = ..., **more: Any) -> dict[str, Any]:
    given = {} if value is ... else {"value": value}
    return {"name": name, "comparison_operator": operator, **given, **more}


A, B, C = (one(name, "=", 1) for name in "abc")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a = 1", A),
        ("year >= 2020", one("year", ">=", 2020)),
        ("year<=-1.5e3", one("year", "<=", -1500.0)),
        ("year ≥ .5", one("year", "≥", 0.5)),
        ("year != 2020", one("year", "!=", 2020)),
        ("at before 2026-01-01", one("at", "before", "2026-01-01")),
        ("at AFTER 1767225600", one("at", "after", 1767225600)),
        ('author is "Ann Lee"', one("author", "is", "Ann Lee")),
        ("author is not Ann", one("author", "is not", "Ann")),
        ("author is empty", one("author", "empty")),
        ("author is not empty", one("author", "not empty")),
        ('author is "empty"', one("author", "is", "empty")),
        ('author is "2020"', one("author", "is", "2020")),
        (r'author is "a \"b\" \\"', one("author", "is", 'a "b" \\')),
        ("author is 'and'", one("author", "is", "and")),
        ('"my field" contains x', one("my field", "contains", "x")),
        ("author not contains x", one("author", "not contains", "x")),
        ("author starts with 北京", one("author", "starts with", "北京")),
        ("author Ends With x", one("author", "ends with", "x")),
        ('tags in (a, "b c", 3)', one("tags", "in", ["a", "b c", 3])),
        ("tags not in (a)", one("tags", "not in", ["a"])),
        ("author is ann ignoring case", one("author", "is", "ann", ignore_case=True)),
        ("not a=1", {"not": A}),
        ("not not a=1", {"not": {"not": A}}),
        ("a=1 and b=1 and c=1", {"logical_operator": "and", "conditions": [A, B, C]}),
        (
            "a=1 or b=1 and c=1",
            {
                "logical_operator": "or",
                "conditions": [A, {"logical_operator": "and", "conditions": [B, C]}],
            },
        ),
        (
            "(a=1 or b=1) and not (c=1)",
            {
                "logical_operator": "and",
                "conditions": [
                    {"logical_operator": "or", "conditions": [A, B]},
                    {"not": C},
                ],
            },
        ),
    ],
)
def test_a_filter_means_conditions(text: str, meant: dict[str, Any]) -> None:
    wanted = meant if "conditions" in meant else {"conditions": [meant]}
    assert parse_filter(text) == wanted
    assert MetadataFilter.model_validate(wanted).tree() is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the name of a field is missing, at character 1 of ''"),
        ("year", "an operator (=, !=, <, <=, >, >=, is,"),
        ("year >=", "a value is missing, at character 8 of"),
        ("year >= and x = 1", "expected a value, found 'and', at character 9"),
        ("year like 3", "expected an operator (=, !=, <, <=, >, >=, is,"),
        ("year = 3 x = 1", "expected 'and', 'or' or the end, found 'x', at character 10"),
        ("(a = 1", "a closing ) is missing, at character 7"),
        ("a = 1)", "expected 'and', 'or' or the end, found ')', at character 6"),
        ('a = "x', 'the quote " is not closed, at character 5'),
        ("a in b", "expected ( after 'in', at character 6"),
        ("a in (b c)", "expected , or ) in the list, at character 9"),
        ("a in ()", "expected a value, found ')', at character 7"),
        ("a starts x", "expected 'with' after 'starts', at character 10"),
        ("a not b", "expected 'in' or 'contains' after 'not', at character 7"),
        ("a = 1 ignoring b", "expected 'case' after 'ignoring', at character 16"),
        ("a ! 1", "'!' means nothing here, at character 3"),
        ("= 3", "expected the name of a field, found '=', at character 1"),
        ("not " * 60 + "a = 1", "more than 50 levels, at character 201"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(CliError) as caught:
        parse_filter(text)
    assert message in caught.value.message


@given(st.text(alphabet="ab 1()=<>!\"'\\,≥.-andortisemply", max_size=40))
def test_any_text_is_conditions_or_an_error(text: str) -> None:
    try:
        found = parse_filter(text)
    except CliError:
        with pytest.raises(CliError, match="at character"):
            parse_filter(text)
    else:
        MetadataFilter.model_validate(found)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server with an indexed dataset `zoo`."""
    with api(tmp_path) as client:
        dataset = add_dataset(client, "zoo", indexing_technique="economy")
        for name in ("ann", "bo"):
            indexed_text(client, dataset, name, f"The walrus of {name} sleeps.")
    with served(test_settings(tmp_path, api_key=KEY)) as (host, port):
        yield f"http://{host}:{port}"


def test_fields_are_kept_by_the_command_line_and_searches_filtered(address: str) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        """Exit code and all output."""
        done = CliRunner().invoke(kb, [*arguments, "-d", "zoo", "--url", address, "--api-key", KEY])
        return done.exit_code, done.output

    assert "no fields yet" in run("metadata", "list")[1]
    assert run("metadata", "add", "yeer", "number")[0] == 0
    assert run("metadata", "rename", "yeer", "year")[0] == 0
    assert run("metadata", "set", "ann", "year=2024")[0] == 0
    code, said = run("metadata", "set", "ann", "age=3")
    assert (code, "'age'" in said, "year" in said) == (1, True, True)
    code, said = run("metadata", "set", "ann", "year=tall")
    assert (code, "'year' is of type number" in said) == (1, True)
    listed = json.loads(run("metadata", "list", "--json")[1])
    assert [(f["name"], f["count"]) for f in listed["doc_metadata"]] == [("year", 1)]
    code, said = run("search", "walrus", "--filter", "year >= 2020")
    assert (code, "ann" in said, "bo" in said) == (0, True, False), said
    code, said = run("search", "walrus", "--filter", "year >=")
    assert (code, "at character 8" in said) == (1, True)
    assert run("metadata", "delete", "year", "--yes")[0] == 0
    assert run("metadata", "delete", "year", "--yes")[0] == 1
