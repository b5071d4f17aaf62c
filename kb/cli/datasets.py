"""`kb datasets`: list, create, delete, export, import."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kb.cli.client import connect
from kb.cli.options import CliError, Target, examples, json_option, target_options
from kb.cli.output import count, moment, print_json, print_table

if TYPE_CHECKING:
    from kb.client import Client

TECHNIQUES = ("high_quality", "economy")


@click.group(
    epilog=examples(
        "kb datasets list",
        "kb datasets create handbook",
        "kb datasets delete handbook --yes",
        "kb datasets export handbook -o handbook.kb.zip --with-vectors",
        "kb datasets import handbook.kb.zip --name handbook-copy",
    )
)
@target_options()
def datasets() -> None:
    """List, create, delete and move datasets."""


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


@datasets.command(
    epilog=examples(
        "kb datasets export handbook -o handbook.kb.zip",
        "kb datasets export handbook -o handbook.kb.zip --with-vectors",
    )
)
@click.argument("name")
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The archive to write.",
)
@click.option("--with-vectors", is_flag=True, help="So that the import needs no embedding model.")
@target_options()
@click.pass_obj
def export(target: Target, name: str, output: Path, with_vectors: bool) -> None:
    """Write the dataset NAME (or id) to an archive: files, chunks, edits, settings."""
    with connect(target) as client:
        found = client.dataset(name)
        try:
            size = client.export_dataset(found["id"], output, with_vectors=with_vectors)
        except OSError as exc:
            raise CliError(f"{output}: {exc.strerror or exc}") from exc
    click.echo(f"exported dataset {found['name']!r} to {output} ({size:,} bytes)")


@datasets.command(
    "import",
    epilog=examples(
        "kb datasets import handbook.kb.zip",
        "kb datasets import handbook.kb.zip --name handbook-copy",
    ),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", metavar="NEW", help="Of the dataset.  [default: as in the archive]")
@click.option(
    "--wait/--no-wait", default=True, help="Wait until all documents answer.  [default: wait]"
)
@target_options()
@click.pass_obj
def import_(target: Target, file: Path, name: str | None, wait: bool) -> None:
    """Take in the archive FILE as a dataset; it appears when all of it is there."""
    with connect(target, create=True) as client:
        try:
            made = client.import_dataset(file, name=name)
        except OSError as exc:
            raise CliError(f"{file}: {exc.strerror or exc}") from exc
        done = made["imported"]
        click.echo(
            f"imported dataset {made['name']!r} ({made['id']}): "
            f"{count(done['documents'], 'document')}, {count(done['segments'], 'segment')}"
        )
        if done["queued"]:
            click.echo(f"{count(done['queued'], 'document')} to index", err=True)
            if wait:
                _wait_for(client, made["id"], done["queued"])


def _wait_for(client: Client, dataset: str, queued: int) -> None:
    """Show how many are left until none is."""
    with click.progressbar(length=queued, label="indexing", file=sys.stderr) as bar:
        shown = 0
        while left := client.unfinished(dataset):
            bar.update(max(0, queued - left - shown))
            shown = max(shown, queued - left)
            time.sleep(0.5)
        bar.update(queued - shown)
