"""`kb models` on a data directory of its own, from adding to removing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kb.cli.main import kb
from tests.embedding_provider import DIM, MODEL, Provider
from tests.models import model_cache

KEY = "sk-the-key-of-the-tests-4711"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("KB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KB_EMBEDDING__CACHE_DIR", str(model_cache()))
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def said(result: Result, *, code: int = 0) -> str:
    assert result.exit_code == code, result.output
    return result.output


def test_a_model_is_added_with_a_hidden_key_tried_out_listed_and_removed(run: CliRunner) -> None:
    with Provider(api_key=KEY) as provider:
        add = ["models", "add", "embedding", "openai", MODEL, "--provider", "acme"]
        add += ["--server", provider.url, "--model-key", "-", "-o", "retries=0"]
        output = said(run.invoke(kb, add, input=f"{KEY}\n"))
        assert f"added model '{MODEL}' of provider 'acme'" in output
        assert f"it works: dimension {DIM}, after " in output
        assert KEY not in output
        listed = json.loads(said(run.invoke(kb, ["models", "list", "--json"])))
        assert [m["model"] for m in listed] == ["all-MiniLM-L6-v2", MODEL]
        assert listed[1]["options"] == {"retries": 0}
        row = said(run.invoke(kb, ["models", "list"])).splitlines()[-1].split("\t")
        assert row[:6] == [MODEL, "acme", "embedding", "openai", provider.url, str(DIM)]
        changed = said(run.invoke(kb, ["models", "update", MODEL, "--model-key", "sk-another-one"]))
        assert "changed model" in changed
        output = said(run.invoke(kb, ["models", "test", MODEL]), code=1)
        assert "error: it does not work: " in output
        assert "'api_key' of the model" in output
    assert "removed" in said(run.invoke(kb, ["models", "remove", MODEL, "--yes"]))
    output = said(run.invoke(kb, ["models", "test", MODEL]), code=1)
    assert f"no model is named '{MODEL}': all-MiniLM-L6-v2 (settings)" in output


def test_what_cannot_be_added_says_why(run: CliRunner) -> None:
    add = ["models", "add", "rerank", "local", "mine", "--path", "nowhere"]
    assert "no cross-encoder in " in said(run.invoke(kb, add), code=1)
    add = ["models", "add", "chat", "openai", "m", "-o", "retries"]
    assert "--option 'retries': write NAME=VALUE" in said(run.invoke(kb, add), code=1)
