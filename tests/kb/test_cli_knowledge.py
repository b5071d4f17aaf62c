"""`kb queries`, `kb external`, and `kb search` over several datasets, on a data directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kb.cli.main import kb
from tests.librarian import Says, librarian, record
from tests.models import model_cache


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("KB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KB_EMBEDDING__CACHE_DIR", str(model_cache()))
    monkeypatch.setenv("KB_EXTERNAL__ALLOW_PRIVATE", "true")
    monkeypatch.setenv("KB_EXTERNAL__RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def said(result: Result, *, code: int = 0) -> str:
    assert result.exit_code == code, result.output
    return result.output


def test_several_datasets_are_searched_at_once_and_the_question_is_replayed(
    run: CliRunner, tmp_path: Path
) -> None:
    for name, text in (("sea", "The walrus sleeps on ice."), ("land", "No walrus lives here.")):
        (tmp_path / f"{name}.txt").write_text(text)
        said(run.invoke(kb, ["ingest", f"{name}.txt", "--dataset", name]))
    ask = ["search", "walrus", "-d", "sea", "-d", "land"]
    output = said(run.invoke(kb, ask))
    assert "sea.txt" in output
    assert "land.txt" in output
    assert "give --dataset once" in said(run.invoke(kb, [*ask, "--explain"]), code=1)
    listed = json.loads(said(run.invoke(kb, ["queries", "list", "-d", "sea", "--json"])))
    assert [q["source"] for q in listed] == ["app"]
    table = said(run.invoke(kb, ["queries", "list"]))
    assert table.count("walrus") == 2, "one question to two datasets"
    again = ["queries", "replay", listed[-1]["id"]]
    assert "identical: 2 hits" in said(run.invoke(kb, again))
    said(run.invoke(kb, ["documents", "delete", "sea.txt", "-d", "sea", "--yes"]))
    output = said(run.invoke(kb, again), code=1)
    assert "deleted" in output
    assert "(0." in output


def test_a_service_is_added_bound_searched_and_removed(run: CliRunner) -> None:
    with librarian() as service:
        service.records = [record("The walrus sleeps.", 0.9, "far.txt")]
        add = ["external", "add", "archive", service.endpoint, "--service-key", "-"]
        output = said(run.invoke(kb, add, input="s3cret\n"))
        assert "added service 'archive'" in output
        assert "s3cret" not in output
        assert service.asked[-1].headers["authorization"] == "Bearer s3cret"
        said(run.invoke(kb, ["external", "bind", "archive", "KB-1", "--dataset", "far"]))
        assert "far.txt" in said(run.invoke(kb, ["search", "walrus", "-d", "far"]))
        row = said(run.invoke(kb, ["external", "list"])).splitlines()[-1].split("\t")
        assert row[:3] == ["archive", service.endpoint, "far"]
        assert "status 200" in said(run.invoke(kb, ["external", "probe", "archive"]))
        service.then = [Says(status=403)]
        assert "api_key" in said(run.invoke(kb, ["external", "probe", "archive"]), code=1)
        remove = ["external", "remove", "archive", "--yes"]
        assert "is used by 1 datasets ('far')" in said(run.invoke(kb, remove), code=1)
        said(run.invoke(kb, ["datasets", "delete", "far", "--yes"]))
        assert "removed service" in said(run.invoke(kb, remove))
        assert "no service is named 'archive'" in said(run.invoke(kb, remove), code=1)
        assert "no services yet" in said(run.invoke(kb, ["external", "list"]))
