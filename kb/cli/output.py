"""What commands print: tables, times, and where a passage stands; plain when nobody looks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_COLUMNS = 1000


def console(*, stderr: bool = False) -> Console:
    """Where to print: as wide as the terminal; without one, lines are not cut."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    wide = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(file=stream, width=_PIPE_COLUMNS if wide else None, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """As one document, readable."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns under their names; on a terminal too narrow for them, cells are wrapped.

    A column whose name starts with `>` is aligned right. Without a terminal: tab-separated.
    """
    names = [name.lstrip(">") for name in columns]
    if not sys.stdout.isatty():
        for row in [names, *rows]:
            click.echo("\t".join(" ".join(str(cell).split()) for cell in row))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name, label in zip(names, columns, strict=True):
        table.add_column(
            name, justify="right" if label.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console().print(table)


def moment(epoch_s: float | None) -> str:
    """A time of the wire in the local zone."""
    if epoch_s is None:
        return "-"
    return datetime.fromtimestamp(epoch_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds(value: float | None) -> str:
    """A duration, to a precision that a person uses."""
    if value is None:
        return "-"
    if value < 0.1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def count(number: int, noun: str) -> str:
    """`1 segment`, `2 segments`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def place(source: dict[str, Any]) -> str:
    """Where a passage stands, as far as the format knows: page, sheet, rows, heading path."""
    parts = []
    if page := source.get("page"):
        last = source.get("page_end") or page
        parts.append(f"page {page}" if last == page else f"pages {page}-{last}")
    if sheet := source.get("sheet"):
        parts.append(f"sheet {sheet}")
    if rows := source.get("rows"):
        first, last = rows
        parts.append(f"row {first}" if first == last else f"rows {first}-{last}")
    if headings := source.get("headings"):
        parts.append(" › ".join(headings))
    return " · ".join(parts)
