"""`docs/api-reference.md`, made from the OpenAPI document.

`python -m kb.api.reference` writes it into the working directory; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kb.api.app import routed_app

Json = dict[str, Any]

REFERENCE = Path("docs/api-reference.md")

_HEAD = """\
# API reference

Every route, made from the OpenAPI document (`GET /openapi.json`) by `make docs`.
[REST API](api.md) explains how the routes work together. First the routes of the contract that
existing clients speak, then our additions, then the objects that both send and receive. Keys
marked * are required, or always there.
"""


def reference() -> str:
    """The text of the file."""
    page = routed_app().openapi()
    routes = [
        (path, method, operation)
        for path, methods in page["paths"].items()
        for method, operation in methods.items()
    ]
    ours = [route for route in routes if route[2].get("x-kb-addition")]
    compatible = [route for route in routes if not route[2].get("x-kb-addition")]
    lines = [_HEAD, "## Compatible routes", ""]
    lines += _routes(compatible)
    lines += ["## Our additions", ""]
    lines += _routes(ours)
    lines += ["## Objects", ""]
    for name, schema in sorted(page["components"]["schemas"].items()):
        lines += _object(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _routes(routes: list[tuple[str, str, Json]]) -> Iterator[str]:
    for path, method, operation in routes:
        yield f"### {method.upper()} {path}"
        yield ""
        yield operation["description"]
        yield ""
        rows = [
            (p["name"], p["in"], p["schema"].get("type", "string"), p["description"])
            for p in operation["parameters"]
        ]
        if rows:
            yield from ("| parameter | in | type |  |", "|---|---|---|---|")
            for row in rows:
                yield f"| `{row[0]}` | {row[1]} | {row[2]} | {_cell(row[3])} |"
            yield ""
        if (body := operation.get("requestBody")) is not None:
            yield f"Body: {_content(body['content'])}."
            yield ""
        yield from _responses(operation["responses"])
        yield ""


def _responses(responses: Json) -> Iterator[str]:
    for status, response in responses.items():
        if int(status) < 400:
            shown = _content(response["content"]) if "content" in response else "no body"
            yield f"- {status}: {shown}"
        else:
            yield f"- {status}: {response['description'].partition(': ')[2]}"


def _content(content: Json) -> str:
    ((media_type, described),) = content.items()
    if media_type == "application/json":
        return _type(described["schema"])
    parts = described["schema"].get("properties", {})
    named = ", ".join(f"`{name}`: {_type(part)}" for name, part in parts.items())
    return f"`{media_type}`" + (f" with {named}" if named else "")


def _object(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if about := schema.get("description"):
        yield from (" ".join(about.split()), "")
    if "properties" not in schema:
        yield from (_type(schema), "")
        return
    required = schema.get("required", ())
    yield from ("| key | type |  |", "|---|---|---|")
    for key, inner in schema["properties"].items():
        mark = "*" if key in required else ""
        yield f"| `{key}`{mark} | {_type(inner)} | {_cell(inner['description'])} |"
    yield ""


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(part) for part in schema[key]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    known = {"uuid": "UUID", "date-time": "ISO 8601 time", "binary": "bytes"}
    return str(known.get(schema.get("format", ""), kind))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the file."""
    REFERENCE.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
