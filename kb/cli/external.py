"""`kb external`: add, list, remove, probe, bind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kb.cli.client import connect
from kb.cli.options import CliError, Target, dataset_option, examples, json_option, target_options
from kb.cli.output import print_json, print_table

if TYPE_CHECKING:
    from kb.client import Client


@click.group(
    epilog=examples(
        "kb external add archive https://knowledge.example.org/api --service-key -",
        "kb external bind archive KB-42 --dataset archive",
        "kb external probe archive",
        "kb external remove archive --yes",
    )
)
@target_options()
def external() -> None:
    """Keep services that hold knowledge, and bind datasets to them."""


@external.command(
    epilog=examples("kb external add archive https://knowledge.example.org/api --service-key -")
)
@click.argument("name")
@click.argument("endpoint")
@click.option(
    "--service-key",
    metavar="KEY",
    envvar="KB_SERVICE_KEY",
    default="-",
    help="API key of the service; - asks for it.  [default: -]  [env: KB_SERVICE_KEY]",
)
@click.option("--description", default="", help="For people.  [default: none]")
@target_options()
@click.pass_obj
def add(target: Target, name: str, endpoint: str, service_key: str, description: str) -> None:
    """Try out the service at ENDPOINT and keep it as NAME; /retrieval is put behind ENDPOINT."""
    if service_key == "-":
        service_key = click.prompt("API key of the service", hide_input=True)
    with connect(target, create=True, working=False) as client:
        made = client.add_external_api(name, endpoint, service_key, description=description)
    click.echo(f"added service {made['name']!r} ({made['id']})")


@external.command("list", epilog=examples("kb external list", "kb external list --json"))
@json_option
@target_options()
@click.pass_obj
def list_(target: Target, as_json: bool) -> None:
    """List the services that are kept, newest first."""
    with connect(target, working=False) as client:
        found = client.external_apis()
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no services yet; see: kb external add -h")
    else:
        print_table(
            ["service", "endpoint", "datasets", "id"],
            [
                (
                    api["name"],
                    api["settings"]["endpoint"],
                    ", ".join(bound["name"] for bound in api["dataset_bindings"]) or "-",
                    api["id"],
                )
                for api in found
            ],
        )


@external.command(epilog=examples("kb external probe archive"))
@click.argument("service")
@target_options()
@click.pass_obj
def probe(target: Target, service: str) -> None:
    """Try the service SERVICE (name or id) out as it is kept."""
    with connect(target, working=False) as client:
        status = client.probe_external_api(_id(client, service))["status"]
    click.echo(f"it answers, with status {status}")


@external.command(epilog=examples("kb external bind archive KB-42 --dataset archive"))
@click.argument("service")
@click.argument("knowledge_id")
@dataset_option
@target_options()
@click.pass_obj
def bind(target: Target, service: str, knowledge_id: str, dataset: str) -> None:
    """Create a dataset that stands for KNOWLEDGE_ID of the service SERVICE (name or id)."""
    with connect(target, working=False) as client:
        made = client.add_external_dataset(dataset, _id(client, service), knowledge_id)
    click.echo(f"created dataset {made['name']!r} ({made['id']})")


@external.command(epilog=examples("kb external remove archive", "kb external remove archive --yes"))
@click.argument("service")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@target_options()
@click.pass_obj
def remove(target: Target, service: str, yes: bool) -> None:
    """Forget the service SERVICE (name or id); refused while datasets are bound to it."""
    with connect(target, working=False) as client:
        found = _id(client, service)
        if not yes:
            click.confirm(f"Remove the service {service!r}?", abort=True)
        client.delete_external_api(found)
    click.echo(f"removed service {service!r}")


def _id(client: Client, name: str) -> str:
    """Raises: CliError: no service, or several, have this name or id."""
    known = client.external_apis()
    found = [api for api in known if name in (api["id"], api["name"])]
    if len(found) != 1:
        listed = ", ".join(f"{api['name']} ({api['id']})" for api in found or known) or "none"
        what = "several services are named" if found else "no service is named"
        raise CliError(f"{what} {name!r}; there is: {listed}")
    return str(found[0]["id"])
