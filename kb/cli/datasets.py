"""`kb datasets`: list, create, delete."""

from __future__ import annotations

import click

from kb.cli.client import connect
from kb.cli.options import Target, examples, json_option, target_options
from kb.cli.output import count, moment, print_json, print_table

TECHNIQUES = ("high_quality", "economy")


@click.group(
    epilog=examples(
        "kb datasets list",
        "kb datasets create handbook",
        "kb datasets delete handbook --yes",
    )
)
@target_options()
def datasets() -> None:
    """List, create and delete datasets."""


@datasets.command("list", epilog=examples("kb datasets list", "kb datasets list --json"))
@json_option
@target_options()
@click.pass_obj
def list_(target: Target, as_json: bool) -> None:
    """List the datasets, newest first."""
    with connect(target) as client:
        found = client.datasets()
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no datasets yet; create one: kb datasets create NAME")
    else:
        print_table(
            ["name", ">documents", ">available", "technique", "created", "id"],
            [
                (
                    d["name"],
                    d["total_documents"],
                    d["total_available_documents"],
                    d["indexing_technique"] or "-",
                    moment(d["created_at"]),
                    d["id"],
                )
                for d in found
            ],
        )


@datasets.command(
    epilog=examples(
        "kb datasets create handbook",
        "kb datasets create logs --technique economy --description 'words only, no model'",
    )
)
@click.argument("name")
@click.option(
    "--technique",
    type=click.Choice(TECHNIQUES),
    default="high_quality",
    show_default=True,
    help="high_quality: searched by meaning and by words. economy: by words only.",
)
@click.option("--description", default="", help="At most 400 characters.  [default: none]")
@target_options()
@click.pass_obj
def create(target: Target, name: str, technique: str, description: str) -> None:
    """Create the dataset NAME (1-40 characters)."""
    with connect(target, create=True) as client:
        made = client.create_dataset(name, indexing_technique=technique, description=description)
    click.echo(f"created dataset {made['name']!r} ({made['id']})")


@datasets.command(epilog=examples("kb datasets delete handbook", "kb datasets delete logs --yes"))
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@target_options()
@click.pass_obj
def delete(target: Target, name: str, yes: bool) -> None:
    """Delete the dataset NAME (or id) with all its documents."""
    with connect(target) as client:
        found = client.dataset(name)
        if not yes:
            click.confirm(
                f"Delete dataset {found['name']!r} with "
                f"{count(found['total_documents'], 'document')}?",
                abort=True,
            )
        client.delete_dataset(found["id"])
    click.echo(f"deleted dataset {found['name']!r}")
