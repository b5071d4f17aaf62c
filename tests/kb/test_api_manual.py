"""The manual of the API and its OpenAPI page speak of every route, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

import kb.errors
from kb.api.app import ROUTERS, create_app
from kb.api.manual import BODIES, FORMS, QUERIES, RAW
from kb.errors import KBError
from kb.resources import Resources

MANUAL = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
ROUTES = {
    (method, route.path): route
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods or ())
}
CODES = {
    error.code: error.status
    for error in vars(kb.errors).values()
    if isinstance(error, type) and issubclass(error, KBError)
}


@pytest.fixture
def app(resources: Resources) -> FastAPI:
    """The application as it is served."""
    return create_app(resources)


@pytest.mark.parametrize(("method", "path"), list(ROUTES))
def test_every_route_is_in_the_manual(method: str, path: str) -> None:
    last = path.rpartition("/")[2]
    spelled = f"`{method} {path}`" in MANUAL
    as_alias = not ROUTES[method, path].include_in_schema and (
        f"`{last}`" in MANUAL or f"`{path}`" in MANUAL
    )
    assert spelled or as_alias


def test_the_manual_speaks_of_no_route_that_is_not_there() -> None:
    named = set(re.findall(r"`(GET|POST|PATCH|PUT|DELETE) (/[^`?]*)`", MANUAL))
    assert named - set(ROUTES) == {("GET", "/docs"), ("GET", "/openapi.json")}


def test_every_error_code_is_in_the_manual_with_its_status() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| (\d{3}) \|", MANUAL, re.MULTILINE)
    told = {code: int(status) for codes, status in rows for code in re.findall("`(.+?)`", codes)}
    of_the_router = {"method_not_allowed": 405, "unknown": 500}
    assert told == CODES | of_the_router


def test_the_openapi_page_describes_every_route_with_what_it_reads(app: FastAPI) -> None:
    page = app.openapi()
    shown = {
        (method.upper(), path): operation
        for path, methods in page["paths"].items()
        for method, operation in methods.items()
    }
    assert set(shown) == {key for key, route in ROUTES.items() if route.include_in_schema}
    for key, operation in shown.items():
        assert operation.get("description"), key
        assert "HTTPValidationError" not in str(operation), "a shape that is never sent"
        if key[1].startswith("/v1/"):
            assert operation["security"] == [{"HTTPBearer": []}], key
    for method, path in [*BODIES, *QUERIES]:
        assert (method.upper(), path) in shown
    with_body = {k for k, o in shown.items() if "requestBody" in o}
    assert with_body == {(m.upper(), p) for m, p in [*BODIES, *FORMS, *RAW]}


def test_every_reference_of_the_openapi_page_leads_somewhere(app: FastAPI) -> None:
    page = app.openapi()

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(item) for item in value.values()))
        if isinstance(value, list):
            return set().union(*(references(item) for item in value))
        return set()

    found = references(page)
    assert "#/components/schemas/DatasetCreate" in found
    known = {f"#/components/schemas/{name}" for name in page["components"]["schemas"]}
    assert found <= known
