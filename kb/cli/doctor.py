"""`kb doctor`: is everything where it should be?"""

from __future__ import annotations

from typing import Any

import click

from kb.cli.client import connect
from kb.cli.options import Target, examples, json_option, target_options
from kb.cli.output import count, print_json, print_table

_MEANINGS = {
    "missing": "points that the index lacks",
    "stale": "points of another text than the database's",
    "wrong": "points with a wrong vector, terms, ids or version",
    "extra": "points that nothing stands for",
    "counters": "rows with wrong counts, flags, positions or hashes",
    "stuck_documents": "documents that no worker would ever take",
    "stuck_jobs": "jobs put off beyond reason",
    "lost_files": "lost files of documents",
    "damaged_files": "files with other bytes than were uploaded",
    "orphan_files": "files that nothing stands for",
    "unreadable_secrets": "secrets sealed with another key",
}
_BAD_FILES = ("lost_files", "damaged_files")
_BEYOND_REPAIR = (*_BAD_FILES, "unreadable_secrets")
_SHOWN = 3


@click.command(
    epilog=examples(
        "kb doctor", "kb doctor --repair", "kb doctor --quick", "kb doctor --quick --json"
    )
)
@click.option(
    "--repair",
    is_flag=True,
    help="Heal what differs: points are made anew from the database, counters recomputed, stuck "
    "documents queued again, orphans removed.",
)
@click.option(
    "--deep/--quick",
    default=True,
    help="Quick compares ids, versions, hashes and counters, and looks whether files are there. "
    "Deep, which takes about three times as long, also compares every vector and term, every "
    "text with its row, and every file's bytes.  [default: deep]",
)
@json_option
@target_options()
@click.pass_obj
def doctor(target: Target, repair: bool, deep: bool, as_json: bool) -> None:
    """Compare database, index and files.

    The exit code is 1 when something differs and was not repaired.
    """
    with connect(target) as client:
        report = client.doctor(repair=repair, deep=deep)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if any(not _healed(report, kind) for kind in report["findings"]):
        raise click.exceptions.Exit(1)


def _healed(report: dict[str, Any], kind: str) -> bool:
    return bool(report["repaired"]) and kind not in _BEYOND_REPAIR


def _print(report: dict[str, Any]) -> None:
    compared = f"{count(report['points'], 'point')} of {count(report['datasets'], 'dataset')}"
    depth = "" if report["deep"] else ", heads only"
    click.echo(f"compared {compared}{depth}; {count(report['pending_jobs'], 'job')} pending")
    if unchecked := report["unchecked_vectors"]:
        click.echo(f"{count(unchecked, 'vector')} not compared: not in the embedding cache")
    if report["healthy"]:
        click.echo("healthy")
        return
    print_table(
        [">count", "what", "state", "first"],
        [
            (
                f"{found['count']:,}",
                _MEANINGS[kind],
                "repaired" if _healed(report, kind) else "found",
                ", ".join(found["first"][:_SHOWN]) + (" ..." if found["count"] > _SHOWN else ""),
            )
            for kind, found in report["findings"].items()
        ],
    )
    if any(kind in report["findings"] for kind in _BAD_FILES):
        click.echo(
            "a lost or damaged file cannot be repaired: ingest the document again, bring the file "
            "back from a backup, or delete the document"
        )
    if not report["repaired"]:
        click.echo(f"heal it with: kb doctor{'' if report['deep'] else ' --quick'} --repair")
