"""`kb segments`: list, show, add, edit, delete, enable, disable, import."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kb.cli.client import connect
from kb.cli.naming import document_name
from kb.cli.options import CliError, Target, dataset_option, examples, json_option, target_options
from kb.cli.output import count, moment, place, print_json, print_table

if TYPE_CHECKING:
    from kb.client import Client

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])

_POLL_S = 0.5
_PREVIEW = 80


def _which(command: AnyCommand) -> AnyCommand:
    command = click.argument("segment")(command)
    return _in_document(command)


def _in_document(command: AnyCommand) -> AnyCommand:
    return click.argument("document")(dataset_option(command))


_keywords_option = click.option(
    "--keyword",
    "-k",
    "keywords",
    multiple=True,
    metavar="WORD",
    help="A keyword; may be repeated.  [default: none]",
)


@click.group(
    epilog=examples(
        "kb segments list warranty.pdf --dataset handbook",
        'kb segments add warranty.pdf "Batteries are covered for 6 months." -d handbook',
        'kb segments edit warranty.pdf 3 --content "Three years." -d handbook',
        "kb segments disable warranty.pdf 3 --dataset handbook",
        "kb segments import faq.pdf rows.csv --dataset handbook",
    )
)
@target_options()
def segments() -> None:
    """List, show, add, edit, switch off, delete and import segments.

    DOCUMENT is a name or id; SEGMENT is an id, or its position in the document. What is edited by
    hand is in force at once, and again when the document is processed anew.
    """


@segments.command(
    "list", epilog=examples("kb segments list a.pdf -d handbook --containing warranty")
)
@_in_document
@click.option(
    "--containing", default="", metavar="TEXT", help="Only those that hold it.  [default: all]"
)
@json_option
@target_options()
@click.pass_obj
def list_(target: Target, document: str, dataset: str, containing: str, as_json: bool) -> None:
    """List a document's segments, in order."""
    with connect(target) as client:
        found = client.segments(dataset, document_name(document), containing)
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no segments")
    else:
        print_table(
            (">", "id", "state", ">hits", "text"),
            [(r["position"], r["id"], _state(r), r["hit_count"], _preview(r)) for r in found],
        )


def _state(row: dict[str, Any]) -> str:
    return str(row["status"]) if row["enabled"] else "disabled"


def _preview(row: dict[str, Any]) -> str:
    text = " ".join(row["content"].split())
    return text if len(text) <= _PREVIEW else f"{text[: _PREVIEW - 1]}…"


@segments.command(epilog=examples("kb segments show a.pdf 3 --dataset handbook"))
@_which
@json_option
@target_options()
@click.pass_obj
def show(target: Target, document: str, segment: str, dataset: str, as_json: bool) -> None:
    """Show a segment with its child chunks."""
    with connect(target) as client:
        row = _find(client, dataset, document_name(document), segment)
    if as_json:
        print_json(row)
        return
    facts = [
        ("id", row["id"]),
        ("position", row["position"]),
        ("state", _state(row)),
        ("stands", place(row["source"]) or "-"),
        ("keywords", ", ".join(row["keywords"]) or "-"),
        ("hits", row["hit_count"]),
        ("changed", moment(row["updated_at"])),
    ]
    for name, value in facts:
        click.echo(f"{name:<10}{value}")
    click.echo(f"\n{row['content']}")
    if row["answer"]:
        click.echo(f"\nanswer: {row['answer']}")
    for child in row["child_chunks"]:
        click.echo(f"\n[{child['position']}, {child['type']}] {child['content']}")


def _find(client: Client, dataset: str, document: str, segment: str) -> dict[str, Any]:
    if not segment.isdecimal():
        return client.segment(dataset, document, segment)
    found = client.segments(dataset, document)
    for row in found:
        if row["position"] == int(segment):
            return row
    raise CliError(
        f"no segment at position {segment}; the document has {count(len(found), 'segment')}, see: "
        "kb segments list"
    )


@segments.command(
    epilog=examples('kb segments add faq.pdf "How long?" --answer "Two years." -d handbook')
)
@_in_document
@click.argument("content")
@click.option(
    "--answer", metavar="TEXT", help="In a document of questions and answers.  [default: none]"
)
@_keywords_option
@target_options()
@click.pass_obj
def add(
    target: Target,
    document: str,
    content: str,
    dataset: str,
    answer: str | None,
    keywords: tuple[str, ...],
) -> None:
    """Append a segment with the text CONTENT."""
    item = {"content": content, "answer": answer, "keywords": list(keywords)}
    with connect(target) as client:
        (row,) = client.add_segments(dataset, document_name(document), [item])
    click.echo(f"added segment {row['id']} at position {row['position']}")


@segments.command(
    epilog=examples('kb segments edit a.pdf 3 --content "Three years." --dataset handbook')
)
@_which
@click.option("--content", metavar="TEXT", help="The new text.  [default: as it is]")
@click.option("--answer", metavar="TEXT", help="The new answer.  [default: as it is]")
@_keywords_option
@click.option("--children", is_flag=True, help="Make the child chunks anew from the text.")
@target_options()
@click.pass_obj
def edit(
    target: Target,
    document: str,
    segment: str,
    dataset: str,
    content: str | None,
    answer: str | None,
    keywords: tuple[str, ...],
    children: bool,
) -> None:
    """Change a segment's text, answer or keywords; it is found so at once."""
    change: dict[str, Any] = {}
    if content is not None:
        change["content"] = content
    if answer is not None:
        change["answer"] = answer
    if keywords:
        change["keywords"] = list(keywords)
    if children:
        change["regenerate_child_chunks"] = True
    if not change:
        raise click.UsageError("give --content, --answer, --keyword or --children")
    _change(target, dataset, document, segment, "changed", change)


def _change(
    target: Target, dataset: str, document: str, segment: str, done: str, change: dict[str, Any]
) -> None:
    name = document_name(document)
    with connect(target) as client:
        row = _find(client, dataset, name, segment)
        client.update_segment(dataset, name, row["id"], **change)
    click.echo(f"{done} segment {row['id']}")


@segments.command(epilog=examples("kb segments enable a.pdf 3 --dataset handbook"))
@_which
@target_options()
@click.pass_obj
def enable(target: Target, document: str, segment: str, dataset: str) -> None:
    """Have a segment found again."""
    _change(target, dataset, document, segment, "enabled", {"enabled": True})


@segments.command(epilog=examples("kb segments disable a.pdf 3 --dataset handbook"))
@_which
@target_options()
@click.pass_obj
def disable(target: Target, document: str, segment: str, dataset: str) -> None:
    """Have a segment not found, and keep it."""
    _change(target, dataset, document, segment, "disabled", {"enabled": False})


@segments.command(epilog=examples("kb segments delete a.pdf 3 --dataset handbook --yes"))
@_which
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@target_options()
@click.pass_obj
def delete(target: Target, document: str, segment: str, dataset: str, yes: bool) -> None:
    """Delete a segment with its child chunks."""
    name = document_name(document)
    with connect(target) as client:
        row = _find(client, dataset, name, segment)
        if not yes:
            click.confirm(f"Delete segment {row['position']}, {_preview(row)!r}?", abort=True)
        client.delete_segment(dataset, name, row["id"])
    click.echo(f"deleted segment {row['id']}")


@segments.command(
    "import", epilog=examples("kb segments import faq.pdf rows.xlsx --dataset handbook")
)
@_in_document
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@target_options()
@click.pass_obj
def import_(target: Target, document: str, file: Path, dataset: str, as_json: bool) -> None:
    """Append the rows of FILE (CSV, TSV, XLSX, XLS) as segments: all of them or none.

    Columns are content, and if you like answer and keywords. The exit code is 1 if a row cannot be
    used; the message says which, and why.
    """
    name = document_name(document)
    with connect(target) as client:
        done = client.import_segments(dataset, name, file)
        while done["state"] == "waiting":
            time.sleep(_POLL_S)
            done = client.segment_import(dataset, name, done["id"])
    if as_json:
        print_json(done)
    if done["state"] == "error":
        raise CliError(f"nothing was imported: {done['error']}")
    if not as_json:
        for warning in done["warnings"]:
            click.echo(f"note: {warning}", err=True)
        click.echo(f"added {count(done['added'], 'segment')} of {file.name}")
