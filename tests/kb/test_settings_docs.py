"""`.env.example` and docs/settings.md say what the Settings class says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kb import settings_docs
from kb.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (settings_docs.ENV_FILE, settings_docs.env_file()),
        (settings_docs.MANUAL, settings_docs.manual()),
    ],
    ids=str,
)
def test_the_files_are_up_to_date(path: Path, text: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path} is old: run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    silent = [s.name for g in settings_docs.groups() for s in g.settings if not s.meaning]
    assert silent == [], "write a docstring below each of these in kb/settings.py, then `make docs`"
    assert all(group.meaning for group in settings_docs.groups())


def test_the_example_switched_on_gives_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = settings_docs.env_file().splitlines()
    lines = [line.removeprefix("# ") for line in example if line.startswith("# KB_")]
    file = tmp_path / ".env"
    file.write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    assert Settings() == Settings(_env_file=None)
    file.write_text("\n".join(lines).replace("KB_PORT=8000", "KB_PORT=8001"))
    assert Settings().port == 8001


def test_every_variable_that_settings_read_is_listed() -> None:
    listed = {s.name for g in settings_docs.groups() for s in g.settings}
    assert len(listed) == _leaves(Settings.model_json_schema(), {})
    assert {"KB_DATA_DIR", "KB_BLOBS__BUCKET", "KB_QDRANT__URL"} <= listed


def _leaves(schema: dict, definitions: dict) -> int:  # type: ignore[type-arg]
    """How many values that are not groups the JSON schema has."""
    definitions = schema.get("$defs", definitions)
    count = 0
    for value in schema["properties"].values():
        inner = definitions.get(value.get("$ref", "").rpartition("/")[2])
        count += _leaves(inner, definitions) if inner and "properties" in inner else 1
    return count
