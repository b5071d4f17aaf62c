"""The command `kb`; a subcommand is imported when it is asked for, its libraries when it runs."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click

from kb.cli.options import examples, target_options

COMMANDS = (
    "serve",
    "ingest",
    "search",
    "datasets",
    "documents",
    "metadata",
    "segments",
    "models",
    "external",
    "queries",
    "status",
    "doctor",
    "migrate",
    "worker",
    "beat",
)
"""Each is an attribute of the module of its name."""


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, which it imports by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"kb.cli.{cmd_name}"), cmd_name)
        return command


def _print_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    try:
        click.echo(f"kb {version('kb-engine')}")
    except PackageNotFoundError:
        click.echo("kb, not installed as a package")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "kb ingest docs/ --dataset handbook",
        'kb search "How long is the warranty?" --dataset handbook',
        "kb serve",
        "kb --url http://127.0.0.1:8000 documents list --dataset handbook",
    ),
)
@target_options(environment=True)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def kb() -> None:
    """Turn documents into knowledge that can be searched.

    Without --url a command works on the data directory itself, so it needs no server. With --url
    it talks to a running `kb serve`; only one process at a time can have a data directory.
    """


def main() -> None:
    """Run the command line; errors are one line on stderr and exit code 1 (usage: 2)."""
    kb(prog_name="kb")


if __name__ == "__main__":
    main()
