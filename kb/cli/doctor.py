"""`kb doctor`: is everything where it should be?"""

from __future__ import annotations

from typing import Any

import click

from kb.cli.client import connect
from kb.cli.options import Target, examples, json_option, target_options
from kb.cli.output import count, print_json

_FINDINGS = {
    "missing": "points that the index lacks",
    "stale": "points with another text than the database",
    "extra": "points that nothing stands for",
    "lost_files": "lost files of documents",
    "orphan_files": "files that nothing stands for",
}
_BEYOND_REPAIR = "lost_files"
_SHOWN = 5


@click.command(epilog=examples("kb doctor", "kb doctor --repair", "kb doctor --json"))
@click.option(
    "--repair",
    is_flag=True,
    help="Heal what differs: index points are made anew from the database, orphans removed.",
)
@json_option
@target_options()
@click.pass_obj
def doctor(target: Target, repair: bool, as_json: bool) -> None:
    """Compare database, index and files.

    The exit code is 1 when something differs and was not repaired.
    """
    with connect(target) as client:
        report = client.doctor(repair=repair)
    if as_json:
        print_json(report)
    else:
        _print(report)
    left = report[_BEYOND_REPAIR] if repair else not report["healthy"]
    if left:
        raise click.exceptions.Exit(1)


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"compared {count(report['points'], 'point')} of {count(report['datasets'], 'dataset')}; "
        f"{count(report['pending_jobs'], 'job')} pending"
    )
    if report["healthy"]:
        click.echo("healthy")
        return
    for key, meaning in _FINDINGS.items():
        found = report[key]
        if not found:
            continue
        healed = report["repaired"] and key != _BEYOND_REPAIR
        click.echo(f"{len(found):,} {meaning}{', repaired' if healed else ''}")
        for item in found[:_SHOWN]:
            click.echo(f"  {item}")
        if found[_SHOWN:]:
            click.echo(f"  and {len(found) - _SHOWN:,} more")
    if report[_BEYOND_REPAIR]:
        click.echo("a lost file cannot be repaired: ingest the document again, or delete it")
    if not report["repaired"]:
        click.echo("heal it with: kb doctor --repair")
