"""How the answers of routes are written down here, and read into JSON schemas.

An object is one line per key: name, type, meaning. A type is `uuid`, `text`, `integer`, `number`,
`flag`, `time` (Unix seconds), `moment` (ISO 8601), `object`, `any`, `a|b|c` (one of these texts) or
the name of another object; `[type]` is a list, `type?` may be null, `A or B` is either. A key
`name?` is not always there.
"""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

_TYPES: dict[str, Json] = {
    "uuid": {"type": "string", "format": "uuid"},
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "flag": {"type": "boolean"},
    "time": {"type": "integer"},
    "moment": {"type": "string", "format": "date-time"},
    "object": {"type": "object"},
    "any": {},
}


def read_object(lines: str) -> Json:
    """The JSON schema of an object."""
    properties: Json = {}
    required = []
    for line in filter(None, lines.splitlines()):
        name, kind, meaning = re.split(r" {2,}", line, maxsplit=2)
        properties[name.rstrip("?")] = {**read_type(kind), "description": meaning}
        if not name.endswith("?"):
            required.append(name)
    return {"type": "object", "required": required, "properties": properties}


def read_type(kind: str) -> Json:
    """The JSON schema of a type."""
    if " or " in kind:
        return {"anyOf": [read_type(part) for part in kind.split(" or ")]}
    if kind.endswith("?"):
        return {"anyOf": [read_type(kind[:-1]), {"type": "null"}]}
    if kind.startswith("["):
        return {"type": "array", "items": read_type(kind[1:-1])}
    if "|" in kind:
        return {"type": "string", "enum": kind.split("|")}
    return dict(_TYPES[kind]) if kind in _TYPES else {"$ref": f"#/components/schemas/{kind}"}


def read_content(answer: str) -> Json:
    """The `content` of a response: of a media type its bytes, else JSON of a type."""
    if "/" not in answer:
        return {"application/json": {"schema": read_type(answer)}}
    kind = {"type": "string"} if answer.startswith("text/") else {"format": "binary"}
    return {answer: {"schema": {"type": "string", **kind}}}
