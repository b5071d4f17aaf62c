"""Every file of tests/data/extract is read, or refused for the right reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.errors import ExtractionError
from tests.pipelines.extract.files import DATA, bare, read_file

EXPECTED: dict[str, dict[str, Any]] = json.loads(
    (DATA / "expected.json").read_text(encoding="utf-8")
)
READABLE = [name for name, expected in EXPECTED.items() if "error" not in expected]
BAD = [(name, e["error"]) for name, e in EXPECTED.items() if "error" in e]


def test_every_file_has_an_expectation() -> None:
    files = {path.name for path in DATA.iterdir()} - {"expected.json"}
    assert files == set(EXPECTED)


@pytest.mark.parametrize("name", READABLE)
def test_the_text_holds_what_the_file_shows(name: str) -> None:
    text = bare(read_file(name).text)
    assert [p for p in EXPECTED[name]["contains"] if bare(p) not in text] == []
    assert [p for p in EXPECTED[name].get("excludes", []) if bare(p) in text] == []


@pytest.mark.parametrize(("name", "code"), BAD)
def test_a_bad_file_is_refused_with_its_name_and_a_remedy(name: str, code: str) -> None:
    with pytest.raises(ExtractionError) as caught:
        read_file(name)
    assert caught.value.code == code
    assert caught.value.message.startswith(repr(name))
    assert "; " in caught.value.message
