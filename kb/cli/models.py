"""`kb models`: list, add, test, update, remove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kb.cli.client import connect
from kb.cli.options import CliError, Target, examples, json_option, target_options
from kb.cli.output import print_json, print_table, seconds

if TYPE_CHECKING:
    from kb.client import Client

TYPES = {"embedding": "text-embedding", "rerank": "rerank", "chat": "llm"}
"""Our names of the types -> those on the wire."""
KINDS = ("local", "openai", "tei", "cohere", "jina", "vllm")

_key_option = click.option(
    "--model-key",
    metavar="KEY",
    envvar="KB_MODEL_KEY",
    help="API key of the model's server; - asks for it.  [default: none]  [env: KB_MODEL_KEY]",
)
_options_option = click.option(
    "--option",
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="A further option, such as dimensions=512; may be repeated.  [default: none]",
)


@click.group(
    epilog=examples(
        "kb models list",
        "kb models add rerank local my-reranker --path models/ms-marco-MiniLM-L6-v2",
        "kb models add embedding openai text-embedding-3-small --model-key -",
        "kb models add embedding tei bge-m3 --server http://localhost:8080",
        "kb models test bge-m3",
        "kb models remove bge-m3 --yes",
    )
)
@target_options()
def models() -> None:
    """List, add, try out and remove embedding, rerank and chat models."""


@models.command("list", epilog=examples("kb models list", "kb models list --type rerank --json"))
@click.option("--type", "type_", type=click.Choice(list(TYPES)), help="Only these.  [default: all]")
@json_option
@target_options()
@click.pass_obj
def list_(target: Target, type_: str | None, as_json: bool) -> None:
    """List the models that are configured."""
    with connect(target, working=False) as client:
        found = client.models(TYPES[type_] if type_ else None)
    if as_json:
        print_json(found)
        return
    names = {wire: name for name, wire in TYPES.items()}
    print_table(
        ["model", "provider", "type", "kind", "where", ">dimension", "used by", "id"],
        [
            (
                m["model"],
                m["provider"],
                names[m["type"]],
                m["kind"],
                m["url"] or m["path"] or "-",
                m["dimension"] or "-",
                ", ".join(m["used_by"]) or "-",
                m["id"],
            )
            for m in found
        ],
    )


@models.command(
    epilog=examples(
        "kb models add rerank cohere rerank-v3.5 --model-key -",
        "kb models add chat openai llama3 --provider ollama --server http://localhost:11434/v1",
    )
)
@click.argument("type_", metavar="TYPE", type=click.Choice(list(TYPES)))
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("model")
@click.option("--provider", help="A name for where it comes from.  [default: KIND]")
@click.option("--server", metavar="URL", help="Its address.  [default: the kind's own service]")
@click.option(
    "--path",
    type=click.Path(path_type=Path),
    help="KIND local: its directory.  [default: none]",
)
@_key_option
@_options_option
@click.option("--test/--no-test", default=True, help="Try it out.  [default: test]")
@target_options()
@click.pass_obj
def add(
    target: Target,
    type_: str,
    kind: str,
    model: str,
    provider: str | None,
    server: str | None,
    path: Path | None,
    model_key: str | None,
    options: tuple[str, ...],
    test: bool,
) -> None:
    """Configure the model MODEL: TYPE is embedding, rerank or chat, KIND what its server speaks."""
    body = {
        "type": TYPES[type_],
        "kind": kind,
        "provider": provider or kind,
        "model": model,
        "url": server,
        "path": str(path.absolute()) if path and not target.url else path and str(path),
        "api_key": _key(model_key),
        "options": _options(options),
    }
    with connect(target, create=True, working=False) as client:
        made = client.add_model({k: v for k, v in body.items() if v is not None})
        click.echo(f"added model {made['model']!r} of provider {made['provider']!r} ({made['id']})")
        if test:
            _test(client, made["id"])


@models.command(epilog=examples("kb models test bge-m3", "kb models test settings --json"))
@click.argument("model")
@json_option
@target_options()
@click.pass_obj
def test(target: Target, model: str, as_json: bool) -> None:
    """Call the model MODEL (name or id; `settings`: that of the settings) for real."""
    with connect(target, working=False) as client:
        _test(client, _id(client, model), as_json=as_json)


@models.command(epilog=examples("kb models update bge-m3 --server http://other:8080"))
@click.argument("model")
@click.option("--server", metavar="URL", help="Its address.  [default: as it is]")
@click.option("--path", type=click.Path(path_type=Path), help="Its directory.  [default: as it is]")
@_key_option
@_options_option
@target_options()
@click.pass_obj
def update(
    target: Target,
    model: str,
    server: str | None,
    path: Path | None,
    model_key: str | None,
    options: tuple[str, ...],
) -> None:
    """Change the model MODEL (name or id); an option without a value gets its default."""
    body = {
        "url": server,
        "path": str(path) if path else None,
        "api_key": _key(model_key),
        "options": _options(options) or None,
    }
    with connect(target, working=False) as client:
        made = client.update_model(
            _id(client, model), {k: v for k, v in body.items() if v is not None}
        )
    click.echo(f"changed model {made['model']!r} of provider {made['provider']!r}")


@models.command(epilog=examples("kb models remove bge-m3", "kb models remove bge-m3 --yes"))
@click.argument("model")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@target_options()
@click.pass_obj
def remove(target: Target, model: str, yes: bool) -> None:
    """Remove the model MODEL (name or id); refused while datasets need it."""
    with connect(target, working=False) as client:
        found = _id(client, model)
        if not yes:
            click.confirm(f"Remove the model {model!r}?", abort=True)
        client.delete_model(found)
    click.echo(f"removed model {model!r}")


def _test(client: Client, model_id: str, *, as_json: bool = False) -> None:
    outcome = client.test_model(model_id)
    if as_json:
        print_json(outcome)
    if not outcome["ok"]:
        raise CliError(f"it does not work: {outcome['error']['message']}")
    if as_json:
        return
    gave = [
        f"{name} {outcome[name]!r}" for name in ("dimension", "scores", "reply") if name in outcome
    ]
    click.echo(f"it works: {', '.join(gave)}, after {seconds(outcome['latency_ms'] / 1000)}")


def _id(client: Client, name: str) -> str:
    """Raises: CliError: no model, or several, have this name or id."""
    known = client.models(None)
    found = [m for m in known if name in (m["id"], m["model"])]
    if len(found) != 1:
        listed = ", ".join(f"{m['model']} ({m['id']})" for m in found or known)
        what = "several models are named" if found else "no model is named"
        raise CliError(f"{what} {name!r}: {listed}")
    return str(found[0]["id"])


def _key(given: str | None) -> str | None:
    if given != "-":
        return given
    asked: str = click.prompt("API key of the model's server", hide_input=True)
    return asked


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    """Raises: CliError: one is not NAME=VALUE."""
    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise CliError(f"--option {text!r}: write NAME=VALUE")
        try:
            found[name] = json.loads(value) if value else None
        except ValueError:
            found[name] = value
    return found
