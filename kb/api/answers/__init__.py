"""What the routes answer, for the OpenAPI page: the shapes of successes, noun by noun."""

from __future__ import annotations

import re

from kb.api.answers import common, datasets, documents, external, process, retrieval, segments
from kb.api.answers.notation import Json, read_content, read_object, read_type

_NOUNS = (datasets, documents, segments, external, retrieval, process)

_DATASET = "/v1/datasets/{dataset_id}"
_DOCUMENT = f"{_DATASET}/documents/{{document_id}}"


def _expanded(route: str) -> tuple[str, str]:
    method, path = route.split(" ")
    return method, re.sub("^D", _DATASET, re.sub("^C", _DOCUMENT, path))


OBJECTS = {name: lines for part in (common, *_NOUNS) for name, lines in part.OBJECTS.items()}
ANSWERS = {
    (method, path): answer
    for part in _NOUNS
    for route, answer in part.ANSWERS.items()
    for method, path in [_expanded(route)]
}
"""(method, path) -> what a success answers."""


def schemas() -> dict[str, Json]:
    """Components of the page: name -> JSON schema."""
    return {name: read_object(lines) for name, lines in OBJECTS.items()}


__all__ = ["ANSWERS", "OBJECTS", "Json", "read_content", "read_type", "schemas"]
