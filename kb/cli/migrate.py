"""`kb migrate`: copy an installation into another one, as when it outgrows its data directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kb.cli.client import configure_logging, load_settings
from kb.cli.options import CliError, Target, examples
from kb.cli.output import console, count

if TYPE_CHECKING:
    from collections.abc import Callable

    from kb.migrate import Verdict
    from kb.settings import Settings


@click.command(
    epilog=examples(
        "kb migrate --from ./kb-data --to .env",
        "docker compose run --rm -v ./kb-data:/old api migrate --from /old --to environment",
    )
)
@click.option(
    "--from",
    "source",
    required=True,
    metavar="DATA_DIR",
    type=click.Path(exists=True, path_type=Path),
    help="The data directory of the old installation, or the file with its settings.",
)
@click.option(
    "--to",
    "target",
    required=True,
    metavar="SETTINGS",
    help="A file with the new installation's settings, such as .env; `environment` for those of "
    "this process; or a data directory.",
)
def migrate(source: Path, target: str) -> None:
    """Copy all of an installation into an empty one: rows, keys, files, index.

    Nothing may run on either. The source is not changed. A move that was broken off goes on when
    the same command is given again. At the end both are compared.
    """
    from kb.errors import KBError
    from kb.migrate import migrate as move

    configure_logging({})
    try:
        with _progress() as tell:
            verdict = move(_settings(source), _target(target), tell)
    except KBError as exc:
        raise CliError(exc.message) from exc
    _print(verdict)
    if not verdict.complete:
        raise click.exceptions.Exit(1)


def _target(text: str) -> Settings:
    if text == "environment":
        return load_settings(Target())
    path = Path(text)
    if not path.exists():
        raise CliError(
            f"there is no file {text!r} with settings; give one, `environment`, or an existing "
            "directory for a new data directory"
        )
    return _settings(path)


def _settings(path: Path) -> Settings:
    from pydantic import ValidationError

    from kb.settings import settings_of

    try:
        return settings_of(path)
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}"
            for e in exc.errors(include_url=False, include_input=False)
        )
        raise CliError(f"{path}: {problems}") from exc


class _progress:
    """A bar on a terminal, a line for each step elsewhere."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        if not sys.stderr.isatty():
            self._bar, self._step = None, ""
            return self._line
        from rich.progress import Progress

        self._bar = Progress(console=console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("", total=None)
        return self._draw

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _draw(self, step: str, done: int, total: int) -> None:
        assert self._bar is not None
        self._bar.update(self._task, description=step, completed=done, total=total or None)

    def _line(self, step: str, done: int, total: int) -> None:
        if step != self._step:
            self._step = step
            click.echo(step, err=True)


def _print(verdict: Verdict) -> None:
    rows = sum(verdict.rows.values())
    click.echo(
        f"moved {count(rows, 'row')} of {count(len(verdict.rows), 'table')}, "
        f"{count(verdict.files, 'file')}, {count(verdict.points, 'point')}; "
        f"{count(verdict.waiting, 'document')} waiting"
    )
    if verdict.complete:
        click.echo("verified: rows, checksums, files and points are those of the source")
        return
    for difference in verdict.differences:
        click.echo(f"  {difference}")
    click.echo("the move is not complete; give the same command again, or see the manual")
