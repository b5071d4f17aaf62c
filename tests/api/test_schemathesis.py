"""Requests made from the OpenAPI document, sound ones and others: none is answered by 5xx, by a
status that the document does not name for its route, or in another shape than it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kb.api.app import routed_app
from tests.api.world import World, open_world
from tests.kb.api import HEADERS

_EXAMPLES = 12  # per route: half of them sound
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_ABROAD = ("/v1/datasets/external-knowledge-api",)
"""Routes that would call whatever address was made up."""

_SCHEMA = schemathesis.openapi.from_dict(routed_app().openapi())
_OPERATIONS = {
    found.ok().label: found.ok()
    for found in _SCHEMA.get_all_operations()
    if not (found.ok().method == "post" and found.ok().path.startswith(_ABROAD))
}


@schemathesis.serializer("application/zip")
def _as_it_is(_: Any, value: Any) -> bytes:
    return bytes(value) if isinstance(value, bytes | bytearray) else str(value).encode()


@pytest.fixture(scope="module")
def world(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        for name in ("document", "segment", "parent", "child", "field", "tag", "batch"):
            assert opened[name]
        yield opened


def known_ids(world: World, method: str, path: str) -> dict[str, str]:
    """Ids that are there, for the parts of a path; but not of what would be deleted."""
    family = "child_chunks" in path
    ids = {
        "dataset_id": world["family"] if family else world["dataset"],
        "document_id": world["parents"] if family else world["document"],
        "segment_id": world["parent"] if family else world["segment"],
        "child_chunk_id": world["child"],
        "metadata_id": world["field"],
        "batch": world["batch"],
        "model_id": "settings",
        "model_type": "text-embedding",
    }
    if method == "delete":
        ids.pop(path.rpartition("{")[2].rstrip("}"), None)
    return ids


def actions(label: str) -> st.SearchStrategy[str | None]:
    """What `{action}` may be, and None for whatever was made up."""
    if "built-in" in label:
        return st.sampled_from(["enable", "disable", None])
    if "status" in label:
        return st.sampled_from(["enable", "disable", "archive", "un_archive", None])
    return st.sampled_from(["pause", "resume", "retry", "cancel", "rechunk", None])


def requests_of(operation: Any) -> st.SearchStrategy[Case]:
    """Sound requests, and others where the route has anything that could be wrong."""
    sound = operation.as_strategy(GenerationMode.POSITIVE)
    if not (operation.body or operation.query):
        return sound
    return sound | operation.as_strategy(GenerationMode.NEGATIVE)


@pytest.mark.sqlite_only
@pytest.mark.parametrize("label", list(_OPERATIONS))
def test_what_is_answered_is_what_the_document_says(label: str, world: World) -> None:
    operation = _OPERATIONS[label]

    @seed(20)
    @settings(
        max_examples=_EXAMPLES,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=requests_of(operation), known=st.booleans(), action=actions(label))
    def attempt(case: Case, known: bool, action: str | None) -> None:
        parts = dict(case.path_parameters or {})
        if known:
            ids = known_ids(world, operation.method, operation.path)
            parts |= {name: ids[name] for name in parts if name in ids}
        if action is not None and "action" in parts:
            parts["action"] = action
        case.path_parameters = parts
        case.call_and_validate(base_url=world.url, headers=HEADERS, checks=_CHECKS)

    attempt()
