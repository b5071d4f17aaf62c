"""`kb ingest --qa` and `kb search` against a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kb.cli.main import kb
from kb.client import Client
from tests.kb.api import KEY, served, test_settings

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without workers."""
    with served(test_settings(tmp_path_factory.mktemp("cli") / "data")) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    """`kb ingest FILE -d faq ...` on that server."""
    file = tmp_path / "faq.csv"
    file.write_text("Nr,Frage,Antwort\n1,Wie lange?,Zwei Jahre.\n", encoding="utf-8")

    def invoke(*args: str, code: int = 0) -> Result:
        command = ["--url", url, "--api-key", KEY, "ingest", str(file), "-d", "faq", "--no-wait"]
        done = CliRunner().invoke(kb, [*command, *args], prog_name="kb")
        assert done.exit_code == code, done.output
        return done

    return invoke


def test_a_table_is_sent_as_questions_and_answers_with_its_columns(run: Run, url: str) -> None:
    run("--qa", "--question-column", "Frage", "--answer-column", "2")
    with Client(url, KEY) as client:
        (listed,) = client.documents("faq")
        found = client.document("faq", listed["id"])
    assert found["doc_form"] == "qa_model"
    qa = found["document_process_rule"]["rules"]["qa"]
    assert (qa["question_column"], qa["answer_column"]) == ("Frage", "2")


def test_options_that_contradict_each_other_are_refused(run: Run) -> None:
    done = run("--qa", "--doc-form", "text_model", code=1)
    assert "--qa and --doc-form text_model contradict each other" in done.output
    done = run("--question-column", "Frage", code=1)
    assert "are for --qa; add it" in done.output
