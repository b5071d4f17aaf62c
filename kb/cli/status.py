"""`kb status`: queues, workers, throughput, and when it will be done."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from kb.cli.client import connect
from kb.cli.options import Target, examples, json_option, target_options
from kb.cli.output import count, print_json, print_table, seconds

_EVERY_S = 2.0


@click.command(epilog=examples("kb status", "kb status --watch", "kb status --json"))
@click.option(
    "--watch",
    type=click.FloatRange(0.2, 3600),
    is_flag=False,
    flag_value=_EVERY_S,
    metavar="SECONDS",
    help=f"Show it again every so many seconds ({_EVERY_S:g} if none are given), until Ctrl-C.  "
    "[default: once]",
)
@json_option
@target_options()
@click.pass_obj
def status(target: Target, watch: float | None, as_json: bool) -> None:
    """Show what waits, who works on what, how fast it goes, and when it will be done.

    Only looks: without --url nothing is worked on meanwhile.
    """
    with connect(target, working=False) as client:
        while True:
            found = client.status()
            if watch is not None and sys.stdout.isatty():
                click.clear()
            if as_json:
                print_json(found)
            else:
                show(found)
            if watch is None:
                return
            sys.stdout.flush()
            time.sleep(watch)


def show(found: dict[str, Any]) -> None:
    """Print it for a person."""
    print_table(
        ["queue", ">waiting", ">in work", ">retrying", ">stalled", ">paused", ">oldest"],
        [
            (
                name,
                *(queue[s] for s in ("waiting", "in_work", "retrying", "stalled", "paused")),
                seconds(queue["oldest_waiting_s"]),
            )
            for name, queue in found["queues"].items()
        ],
    )
    if found["errors"]:
        codes = ", ".join(f"{code} {number:,}" for code, number in found["errors"].items())
        click.echo(f"{'in error:':<12} {codes}")
    if found["workers"]:
        click.echo()
        print_table(["worker", "works on", "stage", ">since", ">attempt"], _workers(found))
        click.echo()
    for label, value in _facts(found):
        click.echo(f"{label + ':':<12} {value}")


def _workers(found: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            w["owner"] if w["process"] is None else f"{w['host']} {w['process']}/{w['thread']}",
            f"job {w['job']}" if w["job"] else _document(w),
            w["stage"] or "-",
            seconds(w["working_s"]),
            w["attempt"],
        )
        for w in found["workers"]
    ]


def _document(worker: dict[str, Any]) -> str:
    if worker["document"] is None:
        return "a document of another workspace"
    return f"{worker['dataset']}: {worker['document']}"


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    rate = found["throughput"]
    facts = [
        (
            "throughput",
            f"{rate['documents_per_minute']:,.1f} documents, {rate['segments_per_minute']:,.1f} "
            f"segments per minute, over {seconds(rate['seconds'])}",
        )
    ]
    if rate["failed_attempts"]:
        facts.append(("failed", count(rate["failed_attempts"], "attempt")))
    if found["stages"]:
        slowest = found["stages"][0]
        facts.append(("slowest", f"{slowest['kind']}, {seconds(slowest['mean_s'])} a document"))
    if found["jobs"]["pending"]:
        kinds = (f"{kind} {sum(s.values()):,}" for kind, s in found["jobs"]["by_kind"].items())
        facts.append(("jobs", ", ".join(kinds)))
    facts.append(("left", _left(found)))
    return facts


def _left(found: dict[str, Any]) -> str:
    left = count(found["documents_left"], "document")
    if not found["documents_left"]:
        return "nothing"
    if found["seconds_left"] is None:
        return f"{left}; nothing was completed within the last minutes"
    return f"{left}, about {seconds(found['seconds_left'])} at this rate"
