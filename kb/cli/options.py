"""What several commands share: which knowledge base they speak to, and how they say no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import click

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


@dataclass(frozen=True)
class Target:
    """Which knowledge base a command speaks to; None: not said on the command line."""

    data_dir: Path | None = None
    url: str | None = None
    api_key: str | None = None


class CliError(click.ClickException):
    """What the user reads: one line with the remedy; exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__("; ".join(line for line in message.splitlines() if line.strip()))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr."""
        click.echo(f"error: {self.message}", err=True, file=file)


def target_options(
    *, environment: bool = False, network: bool = True
) -> Callable[[AnyCommand], AnyCommand]:
    """Add --data-dir, --url and --api-key; what they say goes into `ctx.obj`, a Target.

    They may stand before or after the subcommand; the later one counts.

    Args:
        environment: also read KB_DATA_DIR, KB_URL and KB_API_KEY.
        network: False leaves --url and --api-key out.
    """

    def remember(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        ctx.obj = ctx.obj or Target()
        if value is not None:
            assert option.name is not None
            ctx.obj = replace(ctx.obj, **{option.name: value})

    def add(command: AnyCommand) -> AnyCommand:
        for flag, kind, metavar, text in reversed(_TARGET_OPTIONS if network else _LOCAL_OPTIONS):
            variable = "KB_" + flag.strip("-").replace("-", "_").upper()
            command = click.option(
                flag,
                type=kind,
                metavar=metavar,
                envvar=variable if environment else None,
                help=f"{text}  [env: {variable}]",
                callback=remember,
                expose_value=False,
                is_eager=True,
            )(command)
        return command

    return add


_LOCAL_OPTIONS: list[tuple[str, Any, str, str]] = [
    (
        "--data-dir",
        click.Path(file_okay=False, path_type=Path),
        "DIR",
        "Where everything is kept.  [default: ./kb-data]",
    ),
]
_TARGET_OPTIONS = [
    *_LOCAL_OPTIONS,
    ("--url", str, "URL", "A running server to use, instead of a data directory."),
    ("--api-key", str, "KEY", "The key for --url: what the server printed at its first start."),
]

dataset_option = click.option(
    "--dataset", "-d", required=True, metavar="NAME", help="Name or id of the dataset."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the server's answer as JSON."
)


def examples(*lines: str) -> str:
    """The end of a help page."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
