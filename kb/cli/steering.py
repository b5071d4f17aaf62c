"""`kb documents pause|resume|retry|cancel|rechunk|rename|report`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kb.cli.client import connect
from kb.cli.naming import document_name
from kb.cli.options import Target, dataset_option, examples, json_option, target_options
from kb.cli.output import count, moment, print_json, print_table, seconds

if TYPE_CHECKING:
    from kb.client import Client

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
Json = dict[str, Any]

_STATUSES = ("queuing", "indexing", "paused", "error", "available", "disabled", "archived")
_PAST = {
    "pause": "paused",
    "resume": "resumed",
    "retry": "queued again",
    "cancel": "cancelled",
    "rechunk": "queued to be cut anew",
}


def which_documents(command: AnyCommand) -> AnyCommand:
    """Add DOCUMENT and the conditions that stand in its place; the command gets them by name."""
    for option in reversed(_WHICH):
        command = option(command)
    return command


_WHICH: list[Callable[[Any], Any]] = [
    click.argument("document", required=False),
    click.option(
        "--dataset", "-d", metavar="NAME", help="Name or id of the dataset.  [default: any]"
    ),
    click.option(
        "--status",
        "statuses",
        type=click.Choice(_STATUSES),
        multiple=True,
        help="Only documents in this state; may be given again.  [default: all]",
    ),
    click.option(
        "--error-code",
        "error_codes",
        metavar="CODE",
        multiple=True,
        help="Only documents that failed with it; may be given again.  [default: all]",
    ),
    click.option(
        "--tag",
        "tags",
        metavar="TAG",
        multiple=True,
        help="Only documents of datasets with this tag; may be given again.  [default: all]",
    ),
    click.option(
        "--since",
        metavar="TIME",
        help="Only documents created then or later, such as 2026-01-31T12:00.  [default: all]",
    ),
    click.option("--until", metavar="TIME", help="Only documents created before.  [default: all]"),
    click.option("--all", "every", is_flag=True, help="Every document there is."),
]


def filter_of(client: Client, asked: Json) -> Json | None:
    """What the options say as the filter of the route; None: they name one document.

    Raises:
        click.UsageError: neither a document nor a condition, or both.
    """
    conditions: Json = {
        "status": list(asked["statuses"]),
        "error_code": list(asked["error_codes"]),
        "tag": list(asked["tags"]),
        "created_from": asked["since"],
        "created_to": asked["until"],
    }
    conditions = {name: value for name, value in conditions.items() if value}
    if asked["document"] is not None:
        if conditions or asked["every"]:
            raise click.UsageError("give either DOCUMENT or conditions")
        if asked["dataset"] is None:
            raise click.UsageError("DOCUMENT needs --dataset")
        return None
    if not conditions and not asked["every"]:
        raise click.UsageError("give DOCUMENT, a condition such as --status, or --all")
    if asked["dataset"] is not None:
        conditions["dataset_id"] = client.dataset(asked["dataset"])["id"]
    return conditions or {"all": True}


def act(target: Target, action: str, asked: Json, as_json: bool, **body: Any) -> None:
    """Do it to one document or to those that match, and say to how many."""
    with connect(target, working=False) as client:
        matching = filter_of(client, asked)
        if matching is None:
            name = document_name(asked["document"])
            found = client.steer_document(asked["dataset"], name, action, **body)["document"]
            if as_json:
                print_json(found)
            else:
                click.echo(f"{_PAST[action]} {found['name']!r}: {found['display_status']}")
            return
        done = client.steer_documents(action, matching, **body)
    if as_json:
        print_json(done)
        return
    passed_over = done["matched"] - done["affected"]
    rest = f"; {passed_over:,} in no state for it" if passed_over else ""
    click.echo(f"{_PAST[action]} {count(done['affected'], 'document')}{rest}")


def _command(action: str, text: str, *lines: str) -> click.Command:
    @click.command(action, help=text, epilog=examples(*lines))
    @which_documents
    @json_option
    @target_options()
    @click.pass_obj
    def command(target: Target, /, as_json: bool, **asked: Any) -> None:
        act(target, action, asked, as_json)

    return command


pause = _command(
    "pause",
    "Pause a document, or all that match: nobody works on it until it is resumed.\n\n"
    "Work in hand ends with its next batch; nothing of it is lost.",
    "kb documents pause big.pdf --dataset handbook",
    "kb documents pause --tag archive --status queuing",
)
resume = _command(
    "resume",
    "Let a paused document, or all that match, go on after the last checkpoint.",
    "kb documents resume big.pdf --dataset handbook",
    "kb documents resume --all --dataset handbook",
)
cancel = _command(
    "cancel",
    "Give up the version in preparation of a document, or of all that match.\n\n"
    "A document that has an older version keeps it; another one ends as an error with the code "
    "`cancelled`, which a retry undoes.",
    "kb documents cancel big.pdf --dataset handbook",
    "kb documents cancel --status queuing --since 2026-01-31 --dataset handbook",
)


@click.command(
    epilog=examples(
        "kb documents rechunk guide.md -d handbook --process-rule @rule.json",
        'kb documents rechunk --status available -d handbook --process-rule \'{"mode": '
        '"automatic"}\'',
    )
)
@which_documents
@click.option(
    "--process-rule",
    metavar="JSON|@FILE",
    help="How to clean and split.  [default: that of the dataset's last document]",
)
@json_option
@target_options()
@click.pass_obj
def rechunk(target: Target, /, process_rule: str | None, as_json: bool, **asked: Any) -> None:
    """Cut a document, or all that match, anew; the old chunks answer until it is done."""
    from kb.cli.ingest import process_rule_of

    body = {"process_rule": process_rule_of(process_rule)} if process_rule else {}
    act(target, "rechunk", asked, as_json, **body)


@click.command(epilog=examples("kb documents rename draft.md 'Guide 2' --dataset handbook"))
@click.argument("document")
@click.argument("name")
@dataset_option
@target_options()
@click.pass_obj
def rename(target: Target, document: str, name: str, dataset: str) -> None:
    """Give DOCUMENT (its name or id) another NAME; nothing is indexed anew."""
    with connect(target, working=False) as client:
        found = client.rename_document(dataset, document_name(document), name)["document"]
    click.echo(f"renamed to {found['name']!r}")


@click.command(
    epilog=examples(
        "kb documents report prices.xlsx --dataset handbook",
        "kb documents report prices.xlsx -d handbook --version 2 --json",
    )
)
@click.argument("document")
@dataset_option
@click.option(
    "--version", type=click.IntRange(min=1), help="Of the document.  [default: the newest]"
)
@json_option
@target_options()
@click.pass_obj
def report(target: Target, document: str, dataset: str, version: int | None, as_json: bool) -> None:
    """Show what became of a document's file: pages, rows, chunks, times, errors."""
    with connect(target, working=False) as client:
        found = client.document_report(dataset, document_name(document), version)
    if as_json:
        print_json(found)
        return
    for label, value in _facts(found):
        click.echo(f"{label + ':':<12} {value}")
    if found["runs"]:
        print_table(
            ["attempt", "started", "outcome", "error"],
            [
                (n, moment(run["started_at"]), run["status"], run["error"] or "")
                for n, run in enumerate(found["runs"], start=1)
            ],
        )


def _facts(found: Json) -> list[tuple[str, str]]:
    facts = [("name", found["name"]), ("version", f"{found['version']} ({found['state']})")]
    if found["characters_extracted"] is not None:
        facts.append(("characters", f"{found['characters_extracted']:,}"))
    if found["pages"]:
        pages = found["pages"]
        lost = len(pages["empty"]) + len(pages["damaged"])
        facts.append(("pages", f"{pages['total']:,}, {lost:,} of them without text"))
    if found["table_rows"]:
        rows = found["table_rows"]
        kept = "?" if rows["out"] is None else f"{rows['out']:,}"
        facts.append(("table rows", f"{rows['in']:,} read, {kept} in segments"))
    facts.append(("segments", f"{found['segments'] or 0:,}"))
    if found["child_chunks"]:
        facts.append(("children", f"{found['child_chunks']:,}"))
    if found["tokens"] is not None:
        facts.append(("tokens", f"{found['tokens']:,}"))
    if found["error"]:
        facts.append(("error", f"{found['error']['code']}: {found['error']['message']}"))
    facts += [("warning", str(warning)) for warning in found["warnings"]]
    facts += [("conflict", str(conflict)) for conflict in found["conflicts"]]
    facts += [(stage["node"], seconds(stage["seconds"])) for stage in found["stages"]]
    return facts


COMMANDS = (pause, resume, cancel, rechunk, rename, report)
"""Those that `kb documents` has beside its own."""
