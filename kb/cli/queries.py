"""`kb queries`: list, replay."""

from __future__ import annotations

from typing import Any

import click

from kb.cli.client import connect
from kb.cli.options import Target, examples, json_option, target_options
from kb.cli.output import moment, print_json, print_table, seconds

_QUERY_CHARS = 60


@click.group(
    epilog=examples(
        "kb queries list --dataset handbook",
        "kb queries replay 6f3c1d54-6a0f-4a5e-9a52-3a0b6f7f2b11",
    )
)
@target_options()
def queries() -> None:
    """See what was asked, and ask it again."""


@queries.command(
    "list",
    epilog=examples(
        "kb queries list --limit 20",
        "kb queries list --dataset handbook --keyword warranty --source app",
    ),
)
@click.option("--dataset", "-d", metavar="NAME", help="Only of this dataset.  [default: all]")
@click.option("--keyword", help="Only with this in the query.  [default: all]")
@click.option(
    "--source",
    type=click.Choice(["hit_testing", "external", "app"]),
    help="Only through this door.  [default: all]",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="How many at most.",
)
@json_option
@target_options()
@click.pass_obj
def list_(
    target: Target,
    dataset: str | None,
    keyword: str | None,
    source: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List what was asked, newest first."""
    with connect(target, working=False) as client:
        found = client.queries(dataset, keyword=keyword, source=source, most=limit)
    if as_json:
        print_json(found)
    elif not found:
        click.echo("nothing was asked yet")
    else:
        print_table(
            ["asked", "query", "source", ">hits", ">took", "id"],
            [
                (
                    moment(q["created_at"]),
                    _short(q["query"]),
                    q["source"],
                    "-" if q["hits"] is None else len(q["hits"]),
                    "-" if q["latency_ms"] is None else seconds(q["latency_ms"] / 1000),
                    q["id"],
                )
                for q in found
            ],
        )


@queries.command(epilog=examples("kb queries replay 6f3c1d54-6a0f-4a5e-9a52-3a0b6f7f2b11 --json"))
@click.argument("query_id", metavar="ID")
@json_option
@target_options()
@click.pass_obj
def replay(target: Target, query_id: str, as_json: bool) -> None:
    """Ask the query ID again as it was asked, and say what differs.

    Exit code 1: something does.
    """
    with connect(target, working=False) as client:
        found = client.replay_query(query_id)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if not found["identical"]:
        raise click.exceptions.Exit(1)


def _show(found: dict[str, Any]) -> None:
    asked = found["query"]
    click.echo(f"{_short(asked['query'])!r}, asked {moment(asked['created_at'])}")
    if found["identical"]:
        click.echo(f"identical: {len(found['hits'])} hits, the same places and scores")
        return
    print_table(
        ["segment", "before", "now", "why"],
        [
            (d["segment_id"], _place(d["before"]), _place(d["now"]), d["reason"])
            for d in found["differences"]
        ],
    )


def _place(place: dict[str, Any] | None) -> str:
    return "-" if place is None else f"{place['rank']}. ({place['score']:.4f})"


def _short(query: str) -> str:
    text = " ".join(query.split())
    return text if len(text) <= _QUERY_CHARS else f"{text[: _QUERY_CHARS - 1]}…"
