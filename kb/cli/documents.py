"""`kb documents`: list, show, delete, retry; what steers documents is in `kb.cli.steering`."""

from __future__ import annotations

from typing import Any

import click

from kb.cli.client import connect
from kb.cli.naming import document_name
from kb.cli.options import Target, dataset_option, examples, json_option, target_options
from kb.cli.output import count, moment, print_json, print_table, seconds
from kb.cli.steering import COMMANDS, act, filter_of, which_documents


@click.group(
    epilog=examples(
        "kb documents list --dataset handbook",
        "kb documents show warranty.pdf --dataset handbook",
        "kb documents retry scan.pdf --dataset handbook",
        "kb documents pause --status queuing --dataset handbook",
    )
)
@target_options()
def documents() -> None:
    """List, show, delete, rename, pause, cancel and retry documents."""


for _command in COMMANDS:
    documents.add_command(_command)


@documents.command(
    "list",
    epilog=examples(
        "kb documents list --dataset handbook", "kb documents list -d handbook --status error"
    ),
)
@dataset_option
@click.option(
    "--status",
    type=click.Choice(
        ["queuing", "indexing", "paused", "error", "available", "disabled", "archived"]
    ),
    help="Only documents in this state.  [default: all]",
)
@json_option
@target_options()
@click.pass_obj
def list_(target: Target, dataset: str, status: str | None, as_json: bool) -> None:
    """List the documents of a dataset, newest first."""
    with connect(target) as client:
        found = [
            d for d in client.documents(dataset) if status is None or d["display_status"] == status
        ]
    if as_json:
        print_json(found)
    elif not found:
        click.echo(
            f"no documents that are {status}" if status else "no documents yet; see: kb ingest -h"
        )
    else:
        print_table(
            ["name", "status", ">characters", "created", "id", "error"],
            [
                (
                    d["name"],
                    d["display_status"],
                    "-" if d["word_count"] is None else f"{d['word_count']:,}",
                    moment(d["created_at"]),
                    d["id"],
                    d["error_code"] or "",
                )
                for d in found
            ],
        )


@documents.command(
    epilog=examples(
        "kb documents show warranty.pdf --dataset handbook",
        "kb documents show 'guides/setup.md' --dataset handbook --json",
    )
)
@click.argument("document")
@dataset_option
@json_option
@target_options()
@click.pass_obj
def show(target: Target, document: str, dataset: str, as_json: bool) -> None:
    """Show a document: status, error, segments, and the time of each stage.

    DOCUMENT is its name or id; `folder/file.md` also means `folder › file.md`.
    """
    with connect(target) as client:
        found = client.document(dataset, document_name(document))
    if as_json:
        print_json(found)
        return
    for label, value in _facts(found):
        click.echo(f"{label + ':' if label else '':<12} {value}")


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("name", found["name"]),
        ("id", found["id"]),
        ("status", found["display_status"]),
    ]
    if found["error"]:
        again = found["next_attempt_at"]
        facts += [
            ("error", f"{found['error_code']}: {found['error']}"),
            ("while", str(found["error_stage"])),
            ("attempts", f"{found['attempts']}" + (f", next {moment(again)}" if again else "")),
        ]
    facts += [("warning", str(warning)) for warning in found["warnings"]]
    average = f"{found['average_segment_length']:,} characters on average"
    facts += [
        ("segments", f"{found['segment_count']:,} ({average})"),
        ("form", found["doc_form"]),
        ("version", _version(found)),
        ("created", moment(found["created_at"])),
    ]
    if found["completed_at"]:
        facts += [
            ("completed", moment(found["completed_at"])),
            ("took", seconds(found["indexing_latency"])),
        ]
    facts += [
        ("", f"{stage['node']}: {seconds(stage['seconds'])}") for stage in found["pipeline_timings"]
    ]
    return facts


def _version(found: dict[str, Any]) -> str:
    if found["pending_version"] is None:
        return str(found["version"])
    answering = f"{found['version']} answers" if found["version"] else "none answers queries yet"
    state = "failed" if found["indexing_status"] == "error" else "is in preparation"
    return f"{found['pending_version']} {state}, {answering}"


@documents.command(
    epilog=examples("kb documents delete old.pdf --dataset handbook --yes"),
)
@click.argument("document")
@dataset_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@target_options()
@click.pass_obj
def delete(target: Target, document: str, dataset: str, yes: bool) -> None:
    """Delete a document with its segments; DOCUMENT is its name or id."""
    with connect(target) as client:
        found = client.document(dataset, document_name(document))
        if not yes:
            segments = count(found["segment_count"], "segment")
            click.confirm(f"Delete {found['name']!r} with {segments}?", abort=True)
        client.delete_document(dataset, found["id"])
    click.echo(f"deleted {found['name']!r}")


@documents.command(
    epilog=examples(
        "kb documents retry scan.pdf --dataset handbook",
        "kb documents retry --all --dataset handbook",
        "kb documents retry --error-code store_unavailable --no-wait",
    )
)
@which_documents
@click.option("--no-wait", is_flag=True, help="Queue, do not wait for the outcome.")
@json_option
@target_options()
@click.pass_obj
def retry(target: Target, /, no_wait: bool, as_json: bool, **asked: Any) -> None:
    """Try a failed document, or all that match, again; DOCUMENT is its name or id.

    It goes on after its last checkpoint. With --dataset the outcome is waited for, and the exit
    code is 1 if one fails again.
    """
    from kb.cli.ingest import Accepted, follow

    if no_wait or asked["dataset"] is None:
        act(target, "retry", asked, as_json)
        return
    with connect(target) as client:
        dataset_id = client.dataset(asked["dataset"])["id"]
        matching = filter_of(client, asked)
        if matching is None:
            name = document_name(asked["document"])
            accepted = [Accepted.of(client.steer_document(dataset_id, name, "retry"))]
        else:
            done = client.steer_documents("retry", matching)
            accepted = [Accepted(d["name"], d["id"], d["batch"]) for d in done["documents"]]
        if not accepted:
            click.echo("no document has failed")
            return
        follow(client, dataset_id, accepted, wait=not no_wait)
