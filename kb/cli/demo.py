"""`python -m kb.cli.demo`: the example documents, from files to answers, with times.

Works in `.demo-data` of the working directory, which is made anew and kept for looking around.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from kb.cli.client import connect
from kb.cli.ingest import ingest_files
from kb.cli.naming import find_sources
from kb.cli.options import CliError, Target
from kb.cli.output import console, seconds
from kb.cli.search import print_answer

if TYPE_CHECKING:
    from kb.client import Method

DATA_DIR = Path(".demo-data")
EXAMPLES = Path(__file__).parents[2] / "examples" / "tarnfell"
DATASET = "tarnfell"
QUESTIONS = (
    ("hybrid", "Why did the pressure readings drift on the mountain ridge?"),
    ("hybrid", "Who pays the parcel when I return a station?"),
    ("vector", "Is it allowed to do my job from my kitchen table?"),
    ("vector", "animals disturbing the wind sensor"),
    ("fulltext", "E42"),
    ("fulltext", "tx_interval_s"),
    ("hybrid", "price of a rain gauge"),
    ("hybrid", "保修期从什么时候开始计算？"),
)
"""(method, question)"""
_TOP_K = 2


@click.command()
@click.option(
    "--examples",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=EXAMPLES,
    help="Folder to ingest.  [default: the project's examples]",
)
def demo(folder: Path) -> None:
    """Ingest the example documents and ask them some questions, with times."""
    from pipelines.nodes.extract import SUPPORTED_EXTENSIONS

    began = time.monotonic()
    if DATA_DIR.exists():
        _remove(DATA_DIR)
    sources = find_sources([str(folder)], SUPPORTED_EXTENSIONS).sources
    with connect(Target(DATA_DIR), create=True) as client:
        _took("open an empty data directory", time.monotonic() - began)
        _title(f"Ingesting {len(sources)} documents of {_shown(folder)}")
        started = time.monotonic()
        ingest_files(client, DATASET, sources, {})
        _took("export the embedding model, once, and ingest", time.monotonic() - started)
        for method, question in QUESTIONS:
            _title(f"{question}  [{method}]")
            started = time.monotonic()
            answer = client.search(DATASET, question, method=cast("Method", method), top_k=_TOP_K)
            search_s = time.monotonic() - started
            print_answer(answer, question)
            _took("search", search_s)
    _title(f"Done in {seconds(time.monotonic() - began)}. Go on with")
    click.echo(
        f"  kb --data-dir {DATA_DIR} search 'your question' --dataset {DATASET} --explain\n"
        f"  kb serve --data-dir {DATA_DIR}"
    )


def _took(step: str, took_s: float) -> None:
    console().print(f"    [dim]{step}: {seconds(took_s)}[/dim]", soft_wrap=True)


def _title(text: str) -> None:
    from rich.text import Text

    console().print(Text(f"\n{text}", style="bold"), soft_wrap=True)


def _shown(folder: Path) -> Path:
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _remove(data_dir: Path) -> None:
    from kb.adapters.data_directory import DataDirectory
    from kb.errors import DataDirectoryInUse

    try:
        DataDirectory(data_dir).close()
    except DataDirectoryInUse as exc:
        raise CliError(exc.message) from exc
    shutil.rmtree(data_dir)


if __name__ == "__main__":
    demo()
