"""The OpenAPI document is whole: every route, field, answer and error is described, and true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kb.api.app import ROUTERS
from kb.api.contract import CONTRACT
from kb.api.reference import REFERENCE, reference
from tests.kb.api import api

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with api(tmp_path_factory.mktemp("openapi"), working=False) as client:
        return dict(client.get("/openapi.json").json())


def operations(page: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in page["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def fields(schema: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property below a schema, but not those behind references."""
    if isinstance(schema, list):
        for at, part in enumerate(schema):
            yield from fields(part, f"{where}[{at}]")
    if isinstance(schema, dict):
        for name, inner in schema.get("properties", {}).items():
            yield f"{where}.{name}", inner
        for key, part in schema.items():
            if key not in ("examples", "example", "default"):
                yield from fields(part, where if key == "properties" else f"{where}/{key}")


def test_every_route_says_what_it_does_and_answers(page: dict[str, Any]) -> None:
    gaps = []
    for name, operation in operations(page):
        if not operation.get("summary") or len(operation.get("description", "")) < 15:
            gaps.append(f"{name}: no summary or description")
        (success,) = (s for s in operation["responses"] if s.startswith("2"))
        if success != "204" and not operation["responses"][success].get("content"):
            gaps.append(f"{name}: no shape of its answer; write one in kb/api/answers")
        if success == "204" and operation["responses"][success].get("content"):
            gaps.append(f"{name}: a shape of an answer that is empty")
        if "requestBody" not in operation and name.startswith(("put", "patch")):
            gaps.append(f"{name}: no body; name it in kb/api/manual.py")
    assert gaps == []


def test_every_field_and_parameter_is_described(page: dict[str, Any]) -> None:
    silent = [name for name, field in fields(page, "") if not field.get("description")]
    silent += [
        f"{name}: {parameter['name']}"
        for name, operation in operations(page)
        for parameter in operation["parameters"]
        if not parameter.get("description")
    ]
    assert silent == [], "\n".join(silent)


def test_every_error_has_its_response(page: dict[str, Any]) -> None:
    gaps = []
    for name, operation in operations(page):
        listed = {int(status) for status in operation["responses"]}
        if operation.get("security") and not listed >= {401, 403, 503}:
            gaps.append(f"{name}: {sorted({401, 403, 503} - listed)}")
        if "{" in name and 404 not in listed:
            gaps.append(f"{name}: 404")
        if "requestBody" in operation and not listed >= {400, 413}:
            gaps.append(f"{name}: 400 or 413")
        for status, response in operation["responses"].items():
            if int(status) >= 400 and ("`" not in response["description"]):
                gaps.append(f"{name}: {status} names no code")
    assert gaps == []


def test_every_example_and_default_is_valid(page: dict[str, Any]) -> None:
    found = 0
    for name, schema in fields(page, ""):
        for example in [
            *schema.get("examples", []),
            *([schema["default"]] if "default" in schema else []),
        ]:
            found += 1
            resolved = {**schema, "components": page["components"]}
            problems = list(Draft202012Validator(resolved).iter_errors(example))
            assert problems == [], f"{name}: {problems}"
    assert found > 20


def test_every_reference_leads_somewhere_and_nothing_is_left_over(page: dict[str, Any]) -> None:
    text = str(page)
    known = set(page["components"]["schemas"])
    unused = [name for name in known if f"'#/components/schemas/{name}'" not in text]
    assert unused == []
    references = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
    assert references == known


def test_the_page_lists_every_route_of_the_application(tmp_path: Path) -> None:
    with api(tmp_path, working=False) as client:
        app: Any = client.app
        paths = app.openapi()["paths"]
        served = {
            (method.lower(), route.path)
            for router in ROUTERS
            for route in router.routes
            if route.include_in_schema
            for method in route.methods
        }
    assert served == {(method, path) for path, methods in paths.items() for method in methods}


def test_additions_are_told_from_the_contract(page: dict[str, Any]) -> None:
    ours = {name for name, operation in operations(page) if operation.get("x-kb-addition")}
    assert "post /v1/webhooks" in ours
    assert "get /v1/datasets" not in ours
    listed = {f"{method} {path}" for method, path in CONTRACT}
    assert listed <= {name for name, _ in operations(page)}, "routes that are not there any more"
    assert not listed & ours


def test_the_reference_is_up_to_date() -> None:
    text = (ROOT / REFERENCE).read_text(encoding="utf-8")
    assert text == reference(), f"{REFERENCE} is old: run `make docs`"
    ours = text.index("## Our additions")
    assert text.index("### GET /v1/datasets\n") < ours < text.index("### POST /v1/webhooks\n")
