"""`kb datasets`: list, create, update, switch, delete, export, import."""

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
    from kb.client import Client, Json

TECHNIQUES = ("high_quality", "economy")


@click.group(
    epilog=examples(
        "kb datasets list",
        "kb datasets create handbook",
        "kb datasets update handbook --technique economy",
        "kb datasets switch handbook",
        "kb datasets delete handbook --yes",
        "kb datasets export handbook -o handbook.kb.zip --with-vectors",
        "kb datasets import handbook.kb.zip --name handbook-copy",
    )
)
@target_options()
def datasets() -> None:
    """List, create, change, delete and move datasets."""


@datasets.command("list", epilog=examples("kb datasets list", "kb datasets list --json"))
@json_option
@target_options()
@click.pass_obj
def list_(target: Target, as_json: bool) -> None:
    """List the datasets, newest first."""
    with connect(target) as client:
        found = client.datasets()
        running = {s["dataset_id"]: s for s in client.switches("running")} if found else {}
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
                    _indexed(d, running.get(d["id"])),
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


@datasets.command(
    epilog=examples(
        "kb datasets update handbook --name manual",
        "kb datasets update handbook --technique economy --wait",
        "kb datasets update handbook --model bge-m3 --provider vllm",
    )
)
@click.argument("name")
@click.option("--name", "new_name", metavar="NEW", help="1-40 characters.  [default: as it is]")
@click.option("--description", help="At most 400 characters.  [default: as it is]")
@click.option(
    "--technique", type=click.Choice(TECHNIQUES), help="How it is indexed.  [default: as it is]"
)
@click.option(
    "--model", metavar="MODEL", help="Embedding; see: kb models list.  [default: as it is]"
)
@click.option("--provider", metavar="PROVIDER", help="Of the model.  [default: as it is]")
@click.option("--wait", is_flag=True, help="Until the switch has ended.")
@target_options()
@click.pass_obj
def update(target: Target, /, name: str, *, wait: bool, **given: str | None) -> None:
    """Change the dataset NAME (or id).

    Another technique or model begins a switch: the dataset answers as before until all its texts
    are indexed anew. See: kb datasets switch
    """
    changes = {_KEYS[option]: value for option, value in given.items() if value is not None}
    if not changes:
        raise CliError("nothing to change; give one of --name --description --technique --model")
    with connect(target) as client:
        found = client.dataset(name)
        changed = client.update_dataset(found["id"], **changes)
        click.echo(f"changed dataset {changed['name']!r}")
        running = [s for s in client.switches("running") if s["dataset_id"] == found["id"]]
        if not running:
            return
        click.echo(_told(running[0]))
        if wait:
            _await_switch(client, changed)
        else:
            click.echo(f"it answers as before; look at it: kb datasets switch {found['name']!r}")


_KEYS = {
    "new_name": "name",
    "description": "description",
    "technique": "indexing_technique",
    "model": "embedding_model",
    "provider": "embedding_model_provider",
}
"""Options of `update` -> keys of the request."""


@datasets.command(
    epilog=examples(
        "kb datasets switch handbook",
        "kb datasets switch handbook --wait",
        "kb datasets switch handbook --cancel",
    )
)
@click.argument("name")
@click.option("--cancel", is_flag=True, help="Stop it; the dataset stays as it is.")
@click.option("--wait", is_flag=True, help="Until it has ended.")
@json_option
@target_options()
@click.pass_obj
def switch(target: Target, name: str, *, cancel: bool, wait: bool, as_json: bool) -> None:
    """Show how far the dataset NAME (or id) is on its way to another model or technique."""
    with connect(target) as client:
        found = client.dataset(name)
        shown = client.cancel_switch(found["id"]) if cancel else client.switch(found["id"])
        if wait and shown["status"] == "running":
            shown = _await_switch(client, found, quiet=as_json)
            if not as_json:
                return
    if as_json:
        print_json(shown)
    else:
        click.echo(_told(shown))


def _await_switch(client: Client, dataset: Json, *, quiet: bool = False) -> Json:
    """Wait until the switch has ended, and say how.

    Raises:
        CliError: it failed.
    """
    with click.progressbar(length=100, label="switching", file=sys.stderr, hidden=quiet) as bar:
        while (shown := client.switch(dataset["id"]))["status"] == "running":
            bar.update(_percent(shown) - bar.pos)
            time.sleep(0.3)
        bar.update((100 if shown["status"] == "completed" else _percent(shown)) - bar.pos)
    if shown["status"] == "failed":
        raise CliError(_told(shown))
    if not quiet:
        click.echo(_told(shown))
    return shown


def _percent(switch: Json) -> int:
    return int(100 * switch["done"] / switch["total"]) if switch["total"] else 0


def _told(switch: Json) -> str:
    """A switch in one line: where from, where to, how far, and what is wrong."""
    told = f"{switch['status']}: {_way(switch['from'])} -> {_way(switch['to'])}, "
    told += f"{switch['done']:,} of {count(switch['total'], 'text')}"
    if switch["retry_at"]:
        told += f"; tried again at {moment(switch['retry_at'])}"
    return told + (f" ({switch['error']})" if switch["error"] else "")


def _way(end: Json) -> str:
    model = end["embedding_model"]
    return f"{end['indexing_technique']} ({model})" if model else str(end["indexing_technique"])


def _indexed(dataset: Json, running: Json | None) -> str:
    technique = dataset["indexing_technique"] or "-"
    if running is None:
        return technique
    return f"{technique}, {_percent(running)}% to {_way(running['to'])}"


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
