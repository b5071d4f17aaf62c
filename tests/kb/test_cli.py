"""The command line without a server: help, names of documents, snippets, error messages."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kb.api.deps import find_caller
from kb.api_keys import add_api_key, add_first_api_key, list_hints
from kb.cli.ingest import process_rule_of
from kb.cli.main import kb
from kb.cli.naming import document_name, find_sources
from kb.cli.options import CliError
from kb.cli.output import count, place, seconds
from kb.cli.search import best_window, explanation_lines, marked_spans, query_terms
from kb.cli.serve import _listen
from kb.client import ApiError, Client, ClientError, Unreachable
from kb.db import transaction
from kb.models import ApiKey
from kb.resources import Resources

HEAVY = ["fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "pydantic", "httpx", "rich"]
HEAVY += ["numpy", "torch", "onnxruntime", "sentence_transformers", "qdrant_edge", "regex", "lxml"]
READABLE = frozenset({"md", "txt", "pdf"})


# -- help


def test_help_imports_no_heavy_module_and_takes_less_than_half_a_second() -> None:
    script = (
        "import sys\n"
        "from kb.cli.main import kb\n"
        "kb(['--help'], standalone_mode=False)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    reader, writer = os.pipe()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", script],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, writer, 2),
        ],
    )
    os.close(writer)
    _, status, usage = os.wait4(child, 0)
    with os.fdopen(reader) as stderr:
        assert (status, stderr.read().strip()) == (0, "[]")
    assert usage.ru_utime + usage.ru_stime < 0.5  # time of the processor: others may be busy


def commands(group: click.Command = kb, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and subcommand."""
    yield path
    if isinstance(group, click.Group):
        ctx = click.Context(group)
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_explains_itself_with_examples(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(kb, [*path, "--help"], prog_name="kb")
    assert shown.exit_code == 0
    assert "Examples:\n    kb" in shown.output or "Examples:\n    KB" in shown.output


def test_every_option_says_what_it_does_and_its_default() -> None:
    for path in commands():
        command: click.Command = kb
        for name in path:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), name)
            assert found is not None
            command = found
        for option in command.params:
            if not isinstance(option, click.Option):
                continue
            where = f"{' '.join(path)} {option.name}"
            assert option.help, where
            flag_or_default = (
                option.is_flag or option.required or option.show_default
            ) or "default: " in option.help
            assert flag_or_default or option.name in ("url", "api_key"), where


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(kb, ["serch"]).exit_code == 2


# -- names of documents


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def named(*paths: Path | str) -> list[str]:
    return [source.name for source in find_sources([str(p) for p in paths], READABLE).sources]


def test_documents_of_a_folder_are_named_by_their_path_below_it(tmp_path: Path) -> None:
    files(tmp_path, "a/intro.md", "a/b/intro.md", "c.TXT")
    assert named(tmp_path) == ["c.TXT", "a › intro.md", "a › b › intro.md"]
    assert named(tmp_path / "a") == ["intro.md", "b › intro.md"]


def test_a_file_is_named_by_itself(tmp_path: Path) -> None:
    files(tmp_path, "a/intro.md")
    assert named(tmp_path / "a" / "intro.md") == ["intro.md"]


def test_hidden_files_and_lock_files_are_left_out_of_folders(tmp_path: Path) -> None:
    files(tmp_path, "a.md", ".hidden.md", ".git/b.md", "~$a.md", "d/.x/c.md")
    assert named(tmp_path) == ["a.md"]
    assert named(f"{tmp_path}/**/*.md") == ["a.md"]
    assert named(tmp_path / ".hidden.md") == [".hidden.md"]


def test_a_pattern_names_documents_by_what_varies(tmp_path: Path) -> None:
    files(tmp_path, "docs/a/x.md", "docs/b/x.md", "docs/b/y.pdf", "docs/z.md")
    assert named(f"{tmp_path}/docs/**/*.md") == ["a › x.md", "b › x.md", "z.md"]
    assert named(f"{tmp_path}/docs/?/x.md") == ["a › x.md", "b › x.md"]


def test_equal_names_of_one_call_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files(tmp_path, "a/x.md", "b/x.md", "b/y.md")
    assert named(tmp_path / "a" / "x.md", tmp_path / "b" / "x.md") == ["a › x.md", "b › x.md"]
    assert named(tmp_path / "a", tmp_path / "b") == ["a › x.md", "b › x.md", "y.md"]


def test_a_file_given_twice_is_sent_once(tmp_path: Path) -> None:
    files(tmp_path, "a/x.md")
    assert named(tmp_path / "a" / "x.md", tmp_path, f"{tmp_path}/a/*.md") == ["x.md"]


def test_unreadable_files_of_folders_are_skipped_and_told(tmp_path: Path) -> None:
    files(tmp_path, "a.md", "b.exe", "c/d.bin")
    found = find_sources([str(tmp_path)], READABLE)
    assert [p.name for p in found.skipped] == ["b.exe", "d.bin"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("b.exe", "no extractor for .exe; supported: md, pdf, txt"),
        ("missing.md", "no such file or folder: "),
        ("*.nothing", "no file matches "),
        ("empty", "holds no file"),
        ("binaries", "holds only files that cannot be read (.bin)"),
    ],
)
def test_what_cannot_be_ingested_is_an_error_that_names_it(
    tmp_path: Path, given: str, message: str
) -> None:
    files(tmp_path, "b.exe", "binaries/x.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CliError) as raised:
        find_sources([f"{tmp_path}/{given}"], READABLE)
    assert message in raised.value.message
    assert given in raised.value.message


@given(st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=4))
def test_a_document_name_holds_no_path(parts: list[str]) -> None:
    name = document_name("/".join(parts))
    assert "/" not in name
    assert name.split(" › ") == parts
    assert document_name(f"./{'/'.join(parts)}") == document_name(name) == name


# -- what is printed


@pytest.mark.parametrize(
    ("query", "text", "marked"),
    [
        (
            "installing stations",
            "To install a station, see INSTALLED.",
            ["install", "station", "INSTALLED"],
        ),
        ("what is E42?", "Codes (E42): is bad", ["E42"]),
        ("the", "the end", ["the"]),
        ("C++ or c", "C++, not C", ["C++"]),
        ("保修期", "整机保修期为三年，修理", ["保", "修", "期"]),
        ("年", "三年", ["年"]),
        ("保修 rain", "，rain保修。", ["rain", "保", "修"]),
        ("nothing", "to see", []),
    ],
)
def test_words_that_share_a_term_with_the_query_are_marked(
    query: str, text: str, marked: list[str]
) -> None:
    assert [text[a:b] for a, b in marked_spans(text, query_terms(query))] == marked


def test_the_snippet_is_where_most_of_the_query_is() -> None:
    text = "one " * 200 + "rain gauge cleaning " + "two " * 200
    start, end = best_window(text, marked_spans(text, query_terms("cleaning a rain gauge")), 100)
    assert "rain gauge cleaning" in text[start:end]


@given(st.text("ab ", max_size=400), st.integers(30, 200))
def test_a_snippet_is_never_longer_than_asked(text: str, chars: int) -> None:
    start, end = best_window(text, marked_spans(text, frozenset({"ab"})), chars)
    assert 0 <= start <= end <= len(text)
    assert end - start <= chars
    assert end - start == len(text) or len(text) > chars


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"start": 0, "end": 9}, ""),
        ({"page": 3, "page_end": 3}, "page 3"),
        ({"page": 3, "page_end": 4}, "pages 3-4"),
        ({"sheet": "Sensors", "rows": [4, 4]}, "sheet Sensors · row 4"),
        ({"rows": [2, 9]}, "rows 2-9"),
        ({"headings": ["Leave", "Holidays"]}, "Leave › Holidays"),
    ],
)
def test_a_passage_says_where_it_stands(source: dict[str, object], shown: str) -> None:
    assert place(source) == shown


def test_an_explanation_has_a_line_per_leg_that_was_asked() -> None:
    leg = {
        "rank": None,
        "raw_score": 0.5,
        "normalised_score": 0.5,
        "weight": 1,
        "contribution": 0.5,
    }
    lines = explanation_lines({"vector": leg, "full_text": None})
    assert [" ".join(line.split()) for line in lines] == [
        "vector unranked raw 0.5000 normalised 0.5000 x weight 1 = 0.5000"
    ]


def test_durations_and_counts_read_naturally() -> None:
    assert [seconds(v) for v in (None, 0.0234, 1.26, 300)] == ["-", "23 ms", "1.3 s", "5.0 min"]
    assert [count(n, "file") for n in (0, 1, 1234)] == ["0 files", "1 file", "1,234 files"]


# -- what is refused before anything is opened


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{", "--process-rule is not JSON"),
        ("[]", "must be a JSON object"),
        ("@missing.json", "cannot read 'missing.json'"),
    ],
)
def test_an_unusable_process_rule_is_refused(rule: str, message: str) -> None:
    with pytest.raises(CliError, match=message):
        process_rule_of(rule)


def test_a_process_rule_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_text('{"mode": "automatic"}')
    assert process_rule_of(f"@{tmp_path / 'rule.json'}") == {"mode": "automatic"}


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and stderr."""
    done = CliRunner().invoke(kb, arguments, env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stderr


def test_a_missing_data_directory_is_not_made_by_looking_into_it(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    code, stderr = run("search", "x", "-d", "y", "--data-dir", str(missing))
    assert (code, stderr.startswith(f"error: there is no data directory '{missing}'")) == (1, True)
    assert not missing.exists()


def test_a_server_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no .env
    code, stderr = run("--url", "http://127.0.0.1:9", "datasets", "list")
    assert (code, stderr.startswith("error: no API key; set KB_API_KEY")) == (1, True)


def test_a_setting_that_does_not_validate_is_named_as_its_variable() -> None:
    code, stderr = run("datasets", "list", KB_LIMITS__TOP_K="many")
    assert code == 1
    assert stderr.startswith("error: KB_LIMITS__TOP_K: ")
    assert "(got 'many')" in stderr


def test_an_option_after_the_command_counts_more_than_before_and_than_the_environment() -> None:
    key = {"KB_API_KEY": "k", "KB_URL": "http://127.0.0.1:1"}
    for before, after, port in (((), (), 1), ((2,), (), 2), ((2,), (3,), 3), ((), (3,), 3)):
        options = [[f"--url=http://127.0.0.1:{n}" for n in numbers] for numbers in (before, after)]
        _, stderr = run(*options[0], "datasets", "list", *options[1], **key)
        assert f"cannot reach http://127.0.0.1:{port}: Connection refused" in stderr


# -- the Python client and what answers it


@contextmanager
def answering(status: int, body: str, media_type: str = "application/json") -> Iterator[str]:
    """A server that answers everything alike; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, "<html>"), (200, "[]"), (502, "<html>"), (404, '{"detail": "Not Found"}')],
)
def test_an_answer_that_is_not_ours_says_to_check_the_url(status: int, body: str) -> None:
    with (
        answering(status, body) as url,
        Client(url, "key") as client,
        pytest.raises(ClientError, match=f"{url} answered {status} .*check the URL"),
    ):
        client.datasets()


def test_a_refusal_keeps_the_servers_status_code_and_message() -> None:
    body = json.dumps({"code": "invalid_param", "message": "top_k is 0", "status": 400})
    with (
        answering(400, body) as url,
        Client(url, "key") as client,
        pytest.raises(ApiError, match=r"^top_k is 0$") as raised,
    ):
        client.datasets()
    assert (raised.value.status, raised.value.code) == (400, "invalid_param")


def test_a_body_that_does_not_validate_is_explained_in_words() -> None:
    errors = [{"loc": ["name"], "msg": "name: too long (got 'xx')"}, {"msg": "b is required"}]
    body = {"code": "unprocessable_entity", "message": json.dumps(errors), "status": 422}
    with (
        answering(422, json.dumps(body)) as url,
        Client(url, "key") as client,
        pytest.raises(ApiError, match=r"^name: too long \(got 'xx'\); b is required$"),
    ):
        client.datasets()


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with (
        Client("http://127.0.0.1:9", "key") as client,
        pytest.raises(Unreachable, match="is `kb serve` running there"),
    ):
        client.datasets()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://a:b"])
def test_what_is_not_a_url_is_an_error_that_shows_it(url: str) -> None:
    with pytest.raises(ClientError, match="is not a URL"):
        Client(url, "key").datasets()


# -- API keys


def test_a_key_is_kept_as_a_hash_and_opens_the_workspace(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        key = add_api_key(session, resources.workspace_id)
        session.flush()
        row = session.query(ApiKey).one()
        assert (row.hint, row.sha256) == (key[:12], sha256(key.encode()).hexdigest())
    assert key.startswith("dataset-")
    assert len(key) == len("dataset-") + 24
    caller = find_caller(key, resources, None)
    assert caller is not None
    assert caller.workspace_id == resources.workspace_id
    assert find_caller(key[:-1] + "!", resources, None) is None


def test_only_the_first_start_makes_a_key(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        key = add_first_api_key(session, resources.workspace_id)
        assert key is not None
        assert add_first_api_key(session, resources.workspace_id) is None
        assert list_hints(session, resources.workspace_id) == [key[:12]]


def test_the_server_answers_without_waiting_for_delayed_acknowledgements() -> None:
    with _listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
