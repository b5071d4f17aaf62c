"""`kb metadata`: list, add, rename, delete, set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kb.cli.client import connect
from kb.cli.options import CliError, Target, dataset_option, examples, json_option, target_options
from kb.cli.output import count, print_json, print_table

if TYPE_CHECKING:
    from kb.client import Client

TYPES = ("string", "number", "time")


@click.group(
    epilog=examples(
        "kb metadata list -d handbook",
        "kb metadata add year number -d handbook",
        "kb metadata set guide.pdf year=2024 'author=Ann Lee' -d handbook",
        "kb metadata rename author writer -d handbook",
        'kb search "warranty" -d handbook --filter "year >= 2020"',
    )
)
@target_options()
def metadata() -> None:
    """Fields of a dataset's documents, which searches can be filtered by."""


@metadata.command("list", epilog=examples("kb metadata list -d handbook --json"))
@dataset_option
@json_option
@target_options()
@click.pass_obj
def list_(target: Target, dataset: str, as_json: bool) -> None:
    """List the fields, and how many documents have each."""
    with connect(target, working=False) as client:
        found = client.metadata(dataset)
    if as_json:
        print_json(found)
        return
    rows = [(f["name"], f["type"], f["count"], f["id"]) for f in found["doc_metadata"]]
    if rows:
        print_table(["name", "type", ">documents", "id"], rows)
    else:
        click.echo("no fields yet; add one: kb metadata add NAME TYPE -d DATASET")
    click.echo(f"built-in fields: {'on' if found['built_in_field_enabled'] else 'off'}")


@metadata.command(epilog=examples("kb metadata add year number -d handbook"))
@click.argument("name")
@click.argument("type_", metavar="TYPE", type=click.Choice(TYPES), default="string")
@dataset_option
@target_options()
@click.pass_obj
def add(target: Target, name: str, type_: str, dataset: str) -> None:
    """Make the field NAME of TYPE: string (when left out), number or time."""
    with connect(target, working=False) as client:
        made = client.add_metadata_field(dataset, name, type_)
    click.echo(f"added field {made['name']!r} of type {made['type']} ({made['id']})")


@metadata.command(epilog=examples("kb metadata rename author writer -d handbook"))
@click.argument("name")
@click.argument("to")
@dataset_option
@target_options()
@click.pass_obj
def rename(target: Target, name: str, to: str, dataset: str) -> None:
    """Rename the field NAME, in every document."""
    with connect(target, working=False) as client:
        client.rename_metadata_field(dataset, _field(client, dataset, name)["id"], to)
    click.echo(f"renamed field {name!r} to {to!r}")


@metadata.command(epilog=examples("kb metadata delete author -d handbook --yes"))
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@dataset_option
@target_options()
@click.pass_obj
def delete(target: Target, name: str, yes: bool, dataset: str) -> None:
    """Delete the field NAME, with its value in every document."""
    with connect(target, working=False) as client:
        field = _field(client, dataset, name)
        if not yes:
            held = count(field["count"], "document")
            click.confirm(f"Delete field {name!r}, which {held} have?", abort=True)
        client.delete_metadata_field(dataset, field["id"])
    click.echo(f"deleted field {name!r}")


@metadata.command(
    "set",
    epilog=examples(
        "kb metadata set guide.pdf year=2024 'author=Ann Lee' -d handbook",
        "kb metadata set guide.pdf author= -d handbook",
    ),
)
@click.argument("document")
@click.argument("assignments", metavar="NAME=VALUE...", nargs=-1, required=True)
@dataset_option
@target_options()
@click.pass_obj
def set_(target: Target, document: str, assignments: tuple[str, ...], dataset: str) -> None:
    """Set fields of DOCUMENT (name or id); its others stay. Nothing after = takes a value away."""
    with connect(target, working=False) as client:
        values = dict(_assignment(client, dataset, text) for text in assignments)
        client.set_metadata(dataset, document, values)
    click.echo(f"set {count(len(values), 'field')} of {document!r}")


def _assignment(client: Client, dataset: str, text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CliError(f"{text!r} sets nothing; write NAME=VALUE")
    return str(_field(client, dataset, name)["id"]), value or None


def _field(client: Client, dataset: str, name: str) -> dict[str, Any]:
    fields = client.metadata(dataset)["doc_metadata"]
    for field in fields:
        if name in (field["name"], field["id"]):
            return dict(field)
    known = ", ".join(field["name"] for field in fields) or "none"
    raise CliError(
        f"there is no metadata field {name!r}; there are: {known}; make it: kb metadata add "
        f"{name} TYPE -d {dataset}"
    )
