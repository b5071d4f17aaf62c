"""`kb ingest`: send files, watch them being indexed, say what became of each."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kb.cli.client import connect
from kb.cli.datasets import TECHNIQUES
from kb.cli.naming import Source, find_sources
from kb.cli.options import CliError, Target, dataset_option, examples, target_options
from kb.cli.output import count, seconds

if TYPE_CHECKING:
    from kb.client import Client

Json = dict[str, Any]

_LOOK_S = 0.25
_FIRST, _OTHERS = 12, 4
_SKIPPED_SHOWN = 5
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@click.command(
    epilog=examples(
        "kb ingest handbook.pdf prices.xlsx --dataset handbook",
        "kb ingest docs/ --dataset handbook",
        "kb ingest 'wiki/**/*.md' -d wiki --technique economy --no-wait",
        "kb ingest docs/ -d parents --doc-form hierarchical_model --process-rule @rule.json",
        "kb ingest faq.xlsx -d faq --qa --question-column Frage --answer-column Antwort",
    )
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@dataset_option
@click.option(
    "--technique",
    type=click.Choice(TECHNIQUES),
    help="high_quality: searched by meaning and by words; economy: by words only. Fixed by the "
    "dataset's first document.  [default: the dataset's, or high_quality]",
)
@click.option(
    "--doc-form",
    type=click.Choice(["text_model", "hierarchical_model", "qa_model"]),
    help="text_model: chunks; hierarchical_model: parents that are found by their parts; qa_model: "
    "questions with their answers. Fixed by the dataset's first document.  [default: the "
    "dataset's, or text_model]",
)
@click.option(
    "--qa",
    is_flag=True,
    help="The same as --doc-form qa_model: a row of a table is a pair, or the text marks pairs "
    "(Q1: ... A1: ...), or a chat model writes them.",
)
@click.option(
    "--question-column",
    metavar="NAME|N",
    help="Of tables, with --qa: a name of the header, or a position from 0.  [default: the one "
    "with a usual name, or the first]",
)
@click.option(
    "--answer-column", metavar="NAME|N", help="As --question-column.  [default: or the second]"
)
@click.option(
    "--process-rule",
    metavar="JSON|@FILE",
    help='How to clean and split, such as {"mode": "custom", "rules": {...}}.  '
    "[default: that of the dataset's last document, or automatic]",
)
@click.option("--no-wait", is_flag=True, help="Send the files, do not wait until they are indexed.")
@target_options()
@click.pass_obj
def ingest(
    target: Target,
    paths: tuple[str, ...],
    dataset: str,
    technique: str | None,
    doc_form: str | None,
    qa: bool,
    question_column: str | None,
    answer_column: str | None,
    process_rule: str | None,
    no_wait: bool,
) -> None:
    """Put files and folders into a dataset.

    A PATH is a file, a folder (with all below it) or a quoted 'glob pattern'. The dataset is
    created if it is missing. A document is named by its path below the given
    folder, with ' › ' for '/'; a document of the same name gets a new version. Hidden files and
    files that cannot be read are left out of folders. The exit code is 1 if any file failed.
    """
    from pipelines.nodes.extract import SUPPORTED_EXTENSIONS

    columns = {"question_column": question_column, "answer_column": answer_column}
    columns = {name: value for name, value in columns.items() if value is not None}
    settings = _settings(technique, _form(doc_form, qa, columns), process_rule)
    if columns:
        settings["process_rule"] = _with_columns(settings.get("process_rule"), columns)
    found = find_sources(paths, SUPPORTED_EXTENSIONS)
    if found.skipped:
        _say_skipped(found.skipped)
    with connect(target, create=True) as client:
        ingest_files(client, dataset, found.sources, settings, wait=not no_wait)


@dataclass(frozen=True)
class Accepted:
    """A document that the server has taken."""

    name: str
    document_id: str
    batch: str

    @staticmethod
    def of(answer: Json) -> Accepted:
        """The answer to an upload or a retry."""
        document = answer["document"]
        return Accepted(document["name"], document["id"], answer["batch"])


@dataclass
class Tally:
    """What became of the files so far; `segments` counts those in the index."""

    completed: int = 0
    failed: int = 0
    segments: int = 0


def ingest_files(
    client: Client,
    dataset: str,
    sources: Sequence[Source],
    settings: Json,
    *,
    wait: bool = True,
) -> Tally:
    """Send files, creating the dataset if it is missing, and follow them to their end.

    Raises:
        click.exceptions.Exit: 1 when a file failed, 130 when the user did not want to wait.
    """
    found = _dataset_for(client, dataset, settings)
    technique = settings.get("indexing_technique") or found["indexing_technique"] or TECHNIQUES[0]
    settings = {**settings, "indexing_technique": technique}

    def send(source: Source) -> Accepted:
        data = source.path.read_bytes()
        document, batch = client.upload(found["id"], source.name, data, settings)
        return Accepted(document["name"], document["id"], batch)

    return follow(client, found["id"], sources, send=send, wait=wait)


def follow(
    client: Client,
    dataset_id: str,
    items: Sequence[Any],
    *,
    send: Callable[[Any], Accepted] = lambda item: item,
    wait: bool = True,
) -> Tally:
    """Send each item, then watch until every document is completed or failed.

    Args:
        send: makes an accepted document of an item; its refusals count as that item's failure.
    """
    from kb.client import ApiError

    watch = _Watch(client, dataset_id, len(items))
    with _progress(watch):
        try:
            for item in items:
                try:
                    watch.accepted(send(item))
                except (ApiError, OSError) as exc:
                    watch.refused(item.name, exc)
                watch.look_if_due()
            while wait and watch.pending:
                time.sleep(_LOOK_S)
                watch.look_if_due()
        except KeyboardInterrupt:
            watch.say(f"stopped waiting; {count(len(watch.pending), 'document')} not finished")
            raise click.exceptions.Exit(_INTERRUPTED) from None
    if watch.pending:
        click.echo(f"{count(len(watch.pending), 'document')} accepted")
    click.echo(watch.summary())
    if watch.tally.failed:
        raise click.exceptions.Exit(1)
    return watch.tally


class _Watch:
    """Documents on their way. Looks at some of them at a time: the next to be worked on, and a
    few others, so that a look costs the same however many there are.
    """

    def __init__(self, client: Client, dataset_id: str, expected: int) -> None:
        self._client, self._dataset_id = client, dataset_id
        self.expected = expected
        self.pending: deque[Accepted] = deque()
        self.tally = Tally()
        self.in_work: dict[str, tuple[str, int, int]] = {}
        """Document id -> its state, segments done, segments in all."""
        self.say: Callable[[str], None] = click.echo
        self.show: Callable[[_Watch], None] = lambda _: None
        self._started = time.monotonic()
        self._looked = 0.0
        self._turn = 0

    @property
    def elapsed_s(self) -> float:
        return max(time.monotonic() - self._started, 1e-3)

    @property
    def segments(self) -> int:
        return self.tally.segments + sum(done for _, done, _ in self.in_work.values())

    @property
    def segments_known(self) -> int:
        return self.tally.segments + sum(total for _, _, total in self.in_work.values())

    def accepted(self, document: Accepted) -> None:
        self.pending.append(document)

    def refused(self, name: str, exc: Exception) -> None:
        code = getattr(exc, "code", "cannot_read_file")
        self._outcome("failed", name, f"{code}: {exc}")
        self.tally.failed += 1

    def look_if_due(self) -> None:
        if time.monotonic() - self._looked < _LOOK_S:
            return
        for document in self._chosen():
            status = self._status(document)
            if status is None:
                self.pending.remove(document)
                self._outcome("gone", document.name, "deleted or replaced meanwhile")
                continue
            state = status["indexing_status"]
            done, total = status["completed_segments"], status["total_segments"]
            if state in ("completed", "error", "paused"):
                self.pending.remove(document)
                self.in_work.pop(document.document_id, None)
                self._ended(document)
            elif state != "waiting":
                self.in_work[document.document_id] = (f"{document.name}: {state}", done, total)
        self.show(self)
        self._looked = time.monotonic()

    def _status(self, document: Accepted) -> Json | None:
        from kb.client import ApiError

        try:
            return self._client.indexing_status(self._dataset_id, document.batch)
        except ApiError as exc:
            if exc.status != 404:
                raise
            return None

    def _chosen(self) -> list[Accepted]:
        front, rest = list(self.pending)[:_FIRST], list(self.pending)[_FIRST:]
        if not rest:
            return front
        self._turn = (self._turn + _OTHERS) % len(rest)
        return front + (rest[self._turn :] + rest)[:_OTHERS]

    def _ended(self, document: Accepted) -> None:
        found = self._client.document(self._dataset_id, document.document_id)
        if found["indexing_status"] == "completed":
            self.tally.completed += 1
            self.tally.segments += found["segment_count"]
            segments, took = count(found["segment_count"], "segment"), found["indexing_latency"]
            self._outcome("completed", document.name, f"{segments}, {seconds(took)}")
            for warning in found["warnings"]:
                self.say(f"{'':<11}warning: {warning}")
        elif found["indexing_status"] == "error":
            self.tally.failed += 1
            self._outcome("failed", document.name, f"{found['error_code']}: {found['error']}")
        else:
            self._outcome(found["display_status"], document.name, "goes on when it is resumed")

    def _outcome(self, word: str, name: str, text: str) -> None:
        self.say(f"{word:<10} {name}: {text}")

    def summary(self) -> str:
        tally, took = self.tally, self.elapsed_s
        parts = [f"{tally.completed} of {count(self.expected, 'document')} completed"]
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        if tally.segments:
            parts.append(
                f"{count(tally.segments, 'segment')} in {seconds(took)} "
                f"({_rate(tally.segments / took)})"
            )
        return ", ".join(parts)


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second < 10 else f"{per_second:.0f}/s"


@contextmanager
def _progress(watch: _Watch) -> Iterator[None]:
    """A bar on stderr while somebody looks; outcomes are lines on stdout either way."""
    from kb.cli.output import console

    err = console(stderr=True)
    if not err.is_terminal:
        yield
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.completed}/{task.total} files"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[segments]}"),
        TextColumn(
            "[dim]{task.fields[now]}",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        expand=True,
        console=err,
        transient=True,
    ) as progress:
        bar = progress.add_task("ingest", total=watch.expected, segments="", now="")

        def show(watch: _Watch) -> None:
            rate = _rate(watch.segments / watch.elapsed_s)
            files = [
                f"{state} {done}/{total}" if total else state
                for state, done, total in watch.in_work.values()
            ]
            progress.update(
                bar,
                completed=watch.tally.completed + watch.tally.failed,
                segments=f"{watch.segments}/{watch.segments_known} segments, {rate}",
                now=", ".join(files).replace("[", r"\["),
            )

        watch.show = show
        watch.say = lambda line: progress.console.print(Text(line), soft_wrap=True)
        yield
        watch.say = click.echo


def _dataset_for(client: Client, name: str, settings: Json) -> Json:
    """The dataset, created if it is missing, if these settings fit it."""
    found = client.find_dataset(name)
    if found is None:
        technique = settings.get("indexing_technique", TECHNIQUES[0])
        made = client.create_dataset(name, indexing_technique=technique)
        click.echo(f"created dataset {name!r} ({technique})", err=True)
        return made
    for key, option in (("indexing_technique", "--technique"), ("doc_form", "--doc-form")):
        asked, has = settings.get(key), found[key]
        if asked and has and asked != has:
            raise CliError(
                f"{option} {asked} does not fit dataset {name!r}, whose documents are {has}; "
                "leave the option out, or choose another dataset"
            )
    return found


def _settings(technique: str | None, doc_form: str | None, process_rule: str | None) -> Json:
    settings: Json = {}
    if technique:
        settings["indexing_technique"] = technique
    if doc_form:
        settings["doc_form"] = doc_form
    if process_rule:
        settings["process_rule"] = process_rule_of(process_rule)
    return settings


def _form(doc_form: str | None, qa: bool, columns: Json) -> str | None:
    if qa and doc_form not in (None, "qa_model"):
        raise CliError(f"--qa and --doc-form {doc_form} contradict each other; give one of them")
    form = "qa_model" if qa else doc_form
    if columns and form != "qa_model":
        raise CliError("--question-column and --answer-column are for --qa; add it")
    return form


def _with_columns(rule: Json | None, columns: Json) -> Json:
    """The process rule with these columns; an automatic one, which says nothing, becomes custom."""
    rules = dict((rule or {}).get("rules") or {})
    return {"mode": "custom", "rules": {**rules, "qa": {**(rules.get("qa") or {}), **columns}}}


def process_rule_of(given: str) -> Json:
    """What `--process-rule` says: JSON, or a file's after `@`."""
    text = given
    if given.startswith("@"):
        try:
            text = Path(given[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise CliError(f"--process-rule: cannot read {given[1:]!r}: {exc}") from exc
    try:
        rule = json.loads(text)
    except ValueError as exc:
        raise CliError(f"--process-rule is not JSON: {exc}; put a file's name after @") from exc
    if not isinstance(rule, dict):
        raise CliError("--process-rule must be a JSON object with a key 'mode'")
    return rule


def _say_skipped(paths: Sequence[Path]) -> None:
    shown = ", ".join(str(path) for path in paths[:_SKIPPED_SHOWN])
    more = f" and {len(paths) - _SKIPPED_SHOWN} more" if paths[_SKIPPED_SHOWN:] else ""
    click.echo(f"skipped, as no extractor reads them: {shown}{more}", err=True)
