"""`kb documents pause|resume|retry|cancel|rechunk|rename|report` against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kb.cli.main import kb
from kb.client import Client
from tests.kb.api import KEY, served, test_settings
from tests.kb.server import LINES

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without workers."""
    with served(test_settings(tmp_path_factory.mktemp("cli") / "data")) as (host, port):
        with Client(f"http://{host}:{port}", KEY) as client:
            client.create_dataset("books", indexing_technique="economy")
            client.create_dataset("maps", indexing_technique="economy")
            for dataset, name in [("books", "a.txt"), ("books", "b.txt"), ("maps", "c.txt")]:
                client.upload(dataset, name, b"One.\nTwo.", {"process_rule": LINES})
        yield f"http://{host}:{port}"


@pytest.fixture
def run(url: str) -> Run:
    """`kb documents ...` on that server."""

    def invoke(*args: str, code: int = 0) -> Result:
        command = ["--url", url, "--api-key", KEY, "documents", *args]
        done = CliRunner().invoke(kb, command, prog_name="kb")
        assert done.exit_code == code, done.output
        return done

    return invoke


def test_one_document_is_paused_resumed_cancelled_and_retried(run: Run) -> None:
    assert run("pause", "a.txt", "-d", "books").output == "paused 'a.txt': paused\n"
    assert run("resume", "a.txt", "-d", "books").output == "resumed 'a.txt': queuing\n"
    assert run("cancel", "a.txt", "-d", "books").output == "cancelled 'a.txt': error\n"
    shown = run("report", "a.txt", "-d", "books").output
    assert "error:       cancelled: cancelled before it was complete" in shown
    done = run("retry", "a.txt", "-d", "books", "--no-wait")
    assert done.output == "queued again 'a.txt': queuing\n"
    done = run("retry", "a.txt", "-d", "books", "--no-wait", code=1)
    assert "only documents in status 'error' can be retried" in done.output


def test_all_that_match_are_paused_and_the_others_are_counted(run: Run) -> None:
    done = run("pause", "--status", "queuing", "-d", "books")
    assert done.output == "paused 2 documents\n"
    assert run("pause", "--all").output == "paused 1 document; 2 in no state for it\n"
    assert run("resume", "--until", "2000-01-01").output == "resumed 0 documents\n"
    done = run("resume", "--since", "2000-01-01", "--json")
    assert json.loads(done.output)["affected"] == 3
    assert run("cancel", "--tag", "none").output == "cancelled 0 documents\n"
    assert run("retry", "--error-code", "none", "--no-wait").output == "queued again 0 documents\n"


def test_a_document_is_cut_anew_and_renamed(run: Run, tmp_path: Path) -> None:
    rule = tmp_path / "rule.json"
    rule.write_text('{"mode": "automatic"}')
    done = run("rechunk", "c.txt", "-d", "maps", "--process-rule", f"@{rule}")
    assert done.output == "queued to be cut anew 'c.txt': queuing\n"
    assert run("rename", "c.txt", "d.txt", "-d", "maps").output == "renamed to 'd.txt'\n"
    report = json.loads(run("report", "d.txt", "-d", "maps", "--json").output)
    assert (report["version"], report["process_rule"]["mode"]) == (2, "automatic")
    assert json.loads(run("report", "d.txt", "-d", "maps", "--version", "1", "--json").output)[
        "process_rule"
    ]["mode"] == ("custom")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["pause"], "give DOCUMENT, a condition"),
        (["pause", "a.txt"], "DOCUMENT needs --dataset"),
        (["pause", "a.txt", "-d", "books", "--all"], "give either DOCUMENT or conditions"),
        (["cancel", "-d", "books"], "give DOCUMENT, a condition"),
        (["pause", "--status", "other"], "other"),
    ],
)
def test_what_is_not_said_clearly_is_a_usage_error(run: Run, args: list[str], said: str) -> None:
    assert said in run(*args, code=2).output


def test_a_retry_without_a_server_waits_for_the_outcome(tmp_path: Path) -> None:
    directory = str(tmp_path / "data")

    def local(*args: str, code: int = 0) -> str:
        done = CliRunner().invoke(kb, ["--data-dir", directory, *args], prog_name="kb")
        assert done.exit_code == code, done.output
        return done.output

    (tmp_path / "a.txt").write_text("Some text.")
    file = str(tmp_path / "a.txt")
    local("ingest", file, "-d", "books", "--technique", "economy", "--no-wait")
    assert local("documents", "pause", "--all", "-d", "books") == "paused 1 document\n"
    local("documents", "cancel", "a.txt", "-d", "books")
    shown = local("documents", "show", "a.txt", "-d", "books")
    assert "cancelled" in shown, "nobody worked on it meanwhile"
    assert "1 of 1 document completed" in local("documents", "retry", "--all", "-d", "books")
