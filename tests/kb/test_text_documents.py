"""A text that is sent as a text is taken as it is, whatever it looks like."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.kb.server import add_dataset, add_text, search, wait


@pytest.mark.parametrize(
    "text",
    [
        "<html><body><b>bold</b> move</body></html>",
        "%PDF-1.4 is how the magic move begins",
        "PK\x03\x04 a zip of one move",
    ],
)
def test_a_text_that_looks_like_a_file_is_indexed_as_text(client: TestClient, text: str) -> None:
    dataset = add_dataset(client)
    assert wait(client, dataset, add_text(client, dataset, "note", text)) == "completed"
    (hit,) = search(client, dataset, "move", search_method="full_text_search")
    kept = "".join(text.split()).lstrip("<%").replace("\x03", "").replace("\x04", "")
    assert "".join(hit["segment"]["content"].split()) == kept
